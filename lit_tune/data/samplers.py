"""Which rows form which optimizer step, and how a step is cut into micro-batches and ranks.

The precondition of exactness: the rows of an optimizer step (``data.orders``) are a pure function of (seed, epoch,
step, effective batch). Micro-batches and ranks are only cuts of that list, so 1x16, 4x4 and 2 ranks x 8 train on the
same 16 rows.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from lit_tune.data.orders import STRETCH, Lengths, steps

FILLER = -1
"""Stands for "no row": a rank without rows in a cut still takes part in the collective calls, with weight 0."""


class Cut(list[int]):
    """Numbers of a micro-batch, and the epoch of training they are read in: both go to the worker that reads them."""

    def __init__(self, ids: Sequence[int], epoch: int) -> None:
        super().__init__(ids)
        self.epoch = epoch

    def __reduce__(self) -> tuple[type["Cut"], tuple[list[int], int]]:
        return Cut, (list(self), self.epoch)


def cut(window: Sequence[int], batch_size: int, num_ranks: int, rank: int, together: int = 1) -> list[list[int]]:
    """One rank's micro-batches of a window.

    A short remainder is spread over the ranks, so that no rank waits for another; a rank that gets nothing gets a
    filler.

    Args:
        window: Numbers of the rows of a step.
        batch_size: Rows per rank and micro-batch, a multiple of ``together``.
        num_ranks: Processes that work together.
        rank: This process.
        together: So many rows one after another are a group that stays whole; the window's last may be smaller.

    >>> cut(range(8), batch_size=2, num_ranks=2, rank=1)
    [[2, 3], [6, 7]]
    >>> cut(range(5), batch_size=2, num_ranks=2, rank=0), cut(range(5), batch_size=2, num_ranks=2, rank=1)
    ([[0, 1], [4]], [[2, 3], [-1]])
    >>> [cut(range(5), batch_size=4, num_ranks=2, rank=rank, together=2) for rank in (0, 1)]
    [[[0, 1, 2, 3]], [[4]]]
    """
    per_cut = batch_size * num_ranks
    batches = []
    for start in range(0, len(window), per_cut):
        group = window[start : start + per_cut]
        share = -(-len(group) // (num_ranks * together)) * together
        batches.append(list(group[rank * share : (rank + 1) * share]) or [FILLER])
    return batches


def num_cuts(num_rows: int, batch_size: int, num_ranks: int, accumulate: int) -> int:
    """Micro-batches per rank in an epoch; every rank has as many.

    >>> num_cuts(37, batch_size=2, num_ranks=2, accumulate=4)  # two windows of 16, then 5 rows in two cuts
    10
    """
    window = batch_size * num_ranks * accumulate
    full, rest = divmod(num_rows, window)
    return full * accumulate + -(-rest // (batch_size * num_ranks))


class TrainBatchSampler:
    """Micro-batches of row numbers for one rank, reshuffled each epoch.

    Args:
        num_rows: Rows of the train split, or what else is drawn (``data.units``).
        batch_size: Rows per rank and micro-batch.
        accumulate: Micro-batches per optimizer step.
        num_ranks: Processes that train together.
        rank: This process.
        seed: Seed of the order.
        together: Rows of a group that stays whole, as in :func:`cut`; drawn anew in each epoch.
        lengths: Rows of like length are trained on in one step; None: any rows.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        accumulate: int,
        num_ranks: int,
        rank: int,
        seed: int,
        together: int = 1,
        lengths: Lengths | None = None,
    ) -> None:
        self.num_rows, self.batch_size, self.accumulate = num_rows, batch_size, accumulate
        self.num_ranks, self.rank, self.seed, self.together = num_ranks, rank, seed, together
        self.lengths = lengths
        self.epoch = 0
        self.start = 0
        """Micro-batches of this epoch that are left out: a resumed run has trained on them already."""

    @property
    def sampler(self) -> "TrainBatchSampler":
        """Itself: Lightning calls ``set_epoch`` only on ``.sampler`` and ``.batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return num_cuts(self.num_rows, self.batch_size, self.num_ranks, self.accumulate)

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch_size * self.num_ranks * self.accumulate
        steps_left_out, left_out = divmod(self.start, self.accumulate)
        for rows in steps(self.num_rows, size, self.seed, self.epoch, self.lengths, steps_left_out):
            micro = cut(rows.tolist(), self.batch_size, self.num_ranks, self.rank, self.together)
            yield from (Cut(ids, self.epoch) for ids in micro[left_out:])
            left_out = 0


class EvalBatchSampler:
    """Every row once, the same number of batches on every rank.

    Args:
        num_rows: Rows of the split.
        batch_size: Rows per rank and batch.
        num_ranks: Processes that evaluate together.
        rank: This process.
        together: Rows of a group that stays whole, as in :func:`cut`; a batch has one group at least.
        lengths: Rows of like length are in one batch, the longest of each stretch first; None: rows in their order.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        num_ranks: int,
        rank: int,
        together: int = 1,
        lengths: Lengths | None = None,
    ) -> None:
        self.num_rows, self.num_ranks, self.rank, self.together = num_rows, num_ranks, rank, together
        self.batch_size = max(1, batch_size // together) * together
        self.lengths = lengths
        self.stretch = self.batch_size * num_ranks * (1 if lengths is None else STRETCH)
        """All ranks evaluate the first so many rows before the next ones."""

    def __len__(self) -> int:
        return -(-self.num_rows // (self.batch_size * self.num_ranks))

    def __iter__(self) -> Iterator[list[int]]:
        step = self.batch_size * self.num_ranks
        for start in range(0, self.num_rows, self.stretch):  # one at a time: memory stays flat in the number of rows
            rows = np.arange(start, min(start + self.stretch, self.num_rows))
            if self.lengths is not None:
                rows = rows[np.argsort(-self.lengths(rows), kind="stable")]
            for at in range(0, len(rows), step):
                yield from cut(rows[at : at + step].tolist(), self.batch_size, self.num_ranks, self.rank, self.together)
