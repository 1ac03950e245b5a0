"""What tasks that predict the next token have in common: scores of tokens, baseline, records.

Shapes: B rows, T tokens, V the vocabulary.
"""

import logging
import math
from abc import ABC
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_tune.data.documents import TEXT_BYTES, StoredDocuments, target_counts
from lit_tune.data.split import Split
from lit_tune.errors import ConfigError
from lit_tune.losses import token_losses
from lit_tune.metrics import scalars
from lit_tune.metrics.language import TOKEN_METRICS, TokenTotals
from lit_tune.models.packed_documents import check_apart, why_not_packed
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.base import BOOKKEEPING, Batch, Spec, Task
from lit_tune.tasks.classification_report import totals

log = logging.getLogger("lit_tune")
USUAL_TARGETS = 256.0
"""Predicted tokens of a block, about; only the scale of fp16 losses depends on it."""

EXPORT_POSITIONS = 64
"""Positions of a row whose logits are compared after an export: all of 8 rows of 512 with a vocabulary of 128,000 would
be 2 GB."""

LOGITS_AT_ONCE = 2**28
"""Logits that are in memory at a time where nothing is trained: 1 GB in float32, and as much for their loss."""


class TokenScores:
    """What a model says about the tokens of a batch.

    Losses are computed once, for whoever asks first: the loss, or the metrics after it.

    Args:
        labels: (B, T) the token to predict at each position, or -100.
        logits: (B, T, V).
        label_smoothing: Of the loss that is trained; ``losses`` are those without it.
    """

    def __init__(self, labels: Tensor, logits: Tensor, label_smoothing: float = 0.0) -> None:
        self.labels, self.label_smoothing = labels, label_smoothing
        # virtual tokens of an adapter stand before the row
        self.logits = logits[:, -labels.shape[1] :]
        self.written: list[str] = []
        """What the model wrote for the first rows, where it was asked to."""
        self.prompts: list[str] = []
        """To what."""

    @classmethod
    def none(cls) -> "TokenScores":
        """Of no tokens."""
        return cls(torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1, 1))

    @cached_property
    def losses(self) -> Tensor:
        """(B, T) in nats, 0 where nothing is predicted."""
        return token_losses(self.logits, self.labels)

    @cached_property
    def smoothed(self) -> Tensor:
        """(B, T) the losses with label smoothing."""
        return token_losses(self.logits, self.labels, self.label_smoothing) if self.label_smoothing else self.losses

    @cached_property
    def is_right(self) -> Tensor:
        """(B, T) whether the likeliest token is the one."""
        return self.logits.argmax(-1) == self.labels

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """(Summed loss, predicted tokens)."""
        return self.smoothed.sum(), (self.labels >= 0).sum().to(self.smoothed.dtype)

    @classmethod
    def join(cls, some: list["TokenScores"]) -> "TokenScores":
        """Those of several parts of a batch, with the logits of the first positions alone."""
        labels = torch.cat([part.labels for part in some])
        joined = cls(labels, torch.cat([part.logits[:, :EXPORT_POSITIONS] for part in some]))
        joined.losses = torch.cat([part.losses for part in some])
        joined.smoothed = torch.cat([part.smoothed for part in some])
        joined.is_right = torch.cat([part.is_right for part in some])
        return joined

    def slim(self) -> "TokenScores":
        """The same without most of the logits."""
        return self.join([self])


