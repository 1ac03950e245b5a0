"""Columns of lists: the words of sentences and their tags, looked at all together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lit_tune.data.distinct import Distinct, distinct, distinct_of_arrow
from lit_tune.data.places import NUM_PLACES, Locate, places
from lit_tune.data.split import Split
from lit_tune.errors import DataError


@dataclass(frozen=True)
class ListColumn:
    """A column of N lists with M items in all.

    Args:
        is_null: (N,) rows without a value.
        is_other: (N,) rows with a value that is no list.
        lengths: (N,) items of each row.
        items: The M items, row after row.
    """

    is_null: np.ndarray
    is_other: np.ndarray
    lengths: np.ndarray
    items: Distinct

    @property
    def row_of_item(self) -> np.ndarray:
        """(M,) the row that each item stands in."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def take(self, rows: np.ndarray) -> "ListColumn":
        """Some of the rows."""
        lengths, starts = self.lengths[rows], (np.cumsum(self.lengths) - self.lengths)[rows]
        picked = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        return ListColumn(self.is_null[rows], self.is_other[rows], lengths, self.items.take(picked))

    def locate_item(self, locate: Locate, name: str = "word") -> Locate:
        """Names an item by its row and its place in it: ``train.jsonl:3 word 4``."""
        ends = np.cumsum(self.lengths)

        def where(item: int) -> str:
            row = int(np.searchsorted(ends, item, side="right"))
            return f"{locate(row)} {name} {item - int(ends[row] - self.lengths[row]) + 1}"

        return where


def read_lists(split: Split, column: str) -> ListColumn:
    """A column as lists, read once; what is wrong with it stands in it."""
    if split.whole is not None and split.picks is not None:
        return read_lists(split.whole, column).take(split.picks)
    if column not in split.list_columns:
        split.list_columns[column] = _of_arrow(split, column) or _of_values(split.column(column))
    return split.list_columns[column]


def require_words(split: Split, column: str, key: str, may_be_empty: bool = False) -> ListColumn:
    """Lists of words.

    Args:
        split: Not streamed.
        column: Name of the column.
        key: Config key that names it.
        may_be_empty: A sentence may have no words.

    Raises:
        DataError: A row that is null, no list or empty, or a word that is null or no text, with ``file:row``.
    """
    found = require_lists(split, column, key, "words")
    empty = np.flatnonzero(found.lengths == 0)
    if len(empty) and not may_be_empty:
        raise DataError(f"a sentence has no words{_places(empty, split.locate)}", fix="drop these rows")
    wrong = [not isinstance(value, str) for value in found.items.values]
    if any(wrong):
        first = found.items.values[wrong.index(True)]
        shown = "null" if first is None else f"{first!r}, a {type(first).__name__}"
        rows = found.items.rows_where(wrong)
        raise DataError(f"a word is {shown}{_places(rows, found.locate_item(split.locate))}", fix="write words as text")
    return found


def require_lists(split: Split, column: str, key: str, of: str) -> ListColumn:
    """Lists of anything.

    Args:
        split: Not streamed.
        column: Name of the column.
        key: Config key that names it.
        of: What the lists hold, for messages: ``words``, ``tags``.

    Raises:
        DataError: A row that is null or no list, with ``file:row``.
    """
    found = read_lists(split, column)
    null, other = np.flatnonzero(found.is_null), np.flatnonzero(found.is_other)
    if len(null):
        raise DataError(f"{column!r} is null{_places(null, split.locate)}", fix="fill in or drop these rows")
    if len(other):
        value: Any = split.rows[int(other[0])][column]  # type: ignore[index]
        raise DataError(
            f"{column!r} is {str(value)[:40]!r}, a {type(value).__name__}, where a list of {of} is expected"
            f"{_places(other, split.locate)}",
            fix=f"give a list of {of} in each row, or another column as {key}",
        )
    return found


def require_same_lengths(words: ListColumn, tags: ListColumn, locate: Locate) -> None:
    """As many tags as words.

    Raises:
        DataError: A row where they differ.
    """
    odd = np.flatnonzero(words.lengths != tags.lengths)
    if len(odd):
        first = int(odd[0])
        raise DataError(
            f"{words.lengths[first]} words and {tags.lengths[first]} tags{_places(odd, locate)}",
            fix="one tag for each word",
        )


def _of_arrow(split: Split, column: str) -> ListColumn | None:
    """From the disk, without a Python object per item; None for mixed types and selections."""
    arrow = split.arrow(column, lists=True)
    if arrow is None or not (pa.types.is_list(arrow.type) or pa.types.is_large_list(arrow.type)):
        return None
    lengths = pc.fill_null(pc.list_value_length(arrow), 0).to_numpy().astype(np.int64)
    items = distinct_of_arrow(pc.list_flatten(arrow))
    return ListColumn(pc.is_null(arrow).to_numpy(), np.zeros(len(arrow), dtype=bool), lengths, items)


def _of_values(values: list[Any]) -> ListColumn:
    lists = [value if isinstance(value, list) else [] for value in values]
    return ListColumn(
        is_null=np.array([value is None for value in values], dtype=bool),
        is_other=np.array([value is not None and not isinstance(value, list) for value in values], dtype=bool),
        lengths=np.array([len(value) for value in lists], dtype=np.int64),
        items=distinct(item for value in lists for item in value),
    )


def _places(rows: Sequence[int] | np.ndarray, locate: Locate) -> str:
    """`` (train.jsonl:3, 9; 12 in all)``."""
    total = f"; {len(rows)} in all" if len(rows) > NUM_PLACES else ""
    return f" ({places(rows[:NUM_PLACES], locate)}{total})"
