"""Task: all that differs between problems. One module, one datamodule, N tasks.

Shapes: B examples, T tokens, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torchmetrics import MetricCollection
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Rows = dict[str, list[Any]]
"""A batch of raw rows as ``datasets.map(batched=True)`` gives them: column name -> values."""

Features = dict[str, list[Any]]
"""A batch of encoded examples: ``input_ids`` etc. -> one list (or number) per example."""

Batch = dict[str, Any]
"""Tensors ``(B, T)`` under HF's names, plus ``example_ids`` (list of B ints) and ``is_filler`` (bool): see data.loader."""

Collator = Callable[[list[dict[str, Any]]], Batch]


@dataclass(frozen=True)
class Spec:
    """What a task reads off the train split; plain data, so that it can live in a checkpoint, a cache and a manifest.

    Args:
        problem_type: transformers' ``config.problem_type``: ``single_label_classification``,
            ``multi_label_classification`` or ``regression``.
        label_names: Class names in the order of their ids; empty for regression.
        label_counts: Rows per class in the train split, same order; empty for regression or where unknown (streaming).
        num_rows: Rows of the train split; 0 where unknown (streaming).
        target_mean: Mean target of the train split (regression).
        baseline: What a model that ignores its input scores on train, by metric name (``accuracy``, ``loss``, ...).
    """

    problem_type: str
    label_names: list[str] = field(default_factory=list)
    label_counts: list[int] = field(default_factory=list)
    num_rows: int = 0
    target_mean: float = 0.0
    baseline: dict[str, float] = field(default_factory=dict)

    @property
    def num_labels(self) -> int:
        """Outputs of the head: classes, or 1 for regression."""
        return max(1, len(self.label_names))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``Spec(**d)`` is the way back."""
        return asdict(self)


class Task(ABC):
    """A problem: how rows become features, outputs become a loss, metrics and predictions.

    Stateless, built from plain init arguments, picklable: module and datamodule each build their own equal instance.
    """

    auto_class: ClassVar[Any]
    """The HF Auto class that gives the model its head."""

    @abstractmethod
    def columns(self) -> list[str]:
        """Columns that must be in every labelled split; the first ones are inputs."""

    @abstractmethod
    def inspect(self, columns: dict[str, Any], locate: Callable[[int], str]) -> Spec:
        """Read the problem off the train split.

        Args:
            columns: Column name -> all values of the train split.
            locate: Row number -> ``file:row`` for messages.

        Raises:
            DataError: Labels that are null, of mixed types, or contradict the settings.
        """

    @abstractmethod
    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: Spec, max_length: int) -> Features:
        """Rows -> features as lists. Pure and batched, so that the datamodule can cache the result."""

    @abstractmethod
    def collator(
        self, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig, pad_to: int | None, multiple_of: int | None
    ) -> Collator:
        """Features -> batch of tensors ``(B, T)``."""

    def forward(self, model: PreTrainedModel, batch: Batch) -> Any:
        """Run the model without labels, so that its head computes no loss of its own."""
        skip = ("labels", "example_ids", "is_filler")
        return model(**{k: v for k, v in batch.items() if k not in skip})

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(Summed loss, denominator), never a mean: the module divides once, over window and ranks."""

    @abstractmethod
    def metric_names(self, spec: Spec) -> dict[str, bool]:
        """Scalar metrics this task logs, without stage prefix -> higher is better."""

    @abstractmethod
    def primary_metric(self, spec: Spec) -> str:
        """Default of ``checkpoint.monitor``, without the ``val/`` prefix."""

    @abstractmethod
    def build_metrics(self, spec: Spec) -> MetricCollection:
        """Streaming metrics; nothing may grow with the number of examples but rank statistics on the CPU."""

    @abstractmethod
    def update_metrics(self, metrics: MetricCollection, outputs: Any, batch: Batch) -> None:
        """Feed one batch."""

    @abstractmethod
    def decode(self, outputs: Any, batch: Batch, spec: Spec) -> list[dict[str, Any]]:
        """One JSON-able record per example, in batch order."""
