"""The test report of a tagger, as text for a terminal."""

from typing import Any

import torch

from lit_tune.metrics import scalars
from lit_tune.tasks.base import Spec
from lit_tune.tasks.classification_report import number, totals


def entity_report(computed: dict[str, Any], spec: Spec) -> str:
    """Totals, and a line per entity type.

    Args:
        computed: What the metric collection computed; ``f1/<type>`` and its like, ``entity_counts`` (3, K).
        spec: The baseline.
    """
    values = scalars(computed)
    lines = totals(values, spec)
    kinds = [name.removeprefix("f1/") for name in values if name.startswith("f1/")]
    counts = torch.as_tensor(computed["entity_counts"]).tolist()
    if not kinds:
        return "\n".join(lines)
    width = max(8, *(len(kind) for kind in kinds)) + 2
    lines += ["", f"{'entity':<{width}}{'precision':>10}{'recall':>10}{'f1':>10}{'support':>10}{'predicted':>11}"]
    for i, kind in enumerate(kinds):
        cells = "".join(f"{number(values[f'{name}/{kind}']):>10}" for name in ("precision", "recall", "f1"))
        lines.append(f"{kind:<{width}}{cells}{counts[2][i]:>10,}{counts[1][i]:>11,}")
    return "\n".join(lines)
