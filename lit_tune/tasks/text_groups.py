"""Embeddings of a batch, and which of them are compared with each other.

Shapes: B rows, K texts per row, H hidden, C candidates of an anchor.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from lit_tune import similarity
from lit_tune.tasks.base import Batch


@dataclass(frozen=True)
class Embeddings:
    """What the model gives for a batch.

    Args:
        vectors: (K * B, H), column after column.
    """

    vectors: Tensor


def by_column(outputs: Embeddings, batch: Batch) -> Tensor:
    """(K, B, H)."""
    return outputs.vectors.view(*batch["aside"]["text_keys"].shape, -1)


def groups_of(batch: Batch) -> list[slice]:
    """The rows of each group of a batch; the last may be smaller."""
    size, count = batch["aside"]["group_rows"], batch["aside"]["text_keys"].shape[1]
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def compared(texts: Tensor, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each group the cosines of anchors and candidates, (B, C), and which of these are no negatives."""
    for group in groups_of(batch):
        known = similarity.known_positives(batch["aside"]["text_keys"][:, group])
        yield similarity.cosine_matrix(texts[0, group], texts[1:, group].flatten(0, 1)), known
