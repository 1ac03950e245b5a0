"""A machine without a network knows it after a moment, and says so once."""

import logging
import socket

import pytest
from huggingface_hub import constants
from tiny_runs import Messages

from lit_tune import hub_access
from lit_tune.errors import LitTuneError
from lit_tune.models.load import load_config


@pytest.fixture
def said(monkeypatch):
    """The messages of a process that may go online; the answer of the one before is forgotten."""
    hub_access.answers.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    handler = Messages()
    logging.getLogger("lit_tune").addHandler(handler)
    yield handler.texts
    logging.getLogger("lit_tune").removeHandler(handler)
    hub_access.answers.cache_clear()


@pytest.fixture
def port():
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_hub_that_answers_is_asked(said, port, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert hub_access.is_reachable()
    assert said == []


def test_where_nobody_answers_the_cache_is_used_and_one_line_says_so(said, port, monkeypatch, capfd):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # discard: nothing listens there
    with pytest.raises(LitTuneError, match="org/none is not in the local cache and the Hub cannot be reached"):
        load_config("org/none")
    assert constants.HF_HUB_OFFLINE
    assert not hub_access.is_reachable()
    assert said == ["http://127.0.0.1:9 does not answer: only what is cached on this machine can be used"]
    assert "Retrying" not in capfd.readouterr().err


def test_a_proxy_answers_for_the_hub_and_offline_mode_asks_nobody(said, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert hub_access.is_reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub_access.is_reachable()
    assert said == []


def test_names_that_no_server_has_do_not_answer(said):
    assert not hub_access.answers("https://nobody.invalid", timeout=2)
