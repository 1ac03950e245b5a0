"""The loss of a linear output layer over a large vocabulary, with its gradients computed on the way.

The gradient of softmax cross-entropy with respect to the logits is known as soon as the logits are: probabilities less
targets. A chunk of tokens at a time is therefore carried through to the gradients of states and weights, and its logits
are gone before the next one's come. Nothing is computed twice. The idea is that of Liger's FusedLinearCrossEntropy (Hsu
et al. 2024, https://arxiv.org/abs/2410.10989).

Shapes: N tokens, n of a chunk, H hidden, V the vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
"""In float16 gradients need the scale of the loss, which is not known yet: probabilities below 6e-8 would be lost."""


def is_plain(layer: nn.Module) -> bool:
    """Whether a module is a linear layer and nothing else: no adapter, no packed weights, no hook, no other forward."""
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        return False
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not any(hooks) and dtype_of(layer) in DTYPES


def dtype_of(layer: nn.Linear) -> torch.dtype:
    """In which its logits are computed now."""
    kind = layer.weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else layer.weight.dtype


def linear_loss_sum(layer: nn.Linear, states: Tensor, labels: Tensor, label_smoothing: float, chunk: int) -> Tensor:
    """Summed softmax cross-entropy of logits that a layer gives, 0-dim, in nats.

    Args:
        layer: That :func:`is_plain`.
        states: (N, H).
        labels: (N,) int64, each counts.
        label_smoothing: Share of the target mass spread evenly over all tokens, in [0, 1).
        chunk: Most tokens whose logits are in memory at a time.

    >>> layer = nn.Linear(3, 2, bias=False).requires_grad_(False)
    >>> round(float(linear_loss_sum(layer, torch.zeros(4, 3), torch.tensor([0, 1, 1, 0]), 0.0, chunk=3)), 4)
    2.7726
    """
    parts = (layer.weight, layer.bias, labels, label_smoothing, chunk, dtype_of(layer))
    loss: Tensor = _LinearLoss.apply(states, *parts)  # type: ignore[no-untyped-call]
    return loss


class _LinearLoss(torch.autograd.Function):
    """Loss and gradients together; the backward pass multiplies by what the loss was multiplied by."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        smoothing: float,
        chunk: int,
        dtype: torch.dtype,
    ) -> Tensor:
        inputs = zip((states, weight, bias), ctx.needs_input_grad, strict=False)
        ctx.gradients = [torch.zeros_like(t) if needed and t is not None else None for t, needed in inputs]
        total = torch.zeros((), dtype=full(dtype), device=states.device)
        with torch.autocast(states.device.type, enabled=False):
            cast, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
            for start in range(0, len(states), chunk):
                rows = slice(start, start + chunk)
                of_states, of_weight, of_bias = ctx.gradients
                parts = (None if of_states is None else of_states[rows], of_weight, of_bias)
                total += _add_chunk(parts, states[rows].to(dtype), cast, shift, labels[rows, None], smoothing)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: Tensor) -> Any:  # type: ignore[override]
        gradients, ctx.gradients = ctx.gradients, None
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(factor)  # in place: the weights' is as large as they are
        return *gradients, None, None, None, None


def full(dtype: torch.dtype) -> torch.dtype:
    """In which losses are summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _add_chunk(
    gradients: tuple[Tensor | None, ...],
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    smoothing: float,
) -> Tensor:
    """Summed loss of n tokens; its gradients are added to those of their states, of weight and bias.

    At most two matrices (n, V) are there at a time in float32.
    """
    logits = nn.functional.linear(states, weight, bias).to(full(weight.dtype))
    log_p = logits.log_softmax(-1)
    del logits
    even = smoothing / log_p.shape[1]
    loss_sum = (smoothing - 1) * log_p.gather(1, targets).sum() - (even * log_p.sum() if smoothing else 0)
    of_logits = log_p.exp_()  # probabilities, less the targets'
    if smoothing:
        of_logits -= even
    of_logits.scatter_add_(1, targets, torch.full_like(targets, smoothing - 1, dtype=log_p.dtype))
    of_logits = of_logits.to(weight.dtype)
    of_states, of_weight, of_bias = gradients
    if of_states is not None:
        of_states += of_logits @ weight
    if of_weight is not None:
        _add_product(of_weight, of_logits.T, states)
    if of_bias is not None:
        of_bias += of_logits.sum(0)
    return loss_sum


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, without a second matrix of that size where all are of one type."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
