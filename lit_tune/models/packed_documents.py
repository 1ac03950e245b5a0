"""Whether a decoder keeps documents apart that stand one after another in a row.

transformers (5.23) finds them by ``position_ids`` that begin again, where no attention mask is given: attention becomes
block-diagonal in eager, SDPA and flash kernels, and positions are those of each document. Not every model does so.
"""

import inspect
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from lit_tune.errors import ModelError
from lit_tune.models.freezing import evaluating

LOOK_ACROSS = (
    *("bert", "bert-generation", "biogpt", "camembert", "data2vec-text", "electra", "falcon", "megatron-bert"),
    *("openai-gpt", "opt", "rembert", "roberta", "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl"),
)
"""Kinds of models that take ``position_ids`` and yet attend across documents, or are not known to do otherwise: bert,
biogpt, falcon, openai-gpt, opt and roberta were measured, the others are built like bert and roberta."""
KEY = "task.init_args.packing"
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
"""Largest difference, relative to the largest logit; other dtypes: 0.05. A model that looks across differs by far more
than that in all of its logits, and rounding in float32 stays below 1e-5."""
PROBE_TOKENS = 8


def why_not_packed(config: PretrainedConfig) -> str | None:
    """What keeps documents of this architecture from being packed; None where nothing is known to.

    A function of the config alone: the same run is packed in the same way whenever it goes on.
    """
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if config.model_type in LOOK_ACROSS:
        return f"{config.model_type} models attend across documents"
    if model_class is None:
        return f"nothing is known of {config.model_type} models"
    if getattr(model_class, "_is_stateful", False):
        return f"the state of a {config.model_type} model runs on from one document into the next"
    if "position_ids" not in inspect.signature(model_class.forward).parameters:
        return f"{config.model_type} models take no positions"
    return None


@torch.no_grad()
def check_apart(model: PreTrainedModel) -> None:
    """Two short documents packed and alone: the second one must not change with the first, nor with being packed.

    Raises:
        ModelError: It does.
    """
    device = next(model.parameters()).device
    if "flash" in str(model.config._attn_implementation) and device.type == "cpu":
        return  # these kernels run on GPUs only, and take the documents apart by themselves
    vocabulary = int(model.config.get_text_config().vocab_size)
    one, other, second = ((torch.arange(PROBE_TOKENS) * step + step) % vocabulary for step in (3, 5, 7))
    with evaluating(model):
        packed, changed = (_logits(model, (first, second), device) for first in (one, other))
        alone = _logits(model, (second,), device)
    scale = float(alone.abs().max())
    difference = max(float((found - alone).abs().max()) for found in (packed, changed))
    if not difference <= TOLERANCE.get(model.dtype, 0.05) * max(scale, 1e-6):
        raise ModelError(
            f"{type(model).__name__} does not keep packed documents apart: logits differ by {difference:.2g}",
            where=KEY,
            fix=f"{KEY}: false",
        )


def _logits(model: PreTrainedModel, documents: tuple[torch.Tensor, ...], device: torch.device) -> torch.Tensor:
    """Logits of the last document of a row."""
    ids = torch.cat(documents)[None].to(device)
    positions = torch.cat([torch.arange(len(d)) for d in documents])[None].to(device)
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return logits[0, -PROBE_TOKENS:].double()
