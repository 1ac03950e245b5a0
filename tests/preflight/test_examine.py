"""Preflight as a whole: everything at once, nothing disturbed, the same words from check and from fit."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import built
from toy import model_with_head, toy_rows, write_csv, write_jsonl
from transformers import AutoModelForSequenceClassification

from lit_tune.__main__ import main
from lit_tune.cli import parse
from lit_tune.models.weight_files import find_weights
from lit_tune.preflight.examine import Preflight
from lit_tune.preflight.model_rules import Size, rehearse, skeleton_of
from lit_tune.preflight.step_rules import Plan


def distinct_rows(count: int, seed: int = 0) -> list[dict]:
    """Toy rows, no text twice."""
    return [{**row, "text": f"{row['text']} {seed}x{i}"} for i, row in enumerate(toy_rows(count, seed))]


@pytest.fixture
def options(tiny_model_dir, tmp_path) -> list[str]:
    train = write_csv(tmp_path / "train.csv", distinct_rows(60))
    names = {"data.train": train, "model.model_name_or_path": tiny_model_dir, "run_dir": tmp_path / "run"}
    return [part for k, v in names.items() for part in (f"--{k}", str(v))] + ["--trainer.accelerator", "cpu"]


def checked(capsys, *tokens: str) -> tuple[int, dict]:
    code = main(["check", *tokens, "--format", "json"])
    out, err = capsys.readouterr()
    assert out, err
    return code, json.loads(out)


def test_problems_of_every_kind_are_told_at_once(options, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    bad_rows = write_csv(tmp_path / "bad.csv", [{"txt": "a", "label": "x"}])
    wrong = {
        "optimizer.weight_deacy": "0.1",  # unknown key
        "optimizer.lr": "-1",  # out of range
        "data.train": str(bad_rows),  # no column
        "data.val": str(tmp_path / "none.csv"),  # no file
        "data.test": str(write_csv(tmp_path / "test.csv", [{"text": "a"}])),  # no label
        "model.model_name_or_path": str(tmp_path / "no_model"),
        "run_dir": str(tmp_path / "taken" / "run"),  # not a folder
    }
    code, report = checked(capsys, *options, *(part for k, v in wrong.items() for part in (f"--{k}", v)))
    assert code == 2
    assert {e["exit_code"] for e in report["errors"]} == {2, 3, 4, 7}
    whats = [f"{e['where']}: {e['what']}" for e in report["errors"]]
    for part in (
        "weight_deacy",
        "optimizer.lr",
        "no column 'text'",
        "none.csv does not exist",
        "no folder",
        "cannot write",
    ):
        assert sum(part in what for what in whats) >= 1, (part, whats)
    assert all(e["fix"] for e in report["errors"])
    assert len(whats) == len(set(whats))


def test_a_good_config_is_measured_and_leaves_nothing_behind(options, tmp_path, capsys):
    write_csv(tmp_path / "val.csv", distinct_rows(30, 1))
    before = set(tmp_path.rglob("*"))
    code, report = checked(capsys, *options, "--data.val", str(tmp_path / "val.csv"), "--model.freeze", "embeddings")
    assert (code, report["errors"]) == (0, [])
    assert set(tmp_path.rglob("*")) == before
    assert report["rows"] == {"train": 60, "val": 30}
    assert report["plan"]["steps"] == 12
    assert report["trial"]["rows"] == 16
    assert 0 < report["trial"]["seconds"] < 60
    assert report["seconds_per_epoch"] == pytest.approx(4 * report["trial"]["seconds"])
    model = AutoModelForSequenceClassification.from_pretrained(options[3], num_labels=3)
    total = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for n, p in model.named_parameters() if "embeddings" in n)
    assert (report["size"]["parameters"], report["size"]["trained"]) == (total, total - frozen)


def test_the_text_has_facts_and_warnings_on_stdout_and_errors_on_stderr(options, tmp_path, capsys):
    assert main(["check", *options, "--optimizer.lr", "0.01"]) == 0
    out, err = capsys.readouterr()
    for part in (
        "data     train 54 rows, val 6 rows",
        "problem  single_label",
        "steps    4 per epoch, 12 in all",
        "memory",
        "time",
        "warning",
        "optimizer.lr: 0.01 is high",
        "Fix: ",
        "no errors",
    ):
        assert part in out
    assert err == ""
    assert main(["check", *options, "--checkpoint.monitor", "val/nothing"]) == 2
    out, err = capsys.readouterr()
    assert "1 error: see below" in out
    assert "checkpoint.monitor: 'val/nothing' is never logged" in " ".join(err.split())
    assert main(["check", *options, "--format", "xml"]) == 2


def test_a_stream_is_checked_by_its_beginning(options, tmp_path, capsys):
    rows = [{"text": f"rock {i}", "label": "good" if i < 400 else "bad"} for i in range(800)]
    stream = write_jsonl(tmp_path / "stream.jsonl", rows)
    more = ["--data.train", stream, "--data.streaming", "true", "--trainer.max_steps", "20", "--data.val_fraction", "0"]
    code, report = checked(capsys, *options, *more, "--task.init_args.label_names", "[bad, good]")
    assert (code, report["errors"]) == (0, [])
    assert report["plan"]["steps"] == 20
    assert "class after class" in next(w["what"] for w in report["warnings"] if w["where"] == "data.streaming")
    assert report["trial"]["seconds"] > 0


def state() -> tuple:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_the_first_phase_of_fit_draws_no_random_number(tiny_model_dir, tmp_path):
    made = built(tiny_model_dir, write_csv(tmp_path / "train.csv", distinct_rows(60)), tmp_path / "run")
    situation = parse(
        ["--data.train", str(tmp_path / "train.csv"), "--model.model_name_or_path", str(tiny_model_dir)]
    ).situation
    before = state()
    preflight = Preflight(situation, made.module, made.datamodule, tmp_path / "run")
    report = preflight.before_fit()
    assert state() == before
    assert report.errors == []
    assert report.rows == {"train": 54, "val": 6}
    assert not report.is_sample
    assert made.module.model is None


def test_what_a_run_would_raise_of_optimizer_and_schedule_is_raised_on_the_skeleton(tiny_model_dir, tmp_path):
    settings = {"optimizer__init_args": {"amsgrat": True}, "model__freeze": "nothing_like_it"}
    made = built(tiny_model_dir, write_csv(tmp_path / "train.csv", distinct_rows(20)), tmp_path / "run", **settings)
    made.datamodule.prepare("fit")
    made.module.spec = made.datamodule.spec
    skeleton = skeleton_of(made.module, made.datamodule.spec)
    problems: list = []
    size = rehearse(made.module, skeleton, Plan(20, 1, 20, 100, 20), problems)
    assert [p.where for p in problems] == ["model.freeze", "optimizer.init_args.amsgrat"]
    assert isinstance(size, Size)
    assert all(p.device.type == "meta" for p in skeleton.parameters())


def test_the_skeleton_has_the_shapes_of_the_weights(tiny_model_dir, tmp_path):
    folder = model_with_head(tiny_model_dir, tmp_path / "head", ["bad", "fine", "good"])
    made = built(folder, write_csv(tmp_path / "train.csv", distinct_rows(20)), tmp_path / "run")
    made.datamodule.prepare("fit")
    skeleton = skeleton_of(made.module, made.datamodule.spec)
    stored = find_weights(str(folder), None).shapes()
    assert stored == {name: tuple(p.shape) for name, p in skeleton.named_parameters()}


@pytest.mark.parametrize("verb", ["check", "fit"])
def test_check_and_fit_refuse_the_same_with_the_same_words(options, tmp_path, capsys, verb):
    more = ["--data.val", str(tmp_path / "train.csv"), "--lr_schedule.warmup", "500", "--checkpoint.monitor", "val/x"]
    assert main([verb, *options, *more]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "lit-tune: 3 problems" in said
    for part in (
        "60 of 60 val rows (100.0%)",
        "500 warm-up steps are more than the 12 steps",
        "'val/x' is never logged",
    ):
        assert part in said
    assert not (Path(options[5]) / "checkpoints").exists()
