"""Features -> tensors.

Shapes: B examples, T tokens, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from lit_tune.data.documents import IDS, PREDICTED, TEXT_BYTES, Blocks, ListedDocuments
from lit_tune.data.vocabulary import Vocabulary
from lit_tune.losses import IGNORE_INDEX


@dataclass(frozen=True)
class Padding:
    """How a batch becomes a rectangle.

    Args:
        pad_token_id: Fills ``input_ids``.
        side: Where padding goes; decoders that read the last token want what their tokenizer says.
        length: Always this many tokens; None pads to the longest row.
        multiple_of: Round the length up to a multiple.
        pad_token_type_id: Fills ``token_type_ids``.
        max_length: Most tokens the model is given in a row, for collators that cut.
        vocabulary: Of the tokenizer, for collators that put tokens in.
        seed: Of the order of training, for collators that draw.
        together: Rows of a group that are scored together, for collators that compare rows; 1: each by itself.
    """

    pad_token_id: int
    side: Literal["left", "right"] = "right"
    length: int | None = None
    multiple_of: int | None = None
    pad_token_type_id: int = 0
    max_length: int | None = None
    vocabulary: Vocabulary | None = None
    seed: int = 0
    together: int = 1

    def width(self, lengths: list[int]) -> int:
        """Tokens per row of the batch."""
        width = max(self.length or 0, max(lengths), 1)
        return -(-width // self.multiple_of) * self.multiple_of if self.multiple_of else width


def pad(rows: Sequence[Sequence[int]], fill: int, width: int, side: str) -> torch.Tensor:
    """Ragged lists -> (B, width) int64.

    >>> pad([[7, 8], [9]], fill=0, width=3, side="right").tolist()
    [[7, 8, 0], [9, 0, 0]]
    """
    out = np.full((len(rows), width), fill, dtype=np.int64)
    for line, row in zip(out, rows, strict=True):
        line[slice(width - len(row), None) if side == "left" else slice(len(row))] = row
    return torch.from_numpy(out)


def places_of(labels: torch.Tensor) -> torch.Tensor:
    """(N,) where in flattened labels (B, T) a token is predicted.

    >>> places_of(torch.tensor([[7, -100], [-100, 9]])).tolist()
    [0, 3]
    """
    return (labels.flatten() != IGNORE_INDEX).nonzero()[:, 0]


def pad_inputs(features: Sequence[Mapping[str, Any]], padding: Padding) -> dict[str, Any]:
    """What every model reads: ``input_ids``, ``attention_mask``, and ``token_type_ids`` where there are any."""
    ids = [f["input_ids"] for f in features]
    width = padding.width([len(r) for r in ids])
    batch: dict[str, Any] = {
        "input_ids": pad(ids, padding.pad_token_id, width, padding.side),
        "attention_mask": pad([[1] * len(r) for r in ids], 0, width, padding.side),
    }
    if "token_type_ids" in features[0]:
        types = [f["token_type_ids"] for f in features]
        batch["token_type_ids"] = pad(types, padding.pad_token_type_id, width, padding.side)
    return batch


@dataclass(frozen=True)
class TextCollator:
    """Pads ``input_ids`` (and ``token_type_ids``), makes the attention mask and the label tensor.

    Args:
        padding: How rows become a rectangle.
        label_kind: ``class`` gives labels (B,) int64, ``multi`` multi-hot (B, C) float32, ``number`` (B,) float32.
        num_labels: C.
    """

    padding: Padding
    label_kind: Literal["class", "multi", "number"]
    num_labels: int

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """B features -> a batch under HF's names."""
        batch = pad_inputs(features, self.padding)
        if "labels" in features[0]:
            batch["labels"] = self.labels([f["labels"] for f in features])
        return batch

    def labels(self, values: list[Any]) -> torch.Tensor:
        """Label values -> one tensor."""
        if self.label_kind == "class":
            return torch.tensor(values, dtype=torch.int64)
        if self.label_kind == "number":
            return torch.tensor(values, dtype=torch.float32)
        hot = torch.zeros(len(values), self.num_labels)
        for row, ids in enumerate(values):
            hot[row, ids] = 1.0
        return hot


