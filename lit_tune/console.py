"""What a person sees: one console, one logger, the run.log beside it."""

import contextlib
import logging
import os
import sys
import time
import warnings
from pathlib import Path

from rich.console import Console

from lit_tune.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""All messages go through it, so that a progress bar on the same terminal stays whole. Results go to stdout."""

log = logging.getLogger("lit_tune")
NOISE = (
    # Lightning's remarks on things lit-tune decides itself
    r"The number of training batches .* is smaller than the logging interval",
    r".*does not have many workers which may be a bottleneck.*",
    r".*You defined a `validation_step` but have no `val_dataloader`.*",
    r"It is recommended to use `self.log\(.*sync_dist=True\)`.*",  # metrics are reduced before they are logged
    r"Total length of `list` across ranks is zero.*",  # no val split: said in our own words
    r"Checkpoint directory .* exists and is not empty.*",
    r".*tensorboardX.*",
    r"Found \d+ module\(s\) in eval mode at the start of training.*",  # frozen ones: said in our own words
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r"Found .* module\(s\) in eval mode at the start of training.*",  # frozen ones: said in our own words
    # the scaler skips the first steps of fp16 by design; the schedule is held with it
    r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`.*",
)


class ConsoleHandler(logging.Handler):
    """Prints messages; warnings start with ``warning:``."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        try:
            text = self.format(record)
            style = "yellow" if record.levelno >= logging.WARNING else None
            prefix = "warning: " if record.levelno == logging.WARNING else ""
            # on a terminal lines break between words; elsewhere a message stays one line
            console.print(prefix + text, style=style, markup=False, soft_wrap=not console.is_terminal)
        except Exception:  # logging must never end a run
            self.handleError(record)


TOLD_AFTER_SECONDS, ENDED_AFTER_SECONDS = 10.0, 120.0
"""Waiting for a lock: when it is told, and when it ends where the lock's owner may be gone."""


class LockWaits(logging.Filter):
    """Tells on which lock file datasets or huggingface_hub waits, which would else be silence without an end.

    Both lock their caches with ``filelock``, which says at level DEBUG each time that it has waited. A lock of the
    operating system ends with its owner and is waited for. On a file system without such locks (NFS) the file is the
    lock, and its owner may be gone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.since: dict[str, float] = {}
        self.told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Nothing of filelock's own is shown.

        Raises:
            StorageError: A lock that the operating system knows nothing of was waited for too long.
        """
        if isinstance(record.args, tuple) and len(record.args) > 1:
            path = str(record.args[1])
            if record.msg.startswith("Lock %s not acquired"):
                self.waits(path)
            elif record.msg.startswith("Lock %s acquired"):
                self.since.pop(path, None)
        return record.levelno > logging.DEBUG

    def waits(self, path: str) -> None:
        """One more round of waiting."""
        seconds = time.monotonic() - self.since.setdefault(path, time.monotonic())
        if seconds > TOLD_AFTER_SECONDS and path not in self.told:
            self.told.add(path)
            log.warning("waiting for %s: another process holds this lock, or has left it", path)
        if seconds > ENDED_AFTER_SECONDS and not is_held(path):
            raise StorageError(
                f"this lock was waited for {seconds:.0f} s",
                where=path,
                fix="end the process that holds it; delete the file if that is gone",
            )


def is_held(path: str) -> bool:
    """Whether the operating system knows a live owner of a lock file."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def is_rank_zero() -> bool:
    """Whether this process is the one that speaks and writes; known from the environment before ranks are set up."""
    return not int(os.environ.get("LOCAL_RANK") or os.environ.get("RANK") or 0)


def configure_logging(verbose: bool = False) -> None:
    """Send lit-tune's messages to the console of rank zero and quiet the libraries beneath it."""
    log.propagate = False
    log.setLevel((logging.DEBUG if verbose else logging.INFO) if is_rank_zero() else logging.ERROR)
    if not any(isinstance(h, ConsoleHandler) for h in log.handlers):
        log.addHandler(ConsoleHandler())
        logging.getLogger("filelock").addFilter(LockWaits())
        logging.getLogger("filelock").setLevel(logging.DEBUG)
    if not verbose:
        for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
            logging.getLogger(name).setLevel(logging.WARNING)
        if not sys.warnoptions:
            for message in NOISE:
                warnings.filterwarnings("ignore", message=message)


def log_to_file(path: Path) -> logging.Handler:
    """Copy all messages into ``run.log``, with the time; returns the handler to close at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    log.addHandler(handler)
    if log.getEffectiveLevel() > logging.INFO:  # the root's default would leave only warnings
        log.setLevel(logging.INFO)
    return handler
