"""Tagging from files to a model directory: exact, complete, in order, and the same as transformers' pipeline."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from seqeval.metrics import accuracy_score, classification_report
from tasks.task_runs import CUTS, TaskRuns, finished_run, predict, report_of, same, same_from_a_stream
from tiny_runs import flags, lines
from toy import make_tiny_model, toy_sentences, write_jsonl
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from lit_tune.__main__ import main
from lit_tune.tasks.token_classification import TokenClassification


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Model and sentences of all tests here; 33 for training, so that the last window of 16 is short."""
    folder = tmp_path_factory.mktemp("tagging")
    make_tiny_model(folder / "model", dropout=0.0, hidden=32, subwords=True)
    for name, count in (("train", 160), ("few", 33), ("val", 37)):
        write_jsonl(folder / f"{name}.jsonl", toy_sentences(count, seed=count))
    words = [row["tokens"] for row in toy_sentences(11, seed=5)]
    words[3] = words[3] * 30  # longer than the model's 64 positions
    (folder / "new.conll").write_text("\n\n".join("\n".join(row) for row in words))
    return folder


# --- exact -----------------------------------------------------------------------------------------------------------


CASES = {
    "first": TokenClassification(),
    "all": TokenClassification(label_subwords="all", label_smoothing=0.1),
    "weighted": TokenClassification(class_weights="balanced"),
}


@pytest.fixture(scope="module")
def run(files) -> TaskRuns:
    return TaskRuns(files / "model", CASES["first"], {"train": files / "few.jsonl", "val": files / "val.jsonl"})


@pytest.mark.parametrize(
    "case", [next(iter(CASES)), *(pytest.param(c, marks=pytest.mark.slow) for c in list(CASES)[1:])]
)
def test_any_cut_gives_the_same_gradient_and_metrics(case, run):
    reference = run(16, task=CASES[case])
    for batch, accumulate, eval_batch in CUTS:
        same(reference, run(batch, accumulate, eval_batch=eval_batch, task=CASES[case]), num_steps=3)


@pytest.mark.ddp
def test_two_ranks_give_the_same_gradient_and_metrics(run, tmp_path):
    task = CASES["weighted"]
    same(run(16, task=task), run(2, 4, ranks=2, eval_batch=5, scratch=tmp_path, task=task), num_steps=3)


def test_padding_changes_nothing(run):
    reference = run(16)
    for data in ({"padding": "max_length"}, {"pad_to_multiple_of": 16}):
        same(reference, run(16, data=data), num_steps=3)


def test_a_stream_trains_on_the_rows_of_the_file(run):
    task = TokenClassification(label_names=["O", "B-PLACE", "I-PLACE", "B-SKY", "I-SKY"])
    same_from_a_stream(run, 33, task=task)


# --- a person's whole way --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    data = {"train": files / "train.jsonl", "val": files / "val.jsonl", "train_batch_size": 8}
    options = {"lr": 0.01, "epochs": 6, "init_args": {"label_subwords": "all"}}
    return finished_run(tmp_path_factory.mktemp("run"), files / "model", "TokenClassification", data, **options)


def plain_tags(folder: Path, sentences: list[list[str]]) -> list[list[str]]:
    """Tags by transformers alone: the best one of each word's first token."""
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for words in sentences:
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            best = model(**encoded).logits[0].argmax(-1)
        ids = encoded.word_ids()
        found.append([model.config.id2label[int(best[ids.index(i)])] if i in ids else "O" for i in range(len(words))])
    return found


