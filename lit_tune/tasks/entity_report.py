"""What a tagger has found, as text for a terminal and as records for predict."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lit_tune.metrics import scalars
from lit_tune.tasks.base import Spec
from lit_tune.tasks.classification_report import number, totals
from lit_tune.tasks.word_tokens import UNREAD


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


def sentence_record(words: list[str], row: list[np.ndarray], names: list[str], types: Sequence[str]) -> dict[str, Any]:
    """What is predicted for a sentence.

    Args:
        words: Its words.
        row: (W,) each: tags, their probabilities; where entities begin, end, and of which type.
        names: Tags in the order of their ids, and at the end that of words that are not read.
        types: Names of the entity types.
    """
    tags, scores, begins, ends, kinds = row
    tags, is_read = tags[: len(words)], tags[: len(words)] != UNREAD
    found = [
        {
            "type": types[kinds[start]],
            "text": " ".join(words[start : ends[start]]),
            "start": start,
            "end": int(ends[start]),
            "score": float(scores[start : ends[start]].mean(dtype=np.float64)),
        }
        for start in np.flatnonzero(begins).tolist()
    ]
    score = float(scores[: len(words)][is_read].mean(dtype=np.float64)) if is_read.any() else 0.0
    return {
        "entities": found,
        "tags": [names[tag] for tag in tags],
        "score": score,
        "unread_words": int((~is_read).sum()),
    }
