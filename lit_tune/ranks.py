"""The processes of one run on this machine: rank zero starts the others, and none outlives the death of another.

Nothing heavy is imported here: a rank is watched while it still imports torch.
"""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from lit_tune import interrupts
from lit_tune.errors import HardwareError
from lit_tune.interrupts import Interruption

RANK_ZERO = "LIT_TUNE_RANK_ZERO_PID"
"""Set for a rank that rank zero has started: the process it must not outlive."""
LAST_WORDS = "LIT_TUNE_LAST_WORDS_FD"
"""Set for the same: a pipe on which it tells rank zero why it ends."""

POLL_SECONDS = 0.2
SETTLE_SECONDS = 2.0
"""After a rank has died the others meet the same error, or one that it causes; whoever has a reason tells it first."""
UNWIND_SECONDS = 10.0
"""How long rank zero may take to write down a failure and close its files before it is ended."""
GRACE_SECONDS = 15.0
"""How long the other ranks may take to end by themselves once rank zero ends."""

CONNECTION_LOST = "the connection to another rank was lost"
"""In the last words of a rank that another one's death has ended."""

OWN_CODES = range(1, 9)
"""Exit codes that say what happened (errors.py); one rank's is the run's."""


def rank_of_process() -> int:
    """This process's rank, from the environment of torchrun, SLURM or lit-tune; 0 where it runs alone."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


class RankFailure(HardwareError):  # noqa: N818 - as in the errors it stands for
    """Another rank has died; its exit code, where it has a meaning, is the run's.

    Args:
        what: Which one, and how.
        code: The exit code of the run.
    """

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what, fix="see what that rank said above; the same command continues the run")
        self.exit_code = code  # type: ignore[misc]


@dataclass(frozen=True)
class Death:
    """How a rank ended.

    Args:
        rank: Which.
        pid: Its process.
        code: As ``Popen.returncode``: negative for a signal.
        words: What it told rank zero last.
    """

    rank: int
    pid: int
    code: int
    words: str = ""

    def __str__(self) -> str:
        name = f"rank {self.rank} (pid {self.pid})"
        if self.words:
            return f"{name}: {self.words}"
        if self.code < 0:
            return f"{name} was killed by {signal.Signals(-self.code).name}"
        return f"{name} ended with exit code {self.code}"

    def error(self) -> BaseException:
        """What this death means for the run.

        >>> Death(1, 77, -9).error().exit_code
        5
        >>> Death(1, 77, 3, "train.csv:7: no label").error().exit_code
        3
        >>> Death(1, 77, 143).error().code
        143
        """
        for signum in interrupts.SIGNALS:
            if self.code in (-signum, 128 + signum):
                return Interruption(signum, f"{signal.Signals(signum).name} to rank {self.rank}")
        return RankFailure(str(self), self.code if self.code in OWN_CODES else HardwareError.exit_code)


_STARTED: list["Ranks"] = []


class Ranks:
    """The other ranks, seen from rank zero, which has started them.

    Args:
        processes: Rank -> its process.
        words: Rank -> read end of its pipe.
    """

    def __init__(self, processes: Mapping[int, subprocess.Popen[bytes]], words: Mapping[int, int]) -> None:
        self.processes, self.words = dict(processes), dict(words)
        self.death: Death | None = None
        """The first rank that ended with anything but 0."""
        self._died, self._settled = threading.Event(), threading.Event()
        _STARTED.append(self)
        atexit.register(self.join)
        threading.Thread(target=self._watch, daemon=True, name="ranks").start()

    def settle(self, error: BaseException | None) -> BaseException | None:
        """Rank zero has left its work, with an error or without.

        Args:
            error: What ended it.

        Returns:
            What ended the run: the error itself where it has a reason, else the death that caused it.
        """
        is_reason = error is None or isinstance(error, Interruption) or hasattr(error, "exit_code")
        if not is_reason:
            self._died.wait(SETTLE_SECONDS)  # a lost connection is noticed sooner than the death behind it
        self._settled.set()
        if isinstance(error, Interruption):
            if not error.is_shared:
                self.end(error.signum)
        elif error is not None:
            self.end()
        return error if is_reason or self.death is None else self.death.error()

    def end(self, signum: int = signal.SIGTERM) -> None:
        """Tell the other ranks to end; :meth:`join` sees to it that they do.

        Args:
            signum: With which signal.
        """
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signum)

    def join(self) -> None:
        """Before rank zero exits: the others end first, or they would take its end for a death."""
        interrupts.settle()
        if self._have_ended_within(GRACE_SECONDS):
            return
        for process in self.processes.values():
            if process.poll() is None:  # waits in native code for ranks that are gone
                process.kill()
        self._have_ended_within(GRACE_SECONDS)

    def _have_ended_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes.values()):
            if time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS / 10)
        return True

    def _watch(self) -> None:
        while self.death is None:
            time.sleep(POLL_SECONDS)
            codes = {rank: process.poll() for rank, process in self.processes.items()}
            if all(code == 0 for code in codes.values()):
                return
            deaths = [Death(r, self.processes[r].pid, code, self._last_words(r)) for r, code in codes.items() if code]
            # several at once: the one that the others have died of
            self.death = min(deaths, key=lambda d: CONNECTION_LOST in d.words, default=None)
        self._died.set()
        if self._settled.wait(SETTLE_SECONDS):
            return
        error = self.death.error()
        interrupts.raise_in_main(error)
        if not self._settled.wait(UNWIND_SECONDS):  # blocked in a collective that waits for the dead
            self._quit(error)

    def _quit(self, error: BaseException) -> None:
        _say(str(error))
        self.end()
        self.join()
        quit_at_once(int(getattr(error, "exit_code", getattr(error, "code", HardwareError.exit_code))))

    def _last_words(self, rank: int) -> str:
        with suppress(OSError, KeyError):
            os.set_blocking(self.words[rank], False)
            return os.read(self.words[rank], 4096).decode(errors="replace").strip()
        return ""


def join_ranks() -> None:
    """Wait for the ranks that this process has started to end; those that do not are ended."""
    for ranks in _STARTED:
        ranks.join()


def tell_rank_zero(words: str) -> bool:
    """Tell rank zero, where it has started this process, why this one ends.

    Args:
        words: At most 4096 bytes are read.

    Returns:
        Whether it was told: then rank zero says it.
    """
    pipe, parent = os.environ.get(LAST_WORDS), os.environ.get(RANK_ZERO)
    if pipe is None:
        return False
    if CONNECTION_LOST in words:  # noticed before the death behind it, of which watch_rank_zero may have more to say
        time.sleep(SETTLE_SECONDS)
    if str(os.getppid()) != parent:
        return False
    with suppress(OSError, ValueError):
        os.write(int(pipe), words.encode()[:4096])
        return True
    return False


def watch_rank_zero() -> None:
    """In a rank that rank zero has started: end when rank zero is gone. Once; does nothing in any other process."""
    parent = os.environ.get(RANK_ZERO, "")
    if not parent.isdigit() or any(t.name == "rank zero" for t in threading.enumerate()):
        return
    if os.getppid() != int(parent) and _is_alive(int(parent)):
        return  # a program that a rank has started, which has inherited the variable
    threading.Thread(target=_end_with_rank_zero, args=(int(parent),), daemon=True, name="rank zero").start()


def _end_with_rank_zero(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    _say(f"rank {rank_of_process()} ends: rank 0 (pid {parent}) is gone. The same command continues the run")
    quit_at_once(HardwareError.exit_code)


def quit_at_once(code: int) -> None:
    """End this process, its loaders' workers and the ranks it has started, without any clean-up: that might hang too.

    Args:
        code: Exit code.
    """
    for process in (p for ranks in _STARTED for p in ranks.processes.values()):
        with suppress(OSError):
            process.kill()
    processes = sys.modules.get("multiprocessing")
    for child in processes.active_children() if processes else []:
        with suppress(OSError):
            child.kill()
    os._exit(code)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"lit-tune: {text}\n".encode())
