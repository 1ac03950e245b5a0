"""What a model should write for each row: a text, or a list of texts of which each would do."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from lit_tune.data.places import places
from lit_tune.data.split import Split
from lit_tune.data.texts import TextColumn, text_column
from lit_tune.errors import DataError


def references_of(cell: Any) -> list[str]:
    """The texts of a cell that was checked; those without any character but white space are left out.

    >>> references_of("rain"), references_of(["rain", " ", "fog"]), references_of("")
    (['rain'], ['rain', 'fog'], [])
    """
    texts = cell if isinstance(cell, list) else [cell]
    return [text for text in texts if text.strip()]


def read_targets(split: Split, column: str, key: str) -> TextColumn:
    """Look at a column that holds a text, or a list of texts, in each row.

    Args:
        split: Not streamed.
        column: Name of the column.
        key: Config key that names it.

    Raises:
        DataError: A target is null, or something else, with the first rows; or there is no target at all.
    """
    found = text_column(split, column)
    values = split.column(column) if found.is_list.any() else []
    is_other = np.array([not is_list_of_texts(v) for v in values], dtype=bool) if values else found.is_other
    other = found.is_other | (found.is_list & is_other)
    fixes = ("fill in or drop these rows", f"name a column with texts, or lists of texts, in {key}")
    for rows, what, fix in zip(
        (np.flatnonzero(found.is_null), np.flatnonzero(other)), ("null", ""), fixes, strict=True
    ):
        if len(rows):
            kind = what or f"{str(split.rows[int(rows[0])][column])[:40]!r}"  # type: ignore[index]
            where = places(rows, split.locate)
            raise DataError(f"target in column {column!r} is {kind} in {len(rows)} row(s) ({where})", fix=fix)
    if found.is_blank.all():
        raise DataError(f"all targets in column {column!r} are empty", where=split.title, fix=fixes[1])
    return found


def is_list_of_texts(value: Any) -> bool:
    """Whether it is a list that holds nothing but texts.

    >>> is_list_of_texts(["a"]), is_list_of_texts(["a", None]), is_list_of_texts({"a": ["b"]})
    (True, False, False)
    """
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_without_targets(split: Split, column: str) -> bool:
    """Whether no row has a target."""
    if column not in split.column_names:
        return True
    found = text_column(split, column)
    return bool((found.is_null | found.is_blank).all())


def key_of(source: str) -> int:
    """A number that equal sources share, and others do not: 63 bits of a hash."""
    return xxhash.xxh3_64_intdigest(source.encode("utf-8", "surrogatepass")) >> 1


def token_counts(labels: pa.ChunkedArray) -> np.ndarray:
    """(V,) how often each token stands in the targets.

    Args:
        labels: Of each row a list of targets, which are lists of tokens.

    >>> token_counts(pa.chunked_array([[[[1, 2], [2]]], [[[0]]]])).tolist()
    [1, 1, 2]
    """
    counts = np.zeros(0, dtype=np.int64)
    for chunk in labels.chunks:
        found = np.bincount(pc.list_flatten(pc.list_flatten(chunk)).to_numpy())
        counts = np.pad(counts, (0, max(0, len(found) - len(counts))))
        counts[: len(found)] += found
    return counts
