"""Entities read off the tags of words, and precision, recall and F1 of whole entities, as seqeval counts them.

Shapes: B sentences, W words, C tags, K entity types.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lit_tune.errors import ConfigError
from lit_tune.metrics.classification import per_class_scores
from lit_tune.metrics.streaming import StreamingMetric

OUTSIDE, BEGIN, INSIDE, END, SINGLE = range(5)
_POSITIONS = {"B": BEGIN, "I": INSIDE, "E": END, "S": SINGLE}
OUTSIDE_TAG = "O"
UNREAD = -1
"""The tag of a word that the model has not read, or of padding: outside of everything."""

Scheme = Literal["auto", "BIO", "BIOES", "IO"]
_WHERE = "task.init_args.scheme"


@dataclass(frozen=True)
class TagSet:
    """What the tags mean.

    Args:
        positions: For each tag ``OUTSIDE``, ``BEGIN`` ..., and at the end once more ``OUTSIDE``, for ``UNREAD``.
        types: For each tag the number of its entity type; K, which is none, for those outside.
        type_names: The entity types, sorted.
        outside: Id of the tag ``O``; -2 where there is none.
        strict: Only what the scheme allows is an entity.
        has_ends: An entity ends with an E or S tag (BIOES).
    """

    positions: tuple[int, ...]
    types: tuple[int, ...]
    type_names: tuple[str, ...]
    outside: int
    strict: bool
    has_ends: bool


def read_tag_set(names: Sequence[str], scheme: Scheme = "auto", strict: bool = False) -> TagSet:
    """Understand tag names.

    Args:
        names: Tags in the order of their ids.
        scheme: ``BIO`` (IOB2; IOB1 is read right where ``strict`` is off), ``BIOES``, or ``IO``: a tag is its type, as
            parts of speech are. ``auto`` reads it off the tags.
        strict: Only what the scheme allows is an entity (seqeval's ``mode="strict"``). Else any run of tags of one type
            is one, and B and S begin another (conlleval, seqeval's default).

    Raises:
        ConfigError: Tags that the scheme does not have.

    >>> read_tag_set(["O", "B-PER", "I-PER"]).type_names, read_tag_set(["O", "NOUN"]).type_names
    (('PER',), ('NOUN',))
    """
    inner = [n for n in names if n != OUTSIDE_TAG]
    split = {n: match for n in inner if (match := re.fullmatch(r"([BIES])(?:-(.*))?", n, re.DOTALL))}
    if scheme == "auto":
        if split and len(split) < len(inner):
            odd = next(n for n in inner if n not in split)
            what = f"tag {odd!r} has no prefix (B-, I-, E-, S-) and {next(iter(split))!r} has one"
            raise ConfigError(what, where=_WHERE, fix="correct the tags, or IO, where a tag is its own type")
        letters = {match[1] for match in split.values()}
        scheme = "IO" if not split else "BIOES" if letters & {"E", "S"} else "BIO"
    allowed = "" if scheme == "IO" else scheme.replace("O", "")
    odd_tags = [n for n in inner if scheme != "IO" and (n not in split or split[n][1] not in allowed)]
    if odd_tags:
        raise ConfigError(f"{scheme} has no tag like {odd_tags[0]!r}", where=_WHERE, fix="auto, or other tags")
    parsed = {n: (INSIDE, n) if scheme == "IO" else (_POSITIONS[split[n][1]], split[n][2] or "_") for n in inner}
    type_names = sorted({kind for _, kind in parsed.values()})
    none = (OUTSIDE, "")
    number = {kind: i for i, kind in enumerate(type_names)} | {"": len(type_names)}
    return TagSet(
        positions=(*(parsed.get(n, none)[0] for n in names), OUTSIDE),
        types=(*(number[parsed.get(n, none)[1]] for n in names), len(type_names)),
        type_names=tuple(type_names),
        outside=list(names).index(OUTSIDE_TAG) if OUTSIDE_TAG in names else -2,
        strict=strict and scheme != "IO",
        has_ends=scheme == "BIOES",
    )


@cache
def _tables(tags: TagSet, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(tags.positions, device=device), torch.tensor(tags.types, device=device)


@dataclass(frozen=True)
class Spans:
    """Entities of a batch.

    Args:
        begins: (B, W) bool: an entity begins here.
        ends: (B, W) int64: the word after its last; of no meaning where none begins.
        types: (B, W) int64: its type; K where none begins.
    """

    begins: Tensor
    ends: Tensor
    types: Tensor


def find_spans(tag_ids: Tensor, tags: TagSet) -> Spans:
    """Entities in sentences of tags, without waiting for the device.

    Args:
        tag_ids: (B, W) int64, ``UNREAD`` in padding.
        tags: What they mean.

    >>> found = find_spans(torch.tensor([[1, 2, 0, 2]]), read_tag_set(["O", "B-x", "I-x"]))
    >>> found.begins.tolist(), found.ends[found.begins].tolist()
    ([[True, False, False, True]], [2, 4])
    """
    positions, kinds = _tables(tags, tag_ids.device)
    position, kind = positions[tag_ids], kinds[tag_ids]
    before = functional.pad(position, (1, 0), value=OUTSIDE)[:, :-1]
    same_type = kind == functional.pad(kind, (1, 0), value=-1)[:, :-1]
    goes_on = _is_in(position, INSIDE, END) & _is_in(before, BEGIN, INSIDE) & same_type
    begins = _is_in(position, BEGIN, SINGLE) if tags.strict else (position != OUTSIDE) & ~goes_on
    width = tag_ids.shape[1]
    breaks = torch.where(goes_on, width, torch.arange(width, device=tag_ids.device))
    next_break = breaks.flip(1).cummin(1).values.flip(1)
    ends = functional.pad(next_break[:, 1:], (0, 1), value=width)
    if tags.strict and tags.has_ends:
        begins = begins & _is_in(position.gather(1, ends - 1), END, SINGLE)
    return Spans(begins, ends, torch.where(begins, kind, len(tags.type_names)))


def _is_in(values: Tensor, first: int, second: int) -> Tensor:
    return (values == first) | (values == second)


def entity_scores(counts: Tensor, words: Tensor, type_names: Sequence[str]) -> dict[str, Tensor]:
    """What follows from counts.

    Args:
        counts: (3, K): per type the entities found right, all found, all in the targets.
        words: (2,): words with the right tag, all words.
        type_names: The types.

    Returns:
        ``precision recall f1`` over all entities (micro), ``f1_macro`` (mean over the types that are there or were
        found), ``accuracy`` of the words' tags, and ``precision/<type>`` and its like, NaN where a type neither is
        there nor was found. 0 where undefined, as in seqeval. All NaN without words.
    """
    pooled = {name: value.squeeze() for name, value in per_class_scores(counts.sum(1, keepdim=True)).items()}
    by_type = per_class_scores(counts)
    present = counts[1:].sum(0) > 0
    right, total = words.double()
    scores = {**pooled, "f1_macro": by_type["f1"][present].mean(), "accuracy": right / total}
    for name, values in by_type.items():
        known = torch.where(present, values, torch.nan)
        scores |= {f"{name}/{kind}": value for kind, value in zip(type_names, known, strict=True)}
    return scores if total > 0 else {name: torch.full_like(total, torch.nan) for name in scores}


class EntityCounts(StreamingMetric):
    """Scores of entities and of single tags, from three counts per type and two of words; sums over batches and ranks.

    Args:
        tags: What the tags mean.
    """

    counts: Tensor
    words: Tensor

    def __init__(self, tags: TagSet) -> None:
        super().__init__()
        self.tags = tags
        # one column more for what is no entity, so that nothing has to be selected
        self.num_columns = len(tags.type_names) + 1
        self.add_state("counts", torch.zeros(3 * self.num_columns, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("words", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add sentences.

        Args:
            preds: (B, W) tag ids; ``UNREAD`` counts as ``O``.
            target: (B, W) tag ids, ``UNREAD`` in padding.
        """
        target = self.place(target, torch.int64)
        is_word = target >= 0
        preds = torch.where(is_word, self.place(preds, torch.int64), UNREAD)
        given = torch.where(preds < 0, self.tags.outside, preds)
        self.writable("words").add_(torch.stack([((given == target) & is_word).sum(), is_word.sum()]))
        found, true = find_spans(preds, self.tags), find_spans(target, self.tags)
        is_right = found.begins & true.begins & (found.types == true.types) & (found.ends == true.ends)
        right = torch.where(is_right, true.types, self.num_columns - 1)
        rows = [kinds.flatten() + i * self.num_columns for i, kinds in enumerate((right, found.types, true.types))]
        index = torch.cat(rows)
        self.writable("counts").index_add_(0, index, torch.ones_like(index))

    def compute(self) -> dict[str, Tensor]:
        """:func:`entity_scores` on the CPU, and ``entity_counts`` (3, K) int64: right, found, in the targets."""
        counts = self.counts.cpu().reshape(3, self.num_columns)[:, :-1]
        return {**entity_scores(counts, self.words.cpu(), self.tags.type_names), "entity_counts": counts}
