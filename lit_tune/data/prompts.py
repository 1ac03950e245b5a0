"""Units of instruction tuning: conversations in blocks, and prompts that the model is to answer.

Shapes: N conversations, K blocks.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import datasets
import numpy as np

from lit_tune.data.documents import IDS, Blocks, StoredDocuments, join_pieces, read_piece
from lit_tune.data.units import WholeRows

NUM_PROMPT = "prompt_length"
"""Column with the tokens before the last answer."""
TARGETS = "target_tokens"
"""Column with the tokens that are to be predicted."""
REFERENCE = "reference"
"""Column with the last answer as text, empty where there is none."""
PROMPT = "prompt"
"""Feature with the tokens that the model is to go on from."""


class Supervised(StoredDocuments):
    """Conversations, of which those without a token to predict have no length: they are in no block.

    Args:
        rows: Encoded conversations.
        skip: The first ones, which are in no block either.
    """

    def __init__(self, rows: datasets.Dataset, skip: int = 0) -> None:
        super().__init__(rows)
        self.skip = skip

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "skip": self.skip}

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each."""
        is_there = np.asarray(self.rows.with_format("numpy")[TARGETS][:]) > 0
        is_there[: self.skip] = False
        return np.where(is_there, super().lengths, 0)


class Prompts:
    """Each conversation up to its last answer is a unit.

    Args:
        rows: Encoded conversations.
    """

    def __init__(self, rows: datasets.Dataset) -> None:
        self.rows = WholeRows(rows.select_columns([IDS, NUM_PROMPT, REFERENCE]))

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """What the model is given to answer, and what the answer should be."""
        return [{PROMPT: row[IDS][: row[NUM_PROMPT]], REFERENCE: row[REFERENCE]} for row in self.rows.read(numbers)]

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) integers in the lists of each."""
        return self.rows.lengths(numbers)


class AnsweredBlocks:
    """The first conversations are a unit each, which is also answered; all others stand in blocks.

    Args:
        rows: Encoded conversations.
        max_length: Tokens of a block.
        packing: Several conversations may stand in a block.
        count: How many are answered.
    """

    def __init__(self, rows: datasets.Dataset, max_length: int, packing: bool, count: int) -> None:
        self.count, self.packing = min(count, len(rows)), packing
        self.first, self.prompts = StoredDocuments(rows), Prompts(rows)
        self.rest = Blocks(Supervised(rows, skip=self.count), max_length, packing)

    def __len__(self) -> int:
        return self.count + len(self.rest)

    def read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Features of some units."""
        return [self.answered(n) if n < self.count else self.rest.block(n - self.count) for n in map(int, numbers)]

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) tokens of each."""
        is_answered = numbers < self.count
        found = np.empty(len(numbers), dtype=np.int64)
        found[is_answered] = self.first.lengths[numbers[is_answered]]
        found[~is_answered] = self.rest.lengths(numbers[~is_answered] - self.count)
        return found

    def answered(self, number: int) -> dict[str, Any]:
        """A conversation by itself, with its prompt."""
        whole = read_piece(self.first, number, 0, int(self.first.lengths[number]))
        return {**join_pieces([whole], self.packing), **self.prompts.read([number])[0]}
