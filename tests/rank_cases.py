"""Runs of the command line in processes forked from the test, which pause at a named phase until the test goes on.

A fork of the test's process has everything imported: a run of two ranks costs a second, not twenty. The ranks are
started, watched and ended by the launcher of every run; only the way in which a process comes to be differs.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback

import lit_tune.commands.fit  # noqa: F401 - here once, not in every process
from lit_tune import supervision
from lit_tune.__main__ import main
from lit_tune.errors import DataError
from lit_tune.ranks import rank_of_process
from lit_tune.tasks.sequence_classification import SequenceClassification

PATIENCE_SECONDS = 120.0
"""Of the tests, for anything; no case is judged by its time within this."""


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The condition's value as soon as it is true."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.01)
    return value


def pause(folder: str, phase: str) -> None:
    """Tell the test where this rank is, and wait for its word; once per process and phase."""
    marker = Path(folder) / f"{phase}.{rank_of_process()}"
    if not marker.exists():
        marker.write_text(str(os.getpid()))
        wait_for((Path(folder) / "go").exists, "go")


class Pause(Callback):
    """Pauses on every rank at the beginning of a phase.

    Args:
        folder: Of the markers.
        phase: ``setup``, ``step``, ``validation``, ``save`` or ``export``; ``error`` raises one on rank one in a step.
    """

    def __init__(self, folder: str, phase: str) -> None:
        self.folder, self.phase = folder, phase

    def reached(self, phase: str) -> None:
        if phase == self.phase:
            pause(self.folder, phase)
        if self.phase == "error" and phase == "step" and rank_of_process() == 1:
            raise DataError("no label", where="train.csv:7", fix="give it one")

    def on_fit_start(self, trainer, pl_module):
        self.reached("setup")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            self.reached("step")

    def on_validation_batch_end(self, *args):
        self.reached("validation")

    def on_save_checkpoint(self, *args):
        self.reached("save")

    def on_fit_end(self, trainer, pl_module):
        """Rank zero pauses while it writes the export; the others wait for it in a collective."""
        if self.phase != "export":
            return
        if not trainer.is_global_zero:
            (Path(self.folder) / f"export.{trainer.global_rank}").write_text(str(os.getpid()))
            return
        save = pl_module.model.save_pretrained

        def paused(*args, **kwargs):
            self.reached("export")
            save(*args, **kwargs)

        pl_module.model.save_pretrained = paused


class CollectiveCount(Callback):
    """Counts what ranks say to each other in micro-batches 4 to 11, in Python or C++: gloo numbers each of it.

    Args:
        folder: Gets ``collectives.<rank>``.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 4:
            self.before = torch.distributed.group.WORLD._get_sequence_number_for_group()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 11:
            count = torch.distributed.group.WORLD._get_sequence_number_for_group() - self.before
            (Path(self.folder) / f"collectives.{trainer.global_rank}").write_text(str(count))


class PausedTask(SequenceClassification):
    """Pauses when the first rows are tokenized.

    Args:
        folder: Of the markers.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def encode(self, *args, **kwargs):
        pause(self.folder, "tokenizing")
        return super().encode(*args, **kwargs)


class StuckTask(SequenceClassification):
    """A loading worker that hangs at its third batch."""

    def collator(self, *args, **kwargs):
        collate, seen = super().collator(*args, **kwargs), []

        def stuck(features):
            seen.append(1)
            if len(seen) > 2 and torch.utils.data.get_worker_info() is not None:
                time.sleep(600)
            return collate(features)

        return stuck


class ForkedRank:
    """What the launcher sees of a rank: the part of Popen that it uses.

    Args:
        pid: The process.
        code_file: Gets the exit code.
    """

    def __init__(self, pid: int, code_file: Path) -> None:
        self.pid, self.code_file = pid, code_file
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
                    self.code_file.write_text(str(self.returncode))
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Run:
    """A run of the command line in a process of its own, the leader of a group of its own.

    Args:
        arguments: After ``lit-tune``.
        folder: For output, markers and exit codes.
    """

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self.folder, self.arguments = folder, list(arguments)
        for old in folder.glob("code.*"):
            old.unlink()
        self._code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            self._live()
        self.family: list[psutil.Process] = []
        """All its processes at the pause."""

    def _live(self) -> None:
        """Never returns: a forked process must not run the rest of the tests."""
        code = 97
        try:
            os.setsid()
            output = os.open(self.folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115 - not pytest's
            supervision.RankLauncher.start_rank = lambda _, environment, pipe: self._fork_rank(environment)
            code = main(self.arguments)
        finally:
            os._exit(code)

    def _fork_rank(self, environment: dict[str, str]) -> ForkedRank:
        rank = int(environment["LOCAL_RANK"])
        pid = os.fork()
        if pid:
            return ForkedRank(pid, self.folder / f"code.{rank}")
        code = 97
        try:
            os.environ.update(environment)
            rank_zero_only.rank = rank  # a new process would read it from the environment
            code = main(self.arguments)
        finally:
            os._exit(code)

    def at(self, phase: str, ranks: int) -> list[int]:
        """Wait until all ranks have reached a phase; their processes."""
        markers = [self.folder / f"{phase}.{rank}" for rank in range(ranks)]
        wait_for(lambda: all(m.exists() and m.read_text() for m in markers) or self.poll() is not None, phase)
        assert self._code is None, self.output()
        self.meet(ranks)
        return [int(m.read_text()) for m in markers]

    def meet(self, count: int) -> None:
        """Wait until it consists of so many processes, or more, and remember them."""
        root = psutil.Process(self.pid)
        wait_for(lambda: len(root.children(recursive=True)) >= count - 1, f"{count} processes")
        self.family = [root, *root.children(recursive=True)]

    def go_on(self) -> None:
        """Let the paused ranks continue."""
        (self.folder / "go").touch()

    def poll(self) -> int | None:
        """Rank zero's exit code, once it has ended."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def code(self) -> int:
        """Wait for the end; rank zero's exit code."""
        wait_for(lambda: self.poll() is not None, f"the end of\n{self.output()}")
        assert self._code is not None
        return self._code

    def codes(self) -> list[int]:
        """Exit codes of all ranks, as rank zero has seen them."""
        own = self.code()
        files = sorted(self.folder.glob("code.*"))
        return [own, *(int(f.read_text()) for f in files)]

    def orphans(self) -> list[int]:
        """Processes that are still there a while after the end."""

        def alive() -> list[int]:
            return [p.pid for p in self.family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

        end = time.monotonic() + 30
        while alive() and time.monotonic() < end:
            time.sleep(0.05)
        return alive()

    def output(self) -> str:
        """What it printed."""
        path = self.folder / "output"
        return path.read_text() if path.exists() else ""

    def kill(self) -> None:
        """Leave nothing behind, whatever a test has found."""
        for process in [*self.family, psutil.Process(self.pid)] if self.poll() is None else self.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
