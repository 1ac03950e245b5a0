"""What is odd about the texts of a split without being wrong: empty, repeated, enormous, or seen in train."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lit_tune.data.places import places
from lit_tune.data.split import Split
from lit_tune.data.texts import plain_text, text_column, text_hashes

NUM_SAMPLES = 3
SAMPLE_CHARS = 60


@dataclass(frozen=True)
class TextQuality:
    """The texts of a split; plain data, kept with what is tokenized.

    Args:
        num_rows: Rows.
        num_empty: Rows whose text is blank in every text column.
        empty_cells: Column -> blank cells in it.
        empty_places: Where the first empty rows stand: ``train.csv:2, 9, ...``.
        num_duplicates: Rows whose text stood in an earlier row.
        duplicate_samples: ``train.csv:9 (as train.csv:2): the text``, at most 3.
        longest_chars: Characters of the longest row.
        longest_place: Where it stands.
    """

    num_rows: int
    num_empty: int
    empty_cells: dict[str, int]
    empty_places: str
    num_duplicates: int
    duplicate_samples: list[str]
    longest_chars: int
    longest_place: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``TextQuality(**d)`` is the way back."""
        return asdict(self)


@dataclass(frozen=True)
class Overlap:
    """Rows of a split whose text also stands in train: what a model has seen, it need not understand.

    Args:
        count: How many.
        total: Rows of the split.
        samples: ``val.csv:9 (as train.csv:2): the text``, at most 3.
    """

    count: int
    total: int
    samples: list[str]

    @property
    def fraction(self) -> float:
        """Share of the split's rows, 0 to 1."""
        return self.count / self.total if self.total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``Overlap(**d)`` is the way back."""
        return asdict(self)


def text_quality(split: Split, columns: Sequence[str], identity: Sequence[str] = ()) -> TextQuality:
    """Look at all texts of a split.

    Args:
        split: Not streamed.
        columns: The columns with texts, or with lists of them.
        identity: Columns in which repetitions are alike; default: these.
    """
    identity = identity or columns
    found = {column: text_column(split, column) for column in columns}
    is_empty = np.logical_and.reduce([c.is_blank for c in found.values()])
    chars = np.add.reduce([c.num_chars for c in found.values()])
    hashes = text_hashes(split, identity)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    earlier = first[inverse]
    # empty rows are told by themselves
    repeated = np.flatnonzero((earlier != np.arange(len(hashes))) & ~is_empty)
    longest = int(chars.argmax()) if len(chars) else 0
    return TextQuality(
        num_rows=len(split),
        num_empty=int(is_empty.sum()),
        empty_cells={name: n for name, c in found.items() if (n := int(c.is_blank.sum()))},
        empty_places=places(np.flatnonzero(is_empty), split.locate),
        num_duplicates=len(repeated),
        duplicate_samples=[_pair(split, int(i), split, int(earlier[i]), identity) for i in repeated[:NUM_SAMPLES]],
        longest_chars=int(chars[longest]) if len(chars) else 0,
        longest_place=split.locate(longest) if len(chars) else "",
    )


def overlap(train: Split, other: Split, columns: Sequence[str]) -> Overlap:
    """Find texts of another split that occur in train, but for case and white space.

    8 bytes of memory per row; O(n log n) time.
    """
    seen, looked_up = text_hashes(train, columns), text_hashes(other, columns)
    order = np.argsort(seen, kind="stable")
    place = np.searchsorted(seen, looked_up, sorter=order)
    nearest_row = order[np.minimum(place, len(seen) - 1)] if len(seen) else np.zeros(len(other), dtype=np.int64)
    matches = np.flatnonzero((seen[nearest_row] == looked_up) if len(seen) else np.zeros(len(other), dtype=bool))
    samples = [_pair(other, int(i), train, int(nearest_row[i]), columns) for i in matches[:NUM_SAMPLES]]
    return Overlap(len(matches), len(other), samples)


def _pair(split: Split, row: int, other: Split, other_row: int, columns: Sequence[str]) -> str:
    values = split.rows[row]  # type: ignore[index]
    text = " | ".join(" ".join(plain_text(values[c]).split()) for c in columns)
    shown = text if len(text) <= SAMPLE_CHARS else text[: SAMPLE_CHARS - 3] + "..."
    # the folders stand in the config; a message should keep its lines
    return f"{os.path.basename(split.locate(row))} (as {os.path.basename(other.locate(other_row))}): {shown}"
