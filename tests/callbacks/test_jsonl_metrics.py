"""metrics.jsonl: a line is on the disk when it is written, and is always JSON."""

import math

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from tiny_runs import lines

from lit_tune.callbacks.jsonl_metrics import JsonlLogger


def test_every_line_is_readable_at_once(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    logger = JsonlLogger(path)
    for step in (1, 2):
        logger.log_metrics({"loss": step / 2}, step=step)
        assert lines(path)[-1] == {"step": step, "loss": step / 2}  # nothing was closed: a killed run keeps it


def test_undefined_numbers_are_null_and_text_is_text(tmp_path):
    logger = JsonlLogger(tmp_path / "m.jsonl")
    logger.log_metrics({"a": math.nan, "b": -math.inf, "c": torch.tensor(0.5), "d": 3}, step=1)
    logger.log_text("overfit/state", "überfit 😀", step=2)
    assert lines(tmp_path / "m.jsonl") == [
        {"step": 1, "a": None, "b": None, "c": 0.5, "d": 3},
        {"step": 2, "overfit/state": "überfit 😀"},
    ]


def test_lines_may_come_after_the_trainer_is_done(tmp_path):
    logger = JsonlLogger(tmp_path / "m.jsonl")
    logger.log_metrics({}, step=1)
    logger.finalize("success")
    logger.log_metrics({}, step=2)
    assert [line["step"] for line in lines(tmp_path / "m.jsonl")] == [1, 2]


def test_only_rank_zero_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = JsonlLogger(tmp_path / "m.jsonl")
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_text("b", "c", step=1)
    logger.finalize("success")
    assert not (tmp_path / "m.jsonl").exists()
