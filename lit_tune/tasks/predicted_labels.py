"""What a classifier's logits say: probabilities, and a record for each row.

Shapes: B examples, C classes (1 for regression).
"""

from typing import Any

from torch import Tensor

from lit_tune.tasks.classification_head import MULTI, REGRESSION
from lit_tune.tasks.spec import Spec


def answer(logits: Tensor, problem_type: str) -> Tensor:
    """Probabilities of logits (B, C), of each label by itself where there are several; numbers as they are."""
    if problem_type == REGRESSION:
        return logits
    return logits.sigmoid() if problem_type == MULTI else logits.softmax(-1)


def label_records(logits: Tensor, spec: Spec, threshold: float) -> list[dict[str, Any]]:
    """One JSON-able record per row.

    Args:
        logits: (B, C).
        spec: The problem and its labels.
        threshold: Probability above which a label counts as predicted, where there are several.
    """
    found = answer(logits, spec.problem_type)
    if spec.problem_type == REGRESSION:
        return [{"prediction": value} for value in found.squeeze(-1).tolist()]
    if spec.problem_type == MULTI:
        return [
            {
                "labels": [n for n, p in zip(spec.label_names, row, strict=True) if p > threshold],
                "probabilities": dict(zip(spec.label_names, row, strict=True)),
            }
            for row in found.tolist()
        ]
    best = logits.argmax(-1).tolist()
    return [
        {"label": spec.label_names[i], "probabilities": dict(zip(spec.label_names, row, strict=True))}
        for i, row in zip(best, found.tolist(), strict=True)
    ]
