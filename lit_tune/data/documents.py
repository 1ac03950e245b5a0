"""Documents as tokens, and the blocks that are read of them: the units of language modelling.

Shapes: N documents, K blocks, T tokens.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import datasets
import numpy as np

from lit_tune.data.packing import plan_blocks
from lit_tune.losses import IGNORE_INDEX

IDS = "input_ids"
TEXT_BYTES = "text_bytes"
"""Column with the bytes of a document's text as UTF-8."""
IS_TARGET = "is_target"
"""Column with 1 for each token that is to be predicted, 0 for others; where it is missing, all are."""
PREDICTED = "predicted"
"""Of a batch: (N,) where in its flattened labels a token is predicted; on a GPU nobody has to wait for their number."""


class Documents(Protocol):
    """Numbered documents."""

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each."""

    @property
    def column_names(self) -> Sequence[str]:
        """What is known of each."""

    def read(self, column: str, number: int, start: int, end: int) -> np.ndarray:
        """Items ``start`` to ``end`` of a document's list."""

    def value(self, column: str, number: int) -> int:
        """What a document has one of."""


class ListedDocuments:
    """Documents in memory.

    Args:
        features: Of each document.
    """

    def __init__(self, features: Sequence[Mapping[str, Any]]) -> None:
        self.features = features
        self.lengths = np.array([len(f[IDS]) for f in features], dtype=np.int64)
        self.column_names = list(features[0]) if features else []

    def read(self, column: str, number: int, start: int, end: int) -> np.ndarray:
        """Items ``start`` to ``end`` of a document's list."""
        return np.asarray(self.features[number][column][start:end], dtype=np.int64)

    def value(self, column: str, number: int) -> int:
        """What a document has one of."""
        return int(self.features[number][column])


class _Lists(NamedTuple):
    """A column of lists as Arrow keeps it: all items of a chunk one after another."""

    chunks: list[np.ndarray]
    chunk_of: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class StoredDocuments:
    """Documents of a memory-mapped table: a piece of one is read without the rest, which may be a book.

    Args:
        rows: Encoded features.
    """

    def __init__(self, rows: datasets.Dataset) -> None:
        self.rows = rows
        self._lists: dict[str, _Lists] = {}
        self._values: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"rows": self.rows, "_lists": {}, "_values": {}}  # a worker maps the file itself

    @property
    def column_names(self) -> Sequence[str]:
        """What is known of each."""
        return self.rows.column_names

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each."""
        lists = self.lists(IDS)
        return (lists.ends - lists.starts).astype(np.int64)

    def read(self, column: str, number: int, start: int, end: int) -> np.ndarray:
        """Items ``start`` to ``end`` of a document's list."""
        lists = self.lists(column)
        first = lists.starts[number]
        return lists.chunks[lists.chunk_of[number]][first + start : first + end].astype(np.int64)

    def value(self, column: str, number: int) -> int:
        """What a document has one of."""
        if column not in self._values:
            self._values[column] = self._chosen(self.rows.data.column(column).to_numpy())
        return int(self._values[column][number])

    def lists(self, column: str) -> _Lists:
        """Where the items of each document lie; nothing is copied."""
        if column not in self._lists:
            chunks = self.rows.data.column(column).chunks
            offsets = [chunk.offsets.to_numpy() for chunk in chunks]
            none = [np.zeros(0, dtype=np.int64)]
            self._lists[column] = _Lists(
                [chunk.values.to_numpy(zero_copy_only=False) for chunk in chunks],
                self._chosen(np.repeat(np.arange(len(chunks)), [len(chunk) for chunk in chunks])),
                self._chosen(np.concatenate([o[:-1] for o in offsets] or none)),
                self._chosen(np.concatenate([o[1:] for o in offsets] or none)),
            )
        return self._lists[column]

    def _chosen(self, of_all: np.ndarray) -> np.ndarray:
        """Of a selection of the rows, those."""
        chosen = self.rows._indices
        return of_all if chosen is None else of_all[chosen.column(0).to_numpy()]


