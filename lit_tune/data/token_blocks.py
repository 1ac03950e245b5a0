"""Blocks of as many tokens each: all texts of a split joined into one, and cut. Nothing is left over at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from lit_tune.data.documents import StoredDocuments
from lit_tune.data.units import WholeRows, list_lengths


class TokenBlocks:
    """Each block of so many tokens is a unit; the last one has what is left.

    Nothing is stored for it but a number per row: a block is read from the pieces of the rows it is made of.

    Args:
        rows: Encoded features, memory-mapped.
        columns: The columns of lists with one item per token, which go into the blocks -> what stands there between two
            texts; None in all where nothing does.
        length: Tokens of a block.

    >>> rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [], [4], [5, 6]]})
    >>> blocks = TokenBlocks(rows, {"input_ids": 0}, length=3)
    >>> [block["input_ids"].tolist() for block in blocks.read([0, 1, 2])]
    [[1, 2, 3], [0, 4, 0], [5, 6]]
    """

    def __init__(self, rows: datasets.Dataset, columns: Mapping[str, int | None], length: int) -> None:
        lengths = list_lengths(rows, next(iter(columns)))
        self.texts = np.flatnonzero(lengths)
        """(N,) numbers of the rows that are not empty."""
        self.length = length
        self.stored, self.columns = StoredDocuments(rows), dict(columns)
        self.between = 0 if None in columns.values() else 1
        self.ends = np.cumsum(lengths[self.texts] + self.between)
        """(N,) tokens of each text with its separator, and of those before it."""
        self.total = max(0, int(self.ends[-1]) - self.between) if len(self.ends) else 0

    def __len__(self) -> int:
        return -(-self.total // self.length)

    def read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Features of some blocks."""
        return [self.block(number * self.length, (number + 1) * self.length) for number in numbers]

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) zeros: but for the last, all are full."""
        return np.zeros(len(numbers), dtype=np.int64)

    def block(self, start: int, end: int) -> dict[str, Any]:
        """The tokens from one place of the joined text to another."""
        end = min(end, self.total)
        first, last = np.searchsorted(self.ends, (start, end - 1), side="right").tolist()
        found = {}
        for column, separator in self.columns.items():
            parts = []
            for text in range(first, last + 1):
                begins = int(self.ends[text - 1]) if text else 0
                size = int(self.ends[text]) - begins
                items = self.stored.read(
                    column, int(self.texts[text]), max(0, start - begins), min(end - begins, size - self.between)
                )
                is_whole = end - begins >= size and text + 1 < len(self.ends)
                parts.append(np.append(items, separator) if separator is not None and is_whole else items)
            found[column] = np.concatenate(parts)
        return found


class TextRows:
    """Each row with a text is a unit; empty ones are none.

    Args:
        rows: Encoded features.
        column: A column of lists that are empty where there is no text.
    """

    def __init__(self, rows: datasets.Dataset, column: str) -> None:
        self.rows, self.numbers = WholeRows(rows), np.flatnonzero(list_lengths(rows, column))

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Features of some of them."""
        return self.rows.read(self.numbers[list(numbers)].tolist())

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) integers in the lists of each."""
        return self.rows.lengths(self.numbers[numbers])


class MarkedRows(WholeRows):
    """Each row is a unit, marked for a collator that does with these something else.

    Args:
        rows: Encoded features.
        mark: A key that is added to each.
    """

    def __init__(self, rows: datasets.Dataset, mark: str) -> None:
        super().__init__(rows)
        self.mark = mark

    def read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Features of some rows."""
        return [{**row, self.mark: True} for row in super().read(numbers)]
