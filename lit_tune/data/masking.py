"""Which tokens a masked language model must guess: drawn anew in each epoch of training, always the same in evaluation.

Shapes: B rows, T tokens, M masked tokens of a batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lit_tune.data.collators import Padding, pad, pad_inputs
from lit_tune.data.vocabulary import Vocabulary
from lit_tune.losses import IGNORE_INDEX

IDS, BEGINS_WORD, TO_FILL = "input_ids", "begins_word", "to_fill"
"""Features: tokens without the special ones around them; 1 where a word begins; there where the text's own mask tokens
are to be filled in."""
REPLACED, RANDOM = 0.8, 0.1
"""Shares of the chosen tokens that become the mask token, or any other one; the rest stays as it is. Devlin et al.
2019, section 3.1, https://arxiv.org/abs/1810.04805."""


def choose(
    may_be: np.ndarray, probability: float, generator: np.random.Generator, begins_word: np.ndarray | None = None
) -> np.ndarray:
    """(T,) which tokens are to be guessed: each with the same probability, but one at least where there is any.

    Args:
        may_be: (T,) those that may.
        probability: Share, above 0 and below 1.
        generator: Of the row.
        begins_word: (T,) where words begin; then words are chosen instead of tokens.

    >>> choose(np.array([False, True, True]), 1e-9, np.random.default_rng(0)).sum()
    np.int64(1)
    """
    places = np.flatnonzero(may_be)
    if not len(places):
        return np.zeros(len(may_be), dtype=bool)
    words = np.arange(len(places)) if begins_word is None else np.cumsum(begins_word[places])
    words = words - words[0]  # a piece may begin in the middle of a word
    is_chosen = generator.random(words[-1] + 1) < probability
    if not is_chosen.any():  # as Google's create_pretraining_data.py; a step of short lines would have nothing to learn
        is_chosen[generator.integers(len(is_chosen))] = True
    found = np.zeros(len(may_be), dtype=bool)
    found[places] = is_chosen[words]
    return found


def mask_tokens(
    ids: np.ndarray, chosen: np.ndarray, mask_id: int, vocabulary_size: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Hide the chosen tokens.

    Args:
        ids: (T,).
        chosen: (T,) those that are to be guessed.
        mask_id: Of the mask token.
        vocabulary_size: Tokens of which a random one is drawn.
        generator: Of the row.

    Returns:
        (T,) what the model reads, and (T,) labels, -100 where nothing is to be guessed.
    """
    share = generator.random(len(ids))
    others = generator.integers(vocabulary_size, size=len(ids))
    read = np.where(chosen & (share < REPLACED), mask_id, ids)
    read = np.where(chosen & (share >= REPLACED) & (share < REPLACED + RANDOM), others, read)
    return read, np.where(chosen, ids, IGNORE_INDEX)


@dataclass(frozen=True)
class MaskingCollator:
    """Masks tokens, puts the special ones around them, and pads.

    Beside what the model reads, the batch has ``labels`` (B, T), -100 where nothing is to be guessed, and under
    ``aside`` ``masked`` (M,), the places of the masked tokens in the flattened batch. Rows to fill in have no labels;
    ``masked`` are their own mask tokens, and ``mask_counts`` (B lists) how many are read and how many were cut off.

    Args:
        padding: How rows become a rectangle; it knows the vocabulary.
        probability: Of a token.
    """

    padding: Padding
    probability: float
    is_random = True

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """B features with their ``draw`` -> a batch under HF's names."""
        fill = TO_FILL in features[0]
        rows = [self.to_fill(f) if fill else self.masked(f) for f in features]
        batch = pad_inputs(rows, self.padding)
        width = batch[IDS].shape[1]
        labels = pad([row["labels"] for row in rows], IGNORE_INDEX, width, self.padding.side)
        aside: dict[str, Any] = {"masked": torch.from_numpy(np.flatnonzero(labels.flatten().numpy() != IGNORE_INDEX))}
        if not fill:
            return {**batch, "labels": labels, "aside": aside}
        counts = [row["mask_counts"] for row in rows]
        return {**batch, "aside": {**aside, "mask_counts": counts, "vocabulary": self.vocabulary}}

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the tokenizer."""
        assert self.padding.vocabulary is not None
        return self.padding.vocabulary

    def masked(self, feature: Mapping[str, Any]) -> dict[str, Any]:
        """A row to train on or to evaluate."""
        ids, (epoch, unit) = np.asarray(feature[IDS], dtype=np.int64), feature["draw"]
        generator = np.random.default_rng((self.padding.seed if epoch else 0, epoch, unit))
        begins_word = np.asarray(feature[BEGINS_WORD]) if BEGINS_WORD in feature else None
        chosen = choose(~np.isin(ids, self.vocabulary.special), self.probability, generator, begins_word)
        assert self.vocabulary.mask_id is not None
        return self.around(*mask_tokens(ids, chosen, self.vocabulary.mask_id, self.vocabulary.size, generator))

    def to_fill(self, feature: Mapping[str, Any]) -> dict[str, Any]:
        """A row whose own mask tokens are to be filled in."""
        ids = np.asarray(feature[IDS], dtype=np.int64)
        limit = self.padding.max_length
        room = len(ids) if limit is None else limit - sum(map(len, self.vocabulary.around))
        is_mask = ids == self.vocabulary.mask_id
        counts = int(is_mask[:room].sum()), int(is_mask[room:].sum())
        row = self.around(ids[:room], np.where(is_mask, ids, IGNORE_INDEX)[:room])
        return {**row, "mask_counts": counts}

    def around(self, ids: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """With the special tokens that the tokenizer puts around a text."""
        before, after = self.vocabulary.around
        no_labels = ([IGNORE_INDEX] * len(before), [IGNORE_INDEX] * len(after))
        return {IDS: [*before, *ids.tolist(), *after], "labels": [*no_labels[0], *labels.tolist(), *no_labels[1]]}
