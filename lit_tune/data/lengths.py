"""How long the rows of a table are, found without reading them: from where their lists begin, of the rows asked for."""

from typing import Any

import datasets
import numpy as np
import pyarrow as pa


class StoredLengths:
    """The integers in all lists of a row: its tokens, and what goes with them.

    Args:
        rows: Encoded features, memory-mapped.

    >>> lists = {"ids": [[1, 2], [3], []], "parts": [[[1], [2]], [[4, 5]], []]}
    >>> rows = datasets.Dataset.from_dict({**lists, "label": [0, 1, 0], "names": [["a"], [], []]})
    >>> StoredLengths(rows)(np.array([2, 0, 1])).tolist()
    [0, 4, 3]
    """

    def __init__(self, rows: datasets.Dataset) -> None:
        self.rows = rows
        table, chosen = rows.data, rows._indices
        self.chosen = None if chosen is None else chosen.column(0).to_numpy()
        columns = [table.column(name).chunks for name in table.column_names]
        chains = [[list_offsets(chunk) for chunk in chunks] for chunks in columns]
        self.columns = [chain for chain in chains if any(chain)]
        self.ends = np.cumsum([len(chunk) for chunk in columns[0]] if columns else [])
        """(C,) rows of each chunk of the table and of those before it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredLengths, (self.rows,)  # another process maps the file itself

    def __call__(self, numbers: np.ndarray, part: np.ndarray | None = None) -> np.ndarray:
        """(n,) int64.

        Args:
            numbers: Of the rows.
            part: Of lists of lists, count only the inner list with this number in each row.
        """
        places = numbers if self.chosen is None else self.chosen[numbers].astype(np.int64)
        found = np.zeros(len(numbers), dtype=np.int64)
        chunks = np.searchsorted(self.ends, places, side="right")
        for number in np.unique(chunks):
            here = chunks == number
            rows = places[here] - (self.ends[number - 1] if number else 0)
            for column in self.columns:
                begin, end = column[number][0][rows], column[number][0][rows + 1]
                if part is not None and len(column[number]) > 1:
                    begin = begin + part[here]
                    end = begin + 1
                for offsets in column[number][1:]:
                    begin, end = offsets[begin], offsets[end]
                found[here] += end - begin
        return found


def list_offsets(array: Any) -> list[np.ndarray]:
    """Where the lists of a column begin, those in lists after those around them; none where no integers are in them."""
    offsets = []
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        offsets.append(array.offsets.to_numpy())
        array = array.values
    return offsets if pa.types.is_integer(array.type) else []
