"""Multiple choice from files to a model directory: exact, complete, in order, and the same in plain transformers."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from checkpointing.resume_matrix import check, fit
from parity.runs import Recorder, relative
from parity.runs import fit as fit_recorded
from torch.nn import functional as F
from toy import make_tiny_model, toy_choices, write_jsonl
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from lit_tune.__main__ import main
from lit_tune.tasks.multiple_choice import MultipleChoice


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Model and questions of all tests here; 33 for training, so that the last window of 16 is short."""
    folder = tmp_path_factory.mktemp("choosing")
    make_tiny_model(folder / "model", dropout=0.0, hidden=32)
    for name, count in (("train", 160), ("few", 33), ("val", 37)):
        write_jsonl(folder / f"{name}.jsonl", toy_choices(count, seed=count))
    new = [{"question": r["question"], "choices": r["choices"]} for r in toy_choices(11, seed=5)]
    new[3]["question"] = " ".join([new[3]["question"]] * 40)  # longer than the model's 64 positions
    write_jsonl(folder / "new.jsonl", new)
    return folder


# --- exact -----------------------------------------------------------------------------------------------------------


def same(reference: Recorder, other: Recorder) -> None:
    assert len(reference.losses) == len(other.losses) == 3
    for a, b in zip(reference.gradients, other.gradients, strict=True):
        assert relative(b, a) < 1e-12
    assert other.losses == pytest.approx(reference.losses, rel=1e-12)
    assert other.val == [pytest.approx(v, rel=1e-6) for v in reference.val]


def run(files: Path, batch: int, accumulate: int = 1, ranks: int = 1, eval_batch: int = 64, **more) -> Recorder:
    data = {
        "train": str(files / "few.jsonl"),
        "val": str(files / "val.jsonl"),
        "eval_batch_size": eval_batch,
        **more.pop("data", {}),
    }
    options = {"precision": "64-true", "max_epochs": 1, "task": MultipleChoice(), **more}
    return fit_recorded(files / "model", data, batch=batch, accumulate=accumulate, ranks=ranks, **options)


@pytest.fixture(scope="module")
def reference(files) -> Recorder:
    return run(files, 16)


def test_any_cut_gives_the_same_gradient_and_metrics(files, reference):
    for batch, accumulate, eval_batch in [(1, 16, 1), (4, 4, 7)]:
        same(reference, run(files, batch, accumulate, eval_batch=eval_batch))


@pytest.mark.ddp
def test_two_ranks_give_the_same_gradient_and_metrics(files, reference, tmp_path):
    same(reference, run(files, 2, 4, ranks=2, eval_batch=5, scratch=tmp_path))


def test_padding_changes_nothing(files, reference):
    for data in ({"padding": "max_length"}, {"pad_to_multiple_of": 16}):
        same(reference, run(files, 16, data=data))


# --- a person's whole way --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    """A finished run, from a YAML file."""
    folder = tmp_path_factory.mktemp("run")
    config = {
        "run_dir": str(folder / "run"),
        "task": {"class_path": "MultipleChoice"},
        "model": {"model_name_or_path": str(files / "model")},
        "data": {
            **{name: str(files / f"{name}.jsonl") for name in ("train", "val")},
            "test": str(files / "val.jsonl"),
            "cache_dir": str(folder / "cache"),
            "train_batch_size": 8,
        },
        "optimizer": {"lr": 0.003},
        "trainer": {"accelerator": "cpu", "max_epochs": 3},
        "logger": "none",
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "my.yaml")]) == 0
    return folder / "run"


