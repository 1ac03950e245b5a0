"""Counts per class, and what follows from them: accuracy, precision, recall, F1, MCC, confusion matrix.

Shapes: B examples, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lit_tune.metrics.rank_statistics import MultiLabelAUROC, SingleLabelAUROC
from lit_tune.metrics.streaming import StreamingMetric, ratio

MAX_MATRIX_CLASSES = 1000
"""With more classes there is no confusion matrix (8 bytes * C * C) and no AUROC (4 bytes * C per example)."""


def single_label_metrics(label_names: Sequence[str]) -> MetricCollection:
    """Metrics of one class per example; update with logits (B, C) and class ids (B,).

    ``accuracy``; ``balanced_accuracy`` (mean recall of the classes that are in the targets); ``precision recall f1`` of
    the second class where there are two, else macro; each also as ``_macro _micro _weighted``; ``mcc``; ``auroc`` (of
    the second class where there are two, else the mean over classes that are present and absent at least once);
    ``f1/<label>``; ``confusion_matrix`` (C, C), rows are the true classes. As scikit-learn with ``zero_division=0``,
    where macro leaves out classes that are neither in the targets nor predicted; their ``f1/<label>`` is NaN.

    Logits are meant; of probabilities, give the logarithms. More than :data:`MAX_MATRIX_CLASSES` classes: no
    ``confusion_matrix`` and no ``auroc``.

    Args:
        label_names: Class names in the order of their ids.
    """
    collected: dict[str, Metric | MetricCollection] = {"counts": ClassCounts(label_names)}
    if len(label_names) <= MAX_MATRIX_CLASSES:
        collected["auroc"] = SingleLabelAUROC(len(label_names))
    return MetricCollection(collected, compute_groups=False)


def multi_label_metrics(label_names: Sequence[str], threshold: float = 0.5) -> MetricCollection:
    """Metrics of a set of labels per example; update with logits (B, C) and targets (B, C), 0 or 1.

    ``accuracy`` (the whole set is right), ``hamming_accuracy`` (share of the single decisions that are right),
    ``precision recall f1`` (macro), each also as ``_macro _micro _weighted``; ``f1_samples`` (mean F1 of the examples);
    ``auroc`` (mean over labels that are present and absent at least once); ``f1/<label>``. All as scikit-learn with
    ``zero_division=0``.

    Args:
        label_names: Label names in the order of their ids.
        threshold: A label is predicted where its probability is greater than this.
    """
    collected: dict[str, Metric | MetricCollection] = {"counts": LabelCounts(label_names, threshold)}
    if len(label_names) <= MAX_MATRIX_CLASSES:
        collected["auroc"] = MultiLabelAUROC(len(label_names))
    return MetricCollection(collected, compute_groups=False)


def class_scores(counts: Tensor, label_names: Sequence[str]) -> dict[str, Tensor]:
    """All single-label scores that follow from counts.

    Args:
        counts: (3, C): per class the right predictions, all predictions, all targets.
        label_names: Class names.

    Returns:
        Name -> 0-dim float64; all NaN without examples.
    """
    hits, predicted, support = counts.double()
    total, right = support.sum(), hits.sum()
    scores = {
        "accuracy": right / total,
        "balanced_accuracy": ratio(hits, support, otherwise=torch.nan).nanmean(),
    }
    present = (predicted + support) > 0
    averages = averaged_scores(counts, among=present)
    if len(label_names) == 2:
        second = counts[:, 1:]
        scores |= {name: value.squeeze() for name, value in per_class_scores(second).items()}
    else:
        scores |= {name: averages[f"{name}_macro"] for name in ("precision", "recall", "f1")}
    scores |= averages
    # Gorodkin 2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006; 0 where one side is constant, as scikit-learn
    spread = (total**2 - (predicted @ predicted)) * (total**2 - (support @ support))
    scores["mcc"] = ratio(right * total - predicted @ support, spread.sqrt(), otherwise=0.0)
    f1 = torch.where(present, per_class_scores(counts)["f1"], torch.nan)
    scores |= {f"f1/{name}": value for name, value in zip(label_names, f1, strict=True)}
    return scores if total > 0 else {name: torch.full_like(total, torch.nan) for name in scores}


def label_scores(counts: Tensor, num_rows: Tensor, label_names: Sequence[str]) -> dict[str, Tensor]:
    """The multi-label scores that follow from counts per label.

    Args:
        counts: (3, C): per label the right predictions, all predictions, all targets.
        num_rows: 0-dim.
        label_names: Label names.

    Returns:
        Name -> 0-dim float64; all NaN without examples.
    """
    hits, predicted, support = counts.double()
    wrong = (predicted + support - 2 * hits).sum()
    averages = averaged_scores(counts, among=torch.ones_like(hits, dtype=torch.bool))
    scores = {"hamming_accuracy": 1 - wrong / (num_rows * len(label_names))}
    scores |= {name: averages[f"{name}_macro"] for name in ("precision", "recall", "f1")}
    scores |= averages
    scores |= {f"f1/{n}": v for n, v in zip(label_names, per_class_scores(counts)["f1"], strict=True)}
    return scores if num_rows > 0 else {name: torch.full_like(wrong, torch.nan) for name in scores}


def per_class_scores(counts: Tensor) -> dict[str, Tensor]:
    """``precision recall f1`` of each class (C,) float64 from counts (3, C); 0 where undefined."""
    hits, predicted, support = counts.double()
    return {
        "precision": ratio(hits, predicted, otherwise=0.0),
        "recall": ratio(hits, support, otherwise=0.0),
        "f1": ratio(2 * hits, predicted + support, otherwise=0.0),
    }


def averaged_scores(counts: Tensor, among: Tensor) -> dict[str, Tensor]:
    """``precision recall f1`` as ``_macro`` (over classes ``among`` (C,) bool), ``_micro`` and ``_weighted``."""
    support = counts[2].double()
    pooled = per_class_scores(counts.sum(1, keepdim=True))
    averages = {}
    for name, values in per_class_scores(counts).items():
        averages[f"{name}_macro"] = values[among].mean()
        averages[f"{name}_micro"] = pooled[name].squeeze()
        averages[f"{name}_weighted"] = ratio((values * support).sum(), support.sum(), otherwise=0.0)
    return averages


class ClassCounts(StreamingMetric):
    """Scores of one class per example, from a confusion matrix, or with many classes from three counts per class.

    Args:
        label_names: Class names in the order of their ids.
    """

    counts: Tensor

    def __init__(self, label_names: Sequence[str]) -> None:
        super().__init__()
        self.label_names = list(label_names)
        num_classes = len(self.label_names)
        self.keeps_matrix = num_classes <= MAX_MATRIX_CLASSES
        # flat: the matrix by rows, or the rows (right, predicted, targets) of class_scores
        num_counts = num_classes * (num_classes if self.keeps_matrix else 3)
        self.add_state("counts", torch.zeros(num_counts, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add logits (B, C) and class ids (B,)."""
        predicted = self.place(preds.argmax(-1), torch.int64)
        target = self.place(target, torch.int64)
        num_classes = len(self.label_names)
        # index_add_ and not bincount, which reads the greatest index back from the device
        if self.keeps_matrix:
            index, ones = target * num_classes + predicted, torch.ones_like(target)
        else:
            index = torch.cat([target, num_classes + predicted, 2 * num_classes + target])
            ones = torch.ones_like(index)
            ones[: len(target)] = (predicted == target).long()
        self.writable("counts").index_add_(0, index, ones)

    def compute(self) -> dict[str, Tensor]:
        """:func:`class_scores` on the CPU, and ``confusion_matrix`` (C, C) int64."""
        num_classes = len(self.label_names)
        counts = self.counts.cpu().reshape(-1, num_classes)
        if not self.keeps_matrix:
            return class_scores(counts, self.label_names)
        by_class = torch.stack([counts.diag(), counts.sum(0), counts.sum(1)])
        return {**class_scores(by_class, self.label_names), "confusion_matrix": counts}