def test_the_export_in_plain_transformers_has_the_metrics_that_test_reports(finished, files, capsys):
    report = report_of(finished)
    printed = capsys.readouterr().out
    rows = lines(files / "val.jsonl")
    true, found = [r["ner_tags"] for r in rows], plain_tags(finished / "best", [r["tokens"] for r in rows])
    theirs = classification_report(true, found, output_dict=True, zero_division=0)
    assert 0.2 < theirs["micro avg"]["f1-score"] < 1, "it has learned something, and not all"
    for name, kind in (("f1", "micro avg"), ("f1/PLACE", "PLACE"), ("f1/SKY", "SKY")):
        assert report["metrics"][name] == pytest.approx(theirs[kind]["f1-score"], abs=1e-9)
    assert report["metrics"]["accuracy"] == pytest.approx(accuracy_score(true, found), abs=1e-9)
    assert report["entity_counts"][2] == [theirs["PLACE"]["support"], theirs["SKY"]["support"]]
    assert [line.split()[0] for line in printed.splitlines() if line.startswith(("PLACE", "SKY"))] == ["PLACE", "SKY"]
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["monitor"] == "val/f1"
    assert manifest["best_metrics"]["val/f1"] == pytest.approx(report["metrics"]["f1"], abs=1e-6)
    assert (finished / "best" / "README.md").read_text().count("token-classification") == 2


def test_predictions_are_those_of_the_pipeline_in_input_order(finished, files, tmp_path):
    records = lines(predict(finished, files / "new.conll", tmp_path / "out.jsonl", "--data.eval_batch_size", "3"))
    sentences = [s.split("\n") for s in (files / "new.conll").read_text().split("\n\n")]
    assert [r["row"] for r in records] == list(range(11))
    assert [r["tags"] for r in records] == plain_tags(finished / "best", sentences)
    cut = records[3]["unread_words"]
    assert 0 < cut < len(sentences[3])
    assert [r["unread_words"] for r in records if r["row"] != 3] == [0] * 10
    assert records[3]["tags"][-cut:] == ["O"] * cut
    tagger = pipeline("token-classification", str(finished / "best"), aggregation_strategy="first", device="cpu")
    num_entities = 0
    for record, words in zip(records, sentences, strict=True):
        (entities,) = tagger(words, is_split_into_words=True)
        starts = [len(" ".join(words[:i])) + (i > 0) for i in range(len(words))]
        assert [(e["type"], starts[e["start"]], e["text"]) for e in record["entities"]] == [
            (e["entity_group"], e["start"], " ".join(words)[e["start"] : e["end"]]) for e in entities
        ]
        assert [e["score"] for e in record["entities"]] == pytest.approx([e["score"] for e in entities], abs=1e-5)
        num_entities += len(entities)
    assert num_entities > 5


def test_csv_and_parquet_hold_the_same_predictions(finished, files, tmp_path):
    records = lines(predict(finished, files / "new.conll", tmp_path / "out.jsonl"))
    with predict(finished, files / "new.conll", tmp_path / "out.csv").open() as file:
        cells = list(csv.DictReader(file))
    table = pq.read_table(predict(finished, files / "new.conll", tmp_path / "out.parquet")).to_pylist()
    assert [json.loads(c["entities"] or "[]") for c in cells] == [r["entities"] for r in records]
    assert [[json.loads(e) for e in t["entities"]] for t in table] == [r["entities"] for r in records]
    assert [c["tags"].split("|") for c in cells] == [t["tags"] for t in table] == [r["tags"] for r in records]


def test_a_trained_tagger_is_measured_without_a_run(finished, files, tmp_path, capsys):
    options = {
        "task.class_path": "TokenClassification",
        "model.model_name_or_path": finished / "best",
        "data.test": files / "val.jsonl",
        "run_dir": tmp_path / "none",
        "trainer.accelerator": "cpu",
    }
    assert main(["test", *flags(options)]) == 0
    of_run = json.loads((finished / "manifest.json").read_text())["best_metrics"]["val/f1"]
    row = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("f1 "))
    assert float(row.split()[1]) == pytest.approx(of_run, abs=5e-5)


def test_bad_rows_end_with_their_place_before_any_training(files, tmp_path, capsys):
    rows = toy_sentences(9)
    rows[4]["ner_tags"] = rows[4]["ner_tags"][:-1]
    bad = write_jsonl(tmp_path / "bad.jsonl", rows)
    options = ["--task.class_path", "TokenClassification", "--model.model_name_or_path", str(files / "model")]
    assert main(["check", *options, "--data.train", bad, "--run_dir", str(tmp_path / "run")]) == 3
    assert "bad.jsonl:5" in capsys.readouterr().err