class Piece(NamedTuple):
    """A part of a document.

    Args:
        ids: (T,) its tokens.
        labels: (T,) for each token the one that follows it, or -100.
        text_bytes: Its share of the bytes of its document.
    """

    ids: np.ndarray
    labels: np.ndarray
    text_bytes: int


def read_piece(documents: Documents, document: int, start: int, length: int) -> Piece:
    """Some tokens of a document, and what is to be predicted of them.

    Args:
        documents: The documents.
        document: Number of one.
        start: First token.
        length: Tokens, at least 1.
    """
    read = documents.read
    ids, labels = read(IDS, document, start, start + length), np.full(length, IGNORE_INDEX)
    labels[:-1] = ids[1:]
    if IS_TARGET in documents.column_names:
        labels[:-1][read(IS_TARGET, document, start + 1, start + length) == 0] = IGNORE_INDEX
    # those of all pieces of a document add up to its bytes
    total, targets = documents.value(TEXT_BYTES, document), max(1, int(documents.lengths[document]) - 1)
    return Piece(ids, labels, total * (start + length - 1) // targets - total * start // targets)


def join_pieces(pieces: Sequence[Piece], packing: bool) -> dict[str, Any]:
    """Features of a block.

    Args:
        pieces: What it is made of.
        packing: None of them sees another.
    """
    features: dict[str, Any] = {
        IDS: np.concatenate([piece.ids for piece in pieces]),
        "labels": np.concatenate([piece.labels for piece in pieces]),
        TEXT_BYTES: sum(piece.text_bytes for piece in pieces),
    }
    if packing:
        features["position_ids"] = np.concatenate([np.arange(len(piece.ids)) for piece in pieces])
    return features


class Blocks:
    """Each block is a unit: pieces of documents, none of which sees another.

    A block has ``input_ids``; ``labels``, for each token the one that follows it in its document, or -100;
    ``text_bytes``, its share of those of its documents; and where blocks are packed ``position_ids``, which begin at 0
    with each piece.

    Args:
        documents: The documents.
        max_length: Tokens of a block.
        packing: Several pieces may stand in a block.
    """

    def __init__(self, documents: Documents, max_length: int, packing: bool) -> None:
        self.documents, self.packing = documents, packing
        self.plan = plan_blocks(documents.lengths, max_length, packing)

    def __len__(self) -> int:
        return len(self.plan.ends)

    def read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Features of some blocks."""
        return [self.block(number) for number in numbers]

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) tokens of each; packed ones count as alike, for nearly all are full."""
        if self.packing:
            return np.zeros(len(numbers), dtype=np.int64)
        return self.plan.pieces.lengths[numbers]  # one piece in each

    def block(self, number: int) -> dict[str, Any]:
        """One of them."""
        end = int(self.plan.ends[number])
        places = range(int(self.plan.ends[number - 1]) if number else 0, end)
        pieces = self.plan.pieces
        parts = [
            read_piece(self.documents, int(pieces.documents[i]), int(pieces.starts[i]), int(pieces.lengths[i]))
            for i in places
        ]
        return join_pieces(parts, self.packing)


def target_counts(documents: StoredDocuments) -> np.ndarray:
    """(V,) how often each token is to be predicted: all but the first of each document, or those that are targets.

    Args:
        documents: All rows of a table, in its order.
    """
    lists = documents.lists(IDS)
    counts = np.zeros(0, dtype=np.int64)
    for number, items in enumerate(lists.chunks):
        firsts = lists.starts[(lists.chunk_of == number) & (lists.ends > lists.starts)]
        targets = items
        if IS_TARGET in documents.column_names:
            is_target = documents.lists(IS_TARGET).chunks[number] != 0
            targets, firsts = items[is_target], firsts[is_target[firsts]]
        found = np.bincount(targets)
        found -= np.bincount(items[firsts], minlength=len(found))
        counts = np.pad(counts, (0, max(0, len(found) - len(counts))))
        counts[: len(found)] += found
    return counts
