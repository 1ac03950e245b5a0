"""What changed in the config since a run was started, and which changes a run can go on with."""

import math
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, NamedTuple


class Effect(StrEnum):
    """What a change does to a run that goes on."""

    HARMLESS = "no effect on the weights"
    LONGER = "the run gets longer"
    OTHER_RUN = "needs --allow-changed"
    OTHER_MODEL = "does not fit the checkpoint"


NOT_COMPARED = ("run_dir", "resume")
HARMLESS = (
    "logger",
    "wandb.*",
    "checkpoint.keep_*",
    "checkpoint.every_n_steps",
    "early_stopping.*",
    "overfit.gap",
    "overfit.window",
    "overfit.min_delta",
    "data.auto_batch",
    "data.cache_dir",
    "data.eval_batch_size",
    "data.num_workers",
    "data.persistent_workers",
    "data.pin_memory",
    "data.predict",
    "data.test*",
    "data.limit_test",
    "hang_timeout_seconds",
    "model.log_parameter_norms",
    "optimizer.skip_nonfinite",
    "trainer.callbacks*",
    "trainer.enable_*",
    "trainer.log_every_n_steps",
    "trainer.logger*",
    "trainer.max_time",
    "trainer.profiler*",
)
"""Patterns of keys that change what is logged, kept or said, or how fast it goes; the weights stay the same."""
CUTS = ("data.train_batch_size", "trainer.accumulate_grad_batches")
"""With the same product they cut the same steps (ranks are compared elsewhere)."""
LENGTH = ("trainer.max_epochs", "trainer.max_steps")
MODEL = (
    "model.add_*",
    "model.adapter*",
    "model.config_overrides*",
    "model.dtype",
    "model.freeze*",
    "model.from_scratch",
    "model.model_class",
    "model.model_name_or_path",
    "model.new_head",
    "model.quantization",
    "model.revision",
    "model.unfreeze*",
    "optimizer.name",
    "lr_schedule.name",
    "task.class_path",
)
"""Keys that decide which tensors a checkpoint holds."""


class Change(NamedTuple):
    """One key whose value differs."""

    key: str
    was: Any
    now: Any
    effect: Effect


def changes(was: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """Keys whose values differ, in the order of the config.

    Args:
        was: The config of the run, flat: dotted key -> value.
        now: The config in use, flat.

    >>> [str(c.effect) for c in changes({"trainer.max_epochs": 3, "logger": "csv"}, {"trainer.max_epochs": 5})]
    ['the run gets longer', 'no effect on the weights']
    >>> was = {"data.train_batch_size": 8, "trainer.accumulate_grad_batches": 1}
    >>> [str(c.effect) for c in changes(was, {"data.train_batch_size": 4, "trainer.accumulate_grad_batches": 2})]
    ['no effect on the weights', 'no effect on the weights']
    """
    keys = [*now, *(k for k in was if k not in now)]
    differing = [k for k in keys if was.get(k) != now.get(k) and k not in NOT_COMPARED]
    same_steps = effective_batch(was) == effective_batch(now)
    effects = {k: Effect.HARMLESS for k in CUTS if same_steps}
    return [
        Change(k, was.get(k), now.get(k), effects.get(k) or effect_of(k, was.get(k), now.get(k))) for k in differing
    ]


def effective_batch(config: dict[str, Any]) -> int:
    """Rows per rank and optimizer step."""
    return math.prod(config.get(key) or 1 for key in CUTS)


def effect_of(key: str, was: Any, now: Any) -> Effect:
    """What a change of one key does."""
    if key in LENGTH:
        return Effect.LONGER if length(now) > length(was) else Effect.OTHER_RUN
    if any(fnmatchcase(key, pattern) for pattern in HARMLESS):
        return Effect.HARMLESS
    return Effect.OTHER_MODEL if any(fnmatchcase(key, pattern) for pattern in MODEL) else Effect.OTHER_RUN


def length(limit: int | None) -> float:
    """A limit of epochs or steps; none, or -1, is no limit."""
    return float("inf") if limit is None or limit < 0 else limit


def table(found: list[Change]) -> str:
    """Lines a person reads: key, was, now, effect."""
    rows = [(c.key, shown(c.was), shown(c.now), str(c.effect)) for c in found]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        f"  {key:<{widths[0]}}  {was:<{widths[1]}} -> {now:<{widths[2]}}  {effect}" for key, was, now, effect in rows
    )


def shown(value: Any) -> str:
    """A value in at most 40 characters."""
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
