"""Hashes of weights: which base model something was trained on, without a copy of it."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from torch import nn

from lit_tune.errors import ModelError
from lit_tune.models.layers import is_packed

Reference = dict[str, list[str]]
"""Parameter name -> [data type, hash]."""

STORED = "stored:"
"""Begins the names of tensors as they are in the files: of a model that is quantized when it is loaded, whose packed
weights depend on the processor that packs them."""


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


def reference_of_files(files: Iterable[Path]) -> Reference:
    """Type and hash of each tensor in safetensors files, one of them in memory at a time.

    Args:
        files: Of the base model.
    """
    found: Reference = {}
    for path in files:
        with safe_open(str(path), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_tensor(name)
                found[STORED + name] = [dtype_name(tensor), digest_of(tensor)]
    return found


def is_stored(reference: Reference) -> bool:
    """Whether a reference is that of files."""
    return any(name.startswith(STORED) for name in reference)


def check_base(model: nn.Module, reference: Reference, name: str, stored: Reference) -> None:
    """Compare a base model with the one that something was trained on.

    Args:
        model: As it was loaded. Layers that were quantized then are passed by: the files hold what can be compared.
        reference: From :func:`reference_of` or :func:`reference_of_files`.
        name: Of the base model, for the message.
        stored: From :func:`reference_of_files`, where ``reference`` is.

    Raises:
        ModelError: It is another one.
    """
    own, packed = dict(model.named_parameters()), packed_layers(model)
    for parameter, (dtype, digest) in reference.items():
        if parameter.startswith(STORED):
            is_same = stored.get(parameter) == [dtype, digest]
        elif parameter.rpartition(".")[0] in packed:
            continue
        else:
            is_same = parameter in own and digest_of(own[parameter].to(getattr(torch, dtype))) == digest
        if not is_same:
            told = parameter.removeprefix(STORED)
            raise ModelError(
                f"the base model {name} has changed: {told} is not what the adapter was trained on",
                where="model.model_name_or_path",
                fix="put the base model back as it was, or train the adapter again with `lit-tune fit --overwrite`",
            )


def packed_layers(model: nn.Module) -> set[str]:
    """Names of modules whose weights are quantized."""
    return {name.rpartition(".")[0] for name, parameter in model.named_parameters() if is_packed(parameter)}
