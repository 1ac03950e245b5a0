"""A run in which nothing moves any more ends, with the stacks of all its threads and of its loaders' workers."""

import faulthandler
import logging
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from lit_tune.callbacks.run_record import RunRecord
from lit_tune.errors import HardwareError
from lit_tune.ranks import quit_at_once, tell_rank_zero
from lit_tune.supervision import ranks_have_met

log = logging.getLogger("lit_tune")

MEDIANS = 10
"""A pause of that many usual ones is a hang, where that is longer than the timeout."""
FIRST, SAVE = 3.0, 10.0
"""Times the timeout: for what happens for the first time (kernels are compiled), and for writing a checkpoint."""
TICK_SECONDS = 1.0
STACKS_SECONDS = 2.0
"""How long workers get to write their stacks, and rank zero waits for those of the other ranks."""


def allowed_seconds(pauses: Sequence[float], timeout: float) -> float:
    """How long a pause between two batches may last.

    Args:
        pauses: The last ones, in seconds.
        timeout: The least that counts as a hang.

    >>> allowed_seconds([0.1, 0.1, 90.0], 300), allowed_seconds([60.0, 61.0, 59.0], 300)
    (300, 600.0)
    """
    return max(timeout, MEDIANS * statistics.median(pauses)) if pauses else timeout


class HangWatchdog(Callback):
    """Ends the process with exit code 5 when no batch has ended for too long, on each rank for itself.

    Args:
        timeout_seconds: The least pause that counts as a hang; 0 lets a run wait for ever.
        record: Writes down the failure; its run.log gets the stacks.
    """

    def __init__(self, timeout_seconds: float, record: RunRecord | None = None) -> None:
        self.timeout, self.record = timeout_seconds, record
        self.pauses: deque[float] = deque(maxlen=200)
        self.doing = ""
        self._idle, self._factor = 0.0, FIRST  # the first is the thread's own
        self._num_moves = 0
        self._seen: set[str] = set()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._stacks: Any = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin; the workers, forked later, inherit how stacks are asked for."""
        ranks_have_met(trainer)
        self.close()
        if not self.timeout:
            return
        self.pauses.clear()
        self._seen.clear()
        self._moved("start", factor=FIRST)
        self._stacks = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - as long as the watch
        if threading.current_thread() is threading.main_thread():
            faulthandler.register(signal.SIGUSR2, self._stacks, all_threads=True)
        self._stop = threading.Event()
        self._rank = trainer.global_rank
        self._thread = threading.Thread(target=self._watch, args=(self._stop,), daemon=True, name="hang watchdog")
        self._thread.start()

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._moved(f"optimizer step {trainer.global_step}", "train")

    def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
        self._moved(f"a batch of the validation at step {trainer.global_step}", "validation")

    def on_test_batch_end(self, trainer: Any, *args: Any) -> None:
        self._moved("a batch of the test", "test")

    def on_predict_batch_end(self, trainer: Any, *args: Any) -> None:
        self._moved("a batch of predictions", "predict")

    def moved(self, doing: str) -> None:
        """Called by other callbacks whose work is long.

        Args:
            doing: What has just been done.
        """
        self._moved(doing, "others")

    def on_save_checkpoint(self, trainer: Any, *args: Any) -> None:
        self._moved(f"the beginning of the save at step {trainer.global_step}", factor=SAVE)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._moved("the last step", factor=SAVE)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self._moved("training", factor=SAVE)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.close()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.close()

    def close(self) -> None:
        """End the watch."""
        self._stop.set()
        if self._thread is not None:
            if threading.current_thread() is threading.main_thread():
                faulthandler.unregister(signal.SIGUSR2)
            self._thread.join()
            self._stacks.close()
            self._thread = None

    def _moved(self, doing: str, kind: str = "", factor: float = 1.0) -> None:
        """Something has ended.

        Args:
            doing: What; named if nothing follows.
            kind: Batches of one kind: the pause after the first one may be longer.
            factor: How much longer than usual the next pause may be.
        """
        if kind and kind not in self._seen:
            self._seen.add(kind)
            factor = FIRST
        self.doing, self._factor = doing, factor
        self._num_moves += 1

    def _watch(self, stop: threading.Event) -> None:
        tick = min(TICK_SECONDS, self.timeout / 10)
        before, seen = time.monotonic(), -1
        while not stop.wait(tick):
            now = time.monotonic()
            if seen != self._num_moves:
                self.pauses.append(self._idle)
                self._idle, seen = 0.0, self._num_moves
            self._idle += min(now - before, 2 * tick)  # a process that was suspended has not waited
            before = now
            if self._idle > self._factor * allowed_seconds(self.pauses, self.timeout):
                self._end()
                return

    def _end(self) -> None:
        pause = f"{self._idle:.0f} s without progress after {self.doing}"
        error = HardwareError(
            f"rank {self._rank}: {pause}; the stacks above show where each thread waits",
            where="hang_timeout_seconds",
            fix="a slow disk or a first compilation: a larger value, 0 for none; the same command continues the run",
        )
        self._tell(f"\nStacks of rank {self._rank} after {pause}\n{self._all_stacks()}\n{error}\n")
        if sys.flags.interactive or hasattr(sys, "ps1"):  # a person at a prompt, perhaps in a debugger
            return
        tell_rank_zero(str(error).partition("\n")[0])
        if self._rank == 0:
            if self.record is not None:  # what hangs may be the disk
                writer = threading.Thread(target=self.record.fail, args=(error,), daemon=True)
                writer.start()
                writer.join(STACKS_SECONDS)
            time.sleep(STACKS_SECONDS)
        quit_at_once(error.exit_code)

    def _all_stacks(self) -> str:
        """This process's and, where they were forked, its workers'."""
        workers = multiprocessing.active_children()
        faulthandler.dump_traceback(self._stacks, all_threads=True)
        for worker in workers:
            os.write(self._stacks.fileno(), f"\nWorker {worker.pid}\n".encode())
            with suppress(OSError):
                os.kill(worker.pid or 0, signal.SIGUSR2)
            time.sleep(STACKS_SECONDS / max(4, len(workers)))
        self._stacks.seek(0)
        return self._stacks.read().decode(errors="replace")

    def _tell(self, text: str) -> None:
        with suppress(OSError):
            os.write(2, text.encode())
        path: Path | None = self.record.run_dir.log if self.record is not None else None
        if path is not None and path.parent.is_dir():
            with suppress(OSError), path.open("a", encoding="utf-8") as file:
                file.write(text)
