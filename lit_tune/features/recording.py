"""The file with what a frozen part gives for each row: computed, stored whole or not at all, compared when it is used.

A run of several ranks computes it together. The file has its name only when all of it is on the disk, so that one that
was left by a killed process is never read.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from lit_tune.data.cache import digest
from lit_tune.data.features import FeatureFile, entry_counts, from_entries, layout_of, to_entries
from lit_tune.durable import discard, megabytes, sweep_temporaries, sync_folder, temporary_of
from lit_tune.features.passes import Batch, Passes, difference, with_features
from lit_tune.models.base_reference import digest_of, dtype_name
from lit_tune.models.frozen_part import FrozenPart, NoFrozenPartError

log = logging.getLogger("lit_tune")

MAX_BYTES, MAX_SHARE = 20_000_000_000, 0.2
"""The file is at most so large, and at most that part of the free disk."""
ROWS_AT_ONCE = 32
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest relative difference of a batch with what is in the file, which was computed among other rows; 2e-2 in half
precision."""

Moved = Callable[[str], None]
"""Told what has just been done: nothing hangs."""


def feature_file(passes: Passes, part: FrozenPart) -> FeatureFile:
    """The file of a part: its name follows from weights, rows and precision."""
    batch = passes.sample()
    features, data = passes.features(part, batch), passes.data
    layout = layout_of(features, batch)
    assert layout is not None
    config = {key: value for key, value in passes.model.config.to_dict().items() if key != "_name_or_path"}
    weights = [(name, dtype_name(tensor), digest_of(tensor)) for name, tensor in part.tensors()]
    how = (passes.trainer.precision, passes.module.device.type, dtype_name(features), part.taker, layout)
    versions = (torch.__version__, transformers.__version__)
    key = digest("features", data.fingerprint, data.padding_mode, config, weights, how, versions)
    path: Path = data.preparation.cache_dir / "features" / f"{key}.bin"
    counts = np.concatenate([entry_counts(rows, layout) for rows in passes.splits])
    return FeatureFile(path, layout, counts, to_entries(features, batch, layout).shape[1:], features.dtype)


def stored(file: FeatureFile, rows: list[int], batch: Batch) -> Tensor:
    """What the file has for the rows of a batch, as the model is given it."""
    return from_entries(file.read(rows).to(batch["input_ids"].device), batch, file.layout)


def provide(passes: Passes, part: FrozenPart, moved: Moved) -> FeatureFile:
    """The file, from the cache or made, and compared with the model on a few rows.

    Args:
        passes: Over all rows.
        part: What is kept.
        moved: Told of each batch.

    Raises:
        NoFrozenPartError: It would be too large, could not be written, or does not hold what the model gives.
    """
    file, strategy = feature_file(passes, part), passes.trainer.strategy
    if strategy.reduce_boolean_decision(file.is_whole(), all=True):
        log.info("features of %s rows reused from %s", f"{len(file.counts):,}", file.path)
    else:
        Recording(passes, part, file, moved).make()
    batch = passes.sample()
    found = with_features(passes, part, batch, stored(file, batch["example_ids"], batch))
    is_same = difference(found, passes.numbers(batch)) <= ROUNDING.get(file.dtype, 2e-2)
    if not strategy.reduce_boolean_decision(is_same, all=True):
        discard(file.path)
        raise NoFrozenPartError(f"{file.path} did not hold what the model gives, and was removed")
    return file


class Recording:
    """Computes the file; the ranks of a machine share the rows.

    Args:
        passes: Over all rows.
        part: What is computed.
        file: Where it is kept.
        moved: Told of each batch.
    """

    def __init__(self, passes: Passes, part: FrozenPart, file: FeatureFile, moved: Moved) -> None:
        self.passes, self.part, self.file, self.moved, self.trainer = passes, part, file, moved, passes.trainer
        # rank 0's has the number of its process
        self.temporary = file.path.with_name(self.trainer.strategy.broadcast(temporary_of(file.path).name))
        self.is_first = self.trainer.local_rank == 0

    def make(self) -> None:
        """Compute all rows, and give the file its name when all of it is on the disk.

        Raises:
            NoFrozenPartError: It would be too large, or could not be written.
        """
        began, size = time.monotonic(), f"{megabytes(self.file.num_bytes)} for {len(self.file.counts):,} rows"
        log.info("features of the frozen part (what %s is given) are computed once: %s", self.part.taker, size)
        try:
            for step in (self.reserve, self.compute, self.finish):
                self.together(step, size)
        finally:
            if self.is_first:
                discard(self.temporary)
        log.info("features computed in %.0f s and kept in %s", time.monotonic() - began, self.file.path)

    def together(self, step: Callable[[], None], size: str) -> None:
        """A part of the work on all ranks; where one cannot do it, none goes on.

        Raises:
            NoFrozenPartError: One could not.
        """
        problem = ""
        try:
            step()
        except (OSError, ValueError) as error:
            problem = str(getattr(error, "strerror", None) or error)
        if not self.trainer.strategy.reduce_boolean_decision(not problem, all=True):
            raise NoFrozenPartError(f"{size} cannot be kept: {problem or 'another rank could not'}")

    def reserve(self) -> None:
        """Take the room on the disk."""
        if not self.is_first:
            return
        folder = self.temporary.parent
        folder.mkdir(parents=True, exist_ok=True)
        sweep_temporaries(folder)
        free = shutil.disk_usage(folder).free
        if self.file.num_bytes > min(MAX_BYTES, MAX_SHARE * free):
            limit = f"{megabytes(MAX_BYTES)}, or a fifth of the {megabytes(free)} that are free"
            raise ValueError(f"more than {limit}, in {folder}")
        self.file.reserve(self.temporary)

    def compute(self) -> None:
        """This rank's rows."""
        order, rank, ranks = self.passes.order, self.trainer.local_rank, self.trainer.num_devices
        descriptor = os.open(self.temporary, os.O_WRONLY)
        try:
            for start in range(rank * ROWS_AT_ONCE, len(order), ranks * ROWS_AT_ONCE):
                batch = self.passes.batch(order[start : start + ROWS_AT_ONCE])
                entries = to_entries(self.passes.features(self.part, batch), batch, self.file.layout)
                self.file.write(descriptor, batch["example_ids"], entries)
                self.moved(f"the features of row {start:,}")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def finish(self) -> None:
        """Give it its name."""
        if self.is_first:
            self.temporary.replace(self.file.path)
            sync_folder(self.file.path.parent)