@dataclass(frozen=True)
class ChoiceCollator:
    """Puts all choices of all questions under one another, N rows in all: no choice is made up as padding.

    Beside what the model reads, the batch has ``labels`` (B,), which choice is right, and under ``aside``:
    ``choice_rows`` (B, C), the row of each question's choices, -1 where it has fewer; ``choices``, B lists of text,
    and ``names``, what these are called, where there are no labels.

    Args:
        padding: How rows become a rectangle.
    """

    padding: Padding

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """B features -> a batch under HF's names, tensors (N, T)."""
        read = [name for name in ("input_ids", "token_type_ids") if name in features[0]]
        rows = [dict(zip(read, one, strict=True)) for f in features for one in zip(*(f[n] for n in read), strict=True)]
        counts = [len(f["input_ids"]) for f in features]
        ends = np.cumsum(counts).tolist()
        choice_rows = [list(range(end - count, end)) for end, count in zip(ends, counts, strict=True)]
        aside: dict[str, Any] = {"choice_rows": pad(choice_rows, -1, max(counts), "right")}
        batch = pad_inputs(rows, self.padding)
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([f["labels"] for f in features], dtype=torch.int64)
        else:
            aside |= {name: [f[name] for f in features] for name in ("choices", "names")}
        return {**batch, "aside": aside}


@dataclass(frozen=True)
class WordCollator:
    """Pads tokens with a label for each of them, and the words they belong to.

    Beside what the model reads, the batch has ``labels`` (B, T), -100 where none counts, and under ``aside``:
    ``word_starts`` (B, W), the column of each word's first token, -1 for words that are not read and in padding;
    ``word_labels`` (B, W), -1 in padding; ``words``, B lists of text, where there are no labels.

    Args:
        padding: How rows become a rectangle.
    """

    padding: Padding

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """B features -> a batch under HF's names."""
        batch = pad_inputs(features, self.padding)
        starts = [f["word_starts"] for f in features]
        num_words = max(1, *(len(s) for s in starts))
        width = batch["input_ids"].shape[1]
        if self.padding.side == "left":
            shifts = [width - len(f["input_ids"]) for f in features]
            starts = [[s + shift if s >= 0 else s for s in row] for row, shift in zip(starts, shifts, strict=True)]
        aside: dict[str, Any] = {"word_starts": pad(starts, -1, num_words, "right")}
        if "labels" in features[0]:
            batch["labels"] = pad([f["labels"] for f in features], IGNORE_INDEX, width, self.padding.side)
            aside["word_labels"] = pad([f["word_labels"] for f in features], -1, num_words, "right")
        else:
            aside["words"] = [f["words"] for f in features]
        return {**batch, "aside": aside}


@dataclass(frozen=True)
class TargetCollator:
    """Pads sources and their targets; a source with several targets stands there once for each of them.

    Beside what the model reads, N rows in all, the batch has ``labels`` (N, U), -100 in padding, and under ``aside``
    ``first_rows`` (B,), the row of each source's first target, ``references``, the texts of each source's targets, and
    ``predicted``.

    Args:
        padding: How sources become a rectangle; its side is the right one.
        max_targets: Tokens of a target to which it is padded where all is padded to the longest there could be.
    """

    padding: Padding
    max_targets: int

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """B features -> a batch under HF's names, tensors (N, T) and (N, U)."""
        counts = [len(f["labels"]) if "labels" in f else 1 for f in features]
        rows = [{"input_ids": f["input_ids"]} for f, n in zip(features, counts, strict=True) for _ in range(n)]
        firsts = torch.tensor([0, *np.cumsum(counts)[:-1].tolist()])
        batch = pad_inputs(rows, self.padding)
        if "labels" not in features[0]:
            return {**batch, "aside": {"first_rows": firsts}}
        targets = [target for f in features for target in f["labels"]]
        like = replace(self.padding, length=self.max_targets if self.padding.length else None)
        batch["labels"] = pad(targets, IGNORE_INDEX, like.width([len(t) for t in targets]), "right")
        references = [f["references"] for f in features]
        return {
            **batch,
            "aside": {"first_rows": firsts, "references": references, PREDICTED: places_of(batch["labels"])},
        }


