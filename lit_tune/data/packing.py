"""Documents -> blocks of at most so many tokens: what is cut where, and which pieces stand together.

A document that is longer than a block is cut into pieces. Each but the first begins with the last token of the one
before, so that every token of a document but its first is predicted exactly once, whatever the length of a block.
Pieces are packed by best-fit decreasing, as Ding et al. 2024 do (https://arxiv.org/abs/2404.10830): nearly nothing is
padding, and no document is cut that fits a block.

Shapes: N documents, P pieces, K blocks.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import xxhash


@dataclass(frozen=True)
class Pieces:
    """Parts of documents.

    Args:
        documents: (P,) number of the document.
        starts: (P,) first token.
        lengths: (P,) tokens, at least 2: one that is read and one that is predicted.
    """

    documents: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, order: np.ndarray) -> "Pieces":
        """Some of them, in this order."""
        return Pieces(self.documents[order], self.starts[order], self.lengths[order])


@dataclass(frozen=True)
class Plan:
    """Which pieces are in which block.

    Args:
        pieces: All of them, block after block.
        ends: (K,) pieces of each block and of those before it.
    """

    pieces: Pieces
    ends: np.ndarray


def cut_documents(lengths: np.ndarray, max_length: int) -> Pieces:
    """Cut what is longer than a block. Of a document of one token nothing is left: there is nothing to predict.

    Args:
        lengths: (N,) tokens of each document.
        max_length: Tokens of a block, at least 2.

    >>> cut = cut_documents(np.array([3, 1, 8]), max_length=4)
    >>> cut.documents.tolist(), cut.starts.tolist(), cut.lengths.tolist()
    ([0, 2, 2, 2], [0, 0, 3, 6], [3, 4, 4, 2])
    """
    lengths, step = lengths.astype(np.int64), max_length - 1
    counts = np.maximum(0, -(-(lengths - 1) // step))
    documents = np.repeat(np.arange(len(lengths)), counts)
    starts = (np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)) * step
    return Pieces(documents, starts, np.minimum(lengths[documents] - starts, max_length))


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The longest piece first, each into the fullest block that has room for it, else into a new one.

    Pieces of one length are placed together: the fullest block that has room takes as many of them as it can, which is
    what placing them one by one gives. A million pieces take a fraction of a second.

    Args:
        lengths: (P,) tokens, 1 to ``capacity``.
        capacity: Tokens of a block.

    Returns:
        (P,) the block of each piece.

    >>> best_fit_decreasing(np.array([3, 6, 2, 5, 4]), capacity=10).tolist()
    [1, 0, 1, 1, 0]
    """
    order = np.argsort(-lengths, kind="stable")
    block_of, room, place = np.empty(len(lengths), dtype=np.int64), _Room(capacity), 0
    values, counts = np.unique(lengths, return_counts=True)
    for length, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            left = room.tightest(length)
            fit = left // length
            blocks = room.take(left, -(-count // fit))
            placed = min(count, fit * len(blocks))
            block_of[order[place : place + placed]] = np.repeat(blocks, fit)[:placed]
            room.put(left - fit * length, blocks[:-1])
            room.put(left - (placed - fit * (len(blocks) - 1)) * length, blocks[-1:])
            place, count = place + placed, count - placed
    return block_of


class _Room:
    """Blocks by the tokens that they have left."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.num_blocks = capacity, 0
        self.blocks: dict[int, list[int]] = {}
        self.known = 0
        """Bit c is set where some block has c tokens left: the lowest set bit is found at once."""

    def tightest(self, length: int) -> int:
        """Tokens left in the fullest block with room; those of a new block where none has."""
        fitting = self.known >> length
        return length + (fitting & -fitting).bit_length() - 1 if fitting else self.capacity

    def take(self, left: int, count: int) -> list[int]:
        """At most so many blocks with so much left; a block with everything left is a new one."""
        if left == self.capacity:
            self.num_blocks += count
            return list(range(self.num_blocks - count, self.num_blocks))
        some = self.blocks[left]
        taken, self.blocks[left] = some[-count:], some[:-count]
        if not self.blocks[left]:
            self.known ^= 1 << left
        return taken

    def put(self, left: int, blocks: list[int]) -> None:
        """Give blocks back with so much left."""
        if left and blocks:
            self.blocks.setdefault(left, []).extend(blocks)
            self.known |= 1 << left


_plans: OrderedDict[tuple[str, int, bool], Plan] = OrderedDict()
_PLANS_KEPT = 6
"""Of train, val, test and parts of them: 32 bytes for each piece."""


def plan_blocks(lengths: np.ndarray, max_length: int, packing: bool) -> Plan:
    """Cut and pack. A pure function of its arguments; the last results are kept, because several ask for the same.

    Args:
        lengths: (N,) tokens of each document.
        max_length: Tokens of a block.
        packing: False gives each piece a block of its own, in the order of the documents.
    """
    key = (xxhash.xxh3_128_hexdigest(lengths.astype(np.int64).tobytes()), max_length, packing)
    if key not in _plans:
        pieces = cut_documents(lengths, max_length)
        block_of = best_fit_decreasing(pieces.lengths, max_length) if packing else np.arange(len(pieces))
        order = np.argsort(block_of, kind="stable")
        _plans[key] = Plan(pieces.take(order), np.cumsum(np.bincount(block_of)))
        while len(_plans) > _PLANS_KEPT:
            _plans.popitem(last=False)
    _plans.move_to_end(key)
    return _plans[key]
