"""Split: raw rows, with a place for every row that a message can name."""

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from lit_tune.data.distinct import Distinct, distinct, distinct_of_arrow
from lit_tune.errors import DataError, LitTuneError

READ_ROWS = 100
"""Rows that are read from a stream at once."""


@dataclass
class Split:
    """The raw rows of one split, or a selection of them.

    Args:
        rows: The rows; a stream has no length.
        name: ``train``, ``val``, ``test`` or ``predict``.
        files: (path as the user gave it, number of rows) in order; 0 rows where a stream does not know; empty for data
            that does not come from files.
        fingerprint: Hash of the content and of how it was read. Of streamed files: of names, sizes and first megabytes.
        source: What to call data without files, e.g. ``nyu-mll/glue/mrpc[train]``.
        origin: Of a selection: the number each row has in the whole split.
        explain: Turns what reading a stream raises into an error that names the place.
    """

    rows: datasets.Dataset | datasets.IterableDataset
    name: str
    files: list[tuple[str, int]]
    fingerprint: str
    source: str = ""
    origin: np.ndarray | None = None
    explain: Callable[[Exception], LitTuneError] | None = None
    whole: "Split | None" = None
    """Of a selection: the split it was selected from."""
    picks: np.ndarray | None = None
    """Of a selection: the number each row has in ``whole``."""
    lines: np.ndarray | None = None
    """The line of its file on which each row of the whole split begins, where rows have several lines."""
    hashes: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    text_columns: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What ``data.texts`` found out about the texts, kept because it is asked for again by every part of the split."""
    list_columns: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The same of ``data.word_lists``."""
    _distinct: dict[str, Distinct] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.rows)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True  # a stream has no length, and an empty split is still one

    @property
    def is_streamed(self) -> bool:
        """Whether the rows can only be read in order."""
        return isinstance(self.rows, datasets.IterableDataset)

    @property
    def title(self) -> str:
        """What to call the split in a message: its file, its data set, or its name."""
        if not self.files:
            return self.source
        return self.files[0][0] if len(self.files) == 1 else f"{self.name} ({len(self.files)} files)"

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self.rows.column_names or next(self.read(), {}))

    def read(self) -> Iterator[dict[str, Any]]:
        """All rows in order, in a worker process too: there ``datasets`` would hand each worker other files.

        Raises:
            LitTuneError: A stream that breaks off, with the place.
        """
        try:
            for batch in self.rows.iter(batch_size=READ_ROWS):
                for values in zip(*batch.values(), strict=True):
                    yield dict(zip(batch, values, strict=True))
        except Exception as error:
            if self.explain is None or isinstance(error, LitTuneError):
                raise
            raise self.explain(error) from error

    def column(self, name: str) -> list[Any]:
        """All values of a column."""
        assert isinstance(self.rows, datasets.Dataset), "a stream has no columns to read"
        return self.rows[name][:]

    def distinct(self, name: str) -> Distinct:
        """A column as its distinct values; read once, and never row by row from a selection."""
        if self.whole is not None and self.picks is not None:
            return self.whole.distinct(name).take(self.picks)
        if name not in self._distinct:
            arrow = self.arrow(name)
            self._distinct[name] = distinct(self.column(name)) if arrow is None else distinct_of_arrow(arrow)
        return self._distinct[name]

    def arrow(self, name: str, lists: bool = False) -> pa.ChunkedArray | None:
        """A column of plain values as it lies on the disk; None for mixed types and selections.

        Args:
            name: Name of the column.
            lists: A column of lists of plain values is given, too.
        """
        assert isinstance(self.rows, datasets.Dataset), "a stream has no columns to read"
        feature: Any = self.rows.features[name]
        if lists and isinstance(feature, datasets.List | datasets.LargeList):
            feature = feature.feature
        is_plain = isinstance(feature, datasets.ClassLabel) or (
            isinstance(feature, datasets.Value) and feature.dtype != "null"
        )
        is_selected = self.picks is not None or getattr(self.rows, "_indices", None) is not None
        return self.rows.data.column(name) if is_plain and not is_selected else None

    def select(self, indices: np.ndarray) -> "Split":
        """Some of the rows; messages still name their place in the file."""
        assert isinstance(self.rows, datasets.Dataset)
        origin = indices if self.origin is None else self.origin[indices]
        picks = indices if self.picks is None else self.picks[indices]
        rows = self.rows.select(indices)
        return replace(self, rows=rows, origin=origin, whole=self.whole or self, picks=picks)

    def renamed(self, name: str) -> "Split":
        """The same rows as another split."""
        return replace(self, name=name)

    def take(self, count: int) -> "Split":
        """The first rows of a stream, kept in memory.

        Raises:
            DataError: There are none.
        """
        first = list(islice(self.read(), count))
        if not first:
            raise DataError("the stream has no rows", where=self.title, fix="data with rows")
        return self.table(first, np.arange(len(first)))

    def table(self, rows: list[dict[str, Any]], positions: np.ndarray) -> "Split":
        """Rows read from a stream as a split of their own; messages still name their place in the file.

        Args:
            rows: Some rows.
            positions: The number of each in the stream.
        """
        if self.rows.features:
            return replace(self, rows=datasets.Dataset.from_list(rows, features=self.rows.features), origin=positions)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        full = [{name: row.get(name) for name in columns} for row in rows]
        # values of mixed types come back as they were, for the checks to judge
        return replace(self, rows=datasets.Dataset.from_list(full, on_mixed_types="use_json"), origin=positions)

    def locate(self, i: int) -> str:
        """Where row ``i`` (from 0) stands: ``train.csv:17``, counting data rows from 1 without the header.

        Where rows have several lines it is the line on which the row begins.
        """
        i = i if self.origin is None else int(self.origin[i])
        if not self.files:
            return f"{self.source}:{i + 1}"
        if self.lines is None and len(self.files) == 1:
            return f"{self.files[0][0]}:{i + 1}"
        ends = list(accumulate(count for _, count in self.files))
        if i >= ends[-1]:  # a stream of several files
            return f"{self.name} row {i + 1}"
        place = bisect.bisect_right(ends, i)
        path, count = self.files[place]
        return f"{path}:{i + 1 - (ends[place] - count) if self.lines is None else self.lines[i]}"
