"""A run that goes on from any of its checkpoints equals the one that was never interrupted, bit by bit.

Compared are weights, optimizer, schedule, loop counters, the state of every callback, metrics.jsonl without the
clock, the best checkpoint, and the rows of every step on every rank.
"""

import pytest
from checkpointing.resume_matrix import EVERY_STEP, SaveBeforeValidation, check, fit, logged, rows_seen, stopped_at
from datasets import Dataset
from tiny_runs import flags
from toy import make_tiny_model, toy_rows, write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")  # what is frozen
STREAM = [
    *("--data.streaming", "true", "--trainer.max_steps", "13", "--eval_every_steps", "4"),
    *("--task.init_args.label_names", '["bad","fine","good"]'),
]
RANKS = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork", "--data.train_batch_size", "2"]
UNFREEZE = [
    *("--model.freeze", "backbone", "--lr_schedule.name", "cosine", "--eval_every_steps", "3"),
    "--model.unfreeze",
    '[{"at_step": 3, "layers": "top 1", "lr": 0.02, "warmup_steps": 3}, {"at_epoch": 1, "patterns": ["layer.0"]},'
    ' {"at_step": 11, "layers": "all"}]',
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
    "two workers, accumulation 3": ["--data.num_workers", "2", "--trainer.accumulate_grad_batches", "3"],
    "bf16": ["--trainer.precision", "bf16-mixed"],
    "two ranks": RANKS,
    "two ranks, accumulation 3, bf16": [
        *(*RANKS, "--trainer.accumulate_grad_batches", "3"),
        *("--trainer.precision", "bf16-mixed", "--eval_every_steps", "2"),
    ],
    "jsonl stream": [*STREAM, "--trainer.accumulate_grad_batches", "3"],
    "jsonl stream, two workers": [*STREAM, "--data.num_workers", "2"],
    "arrow stream": [*STREAM, "--data.train", "{folder}/train.arrow"],
    "parquet stream": [*STREAM, "--data.train", "{folder}/train.parquet"],
    "parquet stream, two ranks": [*STREAM, *RANKS, "--data.train", "{folder}/train.parquet"],
    "plateau schedule": [
        *("--lr_schedule.name", "ReduceLROnPlateau", "--lr_schedule.init_args", '{"patience": 0, "factor": 0.5}'),
        *("--lr_schedule.monitor", "val/loss", "--lr_schedule.warmup", "0", "--eval_every_steps", "2"),
    ],
    "a schedule by epochs": [
        *("--lr_schedule.name", "StepLR", "--lr_schedule.init_args", '{"step_size": 1, "gamma": 0.5}'),
        *("--lr_schedule.interval", "epoch", "--lr_schedule.warmup", "0"),
    ],
    "no validation": ["--data.val", "null", "--data.val_fraction", "0", "--early_stopping.patience", "null"],
    "early stopping": [
        *("--early_stopping.patience", "2", "--early_stopping.monitor", "val/loss"),
        *("--eval_every_steps", "2", "--optimizer.lr", "0.3"),
    ],
    "a part of the batches": ["--trainer.limit_train_batches", "5"],
    "added tokens": ["--model.add_tokens", '["mud rock", "longest"]', "--model.add_special_tokens", '["<e1>"]'],
    "added tokens with LoRA": ["--model.add_tokens", '["mud rock"]', "--model.adapter", "lora"],
    "unfreezing": UNFREEZE,
    "unfreezing, two ranks, accumulation 3": [*UNFREEZE, *RANKS, "--trainer.accumulate_grad_batches", "3"],
    "gradual unfreezing, two workers": [
        *("--model.freeze", "backbone", "--model.unfreeze", '{"every_steps": 4}', "--data.num_workers", "2"),
        *("--optimizer.layer_lr_decay", "0.8"),
    ],
    "frozen backbone, accumulation 3": ["--model.freeze", "backbone", "--trainer.accumulate_grad_batches", "3"],
    "frozen backbone, two ranks": ["--model.freeze", "backbone", *RANKS],
    "max_steps inside an epoch": ["--trainer.max_steps", "11", "--trainer.max_epochs", "-1"],
}
FEW = {  # in every `make test`: the end of an epoch, its last step but one, and one inside
    "validation every 2 steps, accumulation 3": ([2, 3, 4], True),
    "jsonl stream": ([3], False),
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> list[str]:
    """29 ragged rows in batches of 4, with dropout: 8 batches an epoch, the last one of 1 row; 2 epochs."""
    folder = tmp_path_factory.mktemp("resume")
    model = make_tiny_model(folder / "model", dropout=0.3)
    rows = toy_rows(29)
    train, val = write_jsonl(folder / "train.jsonl", rows), write_jsonl(folder / "val.jsonl", toy_rows(9, 1))
    Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    Dataset.from_list(rows).save_to_disk(folder / "saved")
    (arrow,) = (folder / "saved").glob("*.arrow")
    arrow.rename(folder / "train.arrow")
    options = {
        **EVERY_STEP,
        "model.model_name_or_path": model,
        "data.train": train,
        "data.val": val,
        "trainer.max_epochs": 2,
        "optimizer.lr": 0.01,
        "early_stopping.patience": 50,
    }
    return flags(options)


def differing(name, due, settings, folder, wanted=()):
    """Checkpointed steps that were gone on from -> what differs in the end."""
    data = settings[settings.index("--data.train") + 1]
    options = [*settings, *(o.replace("{folder}", data.rpartition("/")[0]) for o in CASES[name])]
    callbacks = [SaveBeforeValidation()] if due else []
    full = fit([*options, "--run_dir", str(folder / "full")], *callbacks)
    steps = sorted({c["step"] for c in full.read()["checkpoints"]})
    assert len(steps) == len(rows_seen(full)[0])  # each optimizer step was saved
    steps = steps[:-1] if due else steps  # the last one is saved again, with its validation, by the run that goes on
    assert set(wanted) <= set(steps)
    return {step: check(full, step, folder / f"at{step}", options, *callbacks) for step in wanted or steps}


@pytest.mark.parametrize("name", FEW)
def test_a_few_steps(name, settings, tmp_path):
    steps, due = FEW[name]
    assert differing(name, due, settings, tmp_path, steps) == {step: [] for step in steps}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("due", [False, True], ids=["after validation", "validation due"])
def test_every_step(name, due, settings, tmp_path):
    found = differing(name, due, settings, tmp_path)
    print(f"| {name} | {'before' if due else 'after'} the validation | {len(found)} |", flush=True)
    assert {step: lines for step, lines in found.items() if lines} == {}


@pytest.mark.slow
def test_a_validation_due_at_the_end_of_an_epoch_is_done_though_the_rows_are_cut_otherwise(settings, tmp_path):
    """29 rows in 8 micro-batches of 4, then in 15 of 2: the 8 end where the 16th would, which is not there."""
    cut = ["--trainer.accumulate_grad_batches", "2"]
    full = fit([*settings, *cut, "--run_dir", str(tmp_path / "full")], SaveBeforeValidation())
    target = stopped_at(full, 4, tmp_path / "at4").path
    other = ["--trainer.accumulate_grad_batches", "4", "--data.train_batch_size", "2"]
    run = fit([*settings, *other, "--run_dir", str(target)], allow_changed=True)

    def rows(seen):
        return [sorted(i for i in step) for step in seen[0]]

    assert rows(rows_seen(run)) == rows(rows_seen(full))[4:]
    assert [x["step"] for x in logged(run)] == [x["step"] for x in logged(full)]
