"""How good written texts are: scores of a text and its reference, averaged."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lit_tune.metrics.streaming import StreamingMetric, ratio

Scorer = Callable[[str, str], float]
"""(Written, reference) -> score; more is better."""


def exact_match(written: str, reference: str) -> float:
    r"""1 where both are the same but for white space, else 0.

    >>> exact_match("42\n", " 42"), exact_match("42", "43")
    (1.0, 0.0)
    """
    return float(written.split() == reference.split())


class TextScores(StreamingMetric):
    """The mean of each scorer over all texts, in float64.

    Args:
        scorers: By name.

    >>> scores = TextScores({"exact_match": exact_match})
    >>> scores.update(["a", "b"], ["a", "c"])
    >>> scores.compute()
    {'exact_match': tensor(0.5000, dtype=torch.float64)}
    """

    sums: Tensor
    count: Tensor

    def __init__(self, scorers: Mapping[str, Scorer]) -> None:
        super().__init__()
        self.scorers = dict(scorers)
        self.add_state("sums", torch.zeros(len(self.scorers), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, written: Sequence[str], references: Sequence[str]) -> None:
        """Add some texts.

        Args:
            written: What the model wrote.
            references: What it should have written.
        """
        pairs = list(zip(written, references, strict=True))
        found = torch.tensor([[float(score(*pair)) for score in self.scorers.values()] for pair in pairs])
        if pairs:
            self.sums = self.sums + self.place(found.double().sum(0), torch.float64)
            self.count = self.count + len(pairs)

    def compute(self) -> dict[str, Tensor]:
        """The means, 0-dim; NaN of nothing."""
        means = ratio(self.sums.cpu(), self.count.cpu(), otherwise=math.nan)
        return dict(zip(self.scorers, means, strict=True))
