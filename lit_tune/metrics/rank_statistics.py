"""Statistics of ranks, AUROC and Spearman: they need every score, so scores are kept, on the CPU.

Memory: what :mod:`~lit_tune.metrics.stored_rows` keeps; computing takes 4 bytes per example for AUROC (of one class at
a time) and 8 for Spearman for a moment, and on several ranks as much again per example of all ranks.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_tune.metrics.stored_rows import Floats, StoredRows

PIECE_ROWS = 2**12
"""Rows whose ranks are looked up at once: temporaries of 32 KiB."""
NOTHING = np.empty(0, np.float32)


def positions(ordered: Floats, values: Floats) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """For each value how many of ``ordered`` are below it plus how many are below or equal; NaN nowhere.

    >>> [(_, found)] = positions(np.float32([1, 2, 2, 5]), np.float32([2, 7]))
    >>> found.tolist()
    [4, 8]
    """
    for start in range(0, len(values), PIECE_ROWS):
        piece = slice(start, min(start + PIECE_ROWS, len(values)))
        found = np.searchsorted(ordered, values[piece], "left")
        found += np.searchsorted(ordered, values[piece], "right")
        yield piece, found


def auroc(positives: Floats, negatives: Floats) -> float:
    """Probability that a positive example scores above a negative one, ties counting half.

    Integers until the last division, so that the order of the examples does not matter (Mann and Whitney 1947,
    https://doi.org/10.1214/aoms/1177730491).

    Args:
        positives: Scores of the positive examples, (n,); sorted in place.
        negatives: Scores of the negative examples; sorted in place.

    Returns:
        NaN where a side is empty or a score is NaN.

    >>> auroc(np.float32([0.3, 0.9]), np.float32([0.1, 0.3]))
    0.875
    """
    if not len(positives) or not len(negatives):
        return math.nan
    positives.sort()
    negatives.sort()
    if np.isnan(positives[-1]) or np.isnan(negatives[-1]):  # NaN is sorted to the end
        return math.nan
    few, many = sorted((positives, negatives), key=len)
    doubled = sum(int(found.sum()) for _, found in positions(many, few))
    pairs = 2 * len(few) * len(many)
    return (doubled if few is positives else pairs - doubled) / pairs


def spearman(preds: Sequence[Floats], target: Sequence[Floats]) -> float:
    """Correlation of ranks, ties averaged.

    Args:
        preds: Predictions in pieces, each (n,).
        target: Targets, cut alike.

    Returns:
        NaN where a side is constant or holds NaN, or there are fewer than 2 examples.

    >>> spearman([np.float32([1, 2, 3])], [np.float32([10, 30, 20])])
    0.5
    """
    ordered = [np.concatenate([NOTHING, *side]) for side in (preds, target)]
    for side in ordered:
        side.sort()
        if len(side) < 2 or side[0] == side[-1] or np.isnan(side[-1]):
            return math.nan
    products = np.zeros(3)
    for sides in zip(preds, target, strict=True):
        looked_up = (positions(side, values) for side, values in zip(ordered, sides, strict=True))
        for (_, x), (_, y) in zip(*looked_up, strict=True):
            # twice the rank less its mean; exact: float64 has 53 bits
            x, y = (x - len(ordered[0])).astype(np.float64), (y - len(ordered[0])).astype(np.float64)
            products += x @ y, x @ x, y @ y
    xy, xx, yy = products.tolist()
    return min(1.0, max(-1.0, xy / math.sqrt(xx * yy)))


class ColumnAUROC(StoredRows):
    """AUROC of one column of the scores against one target."""

    def column_auroc(self, column: int, target_column: int, positive: int) -> float:
        """Over all ranks.

        Args:
            column: Column of the scores.
            target_column: Column of the targets.
            positive: Target of a positive example.
        """
        split = np.empty(self.num_stored, np.float32)  # positives from the front, negatives from the back
        front, back = 0, len(split)
        for scores, targets in self.blocks():
            is_positive = targets[target_column] == positive
            num_positive = int(np.count_nonzero(is_positive))
            num_negative = len(is_positive) - num_positive
            split[front : front + num_positive] = scores[column][is_positive]
            np.logical_not(is_positive, out=is_positive)
            split[back - num_negative : back] = scores[column][is_positive]
            front, back = front + num_positive, back - num_negative
        return auroc(self.gather(split[:front]), self.gather(split[front:]))


class SingleLabelAUROC(ColumnAUROC):
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
        self.move_to_cpu()
        first = 1 if self.num_classes == 2 else 0
        per_class = [self.column_auroc(k - first, 0, positive=k) for k in range(first, self.num_classes)]
        return torch.tensor(per_class, dtype=torch.float64).nanmean()


class MultiLabelAUROC(ColumnAUROC):
    """Mean AUROC over the labels that are on at least one example and not on all; NaN if there is none."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, num_labels, torch.uint8)
        self.num_labels = num_labels

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add logits (B, C) and targets (B, C), 0 or 1."""
        self.store(preds.float().sigmoid(), target)

    def compute(self) -> Tensor:
        """0-dim float64."""
        self.move_to_cpu()
        per_label = [self.column_auroc(k, k, positive=1) for k in range(self.num_labels)]
        return torch.tensor(per_label, dtype=torch.float64).nanmean()


class Spearman(StoredRows):
    """Correlation of ranks, ties averaged; NaN where a side is constant or there are fewer than 2 examples."""

    def __init__(self) -> None:
        super().__init__(1, 1, torch.float32)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions and targets, (B,) or (B, 1)."""
        self.store(preds.reshape(-1, 1), target.reshape(-1, 1))

    def compute(self) -> Tensor:
        """0-dim float64."""
        self.move_to_cpu()
        preds = [scores[0] for scores, _ in self.blocks()]
        target = [targets[0] for _, targets in self.blocks()]
        if self._is_synced:  # a pair's two halves come from the same place of the same rank
            preds, target = ([self.gather(np.concatenate([NOTHING, *side]))] for side in (preds, target))
        return torch.tensor(spearman(preds, target), dtype=torch.float64)
