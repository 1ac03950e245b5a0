"""A model as it is trained or measured: its weights, what is frozen, its adapter, its mode."""

import json
import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lit_tune.errors import ConfigError, ModelError
from lit_tune.models import load
from lit_tune.models.adapter_folders import BASE, WEIGHTS, AdapterFolder, adapter_folder, check_settings
from lit_tune.models.adapter_settings import AdapterSettings
from lit_tune.models.adapters import attach, is_adapted, make_config, without_remarks, wrap
from lit_tune.models.base_reference import Reference, check_base, is_stored, reference_of, reference_of_files
from lit_tune.models.freezing import freeze, train_mode
from lit_tune.models.layers import head_parameter_names
from lit_tune.models.quantization import Quantization, cast_plain, check_training, quantized
from lit_tune.models.remote_code import code_options
from lit_tune.models.vocabulary import KEY as TOKENS_KEY
from lit_tune.models.vocabulary import NO_TOKENS, NewTokens, embed, num_rows
from lit_tune.models.weight_files import find_weights

log = logging.getLogger("lit_tune")

RESULTS_ONLY = ("p_tuning", "prefix_tuning")
"""Kinds of which peft (0.21) saves the virtual tokens alone, and not the layers that made them."""


@dataclass(frozen=True)
class Recipe:
    """How a model is put together; the ``model`` section, read.

    Args:
        name: Hub id or folder, of a model or of an adapter.
        revision: Branch, tag or commit.
        from_scratch: Random weights.
        dtype: Type of the weights.
        attn_implementation: Attention kernel.
        new_head: The head in the weights is replaced.
        recompute: Recompute activations in the backward pass.
        freeze: Patterns of parameters that are not trained.
        adapter: The adapter that is put on it.
        tokens: Tokens that are added to its vocabulary.
        quantization: How the base model's linear layers are kept; None: as numbers of ``dtype``.
    """

    name: str
    revision: str | None = None
    from_scratch: bool = False
    dtype: str = "float32"
    attn_implementation: str | None = None
    new_head: bool = False
    recompute: bool = False
    freeze: tuple[str, ...] = ()
    adapter: AdapterSettings | None = None
    tokens: NewTokens = NO_TOKENS
    quantization: Quantization | None = None

    def folder(self) -> AdapterFolder | None:
        """The adapter that ``name`` holds, if it is one.

        Raises:
            ConfigError: Settings that contradict it.
            ModelError: It cannot be read.
        """
        found = adapter_folder(self.name, self.revision)
        if found is not None:
            check_combination(self, found)
        return found

    def check_training(self, folder: AdapterFolder | None) -> None:
        """Refuse to train quantized weights without an adapter that can read them.

        Args:
            folder: The adapter that ``name`` holds.

        Raises:
            ConfigError: It would.
        """
        if self.quantization is not None:
            new = str(make_config(self.adapter).peft_type.value).lower() if self.adapter else None
            check_training(self.quantization, folder.kind if folder else new)


def check_combination(recipe: Recipe, folder: AdapterFolder) -> None:
    """What does not go together with an adapter that is trained on.

    Raises:
        ConfigError: Something does not.
    """
    refused = [
        (recipe.from_scratch, "model.from_scratch", "would give the adapter a random base model"),
        (recipe.new_head, "model.new_head", "would replace a part of the adapter"),
        (bool(recipe.freeze), "model.freeze", "has no effect: the base model of an adapter is frozen"),
        (bool(recipe.tokens.pieces), "model.add_tokens", "would give the adapter rows that it was not made for"),
    ]
    for applies, where, why in refused:
        if applies:
            raise ConfigError(
                f"{why}; {folder.name} holds an adapter",
                where=where,
                fix="leave it out; or merge the adapter first (`lit-tune export --merge`) and name that folder",
            )
    if recipe.adapter is not None:
        kind = str(make_config(recipe.adapter).peft_type.value)
        check_settings(folder, {"peft_type": kind, **recipe.adapter.asked_for()})


