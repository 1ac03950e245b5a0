"""Scaling and clipping gradients in one pass over them."""

import torch

from lit_tune.errors import ConfigError


def scale_and_clip(
    gradients: list[torch.Tensor], factor: torch.Tensor, clip_val: float | None, algorithm: str | None
) -> torch.Tensor:
    """Multiply gradients by ``factor`` and clip them, in one pass; returns the norm before clipping (0-dim).

    Args:
        gradients: Changed in place.
        factor: 0-dim.
        clip_val: Largest norm, or with ``algorithm="value"`` the largest magnitude of an entry; None or 0 is off.
        algorithm: ``norm`` (default) or ``value``.

    Raises:
        ConfigError: There is no gradient at all.
    """
    if not gradients:
        raise ConfigError("no parameter is trained", where="model.freeze", fix="freeze less")
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))) * factor.abs()
    scale = factor
    if clip_val and algorithm != "value":
        scale = factor * torch.clamp(clip_val / (norm + 1e-6), max=1.0)  # 1e-6 as torch.nn.utils.clip_grad_norm_
    torch._foreach_mul_(
        gradients, scale.to(gradients[0].dtype) if scale.device == gradients[0].device else float(scale)
    )
    if clip_val and algorithm == "value":
        torch._foreach_clamp_min_(gradients, -clip_val)
        torch._foreach_clamp_max_(gradients, clip_val)
    return norm
