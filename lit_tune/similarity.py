"""Cosines of embeddings and what is learned from them, as (sum, denominator) like ``losses``.

Shapes: B pairs that are scored together (a group), C candidates of each anchor, K texts per row, H hidden.
"""

import torch
from torch import Tensor
from torch.nn import functional

LossParts = tuple[Tensor, Tensor]
"""(Sum of the losses, denominator), both 0-dim."""


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """(B,) cosine of each pair, (B, H) both; in full precision, also under autocast."""
    first, second = _unit(first), _unit(second)
    return (first * second).sum(-1)


def cosine_matrix(anchors: Tensor, candidates: Tensor) -> Tensor:
    """(B, C) cosines of all anchors (B, H) with all candidates (C, H).

    A product in bfloat16 would have 3 digits, which a scale of 20 makes 0.1 of a logit: autocast is off.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        return _unit(anchors) @ _unit(candidates).T


def known_positives(keys: Tensor) -> Tensor:
    """Which candidates are no negatives of an anchor, because the group itself says that they belong to it.

    Candidates are the positives of all rows, then what stands in further columns. Those of an anchor are the positives
    of every row with the same anchor, in whichever row they stand, and the anchor's own text.

    Args:
        keys: (K, B) numbers of the texts, equal where they are the same text: anchors, positives, hard negatives.

    Returns:
        (B, C) with C = (K - 1) * B.

    >>> known_positives(torch.tensor([[0, 0, 1], [2, 3, 4]])).int().tolist()  # rows 0 and 1 share their anchor
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    anchors, positives, candidates = keys[0], keys[1], keys[1:].flatten()
    same_anchor = anchors[:, None] == anchors
    is_positive = positives[:, None] == candidates
    return (same_anchor.double() @ is_positive.double() > 0) | (anchors[:, None] == candidates)


def in_batch_negatives(cosine: Tensor, known: Tensor, scale: float, symmetric: bool = False) -> LossParts:
    """Cross-entropy of finding each anchor's positive among the candidates: InfoNCE, MultipleNegativesRankingLoss.

    Args:
        cosine: (B, C); the positive of anchor i is candidate i.
        known: (B, C) candidates that are not to be told from the positive (:func:`known_positives`).
        scale: What cosines are multiplied with, the inverse of a temperature.
        symmetric: Also find each positive's anchor among the anchors; the mean of both.

    Returns:
        The sum, and B.

    Source: Henderson et al. 2017, section 4.4, https://arxiv.org/abs/1705.00652; symmetric: Radford et al. 2021, CLIP.

    >>> total, count = in_batch_negatives(torch.zeros(2, 2), torch.eye(2).bool(), scale=20.0)
    >>> f"{total / count:.4f}"
    '0.6931'
    """
    size = len(cosine)
    right = torch.arange(size, device=cosine.device)
    logits = scale * _without(cosine, known)
    total = functional.cross_entropy(logits, right, reduction="sum")
    if symmetric:
        back = scale * _without(cosine[:, :size].T, known[:, :size].T)
        total = (total + functional.cross_entropy(back, right, reduction="sum")) / 2
    return total, torch.full_like(total, size)


def places_of_positives(cosine: Tensor, known: Tensor) -> Tensor:
    """(B,) place of each positive among its candidates, 1 is the first; a tie counts against it.

    A model that gives all texts one embedding finds nothing.

    Args:
        cosine: (B, C); the positive of anchor i is candidate i.
        known: (B, C), which do not count, the positive excepted.

    >>> places_of_positives(torch.tensor([[0.9, 0.5], [0.7, 0.7]]), torch.eye(2).bool()).tolist()
    [1, 2]
    """
    others = cosine.masked_fill(known, -torch.inf)
    return 1 + (others >= cosine.diagonal()[:, None]).sum(-1)


def cosent(cosine: Tensor, scores: Tensor, scale: float) -> LossParts:
    """The order of the cosines should be that of the scores: ``log(1 + sum exp(scale (c_j - c_i)))`` where s_i > s_j.

    Args:
        cosine: (B,) of the pairs of a group.
        scores: (B,).
        scale: What cosines are multiplied with.

    Returns:
        The loss of the group, and 1.

    Source: https://kexue.fm/archives/8847.
    """
    differences = scale * (cosine[None, :] - cosine[:, None])
    counts = scores[:, None] > scores[None, :]
    terms = differences.masked_fill(~counts, -torch.inf).flatten()
    loss = torch.cat([terms.new_zeros(1), terms]).logsumexp(0)
    return loss, torch.ones_like(loss)


def _unit(embeddings: Tensor) -> Tensor:
    full = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    return functional.normalize(full, dim=-1)


def _without(cosine: Tensor, known: Tensor) -> Tensor:
    """Minus infinity for what is known, the positive on the diagonal excepted."""
    own = torch.eye(*cosine.shape, dtype=torch.bool, device=cosine.device)
    return cosine.masked_fill(known & ~own, -torch.inf)
