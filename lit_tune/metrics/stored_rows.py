"""Rows that a metric must keep: in blocks, filled in place, without a copy of the whole at any time.

Memory: 4 bytes per example and score, and the target (int32, float32, or a byte per label); besides, the free part of
the newest block, at most 256 KiB of scores (up to 64 columns; 4 KiB per column above).
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from lit_tune.metrics.streaming import StreamingMetric

BLOCK_ELEMENTS = 2**16
"""Scores in a block: 256 KiB, large enough for the C library to give it back to the system when it is freed."""
MIN_BLOCK_ROWS = 2**10
"""With many classes a block is longer than that, or a column would be read in very small pieces."""
WAITING_ELEMENTS = 2**18
"""Scores that wait on a GPU before they go to the CPU (1 MiB), and values that one gather moves per rank."""

Floats = NDArray[np.float32]


class StoredRows(StreamingMetric):
    """Keeps a row of scores and a row of targets per example on the CPU; a column can be gathered over the ranks.

    torchmetrics' ``compute_on_cpu`` copies every batch (each copy waits for the device) and then hands CPU tensors to
    nccl, which cannot send them; its sync makes every rank hold the rows of all. Here rows wait on the device until
    there are :data:`WAITING_ELEMENTS` scores, and every rank keeps its own rows, also while torchmetrics calls the
    metric synced: ``compute`` gathers a column when it needs it.

    A state is a list of blocks (columns, rows), so that a column lies together; the last may be a view of a larger one,
    which the next batch fills on.

    Args:
        num_scores: Columns of the scores.
        num_targets: Columns of the targets.
        target_dtype: Smallest type that holds a target.
    """

    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self, num_scores: int, num_targets: int, target_dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = {"scores": (num_scores, torch.float32), "targets": (num_targets, target_dtype)}
        self.block_rows = max(MIN_BLOCK_ROWS, BLOCK_ELEMENTS // num_scores)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")
        self.start_over()

    def start_over(self) -> None:
        """The next row begins a block."""
        self.newest: dict[str, Tensor] = {}
        self.free_rows = self.num_rows = self.num_waiting = 0

    def store(self, scores: Tensor, targets: Tensor) -> None:
        """Copy one batch's rows: (B, num_scores), (B, num_targets)."""
        start = 0
        while start < len(scores):
            if self.free_rows == 0 or self.newest["scores"].device != scores.device:
                self.begin_block(len(scores) - start, scores.device)
            end = min(len(scores), start + self.free_rows)
            self.fill_block(scores[start:end], targets[start:end])
            start = end
        if scores.device.type != "cpu":
            self.num_waiting += scores.numel()
        if self.num_waiting >= WAITING_ELEMENTS:
            self.move_to_cpu()

    def begin_block(self, num_coming: int, device: torch.device) -> None:
        """A block as long as what is kept or comes, at most ``block_rows``: few rows take little."""
        self.free_rows = min(self.block_rows, max(num_coming, self.num_rows))
        for name, (num_columns, dtype) in self.shape.items():
            with torch.inference_mode(False):  # filled on in any mode
                self.newest[name] = torch.empty(num_columns, self.free_rows, dtype=dtype, device=device)
            getattr(self, name).append(self.newest[name][:, :0])

    def fill_block(self, scores: Tensor, targets: Tensor) -> None:
        """Copy rows into the newest block, which has room for them."""
        for name, rows in (("scores", scores), ("targets", targets)):
            blocks = getattr(self, name)
            filled = blocks[-1].shape[1]
            self.newest[name][:, filled : filled + len(rows)] = rows.detach().T
            blocks[-1] = self.newest[name][:, : filled + len(rows)]
        self.free_rows -= len(scores)
        self.num_rows += len(scores)

    def move_to_cpu(self) -> None:
        """Move what waits on a device."""
        if all(block.device.type == "cpu" for block in self.scores):
            return  # the newest block goes on to be filled
        for name in self.shape:
            setattr(self, name, [block.cpu() for block in getattr(self, name)])
        self.newest, self.free_rows, self.num_waiting = {}, 0, 0

    @property
    def num_stored(self) -> int:
        """Rows that this rank keeps."""
        return sum(block.shape[1] for block in self.scores)

    def blocks(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """This rank's scores (num_scores, n) and targets (num_targets, n), not copied, n rows at a time."""
        for scores, targets in zip(self.scores, self.targets, strict=True):
            yield scores.numpy(), targets.numpy()

    def gather(self, values: Floats) -> Floats:
        """What all ranks have, (n,) -> (N,), where torchmetrics calls the metric synced; else ``values``."""
        if not self._is_synced:
            return values
        group = self.process_group or torch.distributed.group.WORLD
        device = torch.device("cpu") if "gloo" in str(torch.distributed.get_backend(group)) else self.device
        gathered: Floats = gather_values(torch.from_numpy(values), group, device).numpy()
        return gathered

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self.start_over()

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> Module:
        self.move_to_cpu()
        return super()._apply(fn, exclude_state)

    def _copy_state_dict(self) -> dict[str, Tensor | list[Any]]:
        # Rows are never changed, only added: the lists are enough, torchmetrics' deep copy would double the memory.
        return {name: list(getattr(self, name)) for name in self._defaults}

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any = None) -> None:
        assert process_group in (None, self.process_group), "compute() gathers over the metric's own group"


def gather_values(values: Tensor, group: Any, device: torch.device) -> Tensor:
    """The values of all ranks, in rank order, on the CPU of every rank; on a GPU its memory does not grow with them.

    Args:
        values: (n,) on the CPU; n may differ between ranks and be 0.
        group: Process group.
        device: One the group's backend can send from: the CPU for gloo, the rank's GPU for nccl.
    """
    size = torch.tensor([len(values)], device=device)
    gathered_sizes = [torch.zeros_like(size) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(gathered_sizes, size, group=group)
    sizes = [int(n) for n in gathered_sizes]
    offsets = [0, *itertools.accumulate(sizes)]
    gathered = torch.empty(offsets[-1], dtype=values.dtype)
    for start in range(0, max(sizes), WAITING_ELEMENTS):
        width = min(WAITING_ELEMENTS, max(sizes) - start)
        mine = values[start : start + width]
        piece = torch.zeros(width, dtype=values.dtype, device=device)
        piece[: len(mine)] = mine.to(device)
        pieces = [torch.empty_like(piece) for _ in sizes]
        torch.distributed.all_gather(pieces, piece, group=group)
        for offset, received, n in zip(offsets, pieces, sizes, strict=False):
            num_here = max(0, min(width, n - start))
            gathered[offset + start : offset + start + num_here] = received[:num_here]
    return gathered
