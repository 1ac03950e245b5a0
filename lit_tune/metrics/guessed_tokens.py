"""How well hidden tokens are guessed."""

import math

import torch
from torch import Tensor

from lit_tune.metrics.streaming import StreamingMetric, ratio


class GuessedTokens(StreamingMetric):
    """Perplexity, the exponential of the mean loss of a token, and the share of tokens that were guessed; in float64.

    >>> guessed = GuessedTokens()
    >>> guessed.update(torch.tensor(2.0), torch.tensor(1), torch.tensor(2))
    >>> {name: round(float(value), 4) for name, value in guessed.compute().items()}
    {'perplexity': 2.7183, 'accuracy': 0.5}
    """

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, loss_sum: Tensor, num_right: Tensor, num_tokens: Tensor) -> None:
        """Add one batch.

        Args:
            loss_sum: 0-dim, in nats.
            num_right: 0-dim, tokens that were the likeliest ones.
            num_tokens: 0-dim.
        """
        parts = (loss_sum, num_right, num_tokens)
        self.sums = self.sums + torch.stack([self.place(part.detach(), torch.float64) for part in parts])

    def compute(self) -> dict[str, Tensor]:
        """The scores, 0-dim float64; NaN of nothing."""
        loss, right, tokens = self.sums.cpu()
        return {
            "perplexity": ratio(loss, tokens, otherwise=math.nan).exp(),
            "accuracy": ratio(right, tokens, otherwise=math.nan),
        }
