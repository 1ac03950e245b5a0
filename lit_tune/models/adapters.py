"""Adapters of peft on a Hugging Face model: a few trained parameters beside a base that stays as it is.

peft is imported where it is used: its 2 s are for those who have an adapter.
"""

import logging
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lit_tune.errors import ConfigError, ModelError, nearest
from lit_tune.models.adapter_settings import KEY, AdapterSettings
from lit_tune.models.layers import head_parameter_names, size_of
from lit_tune.models.vocabulary import NO_TOKENS, NewTokens

log = logging.getLogger("lit_tune")

TASK_TYPES = {
    "AutoModel": "FEATURE_EXTRACTION",
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
}
"""HF Auto class of a task -> peft's type of task; others have none."""

ALL_LINEAR = "all-linear"
_TARGETS = f"{KEY}.target_modules"
_ALWAYS_SAVED = ("classifier", "score")
"""peft (0.21) adds these names itself where texts or tokens are classified."""
_MAX_SHOWN = 10


def attach(
    model: PreTrainedModel,
    settings: AdapterSettings,
    auto_class: Any,
    name: str,
    revision: str | None,
    new: Collection[str],
    tokens: NewTokens = NO_TOKENS,
) -> PreTrainedModel:
    """Put a new adapter on a model. The head, and whatever else starts from random values, is trained as a whole.

    Args:
        model: As it was loaded; changed by it.
        settings: Which adapter.
        auto_class: HF Auto class of the task.
        name: The base model, a Hub id or a folder: peft notes it in adapter_config.json.
        revision: Branch, tag or commit of the Hub repository.
        new: Names of parameters that were not in the weights.
        tokens: Added tokens: their rows alone are trained, and saved with the adapter.

    Returns:
        peft's model around the one given; the base is frozen.

    Raises:
        ConfigError: Arguments that peft does not take.
        ModelError: Target modules that the model lacks, or that cannot be adapted.
    """
    config = make_config(settings)
    config.task_type = TASK_TYPES.get(getattr(auto_class, "__name__", ""))
    whole = trained_whole(model, new)
    if hasattr(config, "target_modules"):
        choose_targets(config, model, whole)
    config.modules_to_save = list(dict.fromkeys([*(getattr(config, "modules_to_save", None) or []), *whole])) or None
    if tokens.pieces:
        train_rows(config, tokens)
    return wrap(model, config, name, revision)


def train_rows(config: Any, tokens: NewTokens) -> None:
    """Have an adapter train and save the rows of added tokens, of embeddings and of a head that is tied to them.

    Raises:
        ConfigError: Of a kind that cannot.
    """
    if not hasattr(config, "trainable_token_indices"):
        raise ConfigError(
            f"{str(config.peft_type.value).lower()} trains no rows of embeddings: those of added tokens would stay as "
            "they are",
            where=KEY,
            fix="lora, dora or rslora; or leave model.add_tokens out",
        )
    config.trainable_token_indices = sorted(tokens.pieces)
    log.info("adapter  the rows of %d added tokens are trained and saved with it", len(tokens.pieces))


def wrap(model: PreTrainedModel, config: Any, name: str, revision: str | None) -> PreTrainedModel:
    """The peft model of a config around a model.

    Raises:
        ModelError: peft refuses: modules of a kind, or of a size, that it cannot adapt.
    """
    import peft

    saved = [n for n in getattr(config, "modules_to_save", None) or [] if n not in _ALWAYS_SAVED]
    adds_them = config.task_type in ("SEQ_CLS", "TOKEN_CLS")
    config.modules_to_save = saved or None if adds_them else config.modules_to_save
    config.base_model_name_or_path = None  # else peft warns that it takes the model's
    try:
        with without_remarks():
            wrapped: Any = peft.get_peft_model(model, config)
    except Exception as error:  # each tuner has its own classes of error
        said = " ".join(str(error).split())[:300] or type(error).__name__
        what = f"{type(model).__name__} cannot be adapted so: {said}"
        raise ModelError(what, where=KEY, fix=_candidates(model)) from error
    config.base_model_name_or_path = str(Path(name).resolve()) if Path(name).is_dir() else name
    config.revision = revision
    return wrapped


def make_config(settings: AdapterSettings) -> Any:
    """The peft config.

    Raises:
        ConfigError: The class cannot be made with these arguments.
    """
    config_class = settings.config_class()
    try:
        return config_class(**settings.config_arguments())
    except (TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{config_class.__name__}: {said}", where=f"{KEY}.init_args", fix="the arguments that peft documents"
        ) from error


def trained_whole(model: nn.Module, new: Collection[str]) -> list[str]:
    """Modules that are trained and saved as they are: a task's head, and what was not in the weights.

    A head over the vocabulary was trained with the model, and is half of a small one: only what is new of it counts.
    DistilBERT's head has two layers, of which peft alone would leave the first one random for ever. A layer that is
    tied to the embeddings is left out, with its bias: peft would train a copy of it that is tied no more.

    Args:
        model: Without adapter.
        new: Names of parameters that were not in the weights.
    """
    head = head_parameter_names(model)
    if getattr(model, "get_output_embeddings", lambda: None)() is not None:
        head &= set(new)
    trained = {id(p) for n, p in model.named_parameters(remove_duplicate=False) if n in head or n in new}

    def is_own(path: str) -> bool:
        return all(id(p) in trained for p in model.get_submodule(path).parameters())

    names = [next(filter(is_own, paths_to(n)), "") for n in head_in_order(model, head)]
    names += [path for n in new if n not in head and (path := n.rpartition(".")[0]) and is_own(path)]
    return list(dict.fromkeys(n for n in names if n))


