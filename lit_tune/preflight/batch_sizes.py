"""Batch sizes that a run has found out for itself: kept in its manifest, used whenever it goes on."""

import gc
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any, Self

import torch

from lit_tune import interrupts
from lit_tune.errors import OutOfMemory
from lit_tune.ranks import GRACE_SECONDS, POLL_SECONDS
from lit_tune.run_dir import RunDir
from lit_tune.supervision import RankLauncher

log = logging.getLogger("lit_tune")

FIELD = "decisions"
"""Key of the manifest."""
RANK_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""What :class:`RankLauncher` sets in rank zero."""


@dataclass(frozen=True)
class BatchSizes:
    """How rows are cut into batches; the effective batch is that of the config.

    Args:
        train_batch_size: Rows per rank and micro-batch.
        accumulate_grad_batches: Micro-batches per optimizer step.
        eval_batch_size: Rows per rank and batch in evaluation.
    """

    train_batch_size: int
    accumulate_grad_batches: int
    eval_batch_size: int

    @classmethod
    def after(cls, error: OutOfMemory) -> Self | None:
        """What to go on with where memory was exhausted; None where the run ends."""
        return None if error.retry_with is None else cls(**error.retry_with)


def decided(run_dir: RunDir) -> BatchSizes | None:
    """What the run in this directory has found out."""
    found = run_dir.read().get(FIELD)
    return None if found is None else BatchSizes(**found)


def decide(run_dir: RunDir, sizes: BatchSizes) -> None:
    """Keep it for this run, whoever goes on with it."""
    run_dir.update({FIELD: asdict(sizes)})


def use_decided(run_dir: RunDir, sizes: BatchSizes | None, trainer: Any, datamodule: Any) -> None:
    """Cut batches as the run has decided, in what was built from the config and does not fit yet.

    Args:
        run_dir: Whose manifest knows, or is told.
        sizes: Decided just now, in this process.
        trainer: Lightning's.
        datamodule: Ours.
    """
    if sizes is not None:
        decide(run_dir, sizes)
    found = decided(run_dir) if datamodule.auto_batch else None
    if found is None:
        return
    accumulate = trainer.accumulate_grad_batches
    rows = found.train_batch_size * found.accumulate_grad_batches
    if rows == datamodule.train_batch_size * accumulate and found.train_batch_size < datamodule.train_batch_size:
        part = trainer.limit_train_batches
        if isinstance(part, int):  # counts micro-batches
            trainer.limit_train_batches = part * found.accumulate_grad_batches // accumulate
        trainer.accumulate_grad_batches = found.accumulate_grad_batches
        datamodule.train_batch_size = found.train_batch_size
        log.info("auto_batch: data.train_batch_size %d, trainer.accumulate_grad_batches %d", *astuple(found)[:2])
    if found.eval_batch_size < datamodule.eval_batch_size:
        datamodule.eval_batch_size = found.eval_batch_size
        log.info("auto_batch: data.eval_batch_size %d", found.eval_batch_size)


def next_sizes(run_dir: RunDir, error: OutOfMemory, trainer: Any) -> BatchSizes:
    """What to try next.

    Args:
        run_dir: The run.
        error: What has ended this attempt.
        trainer: Of this attempt.

    Raises:
        OutOfMemory: This process does not try again: it was started by rank zero or by torchrun, or nothing smaller is
            left. Where there is, the run keeps it for the next time.
    """
    sizes = BatchSizes.after(error)
    if sizes is None or not trainer.is_global_zero:
        raise error
    launcher = trainer.strategy.launcher
    if trainer.world_size > 1 and not isinstance(launcher, RankLauncher):
        decide(run_dir, sizes)
        raise error
    log.warning("%s\nTrying again with less, from step %d (data.auto_batch)", error.what, trainer.global_step)
    if isinstance(launcher, RankLauncher):  # they have left the same step with the same error
        end = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < end and any(process.poll() is None for process in launcher.procs):
            time.sleep(POLL_SECONDS)
    return sizes


def start_over(environment: Mapping[str, str]) -> None:
    """Make this process as it was before an attempt: no process group, no rank, no memory in use.

    Args:
        environment: As it was then.

    Raises:
        Interruption: A signal came meanwhile.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
        if name in environment:
            os.environ[name] = environment[name]
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    interrupts.release()
