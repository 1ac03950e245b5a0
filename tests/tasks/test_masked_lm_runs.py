"""Masked language modelling from files to a model directory: exact, complete, and the same as fill-mask's pipeline."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from checkpointing.resume_matrix import check, fit
from parity.runs import Recorder, relative
from parity.runs import fit as fit_recorded
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


def same(reference: Recorder, other: Recorder) -> None:
    assert len(reference.losses) == len(other.losses) > 2
    for a, b in zip(reference.gradients, other.gradients, strict=True):
        assert relative(b, a) < 1e-12
    assert other.losses == pytest.approx(reference.losses, rel=1e-12)
    assert other.val == [pytest.approx(v, rel=1e-6) for v in reference.val]


CASES = {"blocks": {}, "lines": {"line_by_line": True, "whole_word": True}}


def run(files: Path, case: str, batch: int, accumulate: int = 1, ranks: int = 1, eval_batch: int = 64, **more):
    data = {
        "train": str(files / "few.txt"),
        "val": str(files / "val.txt"),
        "eval_batch_size": eval_batch,
        "max_length": 16,
        **more.pop("data", {}),
    }
    options = {"precision": "64-true", "max_epochs": 1, "task": MaskedLM(**CASES[case]), **more}
    return fit_recorded(files / "model", data, batch=batch, accumulate=accumulate, ranks=ranks, **options)


@pytest.fixture(scope="module")
def references(files) -> dict[str, Recorder]:
    return {case: run(files, case, 8) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_masks_gradients_and_metrics_do_not_depend_on_the_cut(case, files, references):
    for batch, accumulate, eval_batch in [(1, 8, 1), (4, 2, 7)]:
        same(references[case], run(files, case, batch, accumulate, eval_batch=eval_batch))


def test_masks_do_not_depend_on_who_makes_them(files, references):
    same(references["blocks"], run(files, "blocks", 8, data={"num_workers": 2}))


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_give_the_same_gradient_and_metrics(files, references, tmp_path):
    same(references["blocks"], run(files, "blocks", 2, 2, ranks=2, eval_batch=5, scratch=tmp_path))


def test_padding_changes_nothing(files, references):
    for data in ({"padding": "max_length"}, {"pad_to_multiple_of": 16}):
        same(references["lines"], run(files, "lines", 8, data=data))


def test_val_masks_are_those_of_every_epoch_and_seed_and_train_masks_are_not(files, references):
    frozen = {"optimizer": {"lr": 1e-15}}
    first = run(files, "blocks", 8, module=frozen, max_epochs=2)
    other = run(files, "blocks", 8, module=frozen, data={"seed": 7})
    losses = [metrics["val/loss"] for metrics in [*first.val, *other.val]]
    assert losses == [pytest.approx(losses[0], rel=1e-9)] * 3
    steps = len(other.losses)
    assert len({tuple(losses) for losses in (first.losses[:steps], first.losses[steps:], other.losses)}) == 3


def test_a_stream_trains_line_by_line_and_refuses_blocks(files, capsys):
    settings = {"train": str(files / "train.txt"), "probe_size": 0, "max_length": 16, "streaming": True}
    task = MaskedLM(line_by_line=True)
    options = {"max_epochs": -1, "max_steps": 3, "module": {"optimizer": {"lr": 3e-3}}}
    found = [
        fit_recorded(files / "model", settings, batch=b, accumulate=32 // b, task=task, **options) for b in (32, 8)
    ]
    assert found[1].losses == pytest.approx(found[0].losses, rel=1e-5)
    flags = {
        "task.class_path": "MaskedLM",
        "model.model_name_or_path": files / "model",
        "data.train": files / "few.txt",
        "data.streaming": "true",
        "data.val_fraction": 0,
        "trainer.max_steps": 3,
        "run_dir": files / "none",
    }
    assert main(["fit", *(text for key, value in flags.items() for text in (f"--{key}", str(value)))]) == 2
    assert "task.init_args.line_by_line" in capsys.readouterr().err


# --- a person's whole way --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    """A finished run, from a YAML file."""
    folder = tmp_path_factory.mktemp("run")
    config = {
        "run_dir": str(folder / "run"),
        "task": {"class_path": "MaskedLM"},
        "model": {"model_name_or_path": str(files / "model")},
        "data": {
            **{name: str(files / f"{name}.txt") for name in ("train", "val")},
            "test": str(files / "val.txt"),
            "cache_dir": str(folder / "cache"),
            "train_batch_size": 4,
            "max_length": 32,
        },
        "optimizer": {"lr": 0.0015},
        "trainer": {"accelerator": "cpu", "max_epochs": 8},
        "logger": "none",
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "my.yaml")]) == 0
    return folder / "run"


def test_the_export_in_plain_transformers_has_the_loss_that_test_reports(finished, files, capsys):
    assert main(["test", "--config", str(finished / "config.yaml")]) == 0
    assert "perplexity" in capsys.readouterr().out
    report = json.loads((finished / "test_metrics.json").read_text())
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


def predict(finished: Path, files: Path, output: Path, *more: str) -> Path:
    config = str(finished / "config.yaml")
    new = str(files / "new.jsonl")
    assert main(["predict", "--config", config, "--data.predict", new, "--output", str(output), *more]) == 0
    return output


def test_guesses_are_those_of_the_pipeline_in_input_order(finished, files, tmp_path):
    out = predict(finished, files, tmp_path / "out.jsonl", "--data.eval_batch_size", "2")
    records = [json.loads(line) for line in out.read_text().splitlines()]
    texts = [json.loads(line)["text"] for line in (files / "new.jsonl").read_text().splitlines()]
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
    with predict(finished, files, tmp_path / "out.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [json.loads(c["fills"] or "[]") for c in cells] == [
        [[{"token": g["token"], "score": pytest.approx(g["score"], abs=1e-5)} for g in fills] for fills in r["fills"]]
        for r in records
    ]


@pytest.mark.slow
def test_a_run_that_goes_on_equals_one_that_was_never_interrupted(files, tmp_path):
    model = make_tiny_model(tmp_path / "model", dropout=0.3, mask=True)
    options = {
        "task.class_path": "MaskedLM",
        "model.model_name_or_path": model,
        "data.train": files / "few.txt",
        "data.val": files / "val.txt",
        "data.max_length": 16,
        "trainer.accumulate_grad_batches": 2,
        "data.train_batch_size": 4,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "logger": "none",
        "checkpoint.every_n_steps": 1,
        "checkpoint.keep_last": -1,
        "checkpoint.keep_best": -1,
    }
    flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    full = fit([*flags, "--run_dir", str(tmp_path / "full")])
    assert check(full, 5, tmp_path / "at5", flags) == []
