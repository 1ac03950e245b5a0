"""Sequence classification: one label, several labels, or a number per text (or pair of texts).

Shapes: B examples, T tokens, C classes (1 for regression).
"""

from typing import Any, Literal

from lit_tune.tasks.base import Task


class SequenceClassification(Task):
    """One label, a set of labels or a number for each text, or for two or more texts read together.

    Args:
        text_columns: Columns with the text. Two are encoded as a pair (``[CLS] a [SEP] b [SEP]``); the third and further
            ones are joined to the second with the tokenizer's separator.
        label_column: Column with the label: strings, ints, bools or integral floats (classes), lists of them
            (multi-label), other numbers (regression).
        problem_type: ``auto`` reads it off the labels. A value that the labels contradict is an error.
        label_names: Class names in the order of their ids. Default: a ClassLabel's own order, integers by value, strings
            sorted. Needed for streamed data without ClassLabel.
        threshold: Probability above which a label counts as predicted (multi-label only).
        class_weights: Weight of each class in the loss (single-label): ``balanced`` (n / (C * count), as scikit-learn) or
            one number per class in the order of ``label_names``.
        pos_weight: Weight of the positive targets per class (multi-label): ``balanced`` (negatives / positives) or a list.
        label_smoothing: Share of the target mass spread over all classes, in [0, 1).
        focal_gamma: Focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002): down-weights easy examples. None is off.
        loss: Own loss: a class path, or ``{class_path: ..., init_args: {...}}``, whose instance maps
            ``(logits, labels)`` to per-target losses. Replaces the built-in loss.
    """

    def __init__(
        self,
        text_columns: list[str] = ["text"],  # noqa: B006 - never mutated; a plain default prints as itself in --help
        label_column: str = "label",
        problem_type: Literal[
            "auto", "single_label_classification", "multi_label_classification", "regression"
        ] = "auto",
        label_names: list[str] | None = None,
        threshold: float = 0.5,
        class_weights: Literal["balanced"] | list[float] | None = None,
        pos_weight: Literal["balanced"] | list[float] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float | None = None,
        loss: str | dict[str, Any] | None = None,
    ) -> None:
        self.text_columns = list(text_columns)
        self.label_column = label_column
