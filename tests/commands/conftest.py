"""One run with an adapter and one without, for all tests of this folder."""

from pathlib import Path

import pytest
from commands.runs import train
from toy import make_tiny_model, toy_rows, write_csv


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    make_tiny_model(folder / "tiny")
    write_csv(folder / "train.csv", toy_rows(120, seed=1))
    write_csv(folder / "test.csv", toy_rows(30, seed=3))
    return folder


@pytest.fixture(scope="session")
def finished(files, tmp_path_factory) -> Path:
    """A run with LoRA, its settings given key by key."""
    run = tmp_path_factory.mktemp("runs") / "lora"
    return train(files, run, "--model.adapter.type", "lora", "--model.adapter.r", "4", "--model.adapter.dropout", "0.1")


@pytest.fixture(scope="session")
def whole(files, tmp_path_factory) -> Path:
    """A run without adapter."""
    return train(files, tmp_path_factory.mktemp("runs") / "whole")
