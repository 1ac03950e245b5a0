"""Statistics of ranks, AUROC and Spearman: they need every score, so scores are kept, on the CPU.

Memory: 4 bytes per example and score; besides, per example, 4 bytes for the label (single-label AUROC, Spearman) or
1 byte per class (multi-label AUROC).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from lit_tune.metrics.streaming import StreamingMetric

BLOCK_ELEMENTS = 2**18
"""Scores that wait on the device before they go to the CPU in one copy (1 MiB), and that one gather moves per rank."""


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1, in float64; equal values share the mean of their ranks.

    >>> average_ranks(torch.tensor([0.3, 0.1, 0.3]))
    tensor([2.5000, 1.0000, 2.5000], dtype=torch.float64)
    """
    ordered, order = values.sort()
    _, group, sizes = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    means = sizes.cumsum(0) - (sizes - 1) / torch.tensor(2, dtype=torch.float64)
    ranks = torch.empty(len(values), dtype=torch.float64, device=values.device)
    ranks[order] = means[group]
    return ranks


def auroc(scores: Tensor, positive: Tensor) -> Tensor:
    """Probability that a positive example scores above a negative one, ties counting half.

    Args:
        scores: (N,).
        positive: (N,) bool.

    Returns:
        0-dim float64; NaN where a side is empty or a score is NaN.
    """
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if num_positive == 0 or num_negative == 0 or bool(scores.isnan().any()):
        return torch.tensor(math.nan, dtype=torch.float64)
    rank_sum = average_ranks(scores)[positive].sum()
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def pearson_of(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation of two float64 vectors, 0-dim; NaN where one is constant, shorter than 2, or holds NaN."""
    if len(x) < 2 or bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return torch.tensor(math.nan, dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return ((x @ y) / (x.norm() * y.norm())).clamp(-1, 1)


class StoredRows(StreamingMetric):
    """Keeps a row of scores and a row of targets per example on the CPU, gathered over ranks under gloo and nccl.

    torchmetrics' ``compute_on_cpu`` copies every batch (each copy waits for the device) and then hands CPU tensors to
    nccl, which cannot send them. Here rows wait on the device until there are :data:`BLOCK_ELEMENTS` scores; the gather
    goes block by block over a device the backend can use, so that its memory there does not grow either.

    Args:
        num_scores: Columns of the scores.
        num_targets: Columns of the targets.
        target_dtype: Smallest type that holds a target and that nccl can send.
    """

    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self, num_scores: int, num_targets: int, target_dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = {"scores": (num_scores, torch.float32), "targets": (num_targets, target_dtype)}
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")
        self.num_blocks = 0
        self.num_waiting = 0

    def store(self, scores: Tensor, targets: Tensor) -> None:
        """Add copies (a view would keep its batch alive) of one batch's rows: (B, num_scores), (B, num_targets)."""
        for name, values in (("scores", scores), ("targets", targets)):
            dtype = self.shape[name][1]
            getattr(self, name).append(values.to(dtype, copy=True, memory_format=torch.contiguous_format))
        self.num_waiting += scores.numel()
        if self.num_waiting >= BLOCK_ELEMENTS:
            self.move_to_cpu()

    def move_to_cpu(self) -> None:
        """Join what waits into one block on the CPU."""
        for chunks in (self.scores, self.targets):
            if chunks[self.num_blocks :]:
                chunks[self.num_blocks :] = [torch.cat(chunks[self.num_blocks :]).cpu()]
        self.num_blocks, self.num_waiting = len(self.scores), 0

    def rows(self, name: str) -> Tensor:
        """All rows of ``scores`` or ``targets`` on the CPU, (N, columns)."""
        num_columns, dtype = self.shape[name]
        chunks = [chunk.cpu() for chunk in getattr(self, name)]
        return torch.cat([torch.empty(0, num_columns, dtype=dtype), *chunks])

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self.num_blocks = self.num_waiting = 0

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> Module:
        self.move_to_cpu()  # else rows of two devices would wait together
        return super()._apply(fn, exclude_state)

    def _copy_state_dict(self) -> dict[str, Tensor | list[Any]]:
        # Rows are never changed in place: the lists are enough, torchmetrics' deep copy would double the memory.
        return {name: list(getattr(self, name)) for name in self._defaults}

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any = None) -> None:
        group = process_group or self.process_group or torch.distributed.group.WORLD
        device = torch.device("cpu") if "gloo" in str(torch.distributed.get_backend(group)) else self.device
        for name in self._defaults:
            setattr(self, name, [gather_rows(self.rows(name), group, device)])


