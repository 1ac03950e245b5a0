"""Questions from files to a model directory: exact, complete, in order, and the same as a plain loop's."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from cards import run_card
from parity.runs import Recorder
from tasks.task_runs import CUTS, TaskRuns, finished_run, predict, report_of, same
from tiny_runs import flags, lines
from toy import make_tiny_model, toy_questions, write_jsonl
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from lit_tune.__main__ import main
from lit_tune.metrics.answers import answer_scores
from lit_tune.tasks.question_answering import QuestionAnswering

WINDOW, STRIDE = 24, 6


def as_squad(rows: list[dict]) -> dict:
    """Rows in the layout of SQuAD 2.0, an article for each."""
    articles = []
    for row in rows:
        given = row["answers"]
        answers = [{"text": t, "answer_start": s} for t, s in zip(given["text"], given["answer_start"], strict=True)]
        asked = {"id": row["id"], "question": row["question"], "answers": answers, "is_impossible": not answers}
        articles.append({"title": "", "paragraphs": [{"context": row["context"], "qas": [asked]}]})
    return {"version": "v2.0", "data": articles}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Model and questions of all tests here; some questions have no answer."""
    folder = tmp_path_factory.mktemp("answering")
    make_tiny_model(folder / "model", dropout=0.0, hidden=32)
    for name, count, words in (("train", 160, 12), ("few", 17, 40), ("val", 37, 30)):
        rows = toy_questions(count, seed=count, num_words=words, with_none=True)
        write_jsonl(folder / f"{name}.jsonl", rows)
        (folder / f"{name}.json").write_text(json.dumps(as_squad(rows)))
    new = [{k: v for k, v in row.items() if k != "answers"} for row in toy_questions(11, seed=5, num_words=60)]
    write_jsonl(folder / "new.jsonl", new)
    return folder


# --- exact -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(files) -> TaskRuns:
    data = {"train": files / "few.json", "val": files / "val.jsonl", "max_length": WINDOW}
    return TaskRuns(files / "model", QuestionAnswering(stride=STRIDE, allow_no_answer=True), data)


@pytest.fixture(scope="module")
def reference(run) -> Recorder:
    """Sixteen windows a step; the last one has fewer."""
    found = run(16)
    assert len(found.rows) % 16
    assert len(found.rows) == len(set(found.rows)) > 17, "numbers are those of windows, each once"
    assert len(found.losses) >= 3
    return found


def test_any_cut_gives_the_same_gradient_and_metrics(run, reference):
    for batch, accumulate, eval_batch in CUTS:
        same(reference, run(batch, accumulate, eval_batch=eval_batch))


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_give_the_same_gradient_and_metrics(run, reference, tmp_path):
    same(reference, run(2, 4, ranks=2, eval_batch=5, scratch=tmp_path))


def test_padding_changes_nothing(run, reference):
    for data in ({"padding": "max_length"}, {"pad_to_multiple_of": 16}):
        same(reference, run(16, data=data))


def test_a_stream_trains_on_the_windows_of_the_file(run, reference):
    data, trainer = {"streaming": True, "probe_size": 0}, {"max_epochs": -1, "max_steps": 1}
    stream = run(17, data=data, trainer=trainer)
    whole = run(len(reference.rows), data={"probe_size": 0})
    assert stream.losses == pytest.approx(whole.losses, rel=1e-9)  # all in one step, in any order


# --- a person's whole way --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    return finished_run(
        tmp_path_factory.mktemp("run"),
        files / "model",
        "QuestionAnswering",
        {"train": files / "train.json", "val": files / "val.json", "max_length": WINDOW, "train_batch_size": 8},
        lr=0.01,
        epochs=6,
        init_args={"stride": STRIDE, "max_answer_length": 4},
    )


@torch.inference_mode()
def plain_answers(folder: Path, rows: list[dict]) -> list[str]:
    """Answers by transformers alone: one window after another, all spans of at most four tokens, or none."""
    model, tokenizer = AutoModelForQuestionAnswering.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for row in rows:
        options = {"truncation": "only_second", "max_length": WINDOW, "stride": STRIDE}
        cut = tokenizer(
            row["question"],
            row["context"],
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            **options,
        )
        best, text, none = -1e9, "", 1e9
        for i, ids in enumerate(cut["input_ids"]):
            inputs = {"input_ids": torch.tensor([ids]), "token_type_ids": torch.tensor([cut["token_type_ids"][i]])}
            start, end = (logits[0].tolist() for logits in model(**inputs).values())
            none = min(none, start[0] + end[0])
            of_context = [p for p, part in enumerate(cut.sequence_ids(i)) if part == 1]
            for first in of_context:
                for last in of_context:
                    if first <= last < first + 4 and start[first] + end[last] > best:
                        best = start[first] + end[last]
                        text = row["context"][cut["offset_mapping"][i][first][0] : cut["offset_mapping"][i][last][1]]
        found.append("" if none > best else text)
    return found


