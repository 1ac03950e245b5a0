"""Runs of the command line that others export from."""

from pathlib import Path

import pytest

from lit_tune.__main__ import main


def train(files: Path, run: Path, *more: str) -> Path:
    options = ["--data.train", str(files / "train.csv"), "--data.test", str(files / "test.csv")]
    options += ["--run_dir", str(run), "--trainer.accelerator", "cpu", "--optimizer.lr", "0.01", "--logger", "none"]
    if "--model.model_name_or_path" not in more:
        options += ["--model.model_name_or_path", str(files / "tiny")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_TUNE_CACHE", str(files / "cache"))
        assert main(["fit", *options, "--trainer.max_epochs", "1", *more]) == 0
    return run


def config(run: Path) -> list[str]:
    return ["--config", str(run / "config.yaml"), "--trainer.accelerator", "cpu"]


def said(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())
