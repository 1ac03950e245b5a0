"""Config, tokenizer and weights of a Hugging Face model, with errors a person can act on.

safetensors only and never remote code: a model repository is data, not a program.
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from lit_tune import hub_access
from lit_tune.errors import ConfigError, LitTuneError, ModelError, nearest
from lit_tune.models import text_cnn
from lit_tune.models.adapter_folders import whose_config, whose_tokenizer
from lit_tune.models.detours import refuse_detours, refuse_kernels
from lit_tune.models.layers import head_parameter_names, size_of
from lit_tune.models.load_errors import KEY, explain, first_line
from lit_tune.models.remote_code import code_options, code_options_of_config
from lit_tune.models.text_cnn import TextCnnConfig

log = logging.getLogger("lit_tune")
hf_logging.disable_progress_bar()
# transformers 5.23 would send the model's name and the user's token to a service that opens a pull request on the Hub
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")


def quiet_transformers() -> None:
    """Errors only: what matters of its load report is said in one line of ours."""
    hf_logging.set_verbosity_error()


def ask_hub_first(name: str) -> None:
    """Before something is read that may be on the Hub."""
    if not os.path.isdir(name):
        hub_access.is_reachable()


def load_config(
    name: str,
    revision: str | None = None,
    overrides: dict[str, Any] | None = None,
    config_class: type[PretrainedConfig] | None = None,
) -> PretrainedConfig:
    """The model's config with fields changed.

    Args:
        name: Hub id or folder.
        revision: Branch, tag or commit.
        overrides: Field -> value; any field of the config.
        config_class: What it is read as, whatever model it is of; default: what it says.

    Raises:
        ModelError: Not found, gated, offline, or not a model.
        ConfigError: A field the config does not have.
    """
    quiet_transformers()
    name, revision = whose_config(name, revision)
    config = TextCnnConfig() if text_cnn.is_new(name) else read_config(name, revision, config_class)
    for key, value in (overrides or {}).items():
        if not hasattr(config, key):
            known = sorted(k for k in config.to_dict() if not k.startswith("_"))
            close = nearest(key, known)
            raise ConfigError(
                f"{type(config).__name__} has no field {key!r}",
                where="model.config_overrides",
                fix=f"model.config_overrides.{close}" if close else f"one of {', '.join(known[:12])} ...",
            )
        try:
            setattr(config, key, value)
        except (StrictDataclassError, ValueError, TypeError) as e:
            raise ConfigError(
                f"{type(config).__name__} does not take {value!r}: {first_line(str(e).splitlines()[-1])}",
                where=f"model.config_overrides.{key}",
                fix=f"a value like the model's own: {getattr(config, key)!r}",
            ) from e
    refuse_kernels(config, name, KEY)
    return config


def read_config(
    name: str, revision: str | None, config_class: type[PretrainedConfig] | None = None
) -> PretrainedConfig:
    """The config as it is stored.

    Raises:
        ModelError: Not found, gated, offline, or not a model.
    """
    ask_hub_first(name)
    try:
        if config_class is not None:
            return config_class.from_pretrained(name, revision=revision or "main")
        return AutoConfig.from_pretrained(name, revision=revision, **code_options(name, revision, KEY))
    except LitTuneError:
        raise
    except Exception as e:
        raise explain(e, name, revision) from e


def load_tokenizer(name: str, revision: str | None = None, key: str = KEY) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Args:
        name: Hub id or folder.
        revision: Branch, tag or commit.
        key: Config key that holds the name.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    quiet_transformers()
    name, revision = whose_tokenizer(name, revision)
    ask_hub_first(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, **code_options(name, revision, key))
    except LitTuneError:
        raise
    except Exception as e:
        error = explain(e, name, revision, key)
        if Path(name).is_dir() and (key != KEY or (Path(name) / "config.json").is_file()):
            error = ModelError(
                f"{name} has no usable tokenizer: {first_line(str(e))}", where=key, fix="data.tokenizer: where it is"
            )
        raise error from e
    # where there are no files transformers 5 makes a tokenizer that knows its special tokens and no word
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelError(f"{name} has no tokenizer", where=key, fix="data.tokenizer: where it is")
    return tokenizer


@dataclass(frozen=True)
class LoadReport:
    """What loading did. ``new_parameters`` were not in the weights and start from random values."""

    new_parameters: list[str]
    unused_parameters: list[str]


def build_model(
    auto_class: Any,
    name: str,
    config: PretrainedConfig,
    *,
    revision: str | None = None,
    from_scratch: bool = False,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    new_head: bool = False,
    storage: Mapping[str, Any] = {},
) -> tuple[PreTrainedModel, LoadReport]:
    """The model with its head, in eval mode as transformers gives it.

    Args:
        auto_class: HF Auto class of the task.
        name: Hub id or folder.
        config: From :func:`load_config`, with the labels set.
        revision: Branch, tag or commit.
        from_scratch: Random weights.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto`` (as stored).
        attn_implementation: Attention kernel.
        new_head: The head in the weights is replaced by a random one, whatever its size.
        storage: Arguments of ``from_pretrained`` that quantize.

    Raises:
        ModelError: Weights that cannot be read or do not fit, or an attention kernel the model lacks.
    """
    quiet_transformers()
    if Path(name).is_dir() and not from_scratch:
        refuse_detours(Path(name), KEY)
    from_scratch = from_scratch or text_cnn.is_new(name)
    torch_dtype: Any = getattr(torch, dtype, dtype)  # "auto" is none of torch's
    code = code_options(name, revision, KEY)
    options = {**storage} | ({"attn_implementation": attn_implementation} if attn_implementation else {})
    try:
        if from_scratch:
            code = code_options_of_config(auto_class, config, code)
            model = auto_class.from_config(config, dtype=None if dtype == "auto" else torch_dtype, **code, **options)
            return model, LoadReport([], [])
        model, info = auto_class.from_pretrained(
            name,
            config=config,
            revision=revision,
            dtype=torch_dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # transformers would only say that there are some
            output_loading_info=True,
            **code,
            **options,
        )
    except Exception as e:
        if attn_implementation and isinstance(e, ImportError | ValueError) and re.search("(?i)attention|attn", str(e)):
            raise ModelError(
                f"{type(config).__name__} cannot use {attn_implementation!r} here: {str(e).splitlines()[0][:200]}",
                where="model.attn_implementation",
                fix="sdpa or eager",
            ) from e
        raise explain(e, name, revision) from e
    return model, check_loaded(model, info, new_head, name)


def check_loaded(model: PreTrainedModel, info: dict[str, Any], new_head: bool, name: str) -> LoadReport:
    """Refuse weights that do not fit, renew the head where that is wanted, and say which parameters are new."""
    head = head_parameter_names(model)
    refuse_other_shapes(info["mismatched_keys"], head if new_head else set(), head, name)
    new = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
    if new_head:
        new |= renew_head(model, head)
    return LoadReport(sorted(new), sorted(info["unexpected_keys"]))


def refuse_other_shapes(mismatched: Iterable[tuple[Any, ...]], allowed: set[str], head: set[str], name: str) -> None:
    """Weights of another shape than the model's are an error, except those that are replaced anyway.

    Args:
        mismatched: (parameter, shape in the weights, shape in the model).
        allowed: Parameters that may differ.
        head: Parameters of the head.
        name: Of the model, for messages.
    """
    wrong = sorted((entry for entry in mismatched if entry[0] not in allowed), key=lambda entry: entry[0])
    if not wrong:
        return
    key, stored, wanted = wrong[0]
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    of_head = all(entry[0] in head for entry in wrong)
    raise ModelError(
        f"{key} is {tuple(stored)} in the weights of {name} and {tuple(wanted)} in the model{more}",
        where="model.new_head" if of_head else "model.config_overrides",
        fix="model.new_head: true replaces the head" if of_head else "leave the sizes, or model.from_scratch: true",
    )


def renew_head(model: PreTrainedModel, head: set[str]) -> set[str]:
    """Give the head random weights as its architecture initialises them; returns the names of its parameters.

    transformers keeps a trained head of the same size: labels of another meaning would start from its guesses.
    """

    def visit(path: str, module: nn.Module) -> None:
        for child_name, child in module.named_children():
            visit(f"{path}.{child_name}" if path else child_name, child)
        names = [f"{path}.{n}" if path else n for n, _ in module.named_parameters()]
        if names and head.issuperset(names):
            for parameter in module.parameters():
                parameter._is_hf_initialized = False  # type: ignore[attr-defined]  # else initialisers pass it by
            model._init_weights(module)

    visit("", model)
    return head


def recompute_activations(model: PreTrainedModel) -> None:
    """Gradient checkpointing: layers run again in the backward pass instead of keeping what they computed.

    Raises:
        ConfigError: This architecture cannot.
    """
    # transformers renamed it on the way from 5.3 to 5.23
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as e:
        raise ConfigError(
            f"{type(model).__name__} cannot recompute its activations",
            where="model.gradient_checkpointing",
            fix="false",
        ) from e


def set_pad_token(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> str | None:
    """Give a decoder without a pad token one; returns the sentence to say, or None where there was one.

    A classifier of the GPT-2 kind reads the last token that is not padding, found by ``config.pad_token_id``: so both
    sides must agree. An existing token is taken (unk, else eos), because a new one would need a new embedding row.

    Raises:
        ModelError: A tokenizer without any special token.
    """
    said = None
    if tokenizer.pad_token_id is None:
        token = tokenizer.unk_token if tokenizer.unk_token != tokenizer.eos_token else None
        token = token or tokenizer.eos_token
        if token is None:
            raise ModelError(
                "the tokenizer has no pad, unk or eos token", where="data.tokenizer", fix="add a pad token"
            )
        tokenizer.pad_token = token
        said = f"pad token: the tokenizer has none, {token!r} (id {tokenizer.pad_token_id}) is used and saved with it"
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    return said


def fit_to_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, from_scratch: bool = False) -> None:
    """A pad token for both, and in a model that starts from nothing a vector for each token there is."""
    set_pad_token(tokenizer, config)
    if isinstance(config, TextCnnConfig):
        config.vocab_size = len(tokenizer)
    elif from_scratch:
        text: Any = config.get_text_config()
        text.vocab_size = max(getattr(text, "vocab_size", 0), len(tokenizer))


def describe_model(model: PreTrainedModel) -> str:
    """Class, size and dtype, in one line."""
    total = sum(map(size_of, model.parameters()))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    dtype = str(model.dtype).removeprefix("torch.")
    return f"{type(model).__name__}: {total:,} parameters, {trained:,} trained, {dtype}"


def refuse_new_parameters(report: LoadReport, name: str, fitting: bool) -> None:
    """Refuse to evaluate with weights that are random.

    Args:
        report: What :func:`build_model` found.
        name: The model.
        fitting: They are going to be trained.

    Raises:
        ModelError: They are not.
    """
    if report.new_parameters and not fitting:
        raise ModelError(
            f"{name} has no trained head ({report.new_parameters[0]} is missing)",
            where="model.model_name_or_path",
            fix="train it first with `lit-tune fit`, or give the config.yaml of a finished run",
        )
