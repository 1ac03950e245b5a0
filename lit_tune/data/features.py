"""Numbers that were computed for each row of a data set, in one memory-mapped file.

An entry is a vector or more; a row has one, or one for each of its tokens or choices. Entries stand row after row, so
that the file has no index: how many each row has follows from the encoded rows.

Shapes: N rows, E entries, B rows of a batch, T tokens, F whatever an entry is.
"""

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from lit_tune.data.units import list_lengths


class Layout(StrEnum):
    """What has an entry."""

    ROW = "row"
    TOKEN = "token"
    CHOICE = "choice"


def layout_of(values: Tensor, batch: dict[str, Any]) -> Layout | None:
    """What has an entry in a tensor that was computed for a batch; None: nothing that is known.

    Args:
        values: (B, F) or (B, T, F), or (choices, F).
        batch: From which.
    """
    mask: Tensor | None = batch.get("attention_mask")
    if mask is not None and values.ndim > 2 and values.shape[:2] == mask.shape:
        return Layout.TOKEN
    if values.ndim > 1 and len(values) == len(batch["example_ids"]):
        return Layout.ROW
    if mask is not None and values.ndim > 1 and len(values) == len(mask):
        return Layout.CHOICE
    return None


def to_entries(values: Tensor, batch: dict[str, Any], layout: Layout) -> Tensor:
    """(E, F) what is kept of a tensor: no padding."""
    return values[batch["attention_mask"].bool()] if layout == Layout.TOKEN else values


def from_entries(entries: Tensor, batch: dict[str, Any], layout: Layout) -> Tensor:
    """The tensor again, 0 in padding."""
    if layout != Layout.TOKEN:
        return entries
    mask = batch["attention_mask"].bool()
    values = entries.new_zeros(*mask.shape, *entries.shape[1:])
    values[mask] = entries
    return values


def entry_counts(rows: datasets.Dataset, layout: Layout) -> np.ndarray:
    """(N,) entries of each row; lists of tokens or choices are not read, only their lengths."""
    return np.ones(len(rows), dtype=np.int64) if layout == Layout.ROW else list_lengths(rows, "input_ids")


class FeatureFile:
    """Entries of all rows.

    Args:
        path: The file.
        layout: What has an entry.
        counts: (N,) entries of each row.
        shape: F.
        dtype: Their type.
    """

    def __init__(
        self, path: Path, layout: Layout, counts: np.ndarray, shape: Sequence[int], dtype: torch.dtype
    ) -> None:
        self.path, self.layout, self.counts, self.shape, self.dtype = path, layout, counts, tuple(shape), dtype
        self.ends = np.cumsum(counts, dtype=np.int64)
        self.width = int(np.prod(self.shape, dtype=np.int64))
        self.num_bytes = int(self.ends[-1]) * self.width * dtype.itemsize
        self._entries: Tensor | None = None

    def is_whole(self) -> bool:
        """Whether the file is there with as many bytes as it must have."""
        return self.path.is_file() and self.path.stat().st_size == self.num_bytes

    def read(self, rows: Sequence[int]) -> Tensor:
        """(E, F) entries of some rows, one row after the other."""
        if self._entries is None:
            size = self.num_bytes // self.dtype.itemsize
            mapped = torch.from_file(str(self.path), shared=False, size=size, dtype=self.dtype)
            self._entries = mapped.view(-1, *self.shape)
        if self.ends[-1] == len(self.ends):
            return self._entries[list(rows)]
        return torch.cat([self._entries[self.ends[row] - self.counts[row] : self.ends[row]] for row in rows])

    def reserve(self, path: Path) -> None:
        """Make the file as large as it will be, under another name.

        Raises:
            OSError: There is no room.
        """
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, self.num_bytes)
            else:
                os.truncate(file.fileno(), self.num_bytes)

    def write(self, file: int, rows: Sequence[int], entries: Tensor) -> None:
        """Write entries of some rows; several processes may, each its own rows.

        Args:
            file: Descriptor of what :meth:`reserve` has made.
            rows: The rows.
            entries: (E, F) theirs, one row after the other.

        Raises:
            OSError: It could not be written.
            ValueError: They are not as many, or not as wide, as the rows must have.
        """
        counts = self.counts[list(rows)]
        if len(entries) != counts.sum() or tuple(entries.shape[1:]) != self.shape or entries.dtype != self.dtype:
            raise ValueError(f"{tuple(entries.shape)} {entries.dtype} for {counts.sum()} entries of {self.shape}")
        parts = entries.detach().cpu().contiguous().view(len(entries), -1).split(counts.tolist())
        for row, part in zip(rows, parts, strict=True):
            data = memoryview(part.contiguous().view(torch.uint8).numpy()).cast("B")
            place = int(self.ends[row] - self.counts[row]) * self.width * self.dtype.itemsize
            while data:
                written = os.pwrite(file, data, place)
                data, place = data[written:], place + written
