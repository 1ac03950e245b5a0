"""Random tokens, and all that a model makes of them: by it one form of a model is compared with another.

Shapes: B rows, N choices, T tokens.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_tune.models.adapters import is_adapted

PROBED = (2, 16)
"""Rows and tokens."""


@torch.inference_mode()
def numbers_of(model: Any, tokenizer: PreTrainedTokenizerBase, has_choices: bool) -> Tensor:
    """All numbers that a model gives for two texts of random tokens, in float64; it is left in eval mode.

    Args:
        model: On the CPU; with or without adapter.
        tokenizer: The tokenizer.
        has_choices: It takes (B, N, T) instead of (B, T).
    """
    model.eval()
    batch = probe(model, tokenizer, *PROBED, has_choices)
    if model.config.is_encoder_decoder and "decoder_input_ids" in parameters_of(model):
        batch["decoder_input_ids"] = batch["input_ids"]
    outputs = model(**batch, **flags(model))
    found = [v for v in outputs.values() if isinstance(v, Tensor) and v.is_floating_point()]
    return torch.cat([value[real(batch, value)].double().flatten() for value in found])


def real(batch: dict[str, Tensor], output: Tensor) -> Tensor:
    """Where an output's numbers mean something: everywhere, or where there is a token and no padding."""
    mask = batch["attention_mask"].bool()
    per_token = output.shape[: mask.ndim] == mask.shape
    return mask if per_token else torch.ones(output.shape[:1], dtype=torch.bool)


def probe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: int, tokens: int, has_choices: bool = False
) -> dict[str, Tensor]:
    """Random tokens under the names that the tokenizer gives and the model takes; rows of several lengths, padded.

    Args:
        model: The model.
        tokenizer: The tokenizer.
        rows: B.
        tokens: T.
        has_choices: (B, N, T), where N is one more than B, else (B, T).
    """
    shape = (rows, rows + 1, tokens) if has_choices else (rows, tokens)
    generator = torch.Generator().manual_seed(rows * 1000 + tokens)
    size = min(int(model.config.get_text_config().vocab_size), len(tokenizer))
    pad = tokenizer.pad_token_id
    ids = torch.randint(0, size, shape, generator=generator)
    ids = torch.where(ids == pad, (ids + 1) % size, ids) if pad is not None else ids
    lengths = torch.randint(max(1, tokens // 2), tokens + 1, shape[:-1], generator=generator)
    lengths.view(-1)[0] = tokens
    place = torch.arange(tokens)
    if tokenizer.padding_side == "left":
        place = place.flip(0)
    mask = (place < lengths.unsqueeze(-1)).long()
    if pad is not None:
        ids = torch.where(mask == 1, ids, pad)
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    takes = parameters_of(model)
    wanted = {"input_ids", "attention_mask", *tokenizer.model_input_names}
    return {name: value for name, value in known.items() if name in wanted and name in takes}


def fitting(shape: tuple[int, int], limit: int | None) -> tuple[int, int]:
    """The shape with no more tokens than the model reads.

    >>> fitting((2, 128), 64), fitting((2, 128), None)
    ((2, 64), (2, 128))
    """
    rows, tokens = shape
    return rows, min(tokens, limit or tokens)


def flags(model: PreTrainedModel) -> dict[str, bool]:
    """A decoder's keys and values are not kept for the next token: the graph reads whole texts."""
    return {"use_cache": False} if "use_cache" in parameters_of(model) else {}


def parameters_of(model: Any) -> Mapping[str, inspect.Parameter]:
    """What a model's forward takes; of an adapted model the base's, which peft hands everything on to."""
    return inspect.signature((model.get_base_model() if is_adapted(model) else model).forward).parameters
