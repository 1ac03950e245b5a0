"""What batches are drawn from: the rows of a split, or parts of rows.

A unit is what an optimizer step counts. Most often that is a row; a long document may be several windows, each of which
is trained on by itself, while all of them are evaluated together. Nothing is stored twice for it.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow.compute as pc

from lit_tune.data import splits
from lit_tune.data.lengths import StoredLengths


class Units(Protocol):
    """Numbered units of a split."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Features of some of them, in this order."""

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) how long some of them are: those of like length are computed together. Zeros, where all are alike."""


class WholeRows:
    """Each row is a unit.

    Args:
        rows: Encoded features, memory-mapped.
    """

    def __init__(self, rows: datasets.Dataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) integers in the lists of each row."""
        return self._lengths(numbers)

    @cached_property
    def _lengths(self) -> StoredLengths:
        return StoredLengths(self.rows)

    def read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Features of some rows."""
        columns = self.rows[list(numbers)]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class Chosen:
    """Some units of others.

    Args:
        units: All of them.
        numbers: (N,) those that are meant, in this order.
    """

    def __init__(self, units: Units, numbers: np.ndarray) -> None:
        self.units, self.numbers = units, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Features of some of them."""
        return self.units.read(self.numbers[list(numbers)].tolist())

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) as those of all."""
        return self.units.lengths(self.numbers[numbers])


class Windows:
    """Each window of each row is a unit: a row with that window alone.

    Args:
        rows: Encoded features, memory-mapped.
        columns: The columns that hold a list with one item per window.

    >>> rows = datasets.Dataset.from_dict({"input_ids": [[[1, 2], [2, 3]], [[4]]], "text": ["a", "b"]})
    >>> windows = Windows(rows, ["input_ids"])
    >>> len(windows), windows.read([1, 2])
    (3, [{'input_ids': [[2, 3]], 'text': 'a'}, {'input_ids': [[4]], 'text': 'b'}])
    """

    def __init__(self, rows: datasets.Dataset, columns: Sequence[str]) -> None:
        self.rows, self.columns = WholeRows(rows), frozenset(columns)
        self.ends = np.cumsum(list_lengths(rows, columns[0]))
        """(N,) number of windows in each row and those before it."""
        self._lengths = StoredLengths(rows)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Features of some windows."""
        places = np.searchsorted(self.ends, numbers, side="right")
        features = self.rows.read(places.tolist())
        last = self.ends[places] - np.asarray(numbers)  # windows from this one to the row's last
        return [
            {name: [value[-back]] if name in self.columns else value for name, value in row.items()}
            for row, back in zip(features, last.tolist(), strict=True)
        ]

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) integers in the lists of each window."""
        places = np.searchsorted(self.ends, numbers, side="right")
        starts = np.where(places > 0, self.ends[places - 1], 0)
        return self._lengths(places, numbers - starts)


class Merged:
    """Rows with the same key are one unit: the first of them, with the lists of all in some columns.

    Args:
        rows: Encoded features, memory-mapped.
        key: The column with the key, an integer.
        columns: The columns with lists that are joined.

    >>> rows = datasets.Dataset.from_dict({"key": [7, 8, 7], "labels": [["a"], ["b"], ["c"]]})
    >>> merged = Merged(rows, "key", ["labels"])
    >>> len(merged), merged.read([0])
    (2, [{'key': 7, 'labels': ['a', 'c']}])
    """

    def __init__(self, rows: datasets.Dataset, key: str, columns: Sequence[str]) -> None:
        self.rows, self.columns = WholeRows(rows), frozenset(columns)
        keys = rows.with_format("numpy")[key][:]
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        place = np.argsort(np.argsort(first))  # units stand where their first rows do
        self.order = np.argsort(place[inverse], kind="stable")
        """(N,) row numbers, unit after unit."""
        self.ends = np.cumsum(np.bincount(place[inverse]))

    def __len__(self) -> int:
        return len(self.ends)

    def read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Features of some units."""
        starts = [int(self.ends[n - 1]) if n else 0 for n in numbers]
        members = [self.order[start : self.ends[n]].tolist() for start, n in zip(starts, numbers, strict=True)]
        features = iter(self.rows.read([row for group in members for row in group]))
        return [self.merge([next(features) for _ in group]) for group in members]

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) integers in the lists of each unit's first row: what is joined is read by no model."""
        starts = np.where(numbers > 0, self.ends[numbers - 1], 0)
        return self.rows.lengths(self.order[starts])

    def merge(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """One unit of its rows."""
        joined = {name: [item for row in features for item in row[name]] for name in self.columns}
        return {**features[0], **joined}


class FirstApart:
    """Units of which the first few are evaluated by themselves, before longer ones: texts are written for these.

    Args:
        units: All of them.
        counts: How many; several, where that differs.
    """

    def __init__(self, units: Units, *counts: int) -> None:
        self.units, self.counts = units, counts

    def __len__(self) -> int:
        return len(self.units)

    def read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Features of some units."""
        return self.units.read(numbers)

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) as they are, and for the first ones more than any has."""
        return self.units.lengths(numbers) + 2**40 * sum((numbers < count).astype(np.int64) for count in self.counts)


def some_of(units: Units, count: int, seed: int) -> Chosen:
    """A seeded subset, in the order of the whole."""
    return Chosen(units, np.sort(splits.subset(len(units), count, seed)))


def list_lengths(rows: datasets.Dataset, column: str) -> np.ndarray:
    """(N,) number of items in each row of a column of lists; what is in the lists is not read.

    >>> list_lengths(datasets.Dataset.from_dict({"a": [[1, 2], [], [3]]}).select([2, 0]), "a").tolist()
    [1, 2]
    """
    lengths = pc.list_value_length(rows.data.column(column)).to_numpy()
    chosen = rows._indices  # a subset of the rows, in an order of its own
    return lengths if chosen is None else lengths[chosen.column(0).to_numpy()]
