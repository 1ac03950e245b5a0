"""Where memory is exhausted the run goes on with smaller micro-batches, and ends where the smaller ones would have."""

import json
from pathlib import Path

import pytest
import torch
from rank_cases import Run
from tiny_runs import lines
from toy import make_tiny_model, toy_rows, write_csv

from lit_tune.__main__ import main

ROWS, STEPS = 44, 12
"""Two epochs of five windows of 8 rows and one of 4."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    make_tiny_model(folder / "model", dropout=0.0)
    write_csv(folder / "train.csv", toy_rows(ROWS, seed=3))
    write_csv(folder / "val.csv", toy_rows(10, seed=4))
    return folder


def command(files: Path, run: Path, fault: dict | None = None, **keys) -> list[str]:
    settings = {
        "run_dir": run,
        "data.train": files / "train.csv",
        "data.val": files / "val.csv",
        "data.train_batch_size": 8,
        "data.auto_batch": "true",
        "model.model_name_or_path": files / "model",
        "trainer.accelerator": "cpu",
        "trainer.precision": "64-true",  # Adam would make steps of the rounding errors of gradients that are 0
        "trainer.max_epochs": 2,
        "trainer.log_every_n_steps": 1,
        "overfit.enabled": "false",
        "optimizer.lr": 0.01,
        "logger": "none",
        "task.init_args.loss": json.dumps({"class_path": "faulty.FaultyLoss", "init_args": fault or {"calls": []}}),
        **{key.replace("__", "."): value for key, value in keys.items()},
    }
    return ["fit", "--allow-import", "faulty", *(str(x) for key, v in settings.items() for x in (f"--{key}", v))]


def fit(files: Path, run: Path, fault: dict | None = None, **keys) -> int:
    return main(command(files, run, fault, **keys))


def manifest(run: Path) -> dict:
    return json.loads((run / "manifest.json").read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").glob("last-*.ckpt"))
    return torch.load(newest, weights_only=True)["state_dict"]


def numbers(run: Path) -> list[dict[str, float]]:
    """What was logged, but for times, and epochs counted in micro-batches; -1 for what is undefined."""
    logged = [{k: v for k, v in x.items() if k not in ("time", "epoch")} for x in lines(run / "metrics.jsonl")]
    return [{k: -1.0 if v is None else v for k, v in x.items() if not k.startswith("perf/")} for x in logged]


def same_run(run: Path, other: Path) -> None:
    """The same numbers at the same steps, and the same weights at the end; nothing twice, nothing left out."""
    for a, b in zip(numbers(run), numbers(other), strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9)
    for (name, a), b in zip(weights(run).items(), weights(other).values(), strict=True):
        assert float((a - b).abs().max()) < 1e-6, name


@pytest.fixture(scope="module")
def smaller(files, tmp_path_factory):
    """The run that has had smaller micro-batches from the start."""
    run = tmp_path_factory.mktemp("smaller") / "run"
    assert fit(files, run, data__train_batch_size=4, trainer__accumulate_grad_batches=2) == 0
    return run


@pytest.mark.parametrize(
    ("call", "every"),
    [
        pytest.param(0, 3, id="the first"),
        pytest.param(4, 3, id="before a short window", marks=pytest.mark.slow),
        pytest.param(6, 4, id="the first of an epoch", marks=pytest.mark.slow),
        pytest.param(8, "null", id="within an epoch", marks=pytest.mark.slow),
        pytest.param(9, 3, id="just after a save", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_halves_its_micro_batch_ends_like_one_that_started_with_it(files, smaller, tmp_path, call, every):
    run = tmp_path / "run"
    assert fit(files, run, {"calls": [call], "fault": "memory", "above_rows": 4}, checkpoint__every_n_steps=every) == 0
    found = manifest(run)
    assert found["status"] == "complete"
    assert found["decisions"] == {"train_batch_size": 4, "accumulate_grad_batches": 2, "eval_batch_size": 64}
    assert found["steps"] == STEPS
    same_run(run, smaller)


ALWAYS = {"calls": list(range(99)), "fault": "memory"}


@pytest.mark.slow
def test_what_was_found_is_used_when_the_run_goes_on(files, tmp_path, capsys):
    run, fault = tmp_path / "run", {**ALWAYS, "above_rows": 4}
    assert fit(files, run, fault) == 0
    assert capsys.readouterr().err.count("Trying again with less") == 1
    assert fit(files, run, fault, trainer__max_epochs=3) == 0
    assert "Trying again" not in capsys.readouterr().err
    assert manifest(run)["steps"] == STEPS // 2 * 3


@pytest.mark.slow
def test_a_validation_that_needs_too_much_is_cut_smaller_too(files, tmp_path):
    run = tmp_path / "run"
    fault = {**ALWAYS, "above_rows": 4, "while_training": False}
    assert fit(files, run, fault, data__eval_batch_size=9) == 0
    found = manifest(run)
    assert found["decisions"] == {"train_batch_size": 8, "accumulate_grad_batches": 1, "eval_batch_size": 4}
    assert found["steps"] == STEPS
    assert [x["step"] for x in lines(run / "metrics.jsonl") if "val/loss" in x] == [6, 12]


@pytest.mark.slow
def test_a_single_row_that_does_not_fit_is_exit_8(files, tmp_path, capsys):
    run = tmp_path / "run"
    assert fit(files, run, ALWAYS) == 8
    said = capsys.readouterr().err
    assert [f"a batch of {n} x " in said for n in (8, 4, 2, 1)] == [True] * 4
    assert manifest(run)["status"] == "failed"


def test_without_auto_batch_it_is_exit_8_with_shape_peak_and_settings_to_change(files, tmp_path, capsys):
    run = tmp_path / "run"
    fault = {"calls": [8], "fault": "memory in backward"}
    keys = {"data__train_batch_size": 4, "trainer__accumulate_grad_batches": 3, "checkpoint__every_n_steps": 1}
    assert fit(files, run, fault, data__auto_batch="false", **keys, model__gradient_checkpointing="true") == 8
    said = " ".join(capsys.readouterr().err.split("data.train_batch_size: out of memory")[1].split())
    assert said.startswith("in training: a batch of 4 x ")
    assert " GB of this process Fix: data.train_batch_size: 2 with trainer.accumulate_grad_batches: 6 " in said
    assert said.endswith(", or model.freeze: backbone")  # what is in use already is not proposed
    assert [p.name for p in (run / "checkpoints").glob("last-*")] == ["last-0000002.ckpt"]


@pytest.mark.ddp
@pytest.mark.parametrize("fault", ["memory in backward", pytest.param("memory", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_two_ranks_go_on_together_when_one_is_out_of_memory(files, smaller, tmp_path, fault):
    settings = {"trainer__devices": 2, "data__train_batch_size": 4, "checkpoint__every_n_steps": 4}
    broken = {"calls": [8], "fault": fault, "above_rows": 2, "rank": 1}
    run = Run(command(files, tmp_path / "run", broken, **settings), tmp_path)
    try:
        assert run.code() == 0, run.output()
    finally:
        run.kill()
    assert run.output().count("Trying again with less, from step 8") == 1
    found = manifest(tmp_path / "run")
    assert found["decisions"] == {"train_batch_size": 2, "accumulate_grad_batches": 2, "eval_batch_size": 64}
    same_run(tmp_path / "run", smaller)
