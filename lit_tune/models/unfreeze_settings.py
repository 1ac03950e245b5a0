"""``model.unfreeze``: what is trained from when on; a list of stages, or one layer after another."""

import inspect
import math
import re
from dataclasses import dataclass
from typing import Any

from lit_tune.errors import ConfigError, LitTuneError, nearest, raise_problems

KEY = "model.unfreeze"
GRADUAL = "gradual"
_LAYERS = re.compile(r"all|top \d+")


@dataclass(frozen=True)
class StageSettings:
    """One entry of ``model.unfreeze``.

    Args:
        at_epoch: Trained after so many whole epochs, >= 1.
        at_step: Trained after so many optimizer steps, >= 1; instead of ``at_epoch``.
        layers: ``top 2``, the two layers next to the head, or ``all``, whatever is frozen.
        patterns: Regular expressions searched in parameter names; instead of ``layers``.
        lr: Learning rate of the uppermost layer of these, > 0; ``optimizer.layer_lr_decay`` goes down from it.
            Default: what the parameters would have had without freezing. Times ``lr_schedule``, as all rates.
        warmup_steps: Optimizer steps in which their rate rises from 0, beside ``lr_schedule``.
    """

    at_epoch: int | None = None
    at_step: int | None = None
    layers: str | None = None
    patterns: str | list[str] | None = None
    lr: float | None = None
    warmup_steps: int = 0


@dataclass(frozen=True)
class GradualSettings:
    """``model.unfreeze: gradual``, or a mapping: the frozen layers one by one from the top, then the embeddings.

    Args:
        every_epochs: Whole epochs between one layer and the next, >= 1. Default: 1.
        every_steps: Optimizer steps between one layer and the next, >= 1; instead of ``every_epochs``.
        lr: Learning rate of each layer, > 0; default: what it would have had without freezing.
        warmup_steps: Optimizer steps in which the rate of each layer rises from 0, beside ``lr_schedule``.
    """

    every_epochs: int | None = None
    every_steps: int | None = None
    lr: float | None = None
    warmup_steps: int = 0


UnfreezeSettings = GradualSettings | tuple[StageSettings, ...]


def unfreeze_settings(value: str | dict[str, Any] | list[dict[str, Any]] | None) -> UnfreezeSettings | None:
    """Read ``model.unfreeze``.

    Args:
        value: ``gradual``, a mapping with the keys of :class:`GradualSettings`, or a list of mappings with the keys of
            :class:`StageSettings`.

    Raises:
        ConfigError: An unknown key, a value out of range, two keys that exclude each other; all of them together.

    >>> unfreeze_settings("gradual").every_epochs
    1
    >>> unfreeze_settings([{"at_step": 100, "layers": "all"}])[0].at_step
    100
    """
    if value is None:
        return None
    problems: list[LitTuneError] = []
    found: UnfreezeSettings | None = None
    if isinstance(value, str | dict):
        given = {} if value == GRADUAL else value
        if isinstance(given, str):
            raise _error(KEY, f"expected {GRADUAL}, a mapping or a list of stages, got {value!r}", f"{KEY}: {GRADUAL}")
        if not {"every_epochs", "every_steps"} & given.keys():
            given = {"every_epochs": 1, **given}
        found = _read(GradualSettings, given, KEY, problems)
    elif value:
        places = [f"{KEY}[{i}]" for i in range(len(value))]
        stages = [_read(StageSettings, stage, place, problems) for place, stage in zip(places, value, strict=True)]
        found = tuple(stage for stage in stages if stage is not None)
    raise_problems(problems)
    return found or None


def _read(cls: Any, given: Any, where: str, problems: list[LitTuneError]) -> Any:
    """One mapping; None where it is wrong."""
    known = list(inspect.signature(cls).parameters)
    if not isinstance(given, dict):
        problems.append(_error(where, f"expected a mapping, got {given!r}", "{at_epoch: 1, layers: top 2}"))
        return None
    wrong: list[LitTuneError] = []
    for key in given:
        if key not in known:
            guess = nearest(str(key), known)
            what = f"no such key; there are: {', '.join(known)}"
            wrong.append(_error(f"{where}.{key}", what, f"write {guess}" if guess else "remove it"))
    if not wrong:
        settings = cls(**given)
        wrong += [*_out_of_range(settings, where), *_not_one_of_two(settings, where)]
    problems += wrong
    return None if wrong else settings


def _out_of_range(settings: Any, where: str) -> list[LitTuneError]:
    checks = [
        *((key, 1, "a whole number of at least 1") for key in ("at_epoch", "at_step", "every_epochs", "every_steps")),
        ("warmup_steps", 0, "a whole number of at least 0"),
    ]
    found: list[LitTuneError] = [
        _error(f"{where}.{key}", f"expected {expected}, got {value!r}", f"{key}: {least}")
        for key, least, expected in checks
        if (value := getattr(settings, key, None)) is not None and not _is_count(value, least)
    ]
    if settings.lr is not None and not _is_rate(settings.lr):
        found.append(_error(f"{where}.lr", f"expected a number above 0, got {settings.lr!r}", "lr: 1.0e-5"))
    layers, patterns = getattr(settings, "layers", None), getattr(settings, "patterns", None)
    if layers is not None and not (isinstance(layers, str) and _LAYERS.fullmatch(layers)):
        found.append(_error(f"{where}.layers", f"expected all, or top and a number, got {layers!r}", "layers: top 2"))
    if patterns is not None and not _are_texts(patterns):
        what = f"expected a text or a list of texts, got {patterns!r}"
        found.append(_error(f"{where}.patterns", what, "patterns: [encoder]"))
    return found


def _not_one_of_two(settings: Any, where: str) -> list[LitTuneError]:
    """Of two keys exactly one must be given."""
    if isinstance(settings, GradualSettings):
        pairs = [("every_epochs", "every_steps")]
    else:
        pairs = [("at_epoch", "at_step"), ("layers", "patterns")]
    found: list[LitTuneError] = []
    for pair in pairs:
        count = sum(getattr(settings, key) is not None for key in pair)
        if count != 1:
            what = f"has {' and '.join(pair)}, which exclude each other" if count else f"lacks {' or '.join(pair)}"
            fix = f"remove {pair[1]}" if count else f"e.g. {'at_epoch: 1' if 'at_epoch' in pair else 'layers: top 2'}"
            found.append(_error(where, what, fix))
    return found


def _error(where: str, what: str, fix: str) -> ConfigError:
    return ConfigError(what, where=where, fix=fix)


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _are_texts(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value) and all(isinstance(v, str) and v for v in value)
    return (isinstance(value, str) and bool(value)) or is_list
