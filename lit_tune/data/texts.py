"""The text columns of a split: do they hold text, how much of it, and which rows say the same.

A list of texts (the words of a sentence, the choices of a question), or a mapping of such, is read as one, joined by
spaces. On Arrow columns wherever they are plain text: a million rows take one to two seconds.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from lit_tune.data.places import places
from lit_tune.data.split import Split
from lit_tune.errors import DataError

# What " ".join(text.split()) would change in ASCII text.
_UNTIDY = r"\s\s|[\t\n\v\f\r\x1c-\x1f]|^ | $"


@dataclass(frozen=True)
class TextColumn:
    """What a column of text holds.

    Args:
        is_null: (N,) rows without a value.
        is_other: (N,) rows with a value that is neither text nor a list.
        is_list: (N,) rows with a list, or a mapping.
        is_blank: (N,) texts without any character but white space.
        num_chars: (N,) length of each text.
    """

    is_null: np.ndarray
    is_other: np.ndarray
    is_list: np.ndarray
    is_blank: np.ndarray
    num_chars: np.ndarray

    def take(self, rows: np.ndarray) -> "TextColumn":
        """Some of the rows."""
        parts = (self.is_null, self.is_other, self.is_list, self.is_blank, self.num_chars)
        return TextColumn(*(part[rows] for part in parts))


def read_texts(split: Split, column: str, key: str = "task.init_args.text_columns") -> TextColumn:
    """Look at a column that holds one text per row.

    Args:
        split: Not streamed.
        column: Name of the column.
        key: Config key that names it.

    Raises:
        DataError: A text is null, or no text at all, with the first rows.
    """
    found = text_column(split, column)
    for wrong in (found.is_null, found.is_other | found.is_list):
        rows = np.flatnonzero(wrong)
        if len(rows):
            raise _not_text(rows, column, split, key)
    return found


def longest_rows(split: Split, columns: Sequence[str], count: int) -> np.ndarray:
    """Numbers of the rows with the most characters, the longest first."""
    chars = np.add.reduce([text_column(split, column).num_chars for column in columns])
    return np.argsort(-chars, kind="stable")[:count]


def text_column(split: Split, column: str) -> TextColumn:
    """A column of texts or lists of them; looked at once, a selection's rows are picked from the whole split's."""
    if split.whole is not None and split.picks is not None:
        return text_column(split.whole, column).take(split.picks)
    if column not in split.text_columns:
        arrow = _arrow_texts(split, column)
        split.text_columns[column] = _of_values(split.column(column)) if arrow is None else _of_arrow(*arrow)
    return split.text_columns[column]


def texts_of(split: Split, columns: Sequence[str]) -> Iterator[str]:
    """The texts of a split, column after column, read in pieces."""
    for column in columns:
        for piece in split.rows.select_columns([column]).iter(batch_size=1000):  # type: ignore[union-attr]
            yield from map(plain_text, piece[column])


def plain_text(value: Any) -> str:
    """What a cell says, the parts of lists and mappings joined by spaces.

    >>> plain_text("a b") == plain_text(["a", "b"]) == plain_text({"text": ["a"], "label": ["b"]})
    True
    """
    if isinstance(value, dict):
        return " ".join(map(plain_text, value.values()))
    if isinstance(value, list):
        return " ".join(map(plain_text, value))
    return value if isinstance(value, str) else repr(value)


def _arrow_texts(split: Split, column: str) -> tuple[pa.ChunkedArray, bool] | None:
    """Texts as they lie on the disk, and whether they are joined lists; None for what is no text."""
    arrow = split.arrow(column, lists=True)
    if arrow is None:
        return None
    if _is_text(arrow.type):
        return arrow, False
    is_list = pa.types.is_list(arrow.type) or pa.types.is_large_list(arrow.type)
    return (pc.binary_join(arrow, " "), True) if is_list and _is_text(arrow.type.value_type) else None


def _of_arrow(column: pa.ChunkedArray, is_list: bool) -> TextColumn:
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), False)
    chars = pc.fill_null(pc.utf8_length(column), 0)
    none, lists = np.zeros(len(column), dtype=bool), np.full(len(column), is_list)
    return TextColumn(pc.is_null(column).to_numpy(), none, lists, blank.to_numpy(), chars.to_numpy().astype(np.int64))


def _of_values(values: list[Any]) -> TextColumn:
    is_text = [isinstance(v, str | list | dict) for v in values]
    texts = [plain_text(v) if known else None for v, known in zip(values, is_text, strict=True)]
    return TextColumn(
        is_null=np.array([v is None for v in values], dtype=bool),
        is_other=np.array([v is not None and not known for v, known in zip(values, is_text, strict=True)], dtype=bool),
        is_list=np.array([isinstance(v, list | dict) for v in values], dtype=bool),
        is_blank=np.array([t is not None and not t.strip() for t in texts], dtype=bool),
        num_chars=np.array([len(t or "") for t in texts], dtype=np.int64),
    )


def text_hashes(split: Split, columns: Sequence[str]) -> np.ndarray:
    """A 64-bit hash of the texts of each row; equal where they differ in case and white space only.

    With 1e7 x 1e6 rows the chance of one false match is 1e13 / 2^64, below one in a million.

    Args:
        split: Not streamed; of a selection, the whole split is hashed once.
        columns: Text columns; ``("a b", "c")`` and ``("a", "b c")`` are told apart.

    Returns:
        (N,) uint64.
    """
    if split.whole is not None and split.picks is not None:
        return text_hashes(split.whole, columns)[split.picks]
    key = tuple(columns)
    if key not in split.hashes:
        total = np.zeros(len(split), dtype=np.uint64)
        for column in columns:
            arrow = _arrow_texts(split, column)
            one = _hashes(split.column(column)) if arrow is None else _arrow_hashes(arrow[0])
            # mixing constant of splitmix64; a sum alone would not tell two columns apart
            total = (total ^ (total >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + one
        split.hashes[key] = total
    return split.hashes[key]


def _hashes(values: Iterable[object]) -> np.ndarray:
    return np.fromiter((hash_of(plain_text(v)) for v in values), dtype=np.uint64)


def hash_of(text: str) -> int:
    """Hash of one text without case and extra white space.

    >>> hash_of("A  Film ") == hash_of("a film"), hash_of("a film") == hash_of("afilm")
    (True, False)
    """
    # surrogates occur in json such as "\ud800"
    return xxhash.xxh3_64_intdigest(" ".join(text.casefold().split()).encode("utf-8", "surrogatepass"))


def _arrow_hashes(column: pa.ChunkedArray) -> np.ndarray:
    """The same for Arrow text: tidy ASCII, which is most text, is hashed as it lies in memory."""
    found = [np.zeros(0, dtype=np.uint64)]
    for chunk in column.cast(pa.large_string()).chunks:
        chunk = chunk.fill_null("")
        lowered = pc.ascii_lower(chunk)
        odd = pc.or_(pc.invert(pc.string_is_ascii(chunk)), pc.match_substring_regex(lowered, _UNTIDY))
        codes = np.fromiter(map(xxhash.xxh3_64_intdigest, _slices(lowered)), dtype=np.uint64, count=len(chunk))
        rows = np.flatnonzero(odd.to_numpy(zero_copy_only=False))
        codes[rows] = _hashes(chunk.take(pa.array(rows)).to_pylist())
        found.append(codes)
    return np.concatenate(found)


def _slices(texts: pa.LargeStringArray) -> Iterator[memoryview]:
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = memoryview(texts.buffers()[2] or b"")
    return (content[start:end] for start, end in pairwise(offsets.tolist()))


def _not_text(rows: np.ndarray, column: str, split: Split, key: str) -> DataError:
    value = split.rows[int(rows[0])][column]  # type: ignore[index]
    kind = "null" if value is None else f"a {type(value).__name__}"
    return DataError(
        f"text in column {column!r} is {kind} in {len(rows)} row(s) ({places(rows, split.locate)})",
        fix="fill in or drop these rows" if value is None else f"name a column with text in {key}",
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