class LabelCounts(StreamingMetric):
    """Scores of a set of labels per example, from three counts per label and two sums over examples.

    Args:
        label_names: Label names in the order of their ids.
        threshold: A label is predicted where its probability is greater than this.
    """

    counts: Tensor
    rows: Tensor

    def __init__(self, label_names: Sequence[str], threshold: float) -> None:
        super().__init__()
        self.label_names = list(label_names)
        self.threshold = threshold
        self.add_state("counts", torch.zeros(3, len(self.label_names), dtype=torch.int64), dist_reduce_fx="sum")
        # examples, examples whose whole set is right, sum of the examples' F1
        self.add_state("rows", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add logits (B, C) and targets (B, C), 0 or 1."""
        self.count(preds.float().sigmoid() > self.threshold, target)

    def count(self, predicted: Tensor, target: Tensor) -> None:
        """Add decisions (B, C) bool and targets (B, C), 0 or 1."""
        predicted, target = self.place(predicted, torch.bool), self.place(target, torch.bool)
        sides = torch.stack([predicted & target, predicted, target])
        self.counts = self.counts + sides.sum(1)
        hits, num_predicted, num_targets = sides.sum(2).double()
        f1 = ratio(2 * hits, num_predicted + num_targets, otherwise=0.0)
        exact = (predicted == target).all(1).double()
        self.rows = self.rows + torch.stack([torch.ones_like(exact), exact, f1]).sum(1)

    def compute(self) -> dict[str, Tensor]:
        """:func:`label_scores`, ``accuracy`` and ``f1_samples``, on the CPU."""
        rows = self.rows.cpu()
        by_example = ratio(rows[1:], rows[0], otherwise=torch.nan)
        scores = {"accuracy": by_example[0], "f1_samples": by_example[1]}
        return scores | label_scores(self.counts.cpu(), rows[0], self.label_names)
