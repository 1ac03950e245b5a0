"""How well the text that belongs to another is found among those of its group."""

import torch
from torch import Tensor

from lit_tune.metrics.streaming import StreamingMetric, ratio


class Retrieval(StreamingMetric):
    """Share of texts that are found first (``accuracy``, recall at 1), and mean reciprocal rank (``mrr``).

    >>> found = Retrieval()
    >>> found.update(torch.tensor([1, 2, 4]))
    >>> {name: round(float(value), 4) for name, value in found.compute().items()}
    {'accuracy': 0.3333, 'mrr': 0.5833}
    """

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, places: Tensor) -> None:
        """Add a batch.

        Args:
            places: (B,) place of what was looked for, 1 is the first.
        """
        found = self.place(places.detach(), torch.float64)
        first = (found == 1).to(found.dtype).sum()
        self.sums = self.sums + torch.stack([first, found.reciprocal().sum(), torch.ones_like(found).sum()])

    def compute(self) -> dict[str, Tensor]:
        """Name -> 0-dim float64 on the CPU; NaN of nothing."""
        first, reciprocal, count = self.sums.cpu()
        return {"accuracy": ratio(first, count, torch.nan), "mrr": ratio(reciprocal, count, torch.nan)}
