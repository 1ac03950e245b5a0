"""fit ends with 0 only where steps were taken, the best weights are verified, and the export gives their logits."""

import json
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import _TunerExitException
from toy import toy_rows, write_csv

from lit_tune.__main__ import main
from lit_tune.callbacks.checkpoints import LastCheckpoint
from lit_tune.callbacks.patient_checkpoint import PatientCheckpoint
from lit_tune.errors import StorageError


@pytest.fixture
def fit(tiny_model_dir, tmp_path, capsys):
    """``lit-tune fit`` on 40 rows; exit code, what it said, and the run directory."""
    write_csv(tmp_path / "train.csv", toy_rows(40, seed=1))
    run = tmp_path / "run"

    def train(*more: str) -> tuple[int, str, Path]:
        files = ["--data.train", str(tmp_path / "train.csv"), "--model.model_name_or_path", str(tiny_model_dir)]
        settings = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--logger", "none"]
        code = main(
            [
                "fit",
                *files,
                *settings,
                "--allow-import",
                "test_post_conditions",
                "--allow-import",
                "faulty",
                "--run_dir",
                str(run),
                *more,
            ]
        )
        return code, " ".join(capsys.readouterr().err.split()), run

    return train


def failed(run: Path) -> bool:
    return json.loads((run / "manifest.json").read_text())["status"] == "failed" and not (run / "best").exists()


def faulty(**settings) -> list[str]:
    loss = {"class_path": "faulty.FaultyLoss", "init_args": settings}
    return ["--task.init_args.loss", json.dumps(loss)]


def test_a_bad_loss_is_exit_6_and_the_same_command_goes_on_once_such_steps_may_be_left_out(fit):
    bad = [
        "--data.train_batch_size",
        "4",
        "--data.val_fraction",
        "0",
        "--checkpoint.every_n_steps",
        "2",
        "--trainer.log_every_n_steps",
        "1",
    ]
    code, said, run = fit(*bad, *faulty(calls=[5]))
    assert code == 6
    assert "step 6: loss nan, gradient norm nan, lr " in said
    assert f"Last good checkpoint: {run}/checkpoints/last-0000004.ckpt" in said
    assert failed(run)
    # resumed after step 4, so that its call 5 is in step 10
    code, said, run = fit(*bad, *faulty(calls=[5]), "--optimizer.skip_nonfinite", "1")
    assert code == 0
    assert "step 10 is left out (1 of 1): loss nan" in said
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["skipped_steps"] == 1
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = {x["step"]: x for x in logged if "train/loss" in x}
    assert steps[10]["train/loss"] is None
    assert steps[10]["optim/skipped_steps"] == 1
    assert "optim/skipped_steps" not in steps[9]


def test_a_run_whose_steps_were_all_left_out_is_exit_6(fit):
    code, said, run = fit("--optimizer.skip_nonfinite", "9", *faulty(calls=list(range(9))))
    assert code == 6
    assert "all 3 optimizer steps were left out" in said
    assert failed(run)


def test_a_monitor_that_never_is_a_number_is_exit_6(fit, tmp_path):
    same = write_csv(tmp_path / "val.csv", [row for row in toy_rows(60, seed=2) if row["label"] == "bad"])
    code, said, run = fit("--data.val", str(same), "--checkpoint.monitor", "val/auroc")
    assert code == 6
    assert "checkpoint.monitor: val/auroc was not a number in any of 1 validations" in said
    assert failed(run)


class Spoil(Callback):
    """The best checkpoint is damaged on the disk before the export reads it."""

    def on_train_end(self, trainer, pl_module):
        path = Path(trainer.checkpoint_callbacks[0].best_model_path)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def test_a_best_checkpoint_that_is_damaged_is_exit_7(fit):
    code, said, run = fit("--trainer.callbacks", "[{class_path: test_post_conditions.Spoil}]")
    assert code == 7
    assert "best-0000003.ckpt" in said
    assert failed(run)


class NoSpace(Callback):
    """Saves fail, those of one role."""

    def __init__(self, role: str) -> None:
        self.role = role

    def on_fit_start(self, trainer, pl_module):
        for callback in trainer.checkpoint_callbacks:
            if (self.role == "last") == isinstance(callback, LastCheckpoint):
                callback.__class__ = type(type(callback).__name__, (Full, type(callback)), {})


class Full(PatientCheckpoint):
    def _save_checkpoint(self, trainer, filepath):
        raise StorageError("no space left on device", where=filepath)


@pytest.mark.parametrize(
    ("role", "more", "says"),
    [
        ("best", (), "the best weights could not be saved"),
        (
            "last",
            ("--data.val_fraction", "0", "--checkpoint.every_n_steps", "9"),
            "step 3, the last one, could not be saved",
        ),
    ],
)
def test_weights_that_could_not_be_saved_are_exit_7(fit, role, more, says):
    callback = [{"class_path": "test_post_conditions.NoSpace", "init_args": {"role": role}}]
    code, said, run = fit("--trainer.callbacks", json.dumps(callback), *more)
    assert code == 7
    assert says in said
    assert failed(run)


class Leave(Callback):
    """Ends the run as Lightning's own finders of batch sizes and learning rates do: without an error."""

    def on_train_batch_end(self, *args):
        raise _TunerExitException


def test_a_callback_that_ends_the_run_without_an_export_is_exit_7(fit):
    code, said, run = fit("--trainer.callbacks", "[{class_path: test_post_conditions.Leave}]")
    assert code == 7
    assert "fit ended without an export" in said
    assert not (run / "best").exists()


@pytest.mark.parametrize(
    "more", [("--checkpoint.keep_best", "0"), ("--data.val_fraction", "0", "--checkpoint.keep_last", "0")]
)
def test_what_is_not_to_be_kept_is_not_asked_for(fit, more):
    code, _, run = fit(*more)
    assert code == 0
    assert (run / "best" / "model.safetensors").is_file()
