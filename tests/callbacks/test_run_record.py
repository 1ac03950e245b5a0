"""What a run writes down about itself, for users of Python as for the command line."""

import hashlib
import json
import shutil

import pytest
import torch
import xxhash
import yaml
from lightning.pytorch.callbacks import Callback
from tiny_runs import built, fit, lines
from toy import toy_rows, write_csv

from lit_tune.callbacks.run_record import RunRecord
from lit_tune.errors import StorageError


@pytest.fixture
def train(tmp_path):
    return write_csv(tmp_path / "train.csv", toy_rows(20))


def manifest(run):
    return json.loads((run / "manifest.json").read_text())


class Raise(Callback):
    """Ends the run at some hook."""

    def __init__(self, hook, error):
        setattr(self, hook, self.end)
        self.error = error

    def end(self, *args):
        raise self.error


def test_a_run_from_python_writes_the_same_directory(finished_run):
    names = {p.name for p in finished_run.iterdir()}
    assert names == {"config.yaml", "manifest.json", "metrics.jsonl", "run.log", "csv", "checkpoints", "best"}
    found = manifest(finished_run)
    assert found["status"] == "complete"
    assert found["trained"] is True
    config = (finished_run / "config.yaml").read_text()
    assert yaml.safe_load(config)["optimizer"]["lr"] == 0.01
    assert found["config_sha256"] == hashlib.sha256(config.encode()).hexdigest()
    assert found["steps"] == 8
    assert found["epochs"] == 2
    assert found["monitor"] == "val/accuracy"
    assert found["data"]["rows"] == {"train": 60, "val": 20}
    assert found["spec"]["num_rows"] == 60
    assert found["versions"]["torch"] == torch.__version__
    assert found["world_size"] == 1
    assert found["verdict"]["state"]


def test_metrics_in_the_manifest_are_those_that_were_logged(finished_run):
    found = manifest(finished_run)
    logged = {line["step"]: line for line in lines(finished_run / "metrics.jsonl") if "val/loss" in line}
    for key, step in (("final_metrics", 8), ("best_metrics", found["best_metrics"]["step"])):
        assert found[key]["step"] == step
        assert {k: v for k, v in found[key].items() if k != "step"}.items() <= logged[step].items()


def test_checkpoints_are_listed_with_size_and_hash(finished_run):
    found = manifest(finished_run)["checkpoints"]
    assert {c["path"] for c in found} == {f"checkpoints/{p.name}" for p in (finished_run / "checkpoints").iterdir()}
    for entry in found:
        content = (finished_run / entry["path"]).read_bytes()
        assert len(content) == entry["bytes"]
        assert xxhash.xxh3_128_hexdigest(content) == entry["xxh3_128"]
        assert torch.load(finished_run / entry["path"], weights_only=True)["global_step"] == entry["step"]


def test_a_second_run_in_the_same_directory_is_refused_and_the_first_is_whole(tiny_model_dir, train, tmp_path):
    run = tmp_path / "run"
    fit(built(tiny_model_dir, train, run, overfit__probe_size=0, data__val_fraction=0))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(StorageError, match="complete"):
        fit(built(tiny_model_dir, train, run))
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("hook", "error", "status", "trained"),
    [
        ("on_fit_start", RuntimeError("boom"), "failed", False),
        ("on_train_batch_end", RuntimeError("boom"), "failed", True),
        ("on_train_batch_end", KeyboardInterrupt(), "interrupted", True),
    ],
)
def test_a_run_that_ends_early_says_why(tiny_model_dir, train, tmp_path, hook, error, status, trained):
    run = tmp_path / "run"
    made = built(tiny_model_dir, train, run)
    with pytest.raises((RuntimeError, SystemExit)):  # Lightning answers Ctrl+C with sys.exit(1)
        fit(made, Raise(hook, error))
    found = manifest(run)
    assert (found["status"], found["trained"]) == (status, trained)
    assert type(error).__name__ in found["error"]
    again = built(tiny_model_dir, train, run)
    if trained:
        with pytest.raises(StorageError, match=status):
            fit(again)
    else:
        fit(again)
        assert manifest(run)["status"] == "complete"


def test_a_full_disk_does_not_hide_the_first_error(tiny_model_dir, train, tmp_path, messages):
    run = tmp_path / "run"

    class Unplug(Callback):
        def on_train_batch_end(self, *args):
            shutil.rmtree(run)
            run.write_text("no folder any more")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fit(built(tiny_model_dir, train, run), Unplug())
    assert any("manifest could not be written" in m for m in messages)


def test_a_failure_after_the_run_leaves_it_complete(tiny_model_dir, train, tmp_path):
    run = tmp_path / "run"
    made = fit(built(tiny_model_dir, train, run, overfit__probe_size=0))
    made.trainer.callbacks.append(Raise("on_validation_start", RuntimeError("boom")))
    with pytest.raises(RuntimeError, match="boom"):
        made.trainer.validate(made.module, datamodule=made.datamodule, verbose=False)
    assert manifest(run)["status"] == "complete"


def test_a_run_that_trains_nothing_is_an_error(tiny_model_dir, train, tmp_path):
    made = built(tiny_model_dir, train, tmp_path / "run")
    made.trainer.limit_train_batches = 0
    with pytest.raises(StorageError, match="no optimizer step was taken"):
        fit(made)
    assert manifest(tmp_path / "run")["status"] == "failed"
    assert not (tmp_path / "run" / "best").exists()


def test_a_development_run_leaves_nothing_behind(tiny_model_dir, train, tmp_path):
    options = {"trainer__fast_dev_run": True, "logger": ["tensorboard", "csv"]}
    made = fit(built(tiny_model_dir, train, tmp_path / "run", **options))
    assert made.trainer.global_step == 1
    assert {p.name for p in tmp_path.iterdir()} == {"train.csv"}
    record = next(c for c in made.trainer.callbacks if isinstance(c, RunRecord))
    assert record.result == {}


def test_a_stream_that_ends_before_max_steps_is_told(tiny_model_dir, train, tmp_path, messages):
    options = {
        "data__streaming": True,
        "data__val_fraction": 0,
        "task__init_args__label_names": ["bad", "fine", "good"],
        "trainer__max_steps": 50,
        "trainer__max_epochs": 2,
        "checkpoint__keep_best": 0,
    }
    fit(built(tiny_model_dir, train, tmp_path / "run", **options))
    assert manifest(tmp_path / "run")["steps"] == 4
    assert [m for m in messages if "ended at step 4 of 50" in m and "trainer.max_epochs: -1" in m]


def test_run_log_holds_the_run_and_is_closed(finished_run):
    text = (finished_run / "run.log").read_text()
    for part in ("model    Bert", "step 1/8", "validation at step 8", "verdict"):
        assert part in text
