"""Weights in another data type: half the bytes, fewer digits."""

from typing import Any

import torch
from torch import Tensor

from lit_tune.errors import NumericsError

WHERE = "--dtype"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative difference of logits that a data type may make: float16 keeps 11 bits of a number (5e-4), bfloat16
8 (4e-3), and a dozen layers add up. MiniLM's (6 layers, a random head)
differ by 2e-3 and 1.2e-2."""


def cast(model: Any, dtype: torch.dtype) -> None:
    """Change the data type of all weights, in place.

    Args:
        model: Any model.
        dtype: ``float32``, ``float16`` or ``bfloat16``.

    Raises:
        NumericsError: A weight is larger than the type can hold, and would become infinite.
    """
    limit = torch.finfo(dtype).max
    for name, tensor in model.state_dict().items():
        largest = float(tensor.abs().max()) if tensor.is_floating_point() and tensor.numel() else 0.0
        if not largest <= limit:
            raise NumericsError(
                f"{name} holds {largest:.4g}, and {name_of(dtype)} ends at {limit:.4g}", where=WHERE, fix=other(dtype)
            )
    model.to(dtype)


def check_cast(found: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """Compare logits before and after.

    Args:
        found: Of the model that was cast, saved and loaded.
        expected: Of the model before.
        dtype: The type it was cast to.

    Returns:
        The relative difference.

    Raises:
        NumericsError: It is larger than the type explains, or not a number.
    """
    difference = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
    if not difference <= TOLERANCE[dtype]:
        raise NumericsError(
            f"in {name_of(dtype)} the model gives other logits (relative difference {difference:.2e}, "
            f"at most {TOLERANCE[dtype]:.0e})",
            where=WHERE,
            fix=other(dtype),
        )
    return difference


def name_of(dtype: torch.dtype) -> str:
    """``float16``, ``bfloat16`` ..."""
    return str(dtype).removeprefix("torch.")


def other(dtype: torch.dtype) -> str:
    """What to do instead."""
    if dtype == torch.float16:
        return "--dtype bfloat16, whose numbers reach as far as float32's"
    return "leave --dtype out"
