"""What a person sees: one console, one logger, the run.log beside it."""

import logging
import os
import sys
import warnings
from pathlib import Path

from rich.console import Console

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


def is_rank_zero() -> bool:
    """Whether this process is the one that speaks and writes; known from the environment before ranks are set up."""
    return not int(os.environ.get("LOCAL_RANK") or os.environ.get("RANK") or 0)


def configure_logging(verbose: bool = False) -> None:
    """Send lit-tune's messages to the console of rank zero and quiet the libraries beneath it."""
    log.propagate = False
    log.setLevel((logging.DEBUG if verbose else logging.INFO) if is_rank_zero() else logging.ERROR)
    if not any(isinstance(h, ConsoleHandler) for h in log.handlers):
        log.addHandler(ConsoleHandler())
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
