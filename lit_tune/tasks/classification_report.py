"""The test report of a classifier, as text for a terminal."""

from typing import Any

import torch

from lit_tune.metrics import scalars
from lit_tune.tasks.base import Spec

MAX_MATRIX_CLASSES = 12
"""More columns than this do not fit a terminal; the matrix is in test_metrics.json all the same."""


def report_text(computed: dict[str, Any], spec: Spec) -> str:
    """Totals, a line per class, the confusion matrix.

    Args:
        computed: What the metric collection computed; ``f1/<name>`` per class, ``confusion_matrix`` (C, C).
        spec: Label names and baseline.
    """
    values = scalars(computed)
    lines = totals(values, spec) + per_class(computed, values, spec)
    matrix = computed.get("confusion_matrix")
    if matrix is not None and len(spec.label_names) <= MAX_MATRIX_CLASSES:
        lines += confusion(torch.as_tensor(matrix), spec.label_names)
    return "\n".join(lines)


def totals(values: dict[str, float | None], spec: Spec) -> list[str]:
    """A row per metric that is not about one class, beside the baseline."""
    lines = ["", f"{'metric':<24}{'value':>10}{'baseline':>12}"]
    for name, value in values.items():
        base = spec.baseline.get(name)
        if "/" not in name:
            lines.append(f"{name:<24}{number(value):>10}{number(base) if base is not None else '':>12}")
    return lines


def number(value: float | None) -> str:
    """Four digits, or a dash for what is not defined."""
    return "-" if value is None else f"{value:.4f}"


def per_class(computed: dict[str, Any], values: dict[str, float | None], spec: Spec) -> list[str]:
    """A row per class: F1, and from the matrix precision, recall and the number of examples."""
    if not spec.label_names or f"f1/{spec.label_names[0]}" not in values:
        return []
    width = max(8, *(len(n) for n in spec.label_names)) + 2
    matrix = computed.get("confusion_matrix")
    if matrix is None:
        return ["", f"{'class':<{width}}{'f1':>10}"] + [
            f"{n:<{width}}{number(values[f'f1/{n}']):>10}" for n in spec.label_names
        ]
    matrix = torch.as_tensor(matrix).double().cpu()
    hits, actual, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
    lines = ["", f"{'class':<{width}}{'precision':>10}{'recall':>10}{'f1':>10}{'support':>10}"]
    for i, name in enumerate(spec.label_names):
        precision = float(hits[i] / predicted[i]) if predicted[i] else 0.0
        recall = float(hits[i] / actual[i]) if actual[i] else None
        f1 = values[f"f1/{name}"]
        cells = [number(precision), number(recall), number(f1), f"{int(actual[i]):,}"]
        lines.append(f"{name:<{width}}" + "".join(f"{c:>10}" for c in cells))
    return lines


def confusion(matrix: torch.Tensor, names: list[str]) -> list[str]:
    """Rows are the true classes, columns the predicted ones."""
    short = [n if len(n) <= 12 else n[:11] + "…" for n in names]
    width = max(6, *(len(n) for n in short), len(f"{int(matrix.max()):,}")) + 2
    lines = ["", "confusion matrix (rows: true, columns: predicted)"]
    lines.append(" " * width + "".join(f"{n:>{width}}" for n in short))
    lines += [
        f"{n:<{width}}" + "".join(f"{int(v):>{width},}" for v in row) for n, row in zip(short, matrix, strict=True)
    ]
    return lines
