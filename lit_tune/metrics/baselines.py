"""The names and directions of the scores, and what a model that ignores its input would score."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lit_tune.metrics.classification import MAX_MATRIX_CLASSES, LabelCounts, class_scores, label_scores
from lit_tune.metrics.streaming import scalars

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
ERRORS = ("loss", "mse", "rmse", "mae")


def metric_directions(problem_type: str, label_names: Sequence[str]) -> dict[str, bool]:
    """Every scalar that is logged for a problem, with ``loss`` -> whether higher is better.

    Args:
        problem_type: transformers' ``config.problem_type``.
        label_names: Class names; empty for regression.

    >>> metric_directions("regression", [])["rmse"], metric_directions("regression", [])["r2"]
    (False, True)
    """
    names = ["loss"]
    no_counts = torch.zeros(3, len(label_names))
    if problem_type == REGRESSION:
        names += ["mse", "rmse", "mae", "r2", "pearson", "spearman"]
    elif problem_type == MULTI:
        names += ["accuracy", "f1_samples", *label_scores(no_counts, torch.tensor(0.0), label_names)]
    elif problem_type == SINGLE:
        names += class_scores(no_counts, label_names)
    else:
        raise ValueError(f"unknown problem type {problem_type!r}")
    if problem_type != REGRESSION and len(label_names) <= MAX_MATRIX_CLASSES:
        names.append("auroc")
    return {name: name not in ERRORS for name in names}


def baseline_scores(
    problem_type: str,
    label_counts: Sequence[int] = (),
    num_rows: int = 0,
    targets: ArrayLike | None = None,
    *,
    label_names: Sequence[str] | None = None,
) -> dict[str, float]:
    """What the best constant answer scores on the rows it was read off: the bar that a model must pass.

    Single-label: always the most frequent class (the first of equals), loss = entropy of the class shares in nats.
    Multi-label: each label as most rows have it, loss = mean binary entropy over rows and labels. Regression: the mean.
    The loss is the plain one: a class-weighted, smoothed or focal training loss has another scale.

    Args:
        problem_type: transformers' ``config.problem_type``.
        label_counts: Rows per class, or per label.
        num_rows: Rows.
        targets: Regression: the targets (N,). Multi-label: the targets (N, C), 0 or 1; without them ``accuracy`` and
            ``f1_samples``, which do not follow from counts, are left out.
        label_names: Names for ``f1/<label>``; left out without them.

    Returns:
        The names of :func:`metric_directions` -> value, without what is undefined. Empty without rows.
    """
    if num_rows == 0:
        return {}
    counts = torch.tensor(list(label_counts), dtype=torch.float64)
    names = label_names if label_names is not None else [str(i) for i in range(len(counts))]
    if problem_type == REGRESSION:
        scores = _mean_scores(targets)
    elif problem_type == MULTI:
        scores = _label_majority_scores(counts, num_rows, targets, names)
    elif problem_type == SINGLE:
        scores = _class_majority_scores(counts, names)
    else:
        raise ValueError(f"unknown problem type {problem_type!r}")
    defined = {name: value for name, value in scalars(scores).items() if value is not None}
    return {name: value for name, value in defined.items() if label_names is not None or "/" not in name}


def _mean_scores(targets: ArrayLike | None) -> dict[str, Tensor]:
    if targets is None:
        return {}
    values = torch.from_numpy(np.asarray(targets, dtype=np.float64).reshape(-1))
    error = values - values.mean()
    mse = error.square().mean()
    r2 = torch.tensor(0.0 if bool((values != values[0]).any()) else torch.nan)
    return {"loss": mse, "mse": mse, "rmse": mse.sqrt(), "mae": error.abs().mean(), "r2": r2}


def _class_majority_scores(counts: Tensor, label_names: Sequence[str]) -> dict[str, Tensor]:
    hits, predicted = torch.zeros_like(counts), torch.zeros_like(counts)
    majority = int(counts.argmax())
    hits[majority], predicted[majority] = counts[majority], counts.sum()
    scores = class_scores(torch.stack([hits, predicted, counts]), label_names)
    scores["loss"] = torch.special.entr(counts / counts.sum()).sum()
    scores["auroc"] = _constant_auroc(counts, counts.sum())
    return scores


def _label_majority_scores(
    counts: Tensor, num_rows: int, targets: ArrayLike | None, label_names: Sequence[str]
) -> dict[str, Tensor]:
    answer = counts > num_rows - counts
    if targets is not None:
        metric = LabelCounts(label_names, threshold=0.5)
        rows = torch.from_numpy(np.asarray(targets) != 0)
        metric.count(answer.expand(rows.shape), rows)
        scores = metric.compute()
    else:
        by_label = torch.stack([counts * answer, num_rows * answer, counts])
        scores = label_scores(by_label, torch.tensor(float(num_rows)), label_names)
    shares = counts / num_rows
    scores["loss"] = (torch.special.entr(shares) + torch.special.entr(1 - shares)).mean()
    scores["auroc"] = _constant_auroc(counts, torch.tensor(num_rows))
    return scores


def _constant_auroc(counts: Tensor, num_rows: Tensor) -> Tensor:
    """0.5 where any class is present and absent at least once."""
    return torch.where(((counts > 0) & (counts < num_rows)).any(), 0.5, torch.nan)