@dataclass(frozen=True)
class WindowCollator:
    """Pads windows of questions and their contexts; each row has one or more windows.

    Beside what the model reads, the batch has ``labels`` (W, 2), first and last token of the answer, and under
    ``aside`` where there is a context: ``window_counts``, windows of each row; ``context_begins``, ``context_ends`` and
    ``null_places`` (W,); ``char_starts`` and ``char_ends``, W arrays; ``contexts``, and where there are any ``answers``
    and ``ids``, B each.

    Args:
        padding: How windows become a rectangle; to the right, so that places of tokens stay what they are.
    """

    padding: Padding

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """B features -> a batch of W windows under HF's names."""
        read: list[str] = [name for name in ("input_ids", "token_type_ids") if name in features[0]]
        windows = [{n: f[n][i] for n in read} for f in features for i in range(len(f["input_ids"]))]
        batch = pad_inputs(windows, self.padding)
        if "start_positions" in features[0]:
            places = [[p for f in features for p in f[name]] for name in ("start_positions", "end_positions")]
            batch["labels"] = torch.tensor(places).T.contiguous()
        return batch if "context" not in features[0] else {**batch, "aside": self.aside(features)}

    def aside(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """What decides which text a token is."""
        # arrays: Lightning walks through lists when it moves a batch, number by number
        chars = {
            n: [np.asarray(c, dtype=np.int32) for f in features for c in f[n]] for n in ("char_starts", "char_ends")
        }
        begins, null = ([p for f in features for p in f[name]] for name in ("context_begins", "null_places"))
        ends = [begin + len(starts) for begin, starts in zip(begins, chars["char_starts"], strict=True)]
        return {
            "window_counts": [len(f["input_ids"]) for f in features],
            "context_begins": torch.tensor(begins),
            "context_ends": torch.tensor(ends),
            "null_places": torch.tensor(null),
            **chars,
            "contexts": [f["context"] for f in features],
            **{f"{name}s": [f[name] for f in features] for name in ("id", "answer") if name in features[0]},
        }


@dataclass(frozen=True)
class BlockCollator:
    """Pads blocks (``data.documents``); whole documents, as a stream or ``predict`` gives them, are cut here.

    Beside what the model reads, the batch has ``labels`` (B, T): the token that follows, -100 where none counts; and
    under ``aside`` ``text_bytes`` and ``num_tokens`` (B,), ``predicted``, and for whole documents ``document_of_row``
    (B,).

    Packed blocks have ``position_ids`` and no mask; their padding is a document of its own, which nobody looks at.

    Args:
        padding: How rows become a rectangle; its side is the right one.
    """

    padding: Padding

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """B features -> a batch under HF's names."""
        aside: dict[str, Any] = {}
        if "labels" not in features[0]:
            features, aside["document_of_row"] = self.cut(features)
        lengths = [len(f[IDS]) for f in features]
        if "position_ids" in features[0]:
            width = self.padding.width(lengths)
            positions = [np.concatenate([f["position_ids"], np.arange(width - len(f[IDS]))]) for f in features]
            inputs = {
                IDS: pad([f[IDS] for f in features], self.padding.pad_token_id, width, "right"),
                "position_ids": torch.from_numpy(np.stack(positions)),
            }
        else:
            inputs = pad_inputs([{IDS: f[IDS]} for f in features], self.padding)
            width = inputs[IDS].shape[1]
        aside |= {TEXT_BYTES: torch.tensor([f[TEXT_BYTES] for f in features]), "num_tokens": torch.tensor(lengths)}
        labels = pad([f["labels"] for f in features], IGNORE_INDEX, width, "right")
        aside[PREDICTED] = places_of(labels)
        return {**inputs, "labels": labels, "aside": aside}

    def cut(self, features: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """Whole documents -> their pieces, at least one, and the document of each."""
        assert self.padding.max_length is not None
        blocks = Blocks(ListedDocuments(features), self.padding.max_length, packing=False)
        if not len(blocks):
            empty = {IDS: [self.padding.pad_token_id], "labels": [IGNORE_INDEX], TEXT_BYTES: 0}
            return [empty], torch.zeros(1, dtype=torch.int64)
        return blocks.read(range(len(blocks))), torch.from_numpy(blocks.plan.pieces.documents)


@dataclass(frozen=True)
class EmbeddingCollator:
    """Puts the K texts of all rows under one another, column after column: K * B texts, each read by itself.

    Beside what the model reads, the batch has ``labels`` (B,): the row's score, or without scores its place in its
    group; and under ``aside`` ``text_keys`` (K, B), equal where texts are the same to the model, and ``group_rows``.

    Args:
        padding: How texts become a rectangle, and how many rows are a group.
    """

    padding: Padding

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """B features -> a batch under HF's names, tensors (K * B, T)."""
        read: list[str] = [name for name in ("input_ids", "token_type_ids") if name in features[0]]
        num_texts, group = len(features[0]["input_ids"]), self.padding.together
        texts = [{name: f[name][k] for name in read} for k in range(num_texts) for f in features]
        numbers: dict[tuple[int, ...], int] = {}
        keys = [numbers.setdefault(tuple(text["input_ids"]), len(numbers)) for text in texts]
        if "labels" in features[0]:
            labels = torch.tensor([f["labels"] for f in features], dtype=torch.float32)
        else:
            labels = torch.arange(len(features)) % group
        aside = {"text_keys": torch.tensor(keys).view(num_texts, -1), "group_rows": group}
        return {**pad_inputs(texts, self.padding), "labels": labels, "aside": aside}
