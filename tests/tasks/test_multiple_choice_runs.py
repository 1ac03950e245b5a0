"""Multiple choice from files to a model directory: exact, complete, in order, and the same in plain transformers."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from cards import run_card
from parity.runs import Recorder
from tasks.task_runs import CUTS, TaskRuns, finished_run, predict, report_of, same, same_from_a_stream
from tiny_runs import lines
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


@pytest.fixture(scope="module")
def run(files) -> TaskRuns:
    return TaskRuns(files / "model", MultipleChoice(), {"train": files / "few.jsonl", "val": files / "val.jsonl"})


@pytest.fixture(scope="module")
def reference(run) -> Recorder:
    found = run(16)
    assert len(found.losses) == 3
    return found


def test_any_cut_gives_the_same_gradient_and_metrics(run, reference):
    for batch, accumulate, eval_batch in CUTS:
        same(reference, run(batch, accumulate, eval_batch=eval_batch))


@pytest.mark.ddp
def test_two_ranks_give_the_same_gradient_and_metrics(run, reference, tmp_path):
    same(reference, run(2, 4, ranks=2, eval_batch=5, scratch=tmp_path))


def test_padding_changes_nothing(run, reference):
    for data in ({"padding": "max_length"}, {"pad_to_multiple_of": 16}):
        same(reference, run(16, data=data))


def test_a_stream_trains_on_the_rows_of_the_file(run):
    same_from_a_stream(run, 33)


# --- a person's whole way --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    data = {"train": files / "train.jsonl", "val": files / "val.jsonl", "train_batch_size": 8}
    return finished_run(tmp_path_factory.mktemp("run"), files / "model", "MultipleChoice", data, lr=0.003, epochs=3)


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


def test_the_export_in_plain_transformers_has_the_metrics_that_test_reports(finished, files, capsys):
    report = report_of(finished)
    assert "accuracy" in capsys.readouterr().out
    rows = lines(files / "val.jsonl")
    scores, labels = plain_scores(finished / "best", rows), [row["label"] for row in rows]
    accuracy = sum(int(s.argmax()) == label for s, label in zip(scores, labels, strict=True)) / len(rows)
    assert accuracy > report["baseline"]["accuracy"] + 0.2, "it has learned something"
    assert report["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    losses = [F.cross_entropy(s[None], torch.tensor([label])) for s, label in zip(scores, labels, strict=True)]
    assert report["metrics"]["loss"] == pytest.approx(float(sum(losses)) / len(rows), rel=1e-4)
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["monitor"] == "val/accuracy"
    assert manifest["best_metrics"]["val/accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_the_model_card_shows_lines_that_run(finished):
    card = (finished / "best" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["pipeline_tag"] == "multiple-choice"
    assert run_card(finished / "best")["scores"].shape == (2,)


def test_predictions_are_those_of_plain_transformers_in_input_order(finished, files, tmp_path):
    new = files / "new.jsonl"
    records = lines(predict(finished, new, tmp_path / "out.jsonl", "--data.eval_batch_size", "3"))
    rows = lines(new)
    assert [r["row"] for r in records] == list(range(11))
    for record, row, scores in zip(records, rows, plain_scores(finished / "best", rows), strict=True):
        assert record["choice"] == int(scores.argmax())
        assert record["text"] == row["choices"][record["choice"]]
        assert record["label"] == str(record["choice"])
        assert record["scores"] == pytest.approx(scores.softmax(-1).tolist(), abs=1e-5)
    with predict(finished, new, tmp_path / "out.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [json.loads(c["scores"]) for c in cells] == [pytest.approx(r["scores"], abs=1e-5) for r in records]
    table = pq.read_table(predict(finished, new, tmp_path / "out.parquet")).to_pylist()
    assert [t["text"] for t in table] == [c["text"] for c in cells] == [r["text"] for r in records]


def test_bad_rows_end_with_their_place_before_any_training(files, tmp_path, capsys):
    rows = toy_choices(9)
    rows[4]["label"] = 7
    bad = write_jsonl(tmp_path / "bad.jsonl", rows)
    options = ["--task.class_path", "MultipleChoice", "--model.model_name_or_path", str(files / "model")]
    assert main(["check", *options, "--data.train", bad, "--run_dir", str(tmp_path / "run")]) == 3
    assert "bad.jsonl:5" in capsys.readouterr().err
