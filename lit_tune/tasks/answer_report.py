"""The test report of question answering, as text for a terminal."""

from typing import Any

import torch

from lit_tune.metrics import scalars
from lit_tune.tasks.base import Spec
from lit_tune.tasks.classification_report import number, totals


def answer_report(computed: dict[str, Any], spec: Spec) -> str:
    """Totals, and where questions may have no answer a line for each kind.

    Args:
        computed: What the metric collection computed.
        spec: The baseline.
    """
    values = scalars(computed)
    lines = totals(values, spec)
    if "f1/answerable" not in values:
        return "\n".join(lines)
    counts = torch.as_tensor(computed["question_counts"]).tolist()
    lines += ["", f"{'question':<24}{'exact_match':>12}{'f1':>10}{'count':>10}"]
    exact, f1, right = (values[name] for name in ("exact_match/answerable", "f1/answerable", "accuracy/unanswerable"))
    for name, a, b, count in (("with an answer", exact, f1, counts[0]), ("without", right, right, counts[1])):
        lines.append(f"{name:<24}{number(a):>12}{number(b):>10}{count:>10,}")
    return "\n".join(lines)
