"""Fixtures of all tests: no network, one thread, a cache of their own."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")  # threads that read weights cost tiny models more than they give
os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))

from pathlib import Path

import pytest
from toy import make_tiny_model, toy_rows, write_csv


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Bit-equality and steady timings; two ranks would fight over two cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> Path:
    """A random two-layer BERT without a head, and its word-level tokenizer, as a folder."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_bert"))


@pytest.fixture(scope="session")
def toy_csv(tmp_path_factory) -> Path:
    """120 labelled rows."""
    return write_csv(tmp_path_factory.mktemp("toy") / "train.csv", toy_rows(120))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test sees the cache of another or of the person."""
    monkeypatch.setenv("LIT_TUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: at the end the other worker would wait for it."""
    items.sort(key=lambda item: item.path.name != "test_types.py")
