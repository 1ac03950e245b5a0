"""Runs of the command line for the table of faults, each in a fork of the test's process, which has all imported.

A fork costs a tenth of a second, and what a fault leaves behind (variables, handlers, a spoilt ``os``) dies with it.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lit_tune.commands.fit  # noqa: F401 - here once, not in every process
from lit_tune.__main__ import main
from lit_tune.run_dir import RunDir

MAX_MESSAGE_LINES = 6


def joined(lines: list[str]) -> str:
    """Text without the breaks of a narrow terminal."""
    return " ".join(" ".join(lines).split())


def nothing() -> None:
    """The world is as it should be."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Args:
        code: Its exit code; negative: the signal that killed it.
        said: What it printed.
        run: The run directory.
    """

    code: int
    said: str
    run: RunDir

    def ends(self, code: int, first: str, *more: str) -> None:
        """The promise of every row: code, what and where in the first line, ``Fix:``, at most six lines, no traceback.

        Args:
            code: Expected.
            first: How the message begins.
            more: What else stands in it.
        """
        assert self.code == code, self.said
        assert "Traceback" not in self.said, self.said
        lines = self.said.replace("\0", "").rstrip().splitlines()  # torch's words on SIGBUS end with one
        begins = [i for i in range(len(lines)) if joined(lines[i:]).startswith(first)]
        assert begins, f"{first!r} is not in\n{self.said}"
        message = lines[begins[-1] :]
        assert len(message) <= MAX_MESSAGE_LINES, message
        text = joined(message)
        assert "Fix: " in text, message
        for part in more:
            assert part in text, message

    def goes_on(self, *says: str) -> None:
        """The fault is told and the run is complete all the same."""
        assert self.code == 0, self.said
        assert "Traceback" not in self.said, self.said
        assert self.manifest["status"] == "complete"
        text = joined([self.said])
        for part in says:
            assert part in text, self.said

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads(self.run.manifest.read_text())


def start(arguments: list[str], output: Path, before: Callable[[], None] = nothing) -> int:
    """Start ``lit-tune`` in a fork.

    Args:
        arguments: After ``lit-tune``.
        output: Gets what it prints.
        before: Called in the fork.

    Returns:
        Its process.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 97
    try:
        out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115 - not pytest's
        before()
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait; the exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