def assemble(
    auto_class: Any, recipe: Recipe, config: PretrainedConfig, fitting: bool, unused: tuple[str, ...] = ()
) -> tuple[PreTrainedModel, Reference, list[str]]:
    """The model in training mode, what its adapter's base model is, and what is random in it.

    Args:
        auto_class: HF Auto class of the task.
        recipe: How.
        config: Of the model, with the labels.
        fitting: It is going to be trained.
        unused: Modules that nothing asks: they are not trained and may have random weights.

    Returns:
        The model; hashes of the base model's weights, empty without adapter; parameters that were in no weights.

    Raises:
        LitTuneError: Weights, patterns or target modules that do not fit.
    """
    folder = recipe.folder()
    if fitting:
        recipe.check_training(folder)
    tokens = recipe.tokens if folder is None else grown_base(config, folder)
    model, report = without_adapter(auto_class, recipe, folder, config, unused)
    new: Collection[str] = [n for n in report.new_parameters if not set(unused) & set(n.split("."))]
    reference: Reference = {}
    if folder is not None or (recipe.adapter is not None and fitting):
        place = (folder.base, folder.revision) if folder else (recipe.name, recipe.revision)
        is_packed = recipe.quantization is not None
        reference = stored(*place) if is_packed else reference_of(model, {*head_parameter_names(model), *new})
    if folder is None and not recipe.from_scratch:
        embed(model, tokens)
    if recipe.recompute:
        load.recompute_activations(model)
    if folder is not None:
        known = stored(folder.base, folder.revision) if is_stored(folder.reference) else {}
        check_base(model, folder.reference, folder.base, known)
        embed(model, tokens)
        if recipe.dtype != "auto":
            to_type = cast_plain if recipe.quantization else nn.Module.to
            to_type(model, getattr(torch, recipe.dtype))
        model, new = put_on(model, folder, new, fitting)
    load.refuse_new_parameters(load.LoadReport([*new], []), recipe.name, fitting)
    if folder is None and recipe.adapter is not None:
        model = attach(model, recipe.adapter, auto_class, recipe.name, recipe.revision, new, tokens)
    if recipe.freeze and fitting:
        freeze(model, list(recipe.freeze))
        if tokens.pieces and not model.get_input_embeddings().weight.requires_grad:
            log.warning(
                "%s: the rows of %d tokens stay the mean of their pieces while the embeddings are frozen. "
                'Fix: model.freeze without them, such as "encoder"',
                TOKENS_KEY,
                len(tokens.pieces),
            )
    train_mode(model, is_whole=is_adapted(model))
    leave_alone(model, unused, report.new_parameters)
    return model, reference, [*new]


def without_adapter(
    auto_class: Any, recipe: Recipe, folder: AdapterFolder | None, config: PretrainedConfig, unused: tuple[str, ...]
) -> tuple[PreTrainedModel, load.LoadReport]:
    """The model as its weights give it, packed where that is asked for."""
    build = partial(
        load.build_model,
        auto_class,
        folder.base if folder else recipe.name,
        config,
        revision=folder.revision if folder else recipe.revision,
        from_scratch=recipe.from_scratch,
        dtype=_dtype_of(folder) or recipe.dtype,
        attn_implementation=recipe.attn_implementation,
        new_head=recipe.new_head,
    )
    if recipe.quantization is None:
        return build()
    return quantized(build, auto_class, config, recipe.quantization, unused)


def stored(name: str, revision: str | None) -> Reference:
    """Hashes of a model's files; empty where their names are unusual."""
    return reference_of_files(find_weights(name, revision).files)


def leave_alone(model: PreTrainedModel, unused: tuple[str, ...], new: Collection[str]) -> None:
    """Keep modules out of training: DDP would wait for gradients that never come.

    Args:
        model: Changed by it.
        unused: Names of modules.
        new: Parameters that the weights lack; of these modules they become 0, the same in each start of a run.
    """
    for name, parameter in model.named_parameters():
        if set(unused) & set(name.split(".")):
            parameter.requires_grad_(False)
            if any(name.endswith(n) for n in new):
                parameter.data.zero_()


def grown_base(config: PretrainedConfig, folder: AdapterFolder) -> NewTokens:
    """The rows that the base model of an adapter lacks, which was trained with added tokens.

    Args:
        config: Of the adapter's folder; its size becomes that of the base model, as its weights are.
        folder: The adapter: it brings the rows.
    """
    wanted, stored = num_rows(config), num_rows(load.read_config(folder.base, folder.revision))
    if wanted is None or stored is None or wanted <= stored:
        return NO_TOKENS
    config.get_text_config().vocab_size = stored
    return NewTokens(wanted)


