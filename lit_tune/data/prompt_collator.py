"""Conversations in blocks and prompts -> tensors.

Shapes: B blocks, R prompts, P tokens of a prompt.
"""

from dataclasses import dataclass
from typing import Any

from lit_tune.data.collators import BlockCollator, Padding, pad
from lit_tune.data.documents import IDS
from lit_tune.data.prompts import PROMPT, REFERENCE


@dataclass(frozen=True)
class PromptCollator:
    """Pads blocks as :class:`BlockCollator` does, and prompts to the left, so that each ends where its answer begins.

    The first rows of a batch may have prompts. Under ``aside`` stand ``prompts``, what ``generate`` is given (R, P),
    and ``references``, R texts. Rows with nothing else, those of predict, have no labels.

    Args:
        padding: How rows become a rectangle.
    """

    padding: Padding

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """B features -> a batch under HF's names."""
        batch = BlockCollator(self.padding)(features) if IDS in features[0] else {"aside": {}}
        prompted = [f for f in features if PROMPT in f]
        if prompted:
            ids = [f[PROMPT] for f in prompted]
            width = max(1, *map(len, ids))
            batch["aside"]["prompts"] = {
                IDS: pad(ids, self.padding.pad_token_id, width, "left"),
                "attention_mask": pad([[1] * len(row) for row in ids], 0, width, "left"),
            }
            batch["aside"]["references"] = [f[REFERENCE] for f in prompted]
        return batch