def score_tokens(model: PreTrainedModel, batch: Batch, label_smoothing: float = 0.0) -> TokenScores:
    """Run the model on blocks, or on documents that were cut into rows.

    Where nothing is trained the rows go through it a few at a time, so that the logits of 64 rows never stand in memory
    (6 GB of GPT-2's, with 512 tokens); of documents at most as many rows as there are documents: one may be a book.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name not in BOOKKEEPING}
    labels, vocabulary = batch["labels"], model.config.get_text_config().vocab_size
    # with a cache transformers would not look for packed documents
    if torch.is_grad_enabled():
        return TokenScores(labels, model(**inputs, use_cache=False).logits, label_smoothing)
    at_once = min(len(batch["example_ids"]), max(1, LOGITS_AT_ONCE // (labels.shape[1] * vocabulary)))
    some = []
    for start in range(0, len(labels), at_once):
        rows = slice(start, start + at_once)
        logits = model(**{name: tensor[rows] for name, tensor in inputs.items()}, use_cache=False).logits
        some.append(TokenScores(labels[rows], logits, label_smoothing).slim())
    return TokenScores.join(some)


def with_unigram_baseline(train: datasets.Dataset, spec: Spec) -> Spec:
    """Add what a model scores that knows how frequent each token is, and nothing else.

    Args:
        train: The encoded rows that are trained on.
        spec: Of the task.
    """
    counts = target_counts(StoredDocuments(train))
    total, size = int(counts.sum()), pc.sum(train.data.column(TEXT_BYTES)).as_py() or 0
    if not total:
        return spec
    baseline = unigram_scores(counts)
    if size:
        baseline["bits_per_byte"] = baseline["loss"] * total / math.log(2) / size
    return replace(spec, baseline=baseline, num_units=total)


def unigram_scores(counts: np.ndarray) -> dict[str, float]:
    """What a model scores that gives every token its share.

    Args:
        counts: (V,) how often each token is to be predicted; one of them is.
    """
    shares = counts[counts > 0] / counts.sum()
    loss = float(-(shares * np.log(shares)).sum())
    return {"loss": loss, "perplexity": math.exp(loss), "accuracy": float(shares.max())}


def document_records(scores: TokenScores, batch: Batch) -> list[dict[str, Any]]:
    """Loss of each document in nats per token, and what follows from it; None where nothing is predicted."""
    document_of_row = batch["aside"]["document_of_row"]
    sums = torch.zeros(3, len(batch["example_ids"]), dtype=torch.float64)
    rows = (scores.losses.sum(1), (scores.labels >= 0).sum(1), batch["aside"][TEXT_BYTES])
    for into, values in zip(sums, rows, strict=True):
        into.index_add_(0, document_of_row.cpu(), values.detach().cpu().double())
    return [_record(*values) for values in sums.T.tolist()]


def _record(loss: float, tokens: float, size: float) -> dict[str, Any]:
    mean = loss / tokens if tokens else None
    return {
        "loss": mean,
        "perplexity": None if mean is None else math.exp(min(mean, 700.0)),
        "bits_per_byte": loss / math.log(2) / size if size else None,
        "num_tokens": int(tokens),
    }


class NextToken(Task, ABC):
    """A task whose targets are the next tokens of documents.

    Args:
        packing: Put several documents into one row, in which none sees another.
    """

    auto_class = AutoModelForCausalLM
    pipeline = "text-generation"

    def __init__(self, packing: bool) -> None:
        self.packing = packing

    # ---- documents and blocks ----------------------------------------------------------------------------------------

    def strata(self, split: Split, spec: Spec) -> np.ndarray | None:
        return None

    def summarize(self, train: Split, spec: Spec) -> Spec:
        return replace(spec, num_rows=len(train))

    def measure(self, train: datasets.Dataset, spec: Spec) -> Spec:
        return with_unigram_baseline(train, spec)

    def packs(self, reader: TextReader) -> bool:
        """Whether several documents stand in a row.

        Raises:
            ConfigError: Rows are too short to predict anything.
        """
        if reader.max_length < 2:
            raise ConfigError(
                "in a row of one token nothing is predicted", where="data.max_length", fix="data.max_length: 512"
            )
        return self.packing and why_not_packed(reader.config) is None

    def padding_side(
        self, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig
    ) -> Literal["left", "right"]:
        return "right"  # no token sees what follows it, so nothing has to be hidden

    def prepare_model(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        if not self.packing:
            return
        if why_not := why_not_packed(model.config):
            log.info("packing  off: %s; documents are padded instead", why_not)
        else:
            check_apart(model)

    # ---- loss and metrics --------------------------------------------------------------------------------------------

    def forward(self, model: PreTrainedModel, batch: Batch) -> TokenScores:
        return score_tokens(model, batch)

    def scores(self, outputs: TokenScores) -> Tensor:
        return outputs.logits[:, :EXPORT_POSITIONS]

    def loss(self, outputs: TokenScores, batch: Batch, spec: Spec) -> tuple[Tensor, Tensor]:
        return outputs.parts

    def imitated(self, outputs: TokenScores, batch: Batch) -> Tensor | None:
        return outputs.logits[outputs.labels >= 0]

    def targets_per_row(self, spec: Spec) -> float:
        return USUAL_TARGETS

    def metric_names(self, spec: Spec) -> dict[str, bool]:
        return {"loss": False, **TOKEN_METRICS}

    def primary_metric(self, spec: Spec) -> str:
        return "loss"

    def build_metrics(self, spec: Spec) -> MetricCollection:
        return MetricCollection({"tokens": TokenTotals()}, compute_groups=False)

    def update_metrics(self, metrics: MetricCollection, outputs: TokenScores, batch: Batch) -> None:
        tokens: Any = metrics["tokens"]
        tokens.update(outputs.losses, outputs.is_right, outputs.labels, batch["aside"][TEXT_BYTES])

    def report(self, metrics: dict[str, Any], spec: Spec) -> str:
        return "\n".join(totals(scalars(metrics), spec))
