"""Token classification: a tag for each word of a sentence, and the entities that the tags make.

Shapes: B sentences, T tokens, W words, C tags.
"""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModelForTokenClassification, PretrainedConfig, PreTrainedTokenizerBase

from lit_tune import losses
from lit_tune.data import checks, labels, word_lists
from lit_tune.data.collators import Padding, WordCollator
from lit_tune.data.distinct import Distinct
from lit_tune.data.sources import class_label_names
from lit_tune.data.split import Split
from lit_tune.errors import ConfigError, DataError, LitTuneError, collected, raise_problems
from lit_tune.metrics.entities import (
    OUTSIDE_TAG,
    EntityCounts,
    Scheme,
    TagSet,
    entity_scores,
    find_spans,
    read_tag_set,
)
from lit_tune.models.word_tokenizer import mark_words
from lit_tune.tasks.base import Batch, Collator, Features, Rows, Spec, Task
from lit_tune.tasks.classification_head import class_weights, head_labels, keep_head
from lit_tune.tasks.entity_report import entity_report, sentence_record
from lit_tune.tasks.word_tokens import UNREAD, token_labels, tokenize_words

PROBLEM = "token_classification"
USUAL_WORDS = 16.0
"""Words of a sentence where nothing is known (streams)."""


class TokenClassification(Task):
    """A tag for each word: named entities, parts of speech, chunks.

    Args:
        tokens_column: Column with the words of each sentence, a list of text.
        tags_column: Column with a tag for each word: text, or ids with a ClassLabel or ``label_names``.
        label_names: Tags in the order of their ids. Default: a ClassLabel's own order, else ``O`` and then sorted.
            Needed for streamed data without ClassLabel, and where train lacks a tag that val has.
        label_subwords: Which tokens of a word are trained on: the ``first``, or ``all``, those after the first as
            ``I-`` where the word is ``B-``. A word's tag is always read off its first token.
        scheme: How tags make entities: ``BIO`` (IOB2), ``BIOES``, or ``IO``, where neighbours of the same tag are one
            (parts of speech). ``auto`` reads it off the tags.
        strict: Only what the scheme allows is an entity (seqeval's ``mode="strict"``). Default, as conlleval and
            seqeval: an ``I-`` without a beginning begins one.
        class_weights: Weight of each tag in the loss: ``balanced`` (n / (C * count)) or one number per tag in the order
            of ``label_names``.
        label_smoothing: Share of the target mass spread over all tags, in [0, 1).
        focal_gamma: Focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002): down-weights easy words. None is
            off.
    """

    auto_class = AutoModelForTokenClassification
    pipeline = "token-classification"
    input_key, label_key = "tokens_column", "tags_column"
    needs_offsets = True

    def __init__(
        self,
        tokens_column: str = "tokens",
        tags_column: str = "ner_tags",
        label_names: list[str] | None = None,
        label_subwords: Literal["first", "all"] = "first",
        scheme: Scheme = "auto",
        strict: bool = False,
        class_weights: Literal["balanced"] | list[float] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float | None = None,
    ) -> None:
        if focal_gamma is not None and label_smoothing:
            raise ConfigError(
                "has no effect beside focal_gamma", where="task.init_args.label_smoothing", fix="one of the two"
            )
        self.tokens_column, self.tags_column = tokens_column, tags_column
        self.label_names, self.label_subwords = label_names, label_subwords
        self.scheme, self.strict = scheme, strict
        self.class_weights = class_weights
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        mark_words(tokenizer)

    def settings(self) -> dict[str, Any]:
        return {
            "tokens_column": self.tokens_column,
            "tags_column": self.tags_column,
            "label_names": self.label_names,
            "label_subwords": self.label_subwords,
            "plain_loss": self.has_plain_loss,
        }

    @property
    def has_plain_loss(self) -> bool:
        """Whether the loss is on the scale of the baseline's: one for each word."""
        changed = self.class_weights is not None or self.label_smoothing or self.focal_gamma is not None
        return not changed and self.label_subwords == "first"

    def input_columns(self) -> tuple[str, ...]:
        return (self.tokens_column,)

    def tag_set(self, spec: Spec) -> TagSet:
        """What the tags mean."""
        return read_tag_set(spec.label_names, self.scheme, self.strict)

    # ---- reading words and tags --------------------------------------------------------------------------------------

    def inspect(self, train: Split, model_config: PretrainedConfig | None, new_head: bool) -> Spec:
        self.require(train, labelled=True)
        named = self.label_names or class_label_names(train, self.tags_column)
        if train.is_streamed and not named:
            raise ConfigError(
                "a stream cannot be read to the end to find its tags",
                where="task.init_args.label_names",
                fix="list the tags",
            )
        names = list(named) if named else self.names_of_tags(train)
        spec = Spec(PROBLEM, names, unit="word")
        self.check_settings(spec)
        return spec if new_head else keep_head(spec, model_config, "ForTokenClassification")

    def check_settings(self, spec: Spec) -> None:
        if isinstance(self.class_weights, list) and len(self.class_weights) != spec.num_labels:
            raise ConfigError(
                f"{len(self.class_weights)} numbers for {spec.num_labels} tags ({', '.join(spec.label_names[:8])})",
                where="task.init_args.class_weights",
                fix="one number per tag, in this order, or balanced",
            )
        self.tag_set(spec)  # refuses what the scheme does not have

    def names_of_tags(self, train: Split) -> list[str]:
        """``O``, then the other tags sorted."""
        tags = self.tags_of(train)
        locate = tags.locate_item(train.locate)
        if not len(tags.items):
            raise DataError("no sentence has a tag", where=f"column {self.tags_column}", fix="data with tags")
        kind = labels.label_kind(tags.items, locate)
        if kind != "class" or not all(isinstance(value, str) for value in tags.items.values):
            raise DataError(
                f"tags are ids such as {tags.items.values[0]!r} ({locate(0)}), and nothing names them",
                where="task.init_args.label_names",
                fix="label_names: [O, B-..., I-...], in the order of the ids",
            )
        found = labels.class_names(tags.items, None)
        if len(found) < 2:
            raise DataError(
                f"every word has the tag {found[0]!r}: there is nothing to learn",
                where=f"column {self.tags_column}",
                fix="data with at least two tags",
            )
        return sorted(found, key=lambda name: name != OUTSIDE_TAG)

    def spec_of_model(self, model_config: PretrainedConfig) -> Spec:
        return Spec(PROBLEM, head_labels(model_config), unit="word")

    def require(self, split: Split, labelled: bool) -> None:
        """Demand the columns."""
        keys = {self.tokens_column: "task.init_args.tokens_column"}
        if labelled:
            keys[self.tags_column] = "task.init_args.tags_column"
        checks.require_columns(split.column_names, list(keys), where=split.title, keys=keys)

    def tags_of(self, split: Split) -> word_lists.ListColumn:
        """The tags, as they stand in the file."""
        return word_lists.require_lists(split, self.tags_column, "task.init_args.tags_column", "tags")

    def check(self, split: Split, spec: Spec, labelled: bool = True) -> None:
        self.require(split, labelled)
        problems: list[LitTuneError] = []
        words = tags = None
        key = "task.init_args.tokens_column"
        with collected(problems):
            words = word_lists.require_words(split, self.tokens_column, key, may_be_empty=not labelled)
        if labelled:
            with collected(problems):
                tags = self.tags_of(split)
            if words and tags:
                with collected(problems):
                    word_lists.require_same_lengths(words, tags, split.locate)
            if tags:
                with collected(problems):
                    self.tag_ids(split, spec)
        raise_problems(problems)

    def tag_ids(self, split: Split, spec: Spec) -> np.ndarray:
        """(M,) ids of the tags of all words, row after row."""
        tags = self.tags_of(split)
        own_names = class_label_names(split, self.tags_column)
        if own_names == [str(i) for i in range(len(own_names or []))]:
            own_names = None  # numbered, not named
        return self.encode_tags(tags.items, spec, tags.locate_item(split.locate), own_names)

    def encode_tags(
        self, tags: list[Any] | Distinct, spec: Spec, locate: Any, own_names: list[str] | None = None
    ) -> Any:
        """Raw tags -> ids."""
        known_from = "task.init_args.label_names" if self.label_names else "train"
        return labels.encode_class_labels(tags, spec.label_names, locate, known_from, class_label_names=own_names)

    def is_unlabelled(self, split: Split, spec: Spec) -> bool:
        if self.tags_column not in split.column_names:
            return True
        tags = word_lists.read_lists(split, self.tags_column)
        return not tags.is_other.any() and (not len(tags.items) or labels.is_unlabelled(tags.items))

    def without_labels(self, split: Split) -> Split:
        if self.tags_column not in split.column_names:
            return split
        return replace(split, rows=split.rows.remove_columns(self.tags_column))

    def strata(self, split: Split, spec: Spec) -> np.ndarray | None:
        """The rarest tag of each sentence: sentences with entities of every type are in both parts."""
        ids, rows = self.tag_ids(split, spec), self.tags_of(split).row_of_item
        rank = np.argsort(np.argsort(np.bincount(ids, minlength=spec.num_labels), kind="stable"))
        rarest = np.full(len(split), spec.num_labels)
        np.minimum.at(rarest, rows, rank[ids])
        return rarest

    def label_counts(self, split: Split, spec: Spec) -> list[int]:
        return np.bincount(self.tag_ids(split, spec), minlength=spec.num_labels).tolist()

    def summarize(self, train: Split, spec: Spec) -> Spec:
        counts = np.array(self.label_counts(train, spec))
        shares = counts[counts > 0] / counts.sum()
        baseline = {"accuracy": float(shares.max())}
        if self.has_plain_loss:
            baseline["loss"] = float(-(shares * np.log(shares)).sum())
        if spec.label_names[int(counts.argmax())] == OUTSIDE_TAG:
            baseline |= {"precision": 0.0, "recall": 0.0, "f1": 0.0, "f1_macro": 0.0}  # it finds nothing
        found = replace(
            spec, label_counts=counts.tolist(), num_rows=len(train), baseline=baseline, num_units=int(counts.sum())
        )
        class_weights(self.class_weights, found, torch.empty(0))  # refuses what cannot be balanced before training
        return found

    # ---- words to tensors --------------------------------------------------------------------------------------------

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: Spec, max_length: int) -> Features:
        sentences = rows[self.tokens_column]
        features, words_of = tokenize_words(sentences, tokenizer, max_length)
        if self.tags_column not in rows:
            return {**features, "words": sentences}
        flat = [tag for row in rows[self.tags_column] for tag in row]
        ids = iter(self.encode_tags(flat, spec, lambda i: f"word {i + 1} of the batch").tolist())
        tags = [[next(ids) for _ in row] for row in rows[self.tags_column]]
        after = self.continuing_tags(spec) if self.label_subwords == "all" else None
        on_tokens = [token_labels(words, row, after) for words, row in zip(words_of, tags, strict=True)]
        return {**features, "labels": on_tokens, "word_labels": tags}

    def continuing_tags(self, spec: Spec) -> list[int]:
        """For each tag the one of the further tokens of such a word."""
        ids = {name: i for i, name in enumerate(spec.label_names)}
        inside = [f"I{name[1:]}" if name[:2] in ("B", "B-") else name for name in spec.label_names]
        return [ids.get(name, i) for i, name in enumerate(inside)]

    def padding_side(
        self, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig
    ) -> Literal["left", "right"]:
        return "right"  # positions are counted from the first column: padding there would change what is predicted

    def collator(self, padding: Padding, spec: Spec) -> Collator:
        return WordCollator(padding)

    def configure(self, model_config: PretrainedConfig, spec: Spec) -> None:
        model_config.id2label = dict(enumerate(spec.label_names))
        model_config.label2id = {name: i for i, name in enumerate(spec.label_names)}

    # ---- loss, metrics, predictions ----------------------------------------------------------------------------------

    def loss(self, outputs: Any, batch: Batch, spec: Spec) -> tuple[Tensor, Tensor]:
        logits, target = outputs.logits.flatten(0, 1), batch["labels"].flatten()
        weight = class_weights(self.class_weights, spec, logits)
        if self.focal_gamma is not None:
            return losses.focal(logits, target, gamma=self.focal_gamma, class_weights=weight)
        return losses.cross_entropy(logits, target, class_weights=weight, label_smoothing=self.label_smoothing)

    def imitated(self, outputs: Any, batch: Batch) -> Tensor | None:
        return outputs.logits[batch["labels"] >= 0]

    def targets_per_row(self, spec: Spec) -> float:
        return spec.num_units / spec.num_rows if spec.num_rows else USUAL_WORDS

    def metric_names(self, spec: Spec) -> dict[str, bool]:
        types = self.tag_set(spec).type_names
        no_counts = torch.zeros(3, len(types)), torch.zeros(2)
        return {"loss": False} | dict.fromkeys(entity_scores(*no_counts, types), True)

    def primary_metric(self, spec: Spec) -> str:
        return "f1"

    def build_metrics(self, spec: Spec) -> MetricCollection:
        return MetricCollection({"entities": EntityCounts(self.tag_set(spec))}, compute_groups=False)

    def update_metrics(self, metrics: MetricCollection, outputs: Any, batch: Batch) -> None:
        aside = batch["aside"]
        metrics.update(of_words(outputs.logits.argmax(-1), aside["word_starts"], UNREAD), aside["word_labels"])

    def decode(self, outputs: Any, batch: Batch, spec: Spec) -> list[dict[str, Any]]:
        """Entities of each sentence, the tag of each word (``O`` where it was not read), and the mean probability."""
        best = outputs.logits.float().softmax(-1).max(-1)
        starts = batch["aside"]["word_starts"]
        tags = of_words(best.indices, starts, UNREAD)
        meaning = self.tag_set(spec)
        spans = find_spans(tags, meaning)
        parts = (tags, of_words(best.values, starts, 0.0), spans.begins, spans.ends, spans.types)
        rows = zip(batch["aside"]["words"], *(part.cpu().numpy() for part in parts), strict=True)
        names = [*spec.label_names, OUTSIDE_TAG]  # -1 is the last
        return [sentence_record(words, row, names, meaning.type_names) for words, *row in rows]

    def report(self, metrics: dict[str, Any], spec: Spec) -> str:
        return entity_report(metrics, spec)


def of_words(on_tokens: Tensor, word_starts: Tensor, otherwise: float) -> Tensor:
    """What the first token of each word has (B, W), from (B, T); ``otherwise`` for words without a token."""
    return torch.where(word_starts >= 0, on_tokens.gather(1, word_starts.clamp(min=0)), otherwise)