def put_on(
    model: PreTrainedModel, folder: AdapterFolder, new: Collection[str], trainable: bool
) -> tuple[PreTrainedModel, list[str]]:
    """Put a saved adapter on its base model.

    Args:
        model: The base model.
        folder: The adapter.
        new: Parameters that the base model's weights lack.
        trainable: It is trained on.

    Returns:
        peft's model; those of ``new`` that the adapter does not bring either.

    Raises:
        ModelError: The adapter does not fit.
    """
    from peft.utils import set_peft_model_state_dict

    if trainable and folder.kind in RESULTS_ONLY:
        raise ModelError(
            f"{folder.name} holds the results of {folder.kind}, not its layers, and cannot be trained on",
            where=load.KEY,
            fix="start from its base model, with model.adapter",
        )
    path = folder.path / WEIGHTS
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or cut short", where=load.KEY, fix="copy or download it again") from error
    wrapped: Any = wrap(model, folder.config(trainable), folder.base, folder.revision)
    try:
        found: Any = set_peft_model_state_dict(wrapped, tensors)
    except KeyError as error:
        raise _misfit(folder, f"it lacks {error.args[0]}") from error
    except RuntimeError as error:
        raise _misfit(folder, " ".join(str(error).split())[:200]) from error
    is_prompt = next(iter(wrapped.peft_config.values())).is_prompt_learning
    # virtual tokens are loaded beside the state_dict
    if strange := [key for key in found.unexpected_keys if not (is_prompt and key == "prompt_embeddings")]:
        raise _misfit(folder, f"the model has no {strange[0]}")
    trained = {n for n, p in wrapped.named_parameters() if p.requires_grad and not (is_prompt and "prompt_" in n)}
    if missing := sorted(trained & set(found.missing_keys)):
        raise _misfit(folder, f"it lacks {missing[0]}")
    if trainable:
        log.info("adapter  %s is trained on, over %s", folder.name, folder.base)
    return wrapped, [n for n in new if not any(key.endswith(f".{n}") for key in tensors)]


def save(model: PreTrainedModel, folder: Path, reference: Reference) -> None:
    """Write a model as ``from_pretrained`` loads it; of an adapted one the adapter alone.

    Args:
        model: The model.
        folder: Where to.
        reference: Of the base model.

    Raises:
        OSError: It cannot be written.
    """
    if not is_adapted(model):
        model.save_pretrained(folder)
        return
    wrapped: Any = model
    wrapped.save_pretrained(folder, save_embedding_layers=False)  # "auto" asks the Hub for the base model's config
    base = wrapped.get_base_model()
    base.config.architectures = [type(base).__name__]
    base.config.save_pretrained(folder)
    text = json.dumps({"weights": reference}, indent=1, sort_keys=True)
    (folder / BASE).write_text(text + "\n", "utf-8")


def load_as_anyone(
    auto_class: Any,
    folder: Path,
    dtype: torch.dtype,
    packing: Quantization | None = None,
    unused: tuple[str, ...] = (),
) -> nn.Module:
    """What transformers and peft alone make of a folder that :func:`save` wrote.

    Args:
        auto_class: HF Auto class of the task.
        folder: An adapter's, or that of a whole model.
        dtype: Data type of the weights.
        packing: How the base model was quantized in training; None: it is in full precision.
        unused: Modules that nothing asks.
    """
    adapter = adapter_folder(str(folder))
    if adapter is None:
        code = code_options(str(folder), None, "run_dir")
        return auto_class.from_pretrained(folder, dtype=dtype, use_safetensors=True, **code)
    import peft

    config = load.load_config(str(folder))
    grown = grown_base(config, adapter)
    options = {"revision": adapter.revision, **code_options(adapter.base, adapter.revision, load.KEY)}
    if packing is None:
        base = auto_class.from_pretrained(adapter.base, config=config, dtype=dtype, use_safetensors=True, **options)
    else:
        kind = str(dtype).removeprefix("torch.")
        build = partial(load.build_model, auto_class, adapter.base, config, revision=adapter.revision, dtype=kind)
        base, _ = quantized(build, auto_class, config, packing, unused)
    if grown.size:
        base.resize_token_embeddings(grown.size)
    with without_remarks():
        # adapter_folder refuses one without safetensors, which peft takes where there are any
        return peft.PeftModel.from_pretrained(base, str(folder))


def _dtype_of(folder: AdapterFolder | None) -> str | None:
    """The type in which the base model's weights were hashed."""
    kinds = {dtype for dtype, _ in folder.reference.values()} if folder and not is_stored(folder.reference) else set()
    return kinds.pop() if len(kinds) == 1 else None


def _misfit(folder: AdapterFolder, why: str) -> ModelError:
    return ModelError(
        f"the adapter in {folder.name} does not fit {folder.base} with these labels: {why}",
        where=load.KEY,
        fix="the base model it was trained on, and data with its labels",
    )