def plain_scores(folder: Path, rows: list[dict]) -> list[torch.Tensor]:
    """Logits of each question by transformers alone, used as the model card shows it."""
    model, tokenizer = AutoModelForMultipleChoice.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for row in rows:
        first = [row["question"]] * len(row["choices"])
        options = {"truncation": "only_first", "max_length": 64}
        texts = tokenizer(first, row["choices"], padding=True, return_tensors="pt", **options)
        with torch.inference_mode():
            found.append(model(**{name: value[None] for name, value in texts.items()}).logits[0])
    return found


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_export_in_plain_transformers_has_the_metrics_that_test_reports(finished, files, capsys):
    assert main(["test", "--config", str(finished / "config.yaml")]) == 0
    assert "accuracy" in capsys.readouterr().out
    report = json.loads((finished / "test_metrics.json").read_text())
    rows = read(files / "val.jsonl")
    scores, labels = plain_scores(finished / "best", rows), [row["label"] for row in rows]
    accuracy = sum(int(s.argmax()) == label for s, label in zip(scores, labels, strict=True)) / len(rows)
    assert accuracy > report["baseline"]["accuracy"] + 0.2, "it has learned something"
    assert report["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    losses = [F.cross_entropy(s[None], torch.tensor([label])) for s, label in zip(scores, labels, strict=True)]
    assert report["metrics"]["loss"] == pytest.approx(float(sum(losses)) / len(rows), rel=1e-4)
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["monitor"] == "val/accuracy"
    assert manifest["best_metrics"]["val/accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_the_model_card_shows_lines_that_run(finished, monkeypatch):
    card = (finished / "best" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["pipeline_tag"] == "multiple-choice"
    code = card.split("```python\n")[1].split("```")[0]
    found: dict = {}
    exec(code.replace("PATH_OR_ID", str(finished / "best")), found)
    assert found["scores"].shape == (2,)


def predict(finished: Path, files: Path, output: Path, *more: str) -> Path:
    config = str(finished / "config.yaml")
    new = str(files / "new.jsonl")
    assert main(["predict", "--config", config, "--data.predict", new, "--output", str(output), *more]) == 0
    return output


def test_predictions_are_those_of_plain_transformers_in_input_order(finished, files, tmp_path):
    records = read(predict(finished, files, tmp_path / "out.jsonl", "--data.eval_batch_size", "3"))
    rows = read(files / "new.jsonl")
    assert [r["row"] for r in records] == list(range(11))
    for record, row, scores in zip(records, rows, plain_scores(finished / "best", rows), strict=True):
        assert record["choice"] == int(scores.argmax())
        assert record["text"] == row["choices"][record["choice"]]
        assert record["label"] == str(record["choice"])
        assert record["scores"] == pytest.approx(scores.softmax(-1).tolist(), abs=1e-5)
    with predict(finished, files, tmp_path / "out.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [json.loads(c["scores"]) for c in cells] == [pytest.approx(r["scores"], abs=1e-5) for r in records]
    table = pq.read_table(predict(finished, files, tmp_path / "out.parquet")).to_pylist()
    assert [t["text"] for t in table] == [c["text"] for c in cells] == [r["text"] for r in records]


def test_bad_rows_end_with_their_place_before_any_training(files, tmp_path, capsys):
    rows = toy_choices(9)
    rows[4]["label"] = 7
    bad = write_jsonl(tmp_path / "bad.jsonl", rows)
    options = ["--task.class_path", "MultipleChoice", "--model.model_name_or_path", str(files / "model")]
    assert main(["check", *options, "--data.train", bad, "--run_dir", str(tmp_path / "run")]) == 3
    assert "bad.jsonl:5" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_goes_on_equals_one_that_was_never_interrupted(files, tmp_path):
    model = make_tiny_model(tmp_path / "model", dropout=0.3)
    options = {
        "task.class_path": "MultipleChoice",
        "model.model_name_or_path": model,
        "data.train": files / "few.jsonl",
        "data.val": files / "val.jsonl",
        "trainer.accumulate_grad_batches": 2,
        "data.train_batch_size": 4,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "logger": "none",
        "checkpoint.every_n_steps": 1,
        "checkpoint.keep_last": -1,
        "checkpoint.keep_best": -1,
    }
    flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    full = fit([*flags, "--run_dir", str(tmp_path / "full")])
    assert check(full, 3, tmp_path / "at3", flags) == []


def test_a_stream_trains_on_the_rows_of_the_file(files):
    def losses(**data) -> list[float]:
        settings = {"train": str(files / "few.jsonl"), "probe_size": 0, **data}
        options = {"batch": 33, "task": MultipleChoice(), "max_epochs": -1, "max_steps": 2}
        return fit_recorded(files / "model", settings, **options).losses

    assert losses(streaming=True) == pytest.approx(losses(), rel=1e-5)  # 33 rows in a step: in any order
