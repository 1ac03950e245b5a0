"""A column as its distinct values and which of them each row has: a million labels are looked at as a handful."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Distinct:
    """A column of N rows.

    Args:
        values: The distinct values as plain Python, in the order in which they first occur. ``1``, ``1.0``, ``"1"`` and
            ``True`` are four.
        codes: (N,) for each row the index of its value.
    """

    values: list[Any]
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.codes)

    def rows(self) -> list[Any]:
        """The value of every row."""
        return [self.values[code] for code in self.codes.tolist()]

    def rows_where(self, flags: Sequence[bool]) -> list[int]:
        """Numbers of the rows whose value is flagged.

        Args:
            flags: One per distinct value.

        >>> distinct(["a", "b", "a"]).rows_where([True, False])
        [0, 2]
        """
        return np.flatnonzero(np.asarray(flags, dtype=bool)[self.codes]).tolist()

    def take(self, indices: np.ndarray) -> "Distinct":
        """Some of the rows, with the values that are left, in the order in which they occur there."""
        codes = self.codes[indices]
        used, first = np.unique(codes, return_index=True)
        order = used[np.argsort(first)]
        renumbered = np.empty(len(self.values), dtype=np.int64)
        renumbered[order] = np.arange(len(order))
        return Distinct([self.values[i] for i in order], renumbered[codes])


def distinct(values: "Iterable[Any] | np.ndarray | Distinct") -> Distinct:
    """Any column as :class:`Distinct`; numpy values and tuples become plain Python.

    >>> distinct([1, 1.0, True, 1]).values
    [1, 1.0, True]
    """
    if isinstance(values, Distinct):
        return values
    plain = values.tolist() if isinstance(values, np.ndarray) else [_plain(v) for v in values]
    found: dict[Any, int] = {}
    kept: list[Any] = []
    codes = np.empty(len(plain), dtype=np.int64)
    for row, value in enumerate(plain):
        key = value if type(value) is str else _key(value)
        code = found.setdefault(key, len(kept))
        if code == len(kept):
            kept.append(value)
        codes[row] = code
    return Distinct(kept, codes)


def distinct_of_arrow(column: pa.ChunkedArray) -> Distinct:
    """The same of a column of plain values (text, numbers, true/false), without a Python object per row."""
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):  # no rows, or more text than one array holds
        encoded = encoded.unify_dictionaries().combine_chunks()
    values = encoded.dictionary.to_pylist()
    if not encoded.indices.null_count:
        return Distinct(values, encoded.indices.to_numpy().astype(np.int64))
    codes = encoded.indices.fill_null(len(values)).to_numpy().astype(np.int64)
    every = np.arange(len(codes))
    return Distinct([*values, None], codes).take(every)  # null gets its place in the order, too


def _plain(value: Any) -> Any:
    """Numpy scalars and arrays, and tuples, as plain Python."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _key(value: Any) -> Any:
    """What equal values of one type share; dict keys alone would hold 1, 1.0 and True for the same."""
    if isinstance(value, list):
        return (list, *map(_key, value))
    if isinstance(value, dict):
        return (dict, repr(value))
    if isinstance(value, float) and math.isnan(value):
        return (float, "nan")
    return (type(value), value)
