"""Models of an encoder and a decoder: which they are, and what their decoder reads.

Shapes: N targets, U tokens of a target.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from lit_tune.errors import ModelError
from lit_tune.losses import IGNORE_INDEX
from lit_tune.models.positions import num_positions


def require_decoder(config: PretrainedConfig) -> None:
    """Refuse a model that is not made of an encoder and a decoder.

    Raises:
        ModelError: It has one of them only.
    """
    if config.is_encoder_decoder:
        return
    reads = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    what = "an encoder alone, which writes nothing" if reads else "a decoder alone"
    task = "SequenceClassification or another one for it" if reads else "InstructionTuning or CausalLM for it"
    raise ModelError(
        f"{config.model_type} is {what}",
        where="model.model_name_or_path",
        fix=f"T5, BART or the like; or task.class_path: {task}",
    )


def check_lengths(config: PretrainedConfig, max_target_length: int, where: str) -> None:
    """Refuse targets for which the decoder has no positions.

    Args:
        config: Of the model.
        max_target_length: Tokens of the longest target.
        where: The config key.

    Raises:
        ModelError: It has fewer.
    """
    limit = getattr(config, "max_decoder_position_embeddings", None) or num_positions(config)
    if limit is not None and max_target_length > limit:
        raise ModelError(
            f"{max_target_length} is more than the {limit} tokens this model can write",
            where=where,
            fix=f"{where}: {limit}",
        )


def require_start(model: PreTrainedModel) -> None:
    """Refuse a model of which nobody knows how a text begins.

    Raises:
        ModelError: It names no token for it.
    """
    if start_token(model.config) is None and start_token(model.generation_config) is None:
        raise ModelError(
            f"{type(model).__name__} has no decoder_start_token_id in its config: nothing to begin a text with",
            where="model.model_name_or_path",
            fix="add it to config.json; of mBART set task.init_args.tgt_lang",
        )


def start_token(config: Any) -> int | None:
    """The token that the decoder reads first."""
    return getattr(config, "decoder_start_token_id", None)


def decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    """What the decoder reads: the labels one place to the right, as the model's own class does it.

    Args:
        model: M2M100 and Blenderbot have no method for it, and do what is done here.
        labels: (N, U), -100 in padding.

    Returns:
        (N, U) tokens.
    """
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        shifted: Tensor = own(labels=labels)
        return shifted
    pad, start = model.config.pad_token_id, start_token(model.config)
    assert start is not None
    shifted = torch.full_like(labels, start)
    shifted[:, 1:] = torch.where(labels == IGNORE_INDEX, pad, labels)[:, :-1]
    return shifted