def test_the_export_in_plain_transformers_has_the_metrics_that_test_reports(finished, files, capsys):
    report = report_of(finished)
    printed = capsys.readouterr().out
    rows = lines(files / "val.jsonl")
    found = plain_answers(finished / "best", rows)
    scores = [answer_scores(text, row["answers"]["text"], True) for text, row in zip(found, rows, strict=True)]
    exact, f1 = (sum(column) / len(rows) for column in zip(*scores, strict=True))
    assert 0.3 < f1 < 1, "it has learned something, and not all"
    assert report["metrics"]["exact_match"] == pytest.approx(exact, abs=1e-9)
    assert report["metrics"]["f1"] == pytest.approx(f1, abs=1e-9)
    num_none = sum(not row["answers"]["text"] for row in rows)
    assert report["question_counts"] == [len(rows) - num_none, num_none]
    assert report["baseline"]["f1"] == pytest.approx(0.3, abs=0.1)
    assert "without " in printed
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["monitor"] == "val/f1"
    assert manifest["best_metrics"]["val/f1"] == pytest.approx(f1, abs=1e-6)
    card = (finished / "best" / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card
    assert isinstance(run_card(finished / "best")["answer"], str)
    assert 'model = AutoModelForQuestionAnswering.from_pretrained("PATH_OR_ID")' in card


def test_predictions_are_those_of_a_plain_loop_in_input_order(finished, files, tmp_path):
    records = lines(predict(finished, files / "new.jsonl", tmp_path / "out.jsonl", "--data.eval_batch_size", "3"))
    rows = lines(files / "new.jsonl")
    assert [r["row"] for r in records] == list(range(11))
    assert [r["id"] for r in records] == [row["id"] for row in rows]
    assert [r["answer"] for r in records] == plain_answers(finished / "best", rows)
    assert len({r["answer"] for r in records}) > 3
    for record, row in zip(records, rows, strict=True):
        assert row["context"][record["start"] : record["end"]] == record["answer"] or record["start"] == -1
        assert 0 < record["score"] <= 1
        assert 0 <= record["no_answer_score"] <= 1


def test_csv_and_parquet_hold_the_same_predictions(finished, files, tmp_path):
    records = lines(predict(finished, files / "new.jsonl", tmp_path / "out.jsonl"))
    with predict(finished, files / "new.jsonl", tmp_path / "out.csv").open() as file:
        cells = list(csv.DictReader(file))
    table = pq.read_table(predict(finished, files / "new.jsonl", tmp_path / "out.parquet")).to_pylist()
    assert [json.loads(c["alternatives"]) for c in cells] == [r["alternatives"] for r in records]
    assert [[json.loads(a) for a in t["alternatives"]] for t in table] == [r["alternatives"] for r in records]
    assert [c["answer"] for c in cells] == [t["answer"] for t in table] == [r["answer"] for r in records]


def test_a_trained_model_is_measured_without_a_run(finished, files, tmp_path, capsys):
    options = {
        "task.class_path": "QuestionAnswering",
        "task.init_args.stride": STRIDE,
        "task.init_args.max_answer_length": 4,
        "model.model_name_or_path": finished / "best",
        "data.test": files / "val.jsonl",
        "data.max_length": WINDOW,
        "run_dir": tmp_path / "none",
        "trainer.accelerator": "cpu",
    }
    assert main(["test", *flags(options)]) == 0
    of_run = json.loads((finished / "manifest.json").read_text())["best_metrics"]["val/f1"]
    row = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("f1 "))
    assert float(row.split()[1]) == pytest.approx(of_run, abs=5e-5)


def test_misaligned_answers_end_with_their_place_before_any_training(files, tmp_path, capsys):
    rows = toy_questions(9, seed=2)
    rows[4]["answers"]["answer_start"] = [rows[4]["answers"]["answer_start"][0] + 1]
    bad = write_jsonl(tmp_path / "bad.jsonl", rows)
    options = ["--task.class_path", "QuestionAnswering", "--model.model_name_or_path", str(files / "model")]
    options += ["--data.train", bad, "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]
    assert main(["check", *options]) == 3
    said = capsys.readouterr()
    said = " ".join((said.out + said.err).split())
    assert "1 of 9 answers do not stand where answer_start says" in said
    assert "bad.jsonl:5 (id q4)" in said.replace(" (id", " (id")
    assert main(["check", *options, "--task.init_args.on_misaligned", "fix", "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == {"train": 8, "val": 1}
    assert report["plan"]["rows"] >= 8, "steps are counted by windows"
