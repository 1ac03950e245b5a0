"""Runs that are hit by a fault in the middle of a save, each in a forked child, and what must be true afterwards.

The child trains a module of one weight with the real trainer, callbacks and CheckpointIO: 12 steps, a save of the last
weights every 2 steps, a validation that is better each time every 4 steps, so that best is saved too. The parent has
imported everything, so that a case costs a tenth of a second. Two ways to inject: the functions of ``os`` in the child
(needs nothing, sees each call on a file of the run), and strace (the system calls themselves).
"""

import errno
import mmap
import os
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from tiny_runs import QUIET, Scripted, ScriptedData

from lit_tune.callbacks.checkpoints import build_checkpoint_callbacks
from lit_tune.checkpointing import durable_io
from lit_tune.checkpointing.durable_io import DurableCheckpointIO
from lit_tune.checkpointing.verified import newest_verified
from lit_tune.durable import sweep_temporaries
from lit_tune.errors import StorageError
from lit_tune.run_dir import RunDir

STEPS, INTERVAL = 12, 2
ERRORS = ("ENOSPC", "EIO", "EACCES", "EDQUOT")
KINDS = ("open", "write", "fsync", "replace", "unlink")
"""Functions of ``os`` that a save goes through."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Args:
        kind: The function of ``os``, or the system call.
        number: Which call of it, from 1.
        effect: Name of an errno, or SIGKILL.
        lasts: Every later call fails too.
    """

    kind: str
    number: int
    effect: str
    lasts: bool = False


class Board:
    """What a child tells without a system call: steps taken, saves done, calls seen."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8 * 16)

    def __getitem__(self, place: int) -> int:
        return struct.unpack_from("q", self.memory, 8 * place)[0]

    def __setitem__(self, place: int, value: int) -> None:
        struct.pack_into("q", self.memory, 8 * place, value)


STEP, FIRST_KIND = 0, 1


class Tell(Callback):
    """Writes the steps taken to the board, before anything is saved."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.board[STEP] = trainer.global_step


def save(run_dir: RunDir, board: Board) -> None:
    """Saves alone, as ``checkpoint.keep_last: 1`` makes them: what failed is left, the old file goes after the new."""
    durable, previous = DurableCheckpointIO(run_dir), None
    for step in range(INTERVAL, STEPS + 1, INTERVAL):
        board[STEP] = step
        path = run_dir.checkpoints / f"last-{step:07d}.ckpt"
        content = {"global_step": step, "epoch": 0, "optimizer_states": [], "state_dict": {"w": torch.ones(64) * step}}
        try:
            durable.save_checkpoint(content, path)
            if previous is not None:
                durable.remove_checkpoint(previous)
            previous = path
        except StorageError:
            continue


