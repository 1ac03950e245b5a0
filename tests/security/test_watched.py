"""The watch sees what it is for; else the tests that lean on it prove nothing."""

import importlib
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from security.corpus import BAIT, BAIT_SOURCE, Payload
from security.watched import watched


def unpickle(arguments):
    pickle.loads(pickle.dumps(Payload()))


def load_with_code(arguments):
    torch.save({"x": Payload()}, "x.pt")
    torch.load("x.pt", weights_only=False)


def start(arguments):
    subprocess.run(["true"], check=True)


def connect(arguments):
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", 9), timeout=1)


def fetch(arguments):
    with suppress(OSError):
        urllib.request.urlopen("http://127.0.0.1:9/x", timeout=1)


def bring_in(arguments):
    sys.path.insert(0, os.getcwd())
    Path(f"{BAIT}.py").write_text(BAIT_SOURCE)
    importlib.import_module(BAIT)


def write(arguments):
    Path("../elsewhere.txt").write_text("x")


def rename(arguments):
    Path("a").write_text("x")
    Path("a").rename("../b")


def delete(arguments):
    Path(arguments[0]).unlink()


def write_where_allowed(arguments):
    Path("a.txt").write_text("x")
    Path("a.txt").rename("b.txt")
    tempfile.TemporaryFile().close()


@pytest.mark.parametrize(
    ("action", "seen"),
    [
        (unpickle, "unpickled posix.system"),
        (load_with_code, "unpickled posix.system"),
        (start, "subprocess.Popen"),
        (connect, "socket.getaddrinfo"),
        (fetch, "urllib.Request"),
        (bring_in, "executed"),
        (write, "open"),
        (rename, "os.rename"),
        (delete, "os.remove"),
        (write_where_allowed, None),
    ],
)
def test_what_nothing_should_do_is_seen(action, seen, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (tmp_path / "victim").touch()

    def run(arguments):
        action(arguments)
        return 5

    outcome = watched([str(tmp_path / "victim")], [work], run)
    assert outcome.code == 5, outcome.err
    assert [f.split()[0] for f in outcome.foreign[:1]] == ([] if seen is None else [seen.split()[0]])
    if seen:
        assert outcome.foreign[0].startswith(seen)


def test_what_is_printed_and_raised_comes_back(tmp_path):
    def run(arguments):
        print("x" * 200_000)
        print("to stderr", file=sys.stderr)
        raise SystemExit(7)

    outcome = watched([], [tmp_path], run)
    assert (outcome.code, len(outcome.out), outcome.err) == (7, 200_001, "to stderr\n")
