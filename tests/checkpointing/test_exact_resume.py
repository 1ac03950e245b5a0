"""A run that goes on from any of its checkpoints equals the one that was never interrupted, bit by bit."""

import json

import pytest
from checkpointing.resume_matrix import SaveBeforeValidation, check, fit
from toy import make_tiny_model, toy_rows, write_jsonl

STREAM = [
    *("--data.streaming", "true", "--trainer.max_steps", "13", "--eval_every_steps", "4"),
    *("--task.init_args.label_names", '["bad","fine","good"]'),
]
CASES = {
    "validation per epoch": [],
    "accumulation 3": ["--trainer.accumulate_grad_batches", "3"],
    "validation every 2 steps": ["--eval_every_steps", "2"],
    "validation every 2 steps, accumulation 3": [
        *("--eval_every_steps", "2", "--trainer.accumulate_grad_batches", "3"),
        *("--trainer.log_every_n_steps", "3"),
    ],
    "two workers": ["--data.num_workers", "2"],
    "bf16": ["--trainer.precision", "bf16-mixed"],
    "two ranks": ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork", "--data.train_batch_size", "2"],
    "jsonl stream": [*STREAM, "--trainer.accumulate_grad_batches", "3"],
    "jsonl stream, two workers": [*STREAM, "--data.num_workers", "2"],
}
FAST = ["accumulation 3", "validation every 2 steps, accumulation 3"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> list[str]:
    """29 ragged rows in batches of 4, with dropout: 8 batches an epoch, the last one of 1 row; 2 epochs."""
    folder = tmp_path_factory.mktemp("resume")
    model = make_tiny_model(folder / "model", dropout=0.3)
    train, val = write_jsonl(folder / "train.jsonl", toy_rows(29)), write_jsonl(folder / "val.jsonl", toy_rows(9, 1))
    options = {
        "model.model_name_or_path": model,
        "data.train": train,
        "data.val": val,
        "data.train_batch_size": 4,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "optimizer.lr": 0.01,
        "early_stopping.patience": 50,
        "logger": "none",
        "checkpoint.every_n_steps": 1,
        "checkpoint.keep_last": -1,
        "checkpoint.keep_best": -1,
    }
    return [text for key, value in options.items() for text in (f"--{key}", str(value))]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in CASES])
@pytest.mark.parametrize("due", [False, True], ids=["after validation", "validation due"])
def test_every_step(name, due, settings, tmp_path):
    options = [*settings, *CASES[name]]
    callbacks = [SaveBeforeValidation()] if due else []
    full = fit([*options, "--run_dir", str(tmp_path / "full")], *callbacks)
    steps = sorted({c["step"] for c in full.read()["checkpoints"]})
    steps = steps[:-1] if due else steps  # the last one is saved again, with its validation, by the run that goes on
    found = {step: check(full, step, tmp_path / f"at{step}", options, *callbacks) for step in steps}
    assert [f"step {s}: {line}" for s, lines in found.items() for line in lines] == []
    assert json.loads((full.path / "rows.rank0.json").read_text())
