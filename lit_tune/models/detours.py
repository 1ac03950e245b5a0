"""What a model may bring along besides its config and weights. None of it is run, and none of it is followed."""

import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from lit_tune.errors import ModelError

KERNELS = ("_attn_implementation_internal", "_experts_implementation_internal")
"""Attributes of a config whose ``owner/name`` is a program that transformers downloads and runs (5.23)."""


def refuse_kernels(config: PretrainedConfig, name: str, key: str) -> None:
    """Refuse a config that names code of the Hub: ``attn_implementation`` in a config.json is obeyed.

    Raises:
        ModelError: It does.
    """
    parts: list[Any] = [config, *(getattr(config, sub, None) for sub in type(config).sub_configs)]
    found = [getattr(part, kernel, None) for part in parts for kernel in KERNELS]
    kernel = next((text for text in map(str, found) if "/" in text), None)
    if kernel is not None:
        raise ModelError(
            f"{name} names a kernel of the Hub, {kernel[:80]}: code, which lit-tune never runs",
            where=key,
            fix="remove attn_implementation from its config.json",
        )


def refuse_detours(folder: Path, key: str) -> None:
    """Refuse a folder that leads to weights elsewhere, or to weights that are pickles.

    Raises:
        ModelError: An adapter, or an index that names something else than safetensors files beside it.
    """
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter, where a whole model is needed",
            where=key,
            fix="merge it into its base model (`lit-tune export --merge`), and name that folder",
        )
    for index in folder.glob("*.index.json"):
        try:
            named = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            strange = sorted(n for n in named if Path(n).name != n or Path(n).suffix != ".safetensors")
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
            strange = [index.name]
        if strange and index.name.startswith("model.safetensors"):
            raise ModelError(
                f"{index} names {str(strange[0])[:80]}, which is no safetensors file beside it",
                where=key,
                fix="copy or download the folder again",
            )
