"""Gradients summed over the ranks after the backward pass, instead of during it as DDP does."""

import torch

BUCKET_BYTES = 25 * 2**20
"""As DDP's (torch/nn/parallel/distributed.py, bucket_cap_mb): the sum needs no more memory than this beside them."""


def sum_over_ranks(gradients: list[torch.Tensor]) -> None:
    """Sum in place, in buckets; the same list on every rank.

    Args:
        gradients: One tensor per parameter.
    """
    bucket: list[torch.Tensor] = []
    for i, gradient in enumerate(gradients):
        bucket.append(gradient)
        following = gradients[i + 1] if i + 1 < len(gradients) else None
        size = sum(g.nbytes for g in bucket)
        if following is None or following.dtype != gradient.dtype or size + following.nbytes > BUCKET_BYTES:
            flat = torch.cat([g.reshape(-1) for g in bucket])
            torch.distributed.all_reduce(flat)
            for target, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                target.copy_(part.view_as(target))
            bucket = []
