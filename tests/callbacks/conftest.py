"""Runs and messages of the callbacks' tests."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import Messages, built, fit
from toy import toy_rows, write_csv


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What lit-tune says during the test."""
    log, handler = logging.getLogger("lit_tune"), Messages()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler.texts
    log.removeHandler(handler)
    log.setLevel(level)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_model_dir) -> Path:
    """A finished run of two epochs that nobody changes."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_TUNE_CACHE", str(folder / "cache"))
        train = write_csv(folder / "train.csv", toy_rows(60, seed=1))
        val = write_csv(folder / "val.csv", toy_rows(20, seed=2))
        made = built(tiny_model_dir, train, folder / "run", data__val=str(val), trainer__max_epochs=2, logger="csv")
        fit(made)
    return folder / "run"