def train(run_dir: RunDir, board: Board) -> None:
    """The run."""
    script = [{"val/accuracy": 0.5 + 0.1 * i, "val/loss": 1.0} for i in range(STEPS // 4)]
    callbacks = [Tell(board), *build_checkpoint_callbacks(run_dir.checkpoints, every_n_steps=INTERVAL)]
    settings = {
        **QUIET,
        "max_epochs": len(script),
        "enable_checkpointing": True,
        "plugins": DurableCheckpointIO(run_dir),
    }
    L.Trainer(**settings, callbacks=callbacks).fit(Scripted(script), datamodule=ScriptedData(4))


def child(run: Callable[[], None], before: Callable[[], None] = lambda: None) -> int:
    """Fork; returns the child's number. It exits with 0, with the code of a StorageError, or with 1."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        durable_io.PAUSES_SECONDS = (0.0, 0.0)
        before()
        run()
        status = 0
    except StorageError as error:
        status = error.exit_code
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(status)


def inject(run_dir: RunDir, board: Board, fault: Fault | None) -> None:
    """Replace functions of ``os`` in this process: count the calls on files of the run, fail or die at one of them."""
    root = str(run_dir.path.resolve())

    def replace(kind: str, place: int) -> None:
        real = getattr(os, kind)

        def call(subject, *rest, **named):
            path = os.readlink(f"/proc/self/fd/{subject}") if isinstance(subject, int) else os.fspath(subject)
            if not str(path).startswith(root):
                return real(subject, *rest, **named)
            board[place] += 1
            if fault is not None and fault.kind == kind:
                hit = board[place] >= fault.number if fault.lasts else board[place] == fault.number
                if hit and fault.effect == "SIGKILL":
                    os.kill(os.getpid(), signal.SIGKILL)
                if hit:
                    number = getattr(errno, fault.effect)
                    raise OSError(number, os.strerror(number), path)
            return real(subject, *rest, **named)

        setattr(os, kind, call)

    for place, kind in enumerate(KINDS, FIRST_KIND):
        replace(kind, place)


Run = Callable[[RunDir, Board], None]


def calls_of_a_run(folder: Path, run: Run = train) -> dict[str, int]:
    """How often a run without a fault calls each function."""
    run_dir, board = RunDir(folder), Board()
    _, status = os.waitpid(child(lambda: run(run_dir, board), lambda: inject(run_dir, board, None)), 0)
    assert status == 0
    assert board[STEP] == STEPS
    return {kind: board[place] for place, kind in enumerate(KINDS, FIRST_KIND)}


def hit(folder: Path, fault: Fault, run: Run = train) -> tuple[RunDir, int, int]:
    """A run with a fault in ``os``: its directory, its exit status (negative: a signal), the steps it took."""
    run_dir, board = RunDir(folder), Board()
    _, status = os.waitpid(child(lambda: run(run_dir, board), lambda: inject(run_dir, board, fault)), 0)
    return run_dir, os.waitstatus_to_exitcode(status), board[STEP]


def hit_by_strace(folder: Path, fault: Fault) -> tuple[RunDir, int, int]:
    """The same with strace, which counts all calls of the process from the start of the run."""
    run_dir, board = RunDir(folder), Board()
    go, come = os.pipe()

    def wait() -> None:
        os.close(come)
        os.read(go, 1)

    number = child(lambda: train(run_dir, board), wait)
    os.close(go)
    effect = f"signal={fault.effect}" if fault.effect == "SIGKILL" else f"error={fault.effect}"
    when = f"{fault.number}{'+' if fault.lasts else ''}"
    options = ["-f", "-e", f"trace={fault.kind}", "-e", f"inject={fault.kind}:{effect}:when={when}", "-o", os.devnull]
    tracer = subprocess.Popen(["strace", *options, "-p", str(number)], stderr=subprocess.PIPE, text=True)
    assert "attached" in tracer.stderr.readline()
    os.close(come)
    _, status = os.waitpid(number, 0)
    tracer.stderr.close()
    tracer.wait()
    return run_dir, os.waitstatus_to_exitcode(status), board[STEP]


def check(run_dir: RunDir, status: int, steps: int, fault: Fault) -> None:
    """At most one interval is lost, what is left is verified and loads, and the next start sweeps the rest."""
    if fault.effect == "SIGKILL":
        assert status in (-signal.SIGKILL, 0)
    elif fault.lasts:
        assert status in (0, StorageError.exit_code)
    else:
        assert status == 0, "one failed save must not end the run"
    sweep_temporaries(run_dir.path)
    assert not list(run_dir.path.rglob(".*")), "nothing is left over after the next start's sweep"
    choice = newest_verified(run_dir)
    kept = choice.step if choice is not None else 0
    # a fault that lasts is told at the second failed save, so that two intervals were trained since the last good one
    lost = (1 + fault.lasts) * INTERVAL
    assert steps - kept <= lost, f"{steps} steps were taken, and step {kept} is the newest that is verified"
    if choice is not None:
        loaded = DurableCheckpointIO(run_dir).load_checkpoint(choice.path)
        assert loaded["global_step"] == choice.step
    if status == 0 and not fault.lasts:
        assert kept >= STEPS - INTERVAL


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs of its own; needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
