"""What can be known about raw rows before they are tokenized: columns, texts, overlap between splits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from lit_tune.data.labels import NUM_PLACES
from lit_tune.errors import DataError, nearest, raise_problems

NUM_EXAMPLES = 3


def require_columns(available: Sequence[str], wanted: Sequence[str], where: str, keys: Mapping[str, str]) -> None:
    """Check that a split has the columns the task reads.

    Args:
        available: Columns of the split.
        wanted: Columns that must be there.
        where: File or data set, for messages.
        keys: Wanted column -> config key that names it, e.g. ``{"text": "task.init_args.text_columns"}``.

    Raises:
        DataError: A column is missing (several: all of them together).
    """
    problems = []
    for column in wanted:
        if column in available:
            continue
        similar = nearest(column, available)
        fix = f"set {keys[column]} to " + (f"{similar!r}, if that is meant" if similar else "one of these columns")
        has = ", ".join(repr(c) for c in available)
        problems.append(DataError(f"there is no column {column!r}; there are {has}", where=where, fix=fix))
    raise_problems(list(problems))


def check_texts(values: Iterable[Any], column: str, locate: Callable[[int], str]) -> int:
    """Check that a text column holds text.

    Args:
        values: The column.
        column: Its name.
        locate: Row number -> ``file:row``.

    Returns:
        Number of empty (or blank) texts; they are allowed.

    Raises:
        DataError: A text is null, or no text at all.
    """
    num_empty = 0
    wrong: dict[str, list[int]] = {}
    for i, value in enumerate(values):
        if isinstance(value, str):
            num_empty += not value.strip()
        else:
            wrong.setdefault("null" if value is None else f"a {type(value).__name__}", []).append(i)
    for kind, rows in wrong.items():
        places = ", ".join(locate(i) for i in rows[:NUM_PLACES])
        raise DataError(
            f"text in column {column!r} is {kind} in {len(rows)} row(s) ({places}{', ...' if len(rows) > 5 else ''})",
            fix="fill in or drop these rows"
            if kind == "null"
            else "name a column with text in task.init_args.text_columns",
        )
    return num_empty


@dataclass(frozen=True)
class OverlapReport:
    """Texts that stand in train and in another split: what a model has seen, it need not understand.

    Args:
        count: Rows of the other split whose text occurs in train.
        total: Rows of the other split.
        examples: Row number in the other split and text, cut to 80 characters; at most 3.
    """

    count: int
    total: int
    examples: list[tuple[int, str]] = field(default_factory=list)

    @property
    def fraction(self) -> float:
        """Share of the other split's rows, 0 to 1."""
        return self.count / self.total if self.total else 0.0


def text_overlap(
    train_texts: Iterable[str | Sequence[str]], other_texts: Iterable[str | Sequence[str]]
) -> OverlapReport:
    """Find texts of another split that occur in train, but for case and white space.

    Compares 64-bit hashes (8 bytes of memory per train row, O(n log n) time): with 1e7 x 1e6 rows the chance of one
    false match is 1e13 / 2^64, below one in a million.

    Args:
        train_texts: One text per row, or one tuple of texts where the task reads several columns.
        other_texts: The same of the other split.

    >>> text_overlap(["A  good film", "bad"], ["a good film ", "new"])
    OverlapReport(count=1, total=2, examples=[(0, 'a good film ')])
    """
    seen = np.fromiter((_text_hash(text) for text in train_texts), dtype=np.uint64)
    seen.sort()
    count = total = 0
    examples: list[tuple[int, str]] = []
    for text in other_texts:
        code = np.uint64(_text_hash(text))
        place = np.searchsorted(seen, code)
        if place < len(seen) and seen[place] == code:
            count += 1
            if len(examples) < NUM_EXAMPLES:
                examples.append((total, (text if isinstance(text, str) else " | ".join(text))[:80]))
        total += 1
    return OverlapReport(count, total, examples)


def _text_hash(text: str | Sequence[str]) -> int:
    parts = [text] if isinstance(text, str) else text
    # \0 keeps ("a b", "c") and ("a", "b c") apart; surrogates occur in json such as "\ud800"
    joined = "\0".join(" ".join(part.casefold().split()) for part in parts)
    return xxhash.xxh3_64_intdigest(joined.encode("utf-8", "surrogatepass"))
