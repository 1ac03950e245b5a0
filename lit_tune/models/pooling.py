"""One vector for a text from those of its tokens.

Shapes: N texts, T tokens, H hidden.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Pooling = Literal["mean", "cls", "last", "max"]


def pool(hidden: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """(N, H) in full precision; padding on either side changes nothing.

    Args:
        hidden: (N, T, H).
        mask: (N, T), 1 for tokens of the text.
        how: Mean, first, last or elementwise greatest of the tokens.

    >>> hidden, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])
    >>> [pool(hidden, mask, how).item() for how in ("mean", "cls", "last", "max")]
    [2.0, 1.0, 3.0, 3.0]
    """
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    if how == "mean":
        weights = mask.to(hidden)[..., None]
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    if how == "max":
        return hidden.masked_fill(mask[..., None] == 0, torch.finfo(hidden.dtype).min).amax(1)
    # the first 1, or the last one counted from the end
    place = mask.argmax(1) if how == "cls" else mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), place]


def embed_in_parts(embed: Callable[[dict[str, Tensor]], Tensor], inputs: dict[str, Tensor], size: int | None) -> Tensor:
    """Embeddings of all texts, computed from so many at a time, and again in the backward pass.

    Gradient caching (Gao et al. 2021, https://arxiv.org/abs/2101.06983): the encoder keeps for the backward pass what
    belongs to ``size`` texts, however many are compared with each other.

    Args:
        embed: (n, T) tensors -> (n, H).
        inputs: (N, T) tensors.
        size: n; None for all at once.

    Returns:
        (N, H).
    """
    total = len(next(iter(inputs.values())))
    if size is None or size >= total:
        return embed(inputs)
    parts = ({name: t[start : start + size] for name, t in inputs.items()} for start in range(0, total, size))
    if not torch.is_grad_enabled():
        return torch.cat([embed(part) for part in parts])
    return torch.cat([checkpoint(embed, part, use_reentrant=False) for part in parts])
