"""Messages: whole lines where nobody watches, broken between words on a terminal, and all of them in run.log."""

import io
import logging
import subprocess
import sys

import pytest
from rich.console import Console

from lit_tune import console
from lit_tune.console import ConsoleHandler, is_rank_zero, log_to_file

LONG = "word " * 30 + "end [red]not a colour[/red]"


@pytest.fixture
def said(monkeypatch):
    def print_all(*records, **options):
        out = io.StringIO()
        monkeypatch.setattr(console, "console", Console(file=out, highlight=False, **options))
        for level, text in records:
            ConsoleHandler().emit(logging.LogRecord("lit_tune", level, "", 0, text, (), None))
        return out.getvalue()

    return print_all


def test_elsewhere_a_message_is_one_line_whatever_its_length(said):
    assert said((logging.INFO, LONG), width=40) == LONG + "\n"


def test_a_terminal_breaks_between_words(said):
    shown = said((logging.INFO, LONG), width=42, force_terminal=True).splitlines()
    assert len(shown) > 1
    assert set(" ".join(shown).split()) == set(LONG.split())


def test_warnings_say_so(said):
    assert said((logging.WARNING, "careful"), (logging.INFO, "fine")) == "warning: careful\nfine\n"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, True), ({"LOCAL_RANK": "0"}, True), ({"LOCAL_RANK": "1"}, False), ({"RANK": "3"}, False)],
)
def test_one_process_speaks(monkeypatch, variables, expected):
    for name in ("LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_rank_zero() is expected


def test_run_log_gets_a_copy_with_time_and_level(tmp_path):
    log = logging.getLogger("lit_tune")
    level = log.level
    handler = log_to_file(tmp_path / "run" / "run.log")
    try:
        log.setLevel(logging.INFO)
        log.warning("careful: %d", 3)
    finally:
        log.removeHandler(handler)
        handler.close()
        log.setLevel(level)
    text = (tmp_path / "run" / "run.log").read_text()
    assert text.endswith("WARNING careful: 3\n")
    assert text[:2] == "20"


@pytest.mark.parametrize(("rank", "expected"), [("0", "hello\n"), ("1", "")])
def test_configured_once_and_only_on_rank_zero(rank, expected):
    code = (
        "import logging; from lit_tune.console import configure_logging as c; c(); c(); "
        "logging.getLogger('lit_tune').info('hello'); logging.getLogger('lit_tune').debug('hidden'); "
        "logging.getLogger('lightning.pytorch').info('hidden')"
    )
    env = {"LOCAL_RANK": rank, "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert (done.stderr, done.stdout) == (expected, "")
