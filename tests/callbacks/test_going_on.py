"""What callbacks and loggers keep of a run that goes on: counts and curves continue, settings are the config's."""

import csv
import json
from pathlib import Path

import pytest
import torch
from checkpointing.resume_matrix import fit, stopped_at
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import fit_scripted
from toy import make_tiny_model, toy_rows, write_jsonl

from lit_tune.callbacks.early_stopping import PatientStopping, build_early_stopping
from lit_tune.callbacks.loggers import CsvLog, rows_until
from lit_tune.callbacks.metric_log import MetricLog
from lit_tune.run_dir import RunDir


def stopping(patience: int, scores: list[float], state: dict | None = None) -> tuple[PatientStopping, list[int]]:
    """Early stopping after validations with these scores, and their steps."""
    (callback,) = build_early_stopping(patience, monitor="val/accuracy")
    assert isinstance(callback, PatientStopping)

    class Loaded(PatientStopping):
        def on_fit_start(self, trainer, pl_module):
            if state is not None:
                self.load_state_dict(state)
            super().on_fit_start(trainer, pl_module)

    callback.__class__ = Loaded
    _, module = fit_scripted([{"val/accuracy": s} for s in scores], [callback])
    callback.__class__ = PatientStopping
    return callback, module.validated


def test_early_stopping_counts_on_with_the_patience_of_the_config():
    first, _ = stopping(5, [0.5, 0.4, 0.4])
    assert first.wait_count == 2
    state = first.state_dict()
    patient, validated = stopping(4, [0.4, 0.4, 0.4], state)
    assert (patient.patience, patient.wait_count, len(validated)) == (4, 4, 2)
    impatient, validated = stopping(2, [0.4], state)  # it is reached already
    assert (impatient.patience, validated) == (2, [])
    assert float(impatient.best_score) == 0.5


def test_a_run_that_had_stopped_goes_on_only_with_more_patience():
    stopped, validated = stopping(1, [0.5, 0.4, 0.9])
    assert len(validated) == 2
    state = stopped.state_dict()
    assert stopping(1, [0.9], state)[1] == []
    assert len(stopping(3, [0.9, 0.9], state)[1]) == 2


def test_the_count_of_another_metric_does_not_count():
    state = {**stopping(1, [0.5, 0.4, 0.9])[0].state_dict(), "monitor": "val/loss"}
    assert len(stopping(1, [0.9, 0.95], state)[1]) == 2


def test_the_line_after_an_interruption_covers_the_steps_before_it():
    log = MetricLog()
    log.sums = torch.tensor([1.1, 3.0], dtype=torch.float32)
    state = json.loads(json.dumps(log.state_dict()))  # plain types
    other = MetricLog()
    other.load_state_dict(state)
    assert torch.equal(torch.tensor(other.sums, dtype=torch.float32), log.sums)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[RunDir, RunDir]:
    """A run of 8 steps with every local logger, and its copy that was killed after step 5 and gone on with."""
    folder = tmp_path_factory.mktemp("going_on")
    model = make_tiny_model(folder / "model", dropout=0.3)
    train, val = write_jsonl(folder / "train.jsonl", toy_rows(16)), write_jsonl(folder / "val.jsonl", toy_rows(6, 1))
    values = {
        "model.model_name_or_path": model,
        "data.train": train,
        "data.val": val,
        "data.train_batch_size": 4,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "logger": "[csv,tensorboard,wandb]",
        "checkpoint.every_n_steps": 1,
        "checkpoint.keep_last": -1,
    }
    options = [text for key, value in values.items() for text in (f"--{key}", str(value))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_TUNE_CACHE", str(folder / "cache"))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        full = fit([*options, "--run_dir", str(folder / "full")])
        finish_wandb()
        resumed = fit([*options, "--run_dir", str(stopped_at(full, 5, folder / "resumed").path)])
        finish_wandb()
    return full, resumed


def finish_wandb() -> None:
    import wandb

    wandb.finish()


def test_the_csv_log_has_each_line_once(runs):
    tables = []
    for run in runs:
        with (run.path / "csv" / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        keys = ("step", "train/loss", "optim/lr", "val/loss", "val/accuracy")
        tables.append([[float(r[k]) if r[k] else None for k in keys] for r in rows])
    assert tables[0] == tables[1]
    assert [row[0] for row in tables[0] if row[1] is not None] == list(range(1, 9))


def test_tensorboard_shows_each_step_once(runs):
    curves = []
    for run in runs:
        events = EventAccumulator(str(run.path / "tensorboard"))
        events.Reload()
        curves.append({tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in ("train/loss", "val/loss")})
    assert curves[0] == curves[1]
    assert [step for step, _ in curves[1]["train/loss"]] == list(range(1, 9))


def test_wandb_goes_on_under_the_same_id(runs):
    full, resumed = runs
    assert full.read()["wandb_id"] == resumed.read()["wandb_id"]
    names = {p.name.rpartition("-")[2] for p in (resumed.path / "wandb").glob("offline-run-*")}
    assert names == {full.read()["wandb_id"]}


def test_a_csv_log_is_read_up_to_a_step_and_a_line_cut_off_is_left_out(tmp_path: Path):
    path = tmp_path / "csv" / "metrics.csv"
    assert rows_until(path, 3) == []
    path.parent.mkdir()
    path.write_text("a,step,b\n1.5,1,\n,2,0.25\n7,4,\n8,3")
    assert rows_until(path, 3) == [(1, {"a": 1.5}), (2, {"b": 0.25})]
    assert rows_until(path, None) == []


def test_building_a_logger_deletes_nothing(tmp_path: Path):
    """Another process may hold the directory; it is refused later."""
    path = tmp_path / "csv" / "metrics.csv"
    path.parent.mkdir()
    path.write_text("a,step\n1.5,1\n")
    log = CsvLog(tmp_path, 1)
    assert path.read_text() == "a,step\n1.5,1\n"
    log.log_metrics({"a": 2.0}, 2)
    log.save()
    with path.open(newline="") as file:
        assert [row["a"] for row in csv.DictReader(file)] == ["1.5", "2.0"]
