"""Texts that a model writes: settings under transformers' names, checked before a run, and one call for any model.

Shapes: R rows, P tokens of a prompt, N new tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_tune.errors import ConfigError, nearest
from lit_tune.models.positions import max_positions

SETTINGS: dict[str, tuple[type, ...]] = {
    "max_new_tokens": (int,),
    "min_new_tokens": (int,),
    "num_beams": (int,),
    "early_stopping": (bool, str),
    "length_penalty": (float, int),
    "no_repeat_ngram_size": (int,),
    "encoder_no_repeat_ngram_size": (int,),
    "repetition_penalty": (float, int),
    "do_sample": (bool,),
    "temperature": (float, int),
    "top_k": (int,),
    "top_p": (float, int),
    "min_p": (float, int),
    "typical_p": (float, int),
}
"""What may be set -> its types. Others name files, code or tensors, or are the tokenizer's to say."""


def generation_settings(given: Mapping[str, Any] | None, where: str, **defaults: Any) -> dict[str, Any]:
    """Settings of a config, over the defaults of a task.

    Args:
        given: Name of transformers' GenerationConfig -> value.
        where: The config key.
        **defaults: Of the task.

    Raises:
        ConfigError: An unknown name, a value of another type, or values that transformers refuses.
    """
    for name, value in (given or {}).items():
        if name not in SETTINGS:
            close = nearest(name, list(SETTINGS))
            fix = f"{where}.{close}" if close else f"one of {', '.join(SETTINGS)}"
            raise ConfigError(f"generation has no setting {name!r} here", where=where, fix=fix)
        types = SETTINGS[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            kind = " or ".join(t.__name__ for t in types)
            raise ConfigError(f"{value!r} is no {kind}", where=f"{where}.{name}", fix=f"a value of type {kind}")
    settings = {**defaults, **(given or {})}
    try:
        GenerationConfig(**settings).validate(strict=True)
    except (ValueError, TypeError) as error:
        raise ConfigError(_reason(error), where=where, fix="leave out what does not go together") from error
    return settings


def _reason(error: Exception) -> str:
    """The part of transformers' message that says what is wrong."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    wanted = (line for line in lines if line.startswith("`") or "must" in line)
    return next(wanted, lines[0] if lines else type(error).__name__)[:200]


def set_generation(model: PreTrainedModel, settings: Mapping[str, Any], end_tokens: Sequence[int] = ()) -> None:
    """Write the settings into the model's own generation config, so that an export generates as the run did.

    Args:
        model: The model.
        settings: From :func:`generation_settings`.
        end_tokens: Tokens that end a text, beside those the model knows.

    Raises:
        ConfigError: Settings that transformers would not save together.
    """
    config: Any = model.generation_config
    for name, value in settings.items():
        setattr(config, name, value)
    if config.max_length is not None and "max_new_tokens" in settings:
        config.max_length = None  # transformers warns of both
    if not settings.get("do_sample", config.do_sample):
        config.do_sample = False
        for name in ("temperature", "top_k", "top_p", "min_p", "typical_p"):  # a config with them is not saved
            setattr(config, name, None)
    if (config.num_beams or 1) == 1:  # nor one with these, which mean something to beams alone
        config.early_stopping = config.length_penalty = None
    known = config.eos_token_id
    ends = [] if known is None else known if isinstance(known, list) else [known]
    ends = list(dict.fromkeys([*ends, *end_tokens]))
    if ends:
        config.eos_token_id = ends if len(ends) > 1 else ends[0]
    try:
        config.validate(strict=True)
    except ValueError as error:  # else this would come up when the model is saved
        what = f"does not go together with the settings that the model brings: {_reason(error)}"
        raise ConfigError(what, where="task.init_args.generation", fix="set that one, too") from error


@torch.no_grad()
def write_texts(model: PreTrainedModel, inputs: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the model writes after each prompt, or for each source; special tokens and white space around it left out.

    Args:
        model: In eval mode, with its generation config set. A decoder wants its prompts padded to the left.
        inputs: ``input_ids`` and ``attention_mask`` (R, P).
        tokenizer: Of the model.

    Returns:
        R texts.
    """
    ids, options = inputs["input_ids"], {}
    config: Any = model.generation_config
    is_decoder = not model.config.is_encoder_decoder
    limit = max_positions(model.config, tokenizer) if is_decoder else None
    if limit is not None and ids.shape[1] + (config.max_new_tokens or 1) > limit:
        options["max_new_tokens"] = max(1, limit - ids.shape[1])
    generate: Any = model.generate
    written = generate(**inputs, **options, pad_token_id=tokenizer.pad_token_id, use_cache=True, num_return_sequences=1)
    new = written[:, ids.shape[1] :] if is_decoder else written
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
