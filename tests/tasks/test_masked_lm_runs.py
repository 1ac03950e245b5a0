"""Masked language modelling from files to a model directory: exact, complete, and the same as fill-mask's pipeline."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from parity.runs import Recorder
from tasks.task_runs import TaskRuns, finished_run, predict, report_of, same
from tiny_runs import flags, lines
from toy import WORDS, make_tiny_model, toy_lines, write_jsonl
from transformers import AutoModelForMaskedLM, pipeline

from lit_tune.__main__ import main
from lit_tune.cli import build
from lit_tune.tasks.masked_lm import MaskedLM


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Model and texts of all tests here."""
    folder = tmp_path_factory.mktemp("masked")
    make_tiny_model(folder / "model", dropout=0.0, hidden=32, subwords=True, mask=True)
    for name, count in (("train", 600), ("few", 60), ("val", 150)):
        (folder / f"{name}.txt").write_text("\n".join(["mud", *toy_lines(count, seed=count)]) + "\n")
    texts = ["trail rock [MASK] steep mud", "long", "[MASK] rain [MASK] path", "", "mud view " * 40 + "[MASK]"]
    write_jsonl(folder / "new.jsonl", [{"text": text} for text in texts])
    return folder


# --- exact -----------------------------------------------------------------------------------------------------------


CASES = {"blocks": MaskedLM(), "lines": MaskedLM(line_by_line=True, whole_word=True)}


@pytest.fixture(scope="module")
def run(files) -> TaskRuns:
    data = {"train": files / "few.txt", "val": files / "val.txt", "max_length": 16}
    return TaskRuns(files / "model", CASES["blocks"], data)


@pytest.fixture(scope="module")
def references(run) -> dict[str, Recorder]:
    found = {case: run(8, task=task) for case, task in CASES.items()}
    assert min(len(recorder.losses) for recorder in found.values()) > 2
    return found


@pytest.mark.parametrize("case", CASES)
def test_masks_gradients_and_metrics_do_not_depend_on_the_cut(case, run, references):
    for batch, accumulate, eval_batch in [(1, 8, 1), (4, 2, 7)]:
        same(references[case], run(batch, accumulate, eval_batch=eval_batch, task=CASES[case]))


def test_masks_do_not_depend_on_who_makes_them(run, references):
    same(references["blocks"], run(8, data={"num_workers": 2}))


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_give_the_same_gradient_and_metrics(run, references, tmp_path):
    same(references["blocks"], run(2, 2, ranks=2, eval_batch=5, scratch=tmp_path))


def test_padding_changes_nothing(run, references):
    for data in ({"padding": "max_length"}, {"pad_to_multiple_of": 16}):
        same(references["lines"], run(8, data=data, task=CASES["lines"]))


def test_val_masks_are_those_of_every_epoch_and_seed_and_train_masks_are_not(run):
    frozen = {"optimizer": {"lr": 1e-15}}
    first = run(8, module=frozen, trainer={"max_epochs": 2})
    other = run(8, module=frozen, data={"seed": 7})
    losses = [metrics["val/loss"] for metrics in [*first.val, *other.val]]
    assert losses == [pytest.approx(losses[0], rel=1e-9)] * 3
    steps = len(other.losses)
    assert len({tuple(losses) for losses in (first.losses[:steps], first.losses[steps:], other.losses)}) == 3


def test_a_stream_trains_line_by_line_and_refuses_blocks(files, run, capsys):
    data = {"train": files / "train.txt", "probe_size": 0, "streaming": True}
    options = {"module": {"optimizer": {"lr": 3e-3}}, "trainer": {"max_epochs": -1, "max_steps": 3}}
    whole, parts = (
        run(batch, 32 // batch, task=MaskedLM(line_by_line=True), data=data, **options) for batch in (32, 8)
    )
    same(whole, parts, num_steps=3)
    settings = {
        "task.class_path": "MaskedLM",
        "model.model_name_or_path": files / "model",
        "data.train": files / "few.txt",
        "data.streaming": "true",
        "data.val_fraction": 0,
        "trainer.max_steps": 3,
        "run_dir": files / "none",
    }
    assert main(["fit", *flags(settings)]) == 2
    assert "task.init_args.line_by_line" in capsys.readouterr().err


# --- a person's whole way --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    data = {"train": files / "train.txt", "val": files / "val.txt", "max_length": 32, "train_batch_size": 4}
    return finished_run(tmp_path_factory.mktemp("run"), files / "model", "MaskedLM", data, lr=0.0015, epochs=8)


def test_the_export_in_plain_transformers_has_the_loss_that_test_reports(finished, files, capsys):
    report = report_of(finished)
    assert "perplexity" in capsys.readouterr().out
    _, _, data = build(finished / "config.yaml")
    data.prepare("test")
    model = AutoModelForMaskedLM.from_pretrained(finished / "best")
    loss, count, right = 0.0, 0, 0
    for batch in data.eval_loader(data.units("test")):
        hidden = batch["labels"] != -100
        with torch.inference_mode():
            found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
        loss, count = loss + float(found.loss) * int(hidden.sum()), count + int(hidden.sum())
        right += int((found.logits.argmax(-1) == batch["labels"])[hidden].sum())
    assert report["metrics"]["loss"] == pytest.approx(loss / count, rel=1e-5)
    assert report["metrics"]["perplexity"] == pytest.approx(math.exp(loss / count), rel=1e-4)
    assert report["metrics"]["accuracy"] == pytest.approx(right / count, abs=1e-9)
    assert report["metrics"]["loss"] < report["baseline"]["loss"] - 0.2, "it has learned something"
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["monitor"] == "val/loss"
    assert manifest["best_metrics"]["val/loss"] == pytest.approx(report["metrics"]["loss"], rel=1e-5)
    assert "fill-mask" in (finished / "best" / "README.md").read_text()


def test_guesses_are_those_of_the_pipeline_in_input_order(finished, files, tmp_path):
    new = files / "new.jsonl"
    records = lines(predict(finished, new, tmp_path / "out.jsonl", "--data.eval_batch_size", "2"))
    texts = [row["text"] for row in lines(new)]
    assert [r["row"] for r in records] == list(range(5))
    assert [len(r["fills"]) for r in records] == [1, 0, 2, 0, 0]
    assert [r["unread_masks"] for r in records] == [0, 0, 0, 0, 1]
    fill = pipeline("fill-mask", str(finished / "best"), device="cpu")
    for record, text in zip(records, texts, strict=True):
        if not record["fills"]:
            continue
        theirs = fill(text)
        theirs = theirs if isinstance(theirs[0], list) else [theirs]
        assert [[g["token"] for g in fills] for fills in record["fills"]] == [
            [g["token_str"] for g in fills] for fills in theirs
        ]
        for ours, other in zip(record["fills"], theirs, strict=True):
            assert [g["score"] for g in ours] == pytest.approx([g["score"] for g in other], abs=1e-5)
    assert records[0]["fills"][0][0]["token"] in WORDS
    with predict(finished, new, tmp_path / "out.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [json.loads(c["fills"] or "[]") for c in cells] == [
        [[{"token": g["token"], "score": pytest.approx(g["score"], abs=1e-5)} for g in fills] for fills in r["fills"]]
        for r in records
    ]
