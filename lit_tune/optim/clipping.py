"""The norm of a gradient, and scaling and clipping it in one pass."""

import torch

from lit_tune.errors import ConfigError


def gradient_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Norm of the whole gradient, 0-dim, in float32 or better; not finite where one entry is not.

    Args:
        gradients: One tensor per parameter.

    Raises:
        ConfigError: There is no gradient at all.
    """
    if not gradients:
        raise ConfigError("no parameter is trained", where="model.freeze", fix="freeze less")
    dtype = gradients[0].dtype
    # a norm in 16 bits would have 8 bits of precision, or overflow at 65504
    norms = torch._foreach_norm(gradients, 2, torch.float32 if dtype.itemsize < 4 else dtype)
    return torch.linalg.vector_norm(torch.stack(norms))


def scale_and_clip(
    gradients: list[torch.Tensor], factor: float, norm: float, clip_val: float | None, algorithm: str | None
) -> None:
    """Multiply gradients by ``factor`` and clip them, in one pass.

    Args:
        gradients: Changed in place.
        factor: A finite number.
        norm: Norm of the gradients times ``factor``.
        clip_val: Largest norm, or with ``algorithm="value"`` the largest magnitude of an entry; None or 0 is off.
        algorithm: ``norm`` (default) or ``value``.
    """
    if clip_val and algorithm != "value":
        factor *= min(1.0, clip_val / (norm + 1e-6))  # 1e-6 as torch.nn.utils.clip_grad_norm_
    torch._foreach_mul_(gradients, factor)
    if clip_val and algorithm == "value":
        torch._foreach_clamp_min_(gradients, -clip_val)
        torch._foreach_clamp_max_(gradients, clip_val)
