"""What tasks that predict the next token have in common: scores of tokens, baseline, records.

Shapes: B rows, T tokens, V the vocabulary.
"""

import logging
import math
from abc import ABC
from dataclasses import replace
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
from lit_tune.metrics import scalars
from lit_tune.metrics.language import TOKEN_METRICS, TokenTotals
from lit_tune.models.packed_documents import check_apart, why_not_packed
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.base import Batch, Spec, Task
from lit_tune.tasks.classification_report import totals
from lit_tune.tasks.token_scores import EXPORT_POSITIONS, TokenScores, score_tokens

log = logging.getLogger("lit_tune")
USUAL_TARGETS = 256.0
"""Predicted tokens of a block, about; only the scale of fp16 losses depends on it."""


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
        return outputs.target_logits

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
