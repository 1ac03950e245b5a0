"""Which rows go where: holding out a validation split, taking a subset. Pure functions on row numbers.

The order of rows is drawn from the raw 64-bit stream of PCG64, which numpy promises never to change (its
``permutation`` may: https://numpy.org/neps/nep-0019-rng-policy.html), so a seed names the same rows in every version.
"""

import math

import numpy as np

from lit_tune.errors import ConfigError, DataError

# One stream per purpose: with one seed, a subset of train must not be correlated with what was held out of it.
_HOLDOUT_STREAM = 1
_SUBSET_STREAM = 2
_TIES_STREAM = 3


def holdout(
    num_rows: int, fraction: float, seed: int, strata: np.ndarray | None, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a validation split from train.

    Args:
        num_rows: Rows of train; at least 2.
        fraction: Share of rows to hold out, in (0, 1); rounded up, so that at least one row is held out.
        seed: The same seed gives the same rows.
        strata: Class id (or bin) of every row, shape (num_rows,): each class is cut in proportion to within one row,
            and keeps a row in train. None cuts without regard to classes.
        groups: Group of every row, shape (num_rows,): a group stays whole, groups are held out until there are enough
            rows, and classes are not regarded. None, or one group alone, cuts rows.

    Returns:
        Sorted row numbers (train, held out), together every row once.

    Raises:
        ConfigError: ``fraction`` outside (0, 1).
        DataError: Fewer than 2 rows.

    >>> train, held = holdout(10, 0.2, seed=0, strata=np.array([0] * 5 + [1] * 5))
    >>> len(train), len(held), (held < 5).sum().item()
    (8, 2, 1)
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(f"must lie between 0 and 1, got {fraction}", where="data.val_fraction", fix="e.g. 0.1")
    if num_rows < 2:
        raise DataError(
            f"train has {num_rows} row(s), of which none can be held out for validation",
            where="data.val_fraction",
            fix="add rows, give data.val, or set data.val_fraction: 0",
        )
    order = _order(num_rows, seed, _HOLDOUT_STREAM)
    num_held = min(math.ceil(round(fraction * num_rows, 6)), num_rows - 1)
    if groups is not None and (groups != groups[0]).any():
        is_held = _held_groups(groups, num_held, seed)
        return np.flatnonzero(~is_held), np.flatnonzero(is_held)
    if strata is None:
        return np.sort(order[num_held:]), np.sort(order[:num_held])
    _, classes, counts = np.unique(strata, return_inverse=True, return_counts=True)
    quota = _held_per_class(counts, num_held, np.random.PCG64([seed, _TIES_STREAM]).random_raw(len(counts)))
    shuffled = classes[order]
    by_class = np.argsort(shuffled, kind="stable")  # rows of class 0 in drawn order, then of class 1, ...
    rank = np.empty(num_rows, dtype=np.int64)
    rank[by_class] = np.arange(num_rows) - np.repeat(np.cumsum(counts) - counts, counts)
    is_held = rank < quota[shuffled]
    return np.sort(order[~is_held]), np.sort(order[is_held])


def subset(num_rows: int, limit: int, seed: int) -> np.ndarray:
    """Row numbers of a seeded subset, sorted. A smaller limit gives a subset of a larger one's.

    Args:
        num_rows: Rows there are.
        limit: Rows wanted, at least 1; ``num_rows`` or more gives all.
        seed: The same seed gives the same rows.

    Raises:
        ConfigError: ``limit`` below 1.

    >>> subset(3, 5, seed=0).tolist(), len(subset(10, 4, seed=0))
    ([0, 1, 2], 4)
    """
    if limit < 1:
        raise ConfigError(f"a limit must be at least 1 row, got {limit}", fix="remove it to use all rows")
    return np.sort(_order(num_rows, seed, _SUBSET_STREAM)[:limit])


def quantile_bins(values: np.ndarray, num_bins: int = 10) -> np.ndarray:
    """Bin numbers of regression targets, for stratifying: equally many rows per bin as far as ties allow.

    Args:
        values: Finite targets, shape (num_rows,).
        num_bins: Bins wanted; ties give fewer.

    >>> quantile_bins(np.arange(6.0), num_bins=3).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    edges = np.unique(np.quantile(values, np.arange(1, num_bins) / num_bins))
    return np.searchsorted(edges, values, side="right")


def _order(num_rows: int, seed: int, stream: int) -> np.ndarray:
    """All row numbers in drawn order."""
    return np.argsort(np.random.PCG64([seed, stream]).random_raw(num_rows), kind="stable")


def _held_per_class(counts: np.ndarray, num_held: int, draws: np.ndarray) -> np.ndarray:
    """Rows to hold out of each class: largest remainders, but every class keeps a row in train while that is possible.

    Equal remainders go by ``draws``, one random number per class: else the first classes would always get the row.
    """
    share = num_held * counts / counts.sum()
    quota = np.floor(share).astype(np.int64)
    room = np.maximum(counts - 1, 0)
    quota = np.minimum(quota, room)
    # a class is at most one row above its share; only where single-row classes leave no room does it go beyond
    preferred = np.lexsort((draws, -np.round(share - quota, 9)))
    while (missing := num_held - int(quota.sum())) > 0:
        open_classes = [c for c in preferred if quota[c] < room[c]]
        if not open_classes:  # every class is down to one row in train
            room = counts
            continue
        for c in open_classes[:missing]:
            quota[c] += 1
    return quota


def _held_groups(groups: np.ndarray, num_held: int, seed: int) -> np.ndarray:
    """(num_rows,) bool: rows of the groups that are drawn until they hold enough rows; one group always stays."""
    _, group_of, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = _order(len(counts), seed, _HOLDOUT_STREAM)[:-1]
    before = np.cumsum(counts[order]) - counts[order]
    return np.isin(group_of, order[before < num_held])