def gather_rows(rows: Tensor, group: Any, device: torch.device) -> Tensor:
    """The rows of all ranks, in rank order, on the CPU of every rank.

    Args:
        rows: (n, columns) on the CPU; n may differ between ranks and be 0.
        group: Process group.
        device: One the group's backend can send from: the CPU for gloo, the rank's GPU for nccl.
    """
    world_size = torch.distributed.get_world_size(group)
    size = torch.tensor([len(rows)], device=device)
    gathered = [torch.zeros_like(size) for _ in range(world_size)]
    torch.distributed.all_gather(gathered, size, group=group)
    sizes = [int(n) for n in gathered]
    block_rows = max(1, BLOCK_ELEMENTS // rows.shape[1])
    parts: list[list[Tensor]] = [[rows[:0]] for _ in sizes]
    for start in range(0, max(sizes), block_rows):
        mine = rows[start : start + block_rows]
        block = torch.zeros(min(block_rows, max(sizes) - start), rows.shape[1], dtype=rows.dtype, device=device)
        block[: len(mine)] = mine.to(device)
        blocks = [torch.empty_like(block) for _ in sizes]
        torch.distributed.all_gather(blocks, block, group=group)
        for part, received, n in zip(parts, blocks, sizes, strict=True):
            part.append(received[: max(0, n - start)].cpu())
    return torch.cat([chunk for part in parts for chunk in part])


class SingleLabelAUROC(StoredRows):
    """AUROC of class 1 where there are two classes, else the mean over classes of one class against the rest.

    The mean is over the classes that are present and absent at least once; NaN if there is none. Scores are float32
    probabilities, the ones ``predict`` writes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(1 if num_classes == 2 else num_classes, 1, torch.int32)
        self.num_classes = num_classes

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add logits (B, C) and class ids (B,)."""
        probabilities = preds.float().softmax(-1)
        self.store(probabilities[:, 1:] if self.num_classes == 2 else probabilities, target[:, None])

    def compute(self) -> Tensor:
        """0-dim float64."""
        scores, labels = self.rows("scores"), self.rows("targets")[:, 0]
        first = 1 if self.num_classes == 2 else 0
        per_class = [auroc(column, labels == first + k) for k, column in enumerate(scores.unbind(1))]
        return torch.stack(per_class).nanmean()


class MultiLabelAUROC(StoredRows):
    """Mean AUROC over the labels that are on at least one example and not on all; NaN if there is none."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, num_labels, torch.uint8)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add logits (B, C) and targets (B, C), 0 or 1."""
        self.store(preds.float().sigmoid(), target)

    def compute(self) -> Tensor:
        """0-dim float64."""
        columns = zip(self.rows("scores").unbind(1), self.rows("targets").unbind(1), strict=True)
        return torch.stack([auroc(scores, targets == 1) for scores, targets in columns]).nanmean()


class Spearman(StoredRows):
    """Correlation of ranks, ties averaged; NaN where a side is constant or there are fewer than 2 examples."""

    def __init__(self) -> None:
        super().__init__(1, 1, torch.float32)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions and targets, (B,) or (B, 1)."""
        self.store(preds.reshape(-1, 1), target.reshape(-1, 1))

    def compute(self) -> Tensor:
        """0-dim float64."""
        preds, target = self.rows("scores")[:, 0], self.rows("targets")[:, 0]
        if bool(preds.isnan().any()) or bool(target.isnan().any()):
            return torch.tensor(math.nan, dtype=torch.float64)
        return pearson_of(average_ranks(preds), average_ranks(target))
