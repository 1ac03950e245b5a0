"""``model.adapter``: which adapter, from a short name, its settings, or a config class of peft."""

import inspect
from typing import Any, Literal, get_args

from lit_tune.errors import ConfigError, LitTuneError, nearest, raise_problems
from lit_tune.imports import import_class

KEY = "model.adapter"
AdapterType = Literal["lora", "dora", "rslora", "ia3", "prompt_tuning"]
TYPES: tuple[str, ...] = get_args(AdapterType)

_TARGETED = ("r", "alpha", "dropout", "target_modules")
_KEYS_OF = {
    "lora": _TARGETED,
    "dora": _TARGETED,
    "rslora": _TARGETED,
    "ia3": ("target_modules",),
    "prompt_tuning": ("num_virtual_tokens",),
}
"""Keys that have an effect, by type."""

SET_BY_US = ("task_type", "inference_mode", "base_model_name_or_path", "revision", "peft_type", "peft_version")
"""Fields of peft's configs that follow from the model, the task and the verb."""

LEADS_ELSEWHERE = (
    *("auto_mapping", "megatron_config", "megatron_core", "tokenizer_name_or_path", "tokenizer_kwargs"),
    *("prompt_tuning_init_text", "prompt_tuning_init_state_dict_path", "corda_config", "eva_config", "loftq_config"),
    *("arrow_config", "lora_ga_config", "runtime_config"),
)
"""Fields with which peft (0.21) imports a module that they name, or reads further files and tokenizers."""


class AdapterSettings:
    """The keys under ``model.adapter``.

    Args:
        type: ``lora``, ``dora`` (LoRA with the magnitude apart), ``rslora`` (LoRA scaled by 1 / sqrt(r)), ``ia3`` or
            ``prompt_tuning``.
        r: Rank of lora, dora and rslora, >= 1.
        alpha: The update is multiplied by alpha / r (rslora: alpha / sqrt(r)), > 0.
        dropout: Dropout before the low-rank matrices, in [0, 1).
        target_modules: Which modules are adapted: ends of their names, a regular expression for the whole name, or
            ``all-linear``. Default: peft's choice for the architecture, else all linear layers but the head's.
        num_virtual_tokens: Tokens that prompt_tuning puts before each text, >= 1.
        class_path: A config class of peft, instead of a type: ``peft.VeraConfig``.
        init_args: Its arguments.

    Raises:
        ConfigError: A value out of range; several are reported together.
    """

    def __init__(
        self,
        type: AdapterType = "lora",
        r: int = 8,
        alpha: float = 16,
        dropout: float = 0.0,
        target_modules: str | list[str] | None = None,
        num_virtual_tokens: int = 20,
        class_path: str | None = None,
        init_args: dict[str, Any] = {},  # noqa: B006 - never mutated; a plain default prints as itself
    ) -> None:
        self.type, self.r, self.alpha, self.dropout = type, r, alpha, dropout
        self.target_modules, self.num_virtual_tokens = target_modules, num_virtual_tokens
        self.class_path, self.init_args = class_path, init_args
        self.given: tuple[str, ...] = ()
        """Keys that were given; the others hold defaults."""
        checks = [
            (type in TYPES, "type", f"one of {', '.join(TYPES)}", nearest(str(type), TYPES) or "lora"),
            (_is_count(r), "r", "a whole number of at least 1", 8),
            (_is_number(alpha) and alpha > 0, "alpha", "a number above 0", 16),
            (_is_number(dropout) and 0 <= dropout < 1, "dropout", "a number from 0 to below 1", 0.1),
            (_is_target(target_modules), "target_modules", "a text or a list of texts", "[query, value]"),
            (_is_count(num_virtual_tokens), "num_virtual_tokens", "a whole number of at least 1", 20),
            (class_path is None or isinstance(class_path, str), "class_path", "a text", "peft.VeraConfig"),
            (isinstance(init_args, dict), "init_args", "a mapping", "{r: 8}"),
        ]
        raise_problems(
            [
                ConfigError(
                    f"expected {expected}, got {_shown(getattr(self, name))}",
                    where=f"{KEY}.{name}",
                    fix=f"{KEY}.{name}: {fix}",
                )
                for is_right, name, expected, fix in checks
                if not is_right
            ]
        )

    def config_arguments(self) -> dict[str, Any]:
        """Arguments of peft's config class."""
        if self.class_path is not None:
            return dict(self.init_args)
        if self.type == "prompt_tuning":
            return {"num_virtual_tokens": self.num_virtual_tokens}
        targets: dict[str, Any] = {} if self.target_modules is None else {"target_modules": self.target_modules}
        if self.type == "ia3":
            # with modules of one's own peft wants to be told which of them are scaled before and not behind
            return targets | ({"feedforward_modules": []} if targets else {})
        variants = {"use_dora": self.type == "dora", "use_rslora": self.type == "rslora"}
        return {"r": self.r, "lora_alpha": self.alpha, "lora_dropout": self.dropout, **variants, **targets}

    def asked_for(self) -> dict[str, Any]:
        """Fields of peft's config that follow from what was given, and not from defaults."""
        fields = {"type": ("use_dora", "use_rslora"), "alpha": ("lora_alpha",), "dropout": ("lora_dropout",)}
        named = {field for key in self.given for field in fields.get(key, (key,))}
        return {k: v for k, v in self.config_arguments().items() if k in named or self.class_path is not None}

    def config_class(self) -> Any:
        """The peft config class.

        Raises:
            ConfigError: A class that may not be named, or is not there.
        """
        names = {"ia3": "peft.IA3Config", "prompt_tuning": "peft.PromptTuningConfig"}
        path = self.class_path or names.get(self.type, "peft.LoraConfig")
        return import_class(path, where=f"{KEY}.class_path")


