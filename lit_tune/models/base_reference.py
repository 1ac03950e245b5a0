"""Hashes of weights: which base model something was trained on, without a copy of it."""

from collections.abc import Collection, Iterator
from typing import Any

import torch
import xxhash
from torch import nn

from lit_tune.errors import ModelError

Reference = dict[str, list[str]]
"""Parameter name -> [data type, hash]."""


def frozen_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that are not trained, under each of their names; those of special storage (quantized) are kept out."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad and type(parameter) is nn.Parameter:
            yield name, parameter


def digest_of(tensor: torch.Tensor) -> str:
    """Hash of shape and bytes.

    >>> digest_of(torch.zeros(2)) == digest_of(torch.zeros(2, 1))
    False
    """
    digest = xxhash.xxh3_128(str(tuple(tensor.shape)).encode())
    content: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest.update(content)
    return digest.hexdigest()


def dtype_name(tensor: torch.Tensor) -> str:
    """``float32``, ``bfloat16`` ..."""
    return str(tensor.dtype).removeprefix("torch.")


def reference_of(model: nn.Module, without: Collection[str]) -> Reference:
    """Type and hash of each parameter; 2 GB/s and more.

    Args:
        model: As it was loaded.
        without: Names of parameters that are not the base model's: the head, and what was new.
    """
    return {n: [dtype_name(p), digest_of(p)] for n, p in model.named_parameters() if n not in without}


def check_base(model: nn.Module, reference: Reference, name: str) -> None:
    """Compare a base model with the one that something was trained on.

    Args:
        model: As it was loaded.
        reference: From :func:`reference_of`.
        name: Of the base model, for the message.

    Raises:
        ModelError: It is another one.
    """
    own = dict(model.named_parameters())
    for parameter, (dtype, digest) in reference.items():
        if parameter not in own or digest_of(own[parameter].to(getattr(torch, dtype))) != digest:
            raise ModelError(
                f"the base model {name} has changed: {parameter} is not what the adapter was trained on",
                where="model.model_name_or_path",
                fix="put the base model back as it was, or train the adapter again with `lit-tune fit --overwrite`",
            )
