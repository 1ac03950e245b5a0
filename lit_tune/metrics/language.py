"""How well tokens are predicted."""

import math

import torch
from torch import Tensor

from lit_tune.metrics.streaming import StreamingMetric, ratio

TOKEN_METRICS = {"perplexity": False, "bits_per_byte": False, "accuracy": True}
"""Name -> whether higher is better."""


class TokenTotals(StreamingMetric):
    """Sums over tokens in float64, so that the scores do not depend on how documents are cut into batches.

    ``perplexity`` is the exponential of the mean loss. ``bits_per_byte`` is the loss of all tokens in bits over the
    bytes of the texts: it can be compared between tokenizers. ``accuracy`` is the share of tokens that were the most
    likely ones.

    >>> totals, labels = TokenTotals(), torch.tensor([[3, 4]])
    >>> totals.update(torch.tensor([[0.5, 1.5]]), torch.tensor([[True, False]]), labels, torch.tensor([8]))
    >>> {name: round(float(value), 4) for name, value in totals.compute().items()}
    {'perplexity': 2.7183, 'bits_per_byte': 0.3607, 'accuracy': 0.5}
    """

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, losses: Tensor, is_right: Tensor, labels: Tensor, text_bytes: Tensor) -> None:
        """Add one batch.

        Args:
            losses: (B, T) in nats, 0 where nothing is predicted.
            is_right: (B, T) whether the likeliest token was it.
            labels: (B, T), negative where nothing is predicted.
            text_bytes: (B,) bytes of the texts.
        """
        parts = (losses.sum(), (labels >= 0).sum(), (is_right & (labels >= 0)).sum(), text_bytes.sum())
        self.sums = self.sums + torch.stack([self.place(part, torch.float64) for part in parts])

    def compute(self) -> dict[str, Tensor]:
        """The scores, 0-dim float64; NaN of nothing."""
        loss, tokens, right, size = self.sums.cpu()
        return {
            "perplexity": ratio(loss, tokens, otherwise=math.nan).exp(),
            "bits_per_byte": ratio(loss / math.log(2), size, otherwise=math.nan),
            "accuracy": ratio(right, tokens, otherwise=math.nan),
        }