def adapter_settings(value: str | dict[str, Any] | None) -> AdapterSettings | None:
    """Read ``model.adapter``.

    Args:
        value: A type's name, or a mapping with the keys of :class:`AdapterSettings`.

    Raises:
        ConfigError: An unknown key or type, a value out of range, or a key that the type does not read.

    >>> adapter_settings("dora").type, adapter_settings({"r": 4}).r
    ('dora', 4)
    """
    if value is None:
        return None
    given = {"type": value} if isinstance(value, str) else dict(value)
    known = list(inspect.signature(AdapterSettings).parameters)
    problems: list[LitTuneError] = [_unknown(key, known) for key in given if key not in known]
    raise_problems(problems)
    settings = AdapterSettings(**given)
    settings.given = tuple(given)
    if settings.class_path is None:
        read = ("type", *_KEYS_OF[settings.type])
        problems += [_no_effect(key, settings.type, read) for key in given if key not in read]
    else:
        read = ("class_path", "init_args")
        problems += [_no_effect(key, settings.class_path, read) for key in given if key not in read]
        problems += check_init_args(settings)
    raise_problems(problems)
    return settings


def check_init_args(settings: AdapterSettings) -> list[LitTuneError]:
    """What is wrong with the class and its arguments.

    Raises:
        ConfigError: The class may not be named.
    """
    where = f"{KEY}.init_args"
    config_class = settings.config_class()
    known = [n for n in inspect.signature(config_class).parameters if n not in (*SET_BY_US, *LEADS_ELSEWHERE)]
    problems: list[LitTuneError] = []
    for name in settings.init_args:
        if name in SET_BY_US:
            what, fix = f"{name} follows from the model and the task", "leave it out"
        elif name in LEADS_ELSEWHERE:
            what, fix = f"{name} names modules or files that peft would read, which no config may", "leave it out"
        elif name not in known:
            guess = nearest(name, known)
            what = f"{config_class.__name__} has no argument {name!r}"
            fix = f"did you mean {guess}?" if guess else f"one of {', '.join(known[:10])} ..."
        else:
            continue
        problems.append(ConfigError(what, where=where, fix=fix))
    return problems


def _unknown(key: str, known: list[str]) -> ConfigError:
    guess = nearest(key, known)
    return ConfigError(
        f"no such key; {KEY} has: {', '.join(known)}",
        where=f"{KEY}.{key}",
        fix=f"write {KEY}.{guess}" if guess else "remove it",
    )


def _no_effect(key: str, kind: str, read: tuple[str, ...]) -> ConfigError:
    return ConfigError(f"has no effect: {kind} reads {', '.join(read)}", where=f"{KEY}.{key}", fix="leave it out")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_target(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value) and all(isinstance(v, str) and v for v in value)
    return value is None or (isinstance(value, str) and bool(value)) or is_list


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
