"""Task: all that differs between problems. One module, one datamodule, N tasks.

Shapes: B examples, T tokens, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import datasets
import numpy as np
import torch
from torchmetrics import MetricCollection
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_tune.data import splits
from lit_tune.data.collators import Padding
from lit_tune.data.split import Split
from lit_tune.data.txt_files import TxtRows
from lit_tune.data.units import Units, WholeRows
from lit_tune.errors import DataError
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.spec import Spec

Rows = dict[str, list[Any]]
"""A batch of raw rows as ``datasets.map(batched=True)`` gives them: column name -> values."""

Features = dict[str, list[Any]]
"""A batch of encoded examples, one entry per row: ``input_ids``, ``labels`` ... Those called ``num_*`` count something
in the row for the reports and are not stored; ``num_tokens`` (before cutting) is there always."""

Batch = dict[str, Any]
"""Tensors ``(B, T)`` under HF's names, plus ``example_ids`` (B row numbers), ``is_filler`` (see ``data.loader``) and,
where a task needs it, ``aside``: a dict of what metrics and ``decode`` read and the model does not. ``evaluate`` of a
split with labels also finds its ``stage``: ``val``, ``probe`` or ``test``."""

Collator = Callable[[list[dict[str, Any]]], Batch]

BOOKKEEPING = ("labels", "example_ids", "is_filler", "aside", "stage")
"""Keys of a batch that the model never sees. Without labels its head computes no loss of its own."""


class Task(ABC):
    """A problem: how rows become features, outputs become a loss, metrics and predictions.

    Stateless, built from plain init arguments, picklable: module and datamodule each build their own equal instance.
    """

    auto_class: ClassVar[Any]
    """The HF Auto class that gives the model its head."""

    pipeline: ClassVar[str]
    """The Hub's name of what the task does: the ``transformers.pipeline`` that runs the exported model."""

    has_pipeline: ClassVar[bool] = True
    """Whether transformers (5.23) has that pipeline."""

    usage: ClassVar[str] = ""
    """Lines of Python that run the exported model, for the model card, where it has not."""

    usual_max_length: ClassVar[int] = 512
    """Default of ``data.max_length``, where the model takes so many tokens."""

    input_key: ClassVar[str] = "text_columns"
    """The init argument that names the columns with the input, for advice."""

    label_key: ClassVar[str] = "label_column"
    """The init argument that names the column with the labels, for advice."""

    skips_empty: ClassVar[bool] = False
    """Whether rows without a text are left out, so that they are no fault: the blank lines of a book."""

    txt_rows: ClassVar[TxtRows] = "line"
    """What is a row of a txt file where ``data.txt_rows`` does not say."""

    unused_modules: ClassVar[tuple[str, ...]] = ()
    """Parts of the model, by name, that the task never asks: not trained, and they may be missing in the weights."""

    library: ClassVar[str] = "transformers"
    """The Hub's name of the library that uses the exported model."""

    needs_offsets: ClassVar[bool] = False
    """Whether ``encode`` asks where in the text a token stands, which only fast tokenizers know."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The init arguments that decide what ``encode`` and ``summarize`` return: part of the cache key."""

    @abstractmethod
    def input_columns(self) -> tuple[str, ...]:
        """Columns that hold text and stay text, whatever they look like; rows alike in them are the same example.

        A list of texts (words, choices) counts as the text of its parts. ``check`` says what a column must hold.
        """

    def verbatim_columns(self) -> tuple[str, ...]:
        """Columns of a csv that stay text even if every cell is a number; ``a.b`` is the field ``b`` of a column ``a``.

        Rows alike in all of them are repetitions.
        """
        return self.input_columns()

    @abstractmethod
    def inspect(self, train: Split, model_config: PretrainedConfig | None, new_head: bool) -> Spec:
        """Read the problem off the train split.

        Args:
            train: The whole raw split, before anything is held out.
            model_config: A head that was trained for the same labels is kept, in its order.
            new_head: The head is replaced, so its labels do not matter.

        Raises:
            DataError: Labels that are null, of mixed types, or contradict the settings.
            ModelError: A head for other labels, without ``new_head``.
        """

    def check_settings(self, spec: Spec) -> None:  # noqa: B027 - a task may have none that could not fit
        """Refuse settings that do not fit the labels, whether those were inspected or come from the cache.

        Raises:
            ConfigError: The first of them.
        """

    @abstractmethod
    def spec_of_model(self, model_config: PretrainedConfig) -> Spec:
        """The spec of a model that already has a head, for evaluation without training data."""

    @abstractmethod
    def check(self, split: Split, spec: Spec, labelled: bool = True) -> None:
        """Find rows that cannot be used, before anything is tokenized; all problems together.

        Raises:
            DataError: A missing column, a null, or a label that train lacks, with ``file:row``.
        """

    def usable(self, split: Split, spec: Spec) -> Split:
        """The rows of a checked split with labels that are used. What it leaves out by its settings, it says."""
        return split

    @abstractmethod
    def is_unlabelled(self, split: Split, spec: Spec) -> bool:
        """Whether no row of the split has a label (test splits of benchmarks)."""

    @abstractmethod
    def without_labels(self, split: Split) -> Split:
        """The split without its label column, for prediction."""

    @abstractmethod
    def strata(self, split: Split, spec: Spec) -> np.ndarray | None:
        """(N,) groups whose shares a held-out split should keep, or None."""

    def groups(self, split: Split) -> np.ndarray | None:
        """(N,) what rows must not be torn apart by a held-out split, such as questions about one text; or None."""
        return None

    def hold_out(self, train: Split, fraction: float, seed: int, spec: Spec) -> tuple[Split, Split]:
        """Cut a part from train for validation; default: rows by ``strata``, or whole ``groups``.

        Args:
            train: The whole raw split.
            fraction: Size of the part.
            seed: Of the draw.
            spec: The labels.

        Returns:
            What is trained on, and the part.

        Raises:
            DataError: A single row.
        """
        if len(train) < 2:
            raise DataError("one row cannot be split", where=train.title, fix="more rows, or data.val_fraction: 0")
        kept, held = splits.holdout(len(train), fraction, seed, self.strata(train, spec), self.groups(train))
        return train.select(kept), train.select(held)

    @abstractmethod
    def summarize(self, train: Split, spec: Spec) -> Spec:
        """Add counts and baseline of the rows that are trained on."""

    def label_counts(self, split: Split, spec: Spec) -> list[int]:
        """Units per class, in the order of the spec; empty where there are no classes."""
        return []

    @abstractmethod
    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: Spec, max_length: int) -> Features:
        """Rows -> features as lists. Pure and batched, so that the result can be cached."""

    def cut_at(self, max_length: int) -> int | None:
        """Tokens at which a row is cut, so that the rest is lost; None where nothing is."""
        return max_length

    def measure(self, train: datasets.Dataset, spec: Spec) -> Spec:
        """Add what only the encoded rows that are trained on tell."""
        return spec

    def units(self, rows: datasets.Dataset, training: bool, reader: TextReader) -> Units:
        """What batches are drawn from.

        Args:
            rows: An encoded split.
            training: For steps of training, where a long document's windows may be mixed with those of others; else for
                evaluation, where everything that is scored together must be in one batch.
            reader: The model's config, and how many tokens it takes.
        """
        return WholeRows(rows)

    def rows_together(self, train_batch_size: int) -> int:
        """How many rows are scored together, each other's negatives for example: no cut of a step tears them apart.

        Args:
            train_batch_size: ``data.train_batch_size``, which must be a multiple of it.

        Raises:
            ConfigError: It is not.
        """
        return 1

    def predict_units(self, rows: datasets.Dataset, reader: TextReader) -> Units:
        """What ``predict`` draws batches from: one record is made of each. Default: as in evaluation."""
        return self.units(rows, False, reader)

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027 - most take it as it is
        """Set what the task needs of a tokenizer; it is saved with the model.

        Raises:
            ModelError: It lacks something.
        """

    def prepare_model(  # noqa: B027 - many tasks take any model as it is
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        """Refuse a model that cannot do what the task needs, and set what is saved with it; its weights are there.

        Args:
            model: The model.
            tokenizer: Of the run; None without one.

        Raises:
            ModelError: It cannot.
        """

    def padding_side(
        self, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig
    ) -> Literal["left", "right"]:
        """Where rows are padded; default: as the tokenizer does."""
        return "left" if tokenizer.padding_side == "left" else "right"

    @abstractmethod
    def collator(self, padding: Padding, spec: Spec) -> Collator:
        """Features -> batch of tensors ``(B, T)``."""

    def configure(self, model_config: PretrainedConfig, spec: Spec) -> None:  # noqa: B027 - many tasks need nothing
        """Write labels and problem type into the model's config."""

    def files(self, model_config: PretrainedConfig, max_length: int) -> dict[str, str]:
        """What an export has beside the model, for a library of its own: path -> content."""
        return {}

    def forward(self, model: PreTrainedModel, batch: Batch) -> Any:
        """Run the model without labels."""
        return model(**{k: v for k, v in batch.items() if k not in BOOKKEEPING})

    def evaluate(self, model: PreTrainedModel, batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Any:
        """What ``loss``, ``update_metrics`` and ``decode`` are given where nothing is trained; default: ``forward``.

        Args:
            model: In eval mode, without gradients.
            batch: Of an evaluated split, or of the rows to predict.
            tokenizer: For tasks that write texts.
        """
        return self.forward(model, batch)

    def samples(self, outputs: Any, batch: Batch) -> list[dict[str, str]]:
        """What a person wants to read of an evaluated batch: texts by what they are, such as ``written``."""
        return []

    def scores(self, outputs: Any) -> torch.Tensor:
        """All that the model has computed, as one tensor: by it an export is compared with the weights in memory."""
        return outputs.logits

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch, spec: Spec) -> tuple[torch.Tensor, torch.Tensor]:
        """(Summed loss, denominator), never a mean: the module divides once, over window and ranks."""

    def imitated(self, outputs: Any, batch: Batch) -> torch.Tensor | None:
        """(N, C) logits of the targets that count, which a teacher's are compared with; None: there are none."""
        return None

    def targets_per_row(self, spec: Spec) -> float:
        """Expected denominator of one row; only the scale of fp16 losses depends on it."""
        return 1.0

    @abstractmethod
    def metric_names(self, spec: Spec) -> dict[str, bool]:
        """Scalar metrics that are logged, without stage prefix -> higher is better."""

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
        """One JSON-able record per example, in batch order, all with the same keys; NaN tells of a broken model."""

    @abstractmethod
    def report(self, metrics: dict[str, Any], spec: Spec) -> str:
        """The test report a person reads, from computed metrics (tensors, matrices included)."""
