"""Sequence classification: one label, several labels, or a number per text (or pair of texts).

Shapes: B examples, T tokens, C classes (1 for regression).
"""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torchmetrics import MetricCollection
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedTokenizerBase

from lit_tune import losses, metrics
from lit_tune.data import checks, labels, splits
from lit_tune.data.collators import Padding, TextCollator
from lit_tune.data.distinct import Distinct
from lit_tune.data.sources import class_label_names
from lit_tune.data.split import Split
from lit_tune.data.texts import read_texts
from lit_tune.errors import ConfigError, DataError, LitTuneError, collected, raise_problems
from lit_tune.tasks.base import Batch, Collator, Features, Rows, Spec, Task
from lit_tune.tasks.classification_head import (
    check_settings,
    class_weights,
    head_labels,
    keep_head,
)
from lit_tune.tasks.classification_report import report_text
from lit_tune.tasks.own_pieces import build_own_loss, build_own_metrics, directions, fresh
from lit_tune.tasks.predicted_labels import answer, label_records

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_OF_KIND = {"class": SINGLE, "multi": MULTI, "number": REGRESSION}
ProblemType = Literal["auto", "single_label_classification", "multi_label_classification", "regression"]


class SequenceClassification(Task):
    """One label, a set of labels or a number for each text, or for two or more texts read together.

    Args:
        text_columns: Columns with the text. Two are encoded as a pair (``[CLS] a [SEP] b [SEP]``); further ones are
            joined to the second with the tokenizer's separator.
        label_column: Column with the label: strings, ints, bools or integral floats (classes), lists of them
            (multi-label), other numbers (regression).
        problem_type: ``auto`` reads it off the labels. A value that the labels contradict is an error.
        label_names: Class names in the order of their ids. Default: a ClassLabel's own order, integers by value,
            strings sorted. Needed for streamed data without ClassLabel.
        threshold: Probability above which a label counts as predicted (multi-label only).
        class_weights: Weight of each class in the loss (single-label): ``balanced`` (n / (C * count), as
            scikit-learn) or one number per class in the order of ``label_names``.
        pos_weight: Weight of the positive targets per class (multi-label): ``balanced`` (negatives / positives) or a
            list.
        label_smoothing: Share of the target mass spread over all classes, in [0, 1).
        focal_gamma: Focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002): down-weights easy examples. None
            is off.
        loss: Own loss: a class path, or ``{class_path: ..., init_args: {...}}``, whose instance maps
            ``(logits, labels)`` to per-target losses. Replaces the built-in loss.
        metrics: Own metrics besides ours: class paths, or ``{class_path: ..., init_args: {...}}``, of torchmetrics'
            ``Metric``. ``update`` is given (probabilities, labels), or (numbers, targets); ``val/my_metric`` is what a
            ``MyMetric`` computes, and may be monitored.
    """

    auto_class = AutoModelForSequenceClassification
    pipeline = "text-classification"

    def __init__(
        self,
        text_columns: list[str] = ["text"],  # noqa: B006 - never mutated; a plain default prints as itself in --help
        label_column: str = "label",
        problem_type: ProblemType = "auto",
        label_names: list[str] | None = None,
        threshold: float = 0.5,
        class_weights: Literal["balanced"] | list[float] | None = None,
        pos_weight: Literal["balanced"] | list[float] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float | None = None,
        loss: str | dict[str, Any] | None = None,
        metrics: list[str | dict[str, Any]] = [],  # noqa: B006
    ) -> None:
        if not text_columns:
            raise ConfigError("needs at least one column", where="task.init_args.text_columns", fix="[text]")
        self.text_columns = list(text_columns)
        self.label_column = label_column
        self.problem_type = problem_type
        self.label_names = label_names
        self.threshold = threshold
        self.class_weights, self.pos_weight = class_weights, pos_weight
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        self.own_loss = build_own_loss(loss) if loss else None
        self.own_metrics = build_own_metrics(metrics)

    def settings(self) -> dict[str, Any]:
        return {
            "text_columns": self.text_columns,
            "label_column": self.label_column,
            "problem_type": self.problem_type,
            "label_names": self.label_names,
            "plain_loss": self.has_plain_loss,
        }

    @property
    def has_plain_loss(self) -> bool:
        """Whether the loss is on the scale of the baseline's."""
        changed = (self.own_loss, self.class_weights, self.pos_weight, self.label_smoothing or None, self.focal_gamma)
        return all(setting is None for setting in changed)

    def input_columns(self) -> tuple[str, ...]:
        return tuple(self.text_columns)

    # ---- reading the labels ------------------------------------------------------------------------------------------

    def inspect(self, train: Split, model_config: PretrainedConfig | None, new_head: bool) -> Spec:
        self.require(train, labelled=True)
        named = self.label_names or class_label_names(train, self.label_column)
        if not train.is_streamed:
            spec = self.spec_of_values(train.distinct(self.label_column), named, train)
        elif self.problem_type == REGRESSION:
            spec = Spec(REGRESSION)
        elif named:
            first = next(train.read(), {}).get(self.label_column)
            is_multi = isinstance(first, list) if self.problem_type == "auto" else self.problem_type == MULTI
            spec = Spec(MULTI if is_multi else SINGLE, list(named))
        else:
            raise ConfigError(
                "a stream cannot be read to the end to find its labels",
                where="task.init_args.label_names",
                fix="list the class names, or problem_type: regression",
            )
        self.check_settings(spec)
        if train.is_streamed:
            self.check_balance(spec)
        return spec if new_head else keep_head(spec, model_config, "ForSequenceClassification")

    def check_settings(self, spec: Spec) -> None:
        weights: dict[str, Any] = {"class_weights": self.class_weights, "pos_weight": self.pos_weight}
        shapes = {"label_smoothing": self.label_smoothing or None, "focal_gamma": self.focal_gamma}
        check_settings(spec, self.label_names, self.threshold, weights, shapes)

    def spec_of_values(self, values: Distinct, named: list[str] | None, train: Split) -> Spec:
        """The spec of a column of labels."""
        found = PROBLEM_OF_KIND[labels.label_kind(values, train.locate)]
        if found == SINGLE and self.problem_type == REGRESSION:
            labels.encode_numbers(values, train.locate)  # integers are numbers too; words are refused here
            found = REGRESSION
        if self.problem_type not in ("auto", found):
            raise DataError(
                f"the labels look like {found}, e.g. {values.values[0]!r} in {train.locate(0)}",
                where="task.init_args.problem_type",
                fix=f"{found} instead of {self.problem_type}, or another label_column",
            )
        if found == REGRESSION:
            return Spec(REGRESSION)
        names = list(named) if named else labels.class_names(values, None)
        if found == SINGLE and len(names) < 2:
            raise DataError(
                f"every row has the label {names[0]!r}: there is nothing to learn",
                where=f"column {self.label_column}",
                fix="data with at least two classes",
            )
        return Spec(found, names)

    def spec_of_model(self, model_config: PretrainedConfig) -> Spec:
        problem = model_config.problem_type or (self.problem_type if self.problem_type != "auto" else None)
        if problem == REGRESSION or (problem is None and model_config.num_labels == 1):
            return Spec(REGRESSION)
        return Spec(problem or SINGLE, head_labels(model_config))

    def require(self, split: Split, labelled: bool) -> None:
        """Demand the columns."""
        keys = dict.fromkeys(self.text_columns, "task.init_args.text_columns")
        if labelled:
            keys[self.label_column] = "task.init_args.label_column"
        checks.require_columns(split.column_names, list(keys), where=split.title, keys=keys)

    def check(self, split: Split, spec: Spec, labelled: bool = True) -> None:
        self.require(split, labelled)
        problems: list[LitTuneError] = []
        for column in self.text_columns:
            with collected(problems):
                read_texts(split, column)
        if labelled:
            with collected(problems):
                self.encode_labels(split.distinct(self.label_column), spec, split)
        raise_problems(problems)

    def encode_labels(self, values: list[Any] | Distinct, spec: Spec, split: Split | None = None) -> Any:
        """Raw labels -> ids (N,), lists of ids, or float64 numbers (N,)."""
        locate = split.locate if split else (lambda i: f"row {i + 1} of the batch")
        if spec.problem_type == REGRESSION:
            return labels.encode_numbers(values, locate)
        own_names = class_label_names(split, self.label_column) if split else None
        if own_names == [str(i) for i in range(len(own_names or []))]:
            own_names = None  # numbered, not named: ids like any integers
        encode = labels.encode_multi_labels if spec.problem_type == MULTI else labels.encode_class_labels
        known_from = "task.init_args.label_names" if self.label_names else "train"
        return encode(values, spec.label_names, locate, known_from, class_label_names=own_names)

    def is_unlabelled(self, split: Split, spec: Spec) -> bool:
        if self.label_column not in split.column_names:
            return True
        values = split.distinct(self.label_column)
        is_label = "-1" in spec.label_names and labels.canonical_name(values.values[0]) == "-1"  # of -1, 0, 1
        return not is_label and labels.is_unlabelled(values)

    def without_labels(self, split: Split) -> Split:
        if self.label_column not in split.column_names:
            return split
        return replace(split, rows=split.rows.remove_columns(self.label_column))

    def strata(self, split: Split, spec: Spec) -> np.ndarray | None:
        encoded = self.encode_labels(split.distinct(self.label_column), spec, split)
        if spec.problem_type == SINGLE:
            return np.asarray(encoded)
        if spec.problem_type == REGRESSION:
            return splits.quantile_bins(np.asarray(encoded))
        return None  # label sets: too many combinations to keep the share of each

    def label_counts(self, split: Split, spec: Spec) -> list[int]:
        encoded = self.encode_labels(split.distinct(self.label_column), spec, split)
        if spec.problem_type == SINGLE:
            return np.bincount(encoded, minlength=spec.num_labels).tolist()
        if spec.problem_type == MULTI:
            return np.bincount([i for row in encoded for i in row], minlength=spec.num_labels).tolist()
        return []

    def summarize(self, train: Split, spec: Spec) -> Spec:
        counts, is_number = self.label_counts(train, spec), spec.problem_type == REGRESSION
        numbers = labels.encode_numbers(train.distinct(self.label_column), train.locate) if is_number else None
        baseline = metrics.baseline_scores(spec.problem_type, counts, len(train), numbers, label_names=None)
        plain = {k: float(v) for k, v in baseline.items() if np.isfinite(v)}
        if not self.has_plain_loss:
            plain.pop("loss", None)
        found = Spec(spec.problem_type, spec.label_names, counts, len(train), plain)
        self.check_balance(found)
        return found

    def check_balance(self, spec: Spec) -> None:
        """Weights that cannot be balanced are an error before training, not in its first step."""
        for setting in (self.class_weights, self.pos_weight):
            class_weights(setting, spec, torch.empty(0))

    # ---- rows to tensors ---------------------------------------------------------------------------------------------

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: Spec, max_length: int) -> Features:
        """Tokenize once without cutting, so that what is cut can be counted; only rows that are too long go twice."""
        columns = [rows[c] for c in self.text_columns]
        texts = [columns[0]]
        if len(columns) > 1:
            joint = f" {tokenizer.sep_token or tokenizer.eos_token or ''} "
            texts.append([joint.join(parts) for parts in zip(*columns[1:], strict=True)])
        whole = tokenizer(*texts, truncation=False, return_attention_mask=False, verbose=False)
        num_tokens = [len(ids) for ids in whole["input_ids"]]
        features: Features = {k: list(v) for k, v in whole.items()}
        long = [i for i, n in enumerate(num_tokens) if n > max_length]
        if long:
            short = tokenizer(
                *[[t[i] for i in long] for t in texts],
                truncation="longest_first",
                max_length=max_length,
                return_attention_mask=False,
            )
            for name, values in short.items():
                for i, value in zip(long, values, strict=True):
                    features[name][i] = value
        features["num_tokens"] = num_tokens
        if self.label_column in rows:
            encoded = self.encode_labels(rows[self.label_column], spec)
            features["labels"] = encoded.tolist() if isinstance(encoded, np.ndarray) else encoded
        return features

    def padding_side(
        self, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig
    ) -> Literal["left", "right"]:
        # Positions are counted from the first column (GPT-2, BERT), so padding there would change the prediction, and
        # heads find the last token that is not padding. XLNet's alone reads the last column.
        return "left" if model_config.model_type == "xlnet" else "right"

    def collator(self, padding: Padding, spec: Spec) -> Collator:
        kinds: dict[str, Literal["class", "multi", "number"]] = {SINGLE: "class", MULTI: "multi", REGRESSION: "number"}
        return TextCollator(padding, kinds[spec.problem_type], spec.num_labels)

    def configure(self, model_config: PretrainedConfig, spec: Spec) -> None:
        model_config.problem_type = spec.problem_type  # type: ignore[assignment]
        names = spec.label_names or ["LABEL_0"]
        model_config.id2label = dict(enumerate(names))
        model_config.label2id = {name: i for i, name in enumerate(names)}

    # ---- loss, metrics, predictions ----------------------------------------------------------------------------------

    def loss(self, outputs: Any, batch: Batch, spec: Spec) -> tuple[torch.Tensor, torch.Tensor]:
        logits, target = outputs.logits, batch["labels"]
        if self.own_loss is not None:
            return losses.per_target(self.own_loss, logits, target)
        if spec.problem_type == REGRESSION:
            return losses.mean_squared_error(logits, target)
        gamma, smoothing = self.focal_gamma, self.label_smoothing
        if spec.problem_type == MULTI:
            weight = class_weights(self.pos_weight, spec, logits)
            if gamma is not None:
                return losses.binary_focal(logits, target, gamma=gamma, pos_weight=weight)
            return losses.binary_cross_entropy(logits, target, pos_weight=weight, label_smoothing=smoothing)
        weight = class_weights(self.class_weights, spec, logits)
        if gamma is not None:
            return losses.focal(logits, target, gamma=gamma, class_weights=weight)
        return losses.cross_entropy(logits, target, class_weights=weight, label_smoothing=smoothing)

    def imitated(self, outputs: Any, batch: Batch) -> torch.Tensor | None:
        return outputs.logits

    def targets_per_row(self, spec: Spec) -> float:
        return float(spec.num_labels) if spec.problem_type == MULTI else 1.0

    def metric_names(self, spec: Spec) -> dict[str, bool]:
        return directions(self.own_metrics, metrics.metric_directions(spec.problem_type, spec.label_names))

    def primary_metric(self, spec: Spec) -> str:
        return {SINGLE: "accuracy", MULTI: "f1_micro", REGRESSION: "r2"}[spec.problem_type]

    def build_metrics(self, spec: Spec) -> MetricCollection:
        if spec.problem_type == REGRESSION:
            built = metrics.regression_metrics()
        elif spec.problem_type == MULTI:
            built = metrics.multi_label_metrics(spec.label_names, self.threshold)
        else:
            built = metrics.single_label_metrics(spec.label_names)
        built.add_metrics(fresh(self.own_metrics, partial(answer, problem_type=spec.problem_type)))
        return built

    def update_metrics(self, metrics: MetricCollection, outputs: Any, batch: Batch) -> None:
        logits = outputs.logits.float()
        metrics.update(logits.squeeze(-1) if logits.shape[-1] == 1 else logits, batch["labels"])

    def decode(self, outputs: Any, batch: Batch, spec: Spec) -> list[dict[str, Any]]:
        return label_records(outputs.logits.float(), spec, self.threshold)

    def report(self, metrics: dict[str, Any], spec: Spec) -> str:
        return report_text(metrics, spec)
