"""The datamodule in real runs: workers, ranks, streams, and splits without labels, through the trainer or the verbs."""

import json
import os
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from parity.runs import NO_DROPOUT, fit
from toy import labelled, model_with_head, toy_rows, write_csv, write_jsonl

import lit_tune
from lit_tune.__main__ import main
from lit_tune.datamodule import TokenizedDataModule
from lit_tune.errors import DataError
from lit_tune.module import FineTuneModule
from lit_tune.tasks.sequence_classification import SequenceClassification

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create .* worker processes",  # of one core
    "ignore:.*does not have many workers",
)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="module")
def rows_jsonl(tmp_path_factory) -> str:
    """43 rows: windows of 8 leave a short one."""
    rows = [{"text": r["text"], "label": r["label"]} for r in toy_rows(43, seed=2)]
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)


LABELS = {"label_names": ["bad", "fine", "good"]}
STREAM = {"streaming": True, "probe_size": 10}


# --- workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_that_stay_over_epochs_change_no_number(tiny_model_dir, rows_jsonl):
    data = {"train": rows_jsonl, "val": rows_jsonl}
    here = fit(tiny_model_dir, data, batch=8)
    there = fit(tiny_model_dir, data | {"num_workers": 2, "persistent_workers": True}, batch=8)
    again = fit(tiny_model_dir, data | {"num_workers": 1, "persistent_workers": False}, batch=8)
    assert len(here.losses) == 12
    for other in (there, again):
        assert other.rows == here.rows
        assert other.losses == here.losses
        assert other.val == here.val
        assert all(torch.equal(w, other.weights[n]) for n, w in here.weights.items())


def test_pinned_memory_asked_for_without_a_gpu_is_no_warning(tiny_model_dir, rows_jsonl):
    # warnings are errors here
    fit(tiny_model_dir, {"train": rows_jsonl, "pin_memory": True}, batch=16, max_steps=1)


class Recording(SequenceClassification):
    """Leaves the process id of each batch that is encoded."""

    def encode(self, *arguments):
        with open("encoded_by", "a") as file:
            file.write(f"{os.getpid()}\n")
        return super().encode(*arguments)


@pytest.mark.ddp
def test_of_two_ranks_one_tokenizes_and_both_read(tiny_model_dir, rows_jsonl, tmp_path):
    task = Recording()
    datamodule = TokenizedDataModule(task, model_name_or_path=str(tiny_model_dir), train=rows_jsonl, val=rows_jsonl)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(start_method="fork", process_group_backend="gloo"),
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(FineTuneModule(str(tiny_model_dir), task, config_overrides=NO_DROPOUT), datamodule=datamodule)
    writers = (tmp_path / "encoded_by").read_text().split()
    assert len(writers) == 2  # train and val
    assert len(set(writers)) == 1
    assert len(os.listdir(datamodule.preparation.cache_dir)) == 1


# --- streams ---------------------------------------------------------------------------------------------------------


def streamed(model: Path, path: str, **options):
    data = {"train": path, "val": path, **STREAM, "num_workers": options.pop("num_workers", 0)}
    return fit(model, data, task=LABELS, precision="64-true", max_steps=9, max_epochs=-1, **options)


def test_a_streamed_step_does_not_depend_on_cuts_and_workers(tiny_model_dir, rows_jsonl):
    reference = streamed(tiny_model_dir, rows_jsonl, batch=8)
    assert len(reference.losses) == 9  # 6 steps, then 3 of the second epoch
    assert sorted(reference.rows[:43]) == list(range(43))
    assert reference.rows[:24] != reference.rows[43:]
    assert reference.val[0].keys() >= {"val/accuracy", "probe/accuracy"}
    for cuts in ({"batch": 2, "accumulate": 4, "num_workers": 2}, {"batch": 1, "accumulate": 8}):
        other = streamed(tiny_model_dir, rows_jsonl, **cuts)
        assert other.rows == reference.rows
        assert other.losses == pytest.approx(reference.losses, rel=1e-12)
        assert all(torch.allclose(w, other.weights[n], rtol=0, atol=1e-10) for n, w in reference.weights.items())


@pytest.mark.slow
@pytest.mark.ddp
def test_a_streamed_step_does_not_depend_on_ranks(tiny_model_dir, rows_jsonl, tmp_path):
    reference = streamed(tiny_model_dir, rows_jsonl, batch=8)
    other = streamed(tiny_model_dir, rows_jsonl, batch=2, accumulate=2, ranks=2, scratch=tmp_path)
    assert other.losses == pytest.approx(reference.losses, rel=1e-12)
    assert all(torch.allclose(w, other.weights[n], rtol=0, atol=1e-10) for n, w in reference.weights.items())
    parts = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True)["rows"] for r in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(reference.rows)


# --- the verbs -------------------------------------------------------------------------------------------------------

QUICK = {
    "optimizer.lr": 1e-2,
    "logger": "none",
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "data.train_batch_size": 8,
}


def lit_tune_verb(verb: str, **options) -> int:
    settings = {} if "config" in options else dict(QUICK)
    settings |= {k.replace("__", "."): v for k, v in options.items()}
    return main([verb, *(part for k, v in settings.items() for part in (f"--{k}", str(v)))])