def paths_to(parameter: str) -> list[str]:
    """The modules that hold a parameter, the outermost first.

    >>> paths_to("cls.transform.dense.bias")
    ['cls', 'cls.transform', 'cls.transform.dense']
    """
    parts = parameter.split(".")[:-1]
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def head_in_order(model: nn.Module, head: Collection[str]) -> list[str]:
    """The head's parameters in the order of the model."""
    return [name for name, _ in model.named_parameters() if name in head and "." in name]


def choose_targets(config: Any, model: PreTrainedModel, whole: Collection[str]) -> None:
    """Fill in the default of ``target_modules``, and refuse what matches nothing.

    Args:
        config: peft's, changed by it.
        model: Without adapter.
        whole: Names of modules that are trained as they are, which no adapter goes into.

    Raises:
        ModelError: No module has such a name, or there is no default for the architecture.
    """
    targets = config.target_modules
    if isinstance(targets, list | tuple | set):
        for target in sorted(targets):
            if not any(_ends_with(name, target) for name, _ in model.named_modules()):
                raise _unmatched(target, model)
    elif isinstance(targets, str) and targets != ALL_LINEAR:
        try:
            matched = any(re.fullmatch(targets, name) for name, _ in model.named_modules())
        except re.error as error:
            raise ConfigError(
                f"{targets!r} is not a regular expression: {error}", where=_TARGETS, fix="a list of names"
            ) from error
        if not matched:
            raise _unmatched(targets, model)
    elif targets == ALL_LINEAR or not _has_default(config, model.config.model_type):
        if str(config.peft_type.value) == "IA3" and targets is None:
            raise ModelError(
                f"peft has no default for ia3 and {model.config.model_type}", where=_TARGETS, fix=_candidates(model)
            )
        config.target_modules = linear_layers(model, whole)


def linear_layers(model: nn.Module, whole: Collection[str]) -> list[str]:
    """Names that match all linear layers but those trained as they are: last parts where these are enough."""
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    body = [n for n in linear if not any(n == w or n.startswith(f"{w}.") for w in whole)]
    others = set(linear) - set(body)
    last = dict.fromkeys(n.rpartition(".")[2] for n in body)
    return body if any(_ends_with(o, end) for o in others for end in last) else list(last)


def trainable_line(model: Any) -> str:
    """What is trained, and how large a share: one line."""
    config = next(iter(model.peft_config.values()))
    total = sum(map(size_of, model.parameters()))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kind = str(config.peft_type.value).lower()
    if kind == "lora":
        kind = "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"
        kind += f" r {config.r}, alpha {config.lora_alpha:g}"
    targets = getattr(config, "target_modules", None)
    names = [targets] if isinstance(targets, str) else sorted(targets or ())
    shown = ", ".join(names if len(names) <= _MAX_SHOWN else sorted({name.rpartition(".")[2] for name in names}))
    where = f" on {shown}" if shown else ""
    whole = sorted({n.split(".modules_to_save.")[0].rpartition(".")[2] for n, _ in _saved_whole(model)})
    beside = f", {', '.join(whole)} as a whole" if whole else ""
    return f"{kind}{where}{beside}: {trained:,} of {total:,} parameters trained ({trained / total:.2%})"


def merged(model: Any) -> PreTrainedModel:
    """The base model with the adapter added to its weights.

    Args:
        model: peft's; not to be used afterwards.

    Raises:
        ModelError: A kind of adapter that stays beside the weights.
    """
    config = next(iter(model.peft_config.values()))
    kind = str(config.peft_type.value).lower()
    try:
        if config.is_prompt_learning:
            raise NotImplementedError
        result: PreTrainedModel = model.merge_and_unload()
    except (NotImplementedError, AttributeError, ValueError, TypeError) as error:
        raise ModelError(
            f"{kind} cannot be merged: it does not change weights of the model",
            where="--merge",
            fix="leave --merge out, and load the adapter with peft",
        ) from error
    return result


def is_adapted(model: Any) -> bool:
    """Whether there is an adapter on the model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def _saved_whole(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((n, p) for n, p in model.named_parameters() if ".modules_to_save." in n)


def _has_default(config: Any, model_type: str) -> bool:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING

    if str(config.peft_type.value) == "IA3":
        return model_type in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    return model_type in getattr(PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type], "target_module_mapping", {})


def _ends_with(name: str, end: str) -> bool:
    """As peft compares names with a list."""
    return name == end or name.endswith(f".{end}")


def _unmatched(target: str, model: PreTrainedModel) -> ModelError:
    guess = nearest(target, _linear_names(model))
    fix = f"did you mean {guess}? {_candidates(model)}" if guess else _candidates(model)
    return ModelError(f"{type(model).__name__} has no module {target!r}", where=_TARGETS, fix=fix)


def _candidates(model: nn.Module) -> str:
    names = _linear_names(model)
    more = f" ... ({len(names)} in all)" if len(names) > _MAX_SHOWN else ""
    return f"{_TARGETS}: some of {', '.join(names[:_MAX_SHOWN])}{more}"


def _linear_names(model: nn.Module) -> list[str]:
    """Last parts of the names of linear layers outside the head."""
    head = {n.rpartition(".")[0] for n in head_parameter_names(model)}
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and n not in head]
    return list(dict.fromkeys(n.rpartition(".")[2] for n in linear))


@contextmanager
def without_remarks() -> Iterator[None]:
    """What peft 0.21 asks of transformers 5.23 under an older name, and what it sets right itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*")
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False but the target module is `Conv1D`")
        yield