def test_a_stream_is_trained_on_from_the_command_line_with_a_probe_beside_val(
    tiny_model_dir, tmp_path, rows_jsonl, capfd
):
    options = {
        "data__train": rows_jsonl,
        "data__val": rows_jsonl,
        "data__streaming": "true",
        "data__num_workers": 1,
        "task__init_args__label_names": "[bad, fine, good]",
        "trainer__max_steps": 12,
        "trainer__max_epochs": -1,
        "eval_every_steps": 4,
        "model__model_name_or_path": tiny_model_dir,
        "run_dir": "run",
    }
    assert lit_tune_verb("fit", **options) == 0
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert "forked" not in err  # five lines of the tokenizers library per worker
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    validations = [line for line in lines if "val/accuracy" in line]
    assert [line["step"] for line in validations] == [4, 8, 12]
    assert any("probe/accuracy" in line for line in lines)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert (tmp_path / "run" / "best" / "config.json").is_file()
    assert lit_tune_verb("test", config="run/config.yaml", data__test=rows_jsonl) == 0


@pytest.mark.parametrize("fault", ["null text", "broken line"])
def test_a_fault_in_a_stream_is_exit_3_and_names_the_row(tiny_model_dir, tmp_path, rows_jsonl, capsys, fault):
    bad = {"null text": '{"text": null, "label": "bad"}\n', "broken line": '{"text": "mud", "label\n'}[fault]
    # a broken line spoils the block of 10 MB it stands in, so the probe ends before it only for a null
    path = tmp_path / "stream.jsonl"
    path.write_text(Path(rows_jsonl).read_text() + bad)
    code = lit_tune_verb(
        "fit",
        data__train=path,
        data__val_fraction=0,
        data__streaming="true",
        overfit__probe_size=5,
        task__init_args__label_names="[bad, fine, good]",
        trainer__max_steps=20,
        model__model_name_or_path=tiny_model_dir,
        run_dir="run",
    )
    err = capsys.readouterr().err
    assert code == 3
    assert "stream.jsonl:44" in err.replace("\n  ", "")
    assert "Traceback" not in err


def test_build_raises_what_the_stream_says(tiny_model_dir, tmp_path, rows_jsonl):
    path = tmp_path / "stream.jsonl"
    path.write_text(Path(rows_jsonl).read_text() + '{"text": "mud", "label": "odd"}\n')
    overrides = {
        **QUICK,
        "trainer.enable_progress_bar": False,
        "data.train": str(path),
        "data.val": rows_jsonl,
        "data.streaming": True,
        "overfit.probe_size": 5,
        "task.init_args.label_names": LABELS["label_names"],
        "trainer.max_steps": 20,
        "model.model_name_or_path": str(tiny_model_dir),
        "run_dir": "run",
    }
    trainer, module, datamodule = lit_tune.build(overrides=overrides)
    with pytest.raises(DataError, match=r"label 'odd' never occurs in .*stream.jsonl:44"):
        trainer.fit(module, datamodule=datamodule)


@pytest.fixture(scope="module")
def finished_run(tiny_model_dir, tmp_path_factory) -> Path:
    """A run without validation."""
    folder = tmp_path_factory.mktemp("finished")
    train = write_csv(folder / "train.csv", toy_rows(60))
    cache = str(folder / "cache")
    code = lit_tune_verb(
        "fit",
        data__train=train,
        data__val_fraction=0,
        data__cache_dir=cache,
        trainer__max_epochs=1,
        model__model_name_or_path=tiny_model_dir,
        run_dir=folder / "run",
    )
    assert code == 0
    return folder / "run"


def test_without_val_the_last_weights_are_exported_and_the_verdict_says_not_measured(finished_run):
    manifest = json.loads((finished_run / "manifest.json").read_text())
    assert manifest["exported"].startswith("last-")
    assert manifest["verdict"]["state"] == "not measured"
    assert "not measured" in (finished_run / "best" / "README.md").read_text()
    assert (finished_run / "best" / "model.safetensors").is_file()


@pytest.mark.parametrize("labels", [["-1", "-1"], "no column"])
def test_a_test_split_without_labels_is_one_line_and_exit_0(finished_run, tmp_path, capsys, labels):
    rows = [{"text": "mud"}] if labels == "no column" else labelled(labels)
    path = write_csv(tmp_path / "test.csv", rows)
    assert lit_tune_verb("test", config=finished_run / "config.yaml", data__test=path) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("no row has a label, nothing to measure") == 1
    assert not (finished_run / "test_metrics.json").exists()


def test_a_test_split_with_labels_in_part_is_exit_3(finished_run, tmp_path, capsys):
    path = write_jsonl(tmp_path / "test.jsonl", labelled(["bad", None, "good"]))
    assert lit_tune_verb("test", config=finished_run / "config.yaml", data__test=path) == 3
    assert "1 of 3 labels are missing" in capsys.readouterr().err


@pytest.mark.parametrize("labels", [["bad", "unheard of"], "no column"])
def test_predict_takes_rows_with_any_label_or_none(finished_run, tmp_path, labels):
    rows = [{"text": "mud"}, {"text": "view"}] if labels == "no column" else labelled(labels)
    path = write_csv(tmp_path / "new.csv", rows)
    output = tmp_path / "out.jsonl"
    assert lit_tune_verb("predict", config=finished_run / "config.yaml", data__predict=path, output=output) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [r["row"] for r in records] == [0, 1]
    assert all(set(r["probabilities"]) == {"bad", "fine", "good"} for r in records)


def test_a_model_that_was_never_in_a_run_is_measured_with_its_own_labels(tiny_model_dir, tmp_path, capsys):
    model = model_with_head(tiny_model_dir, tmp_path / "model", ["good", "bad"])
    path = write_jsonl(tmp_path / "test.jsonl", labelled(["bad", "good", "good"]))
    assert lit_tune_verb("test", data__test=path, model__model_name_or_path=model, run_dir="none") == 0
    assert "accuracy" in capsys.readouterr().out
