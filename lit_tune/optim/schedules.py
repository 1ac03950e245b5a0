"""The ``lr_schedule`` section: pure functions step -> multiplier, and the scheduler built from them.

A multiplier is applied to every group's own learning rate. ``step`` counts optimizer steps already made, so the first
step of a run uses ``multiplier(0)``. All values equal ``transformers.get_scheduler``.
"""

import logging
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from lit_tune.errors import ConfigError, LitTuneError, raise_problems
from lit_tune.optim.torch_schedules import build_torch_schedule, can_warm_up, scheduler_class

log = logging.getLogger(__name__)

NAMES = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt")
"""Built-in values of ``lr_schedule.name``."""

_NEED_TOTAL_STEPS = ("linear", "cosine", "polynomial")
_DEFAULT_WARMUP = 0.1
# Which built-in schedule a setting is about: elsewhere it has no effect, which is said.
_ONLY_FOR = {"num_cycles": (0.5, "cosine"), "power": (1.0, "polynomial"), "lr_end": (1e-7, "polynomial")}
_INVERSE_SQRT_TIMESCALE = 10_000  # transformers' value for a schedule without warm-up


def linear(step: int, warmup_steps: int, total_steps: int) -> float:
    """Up from 0 in ``warmup_steps``, then down in a straight line to 0 at ``total_steps``.

    >>> [linear(step, 2, 6) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


def cosine(step: int, warmup_steps: int, total_steps: int, num_cycles: float = 0.5) -> float:
    """Up from 0, then along a cosine to 0 (``num_cycles`` 0.5), or through that many whole waves.

    >>> [round(cosine(step, 2, 6), 3) for step in range(7)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * progress)))


def polynomial(step: int, warmup_steps: int, total_steps: int, power: float, lr: float, lr_end: float) -> float:
    """Up from 0 to 1, then down to ``lr_end / lr`` as ``(1 - progress) ** power``, and there it stays.

    >>> [polynomial(step, 2, 4, power=2.0, lr=1.0, lr_end=0.0) for step in range(6)]
    [0.0, 0.5, 1.0, 0.25, 0.0, 0.0]
    """
    if step < warmup_steps:
        return step / warmup_steps
    if step >= total_steps:
        return lr_end / lr
    remaining = 1 - (step - warmup_steps) / (total_steps - warmup_steps)
    return ((lr - lr_end) * remaining**power + lr_end) / lr


def constant_with_warmup(step: int, warmup_steps: int) -> float:
    """Up from 0 in ``warmup_steps``, then 1; without warm-up always 1.

    >>> [constant_with_warmup(step, 2) for step in range(4)]
    [0.0, 0.5, 1.0, 1.0]
    """
    return step / warmup_steps if step < warmup_steps else 1.0


def inverse_sqrt(step: int, warmup_steps: int) -> float:
    """Up from 0, then ``sqrt(warmup_steps / step)``; without warm-up the time scale is 10,000 steps.

    >>> [inverse_sqrt(step, 4) for step in (0, 2, 4, 16, 64)]
    [0.0, 0.5, 1.0, 0.5, 0.25]
    """
    if step < warmup_steps:
        return step / warmup_steps
    timescale = warmup_steps or _INVERSE_SQRT_TIMESCALE
    return 1.0 / math.sqrt((step + timescale - warmup_steps) / timescale)


def ramped(step: int, multiplier: Callable[[int], float], start: int, num_steps: int) -> float:
    """A multiplier for parameters that are trained from ``start`` on: from 0 to it in ``num_steps``.

    >>> [ramped(step, lambda _: 0.5, 2, 2) for step in range(6)]
    [0.0, 0.0, 0.0, 0.25, 0.5, 0.5]
    """
    return multiplier(step) * min(1.0, max(0, step - start) / num_steps)


class ScheduleSettings:
    """Settings of the ``lr_schedule`` section; plain types only.

    Args:
        name: ``linear``, ``cosine``, ``constant``, ``constant_with_warmup``, ``polynomial``, ``inverse_sqrt``, the name
            of a class in ``torch.optim.lr_scheduler``, or a class path.
        warmup: Optimizer steps in which the learning rate rises from 0: below 1 a fraction of all steps (rounded up),
            else their number. Not used by ``constant``, nor by default by schedules that cannot have one.
        num_cycles: Waves of ``cosine``; 0.5 goes down once.
        power: Exponent of ``polynomial``; 1 is a straight line.
        lr_end: Learning rate at the end of ``polynomial``.
        interval: When a torch scheduler moves on: after each optimizer step or after each epoch. ReduceLROnPlateau
            moves with each validation.
        monitor: Metric that ReduceLROnPlateau watches, e.g. ``val/loss``.
        init_args: Arguments of a torch scheduler: ``{gamma: 0.9}``. ``T_max`` and ``total_steps`` are filled in.

    Raises:
        ConfigError: A value out of range; several are reported together.
    """

    def __init__(
        self,
        name: str = "linear",
        warmup: float = _DEFAULT_WARMUP,
        num_cycles: float = 0.5,
        power: float = 1.0,
        lr_end: float = 1e-7,
        interval: Literal["step", "epoch"] = "step",
        monitor: str | None = None,
        init_args: dict[str, Any] = {},  # noqa: B006 - never mutated; a plain default prints as itself in --help
    ) -> None:
        self.name = name
        self.warmup = warmup
        self.num_cycles = num_cycles
        self.power = power
        self.lr_end = lr_end
        self.interval = interval
        self.monitor = monitor
        self.init_args = dict(init_args)
        raise_problems(self._out_of_range())

    def _out_of_range(self) -> list[LitTuneError]:
        whole = 0 <= self.warmup < 1 or (math.isfinite(self.warmup) and self.warmup == int(self.warmup) > 0)
        checks = [
            ("warmup", self.warmup, whole, "a fraction in [0, 1) of all steps, or a whole number of steps"),
            ("num_cycles", self.num_cycles, 0 < self.num_cycles < math.inf, "a number more than 0"),
            ("power", self.power, 0 < self.power < math.inf, "a number more than 0"),
            ("lr_end", self.lr_end, 0 <= self.lr_end < math.inf, "a number of at least 0"),
        ]
        problems: list[LitTuneError] = [
            ConfigError(f"{value} is out of range", where=f"lr_schedule.{key}", fix=f"give {allowed}")
            for key, value, good, allowed in checks
            if not good
        ]
        if self.name in NAMES and self.interval != "step":
            problems.append(
                ConfigError(
                    f"{self.name} is a function of optimizer steps",
                    where="lr_schedule.interval",
                    fix="leave it out, or choose a torch scheduler as lr_schedule.name",
                )
            )
        if self.name in NAMES and self.init_args:
            problems.append(
                ConfigError(
                    f"{self.name} takes no init_args; they are for torch schedulers",
                    where="lr_schedule.init_args",
                    fix="use the keys of the section: warmup, num_cycles, power, lr_end",
                )
            )
        return problems


def num_warmup_steps(warmup: float, total_steps: int | None) -> int:
    """Warm-up in optimizer steps, as HF Trainer counts them.

    >>> num_warmup_steps(0.1, 25), num_warmup_steps(7.0, 25), num_warmup_steps(7.0, None)
    (3, 7, 7)

    Raises:
        ConfigError: A fraction of an unknown number of steps, or more steps than there are.
    """
    if warmup == 0:
        return 0
    if total_steps is None:
        if warmup < 1:
            raise ConfigError(
                f"a fraction ({warmup:g}) of all steps is asked for, and their number is not known",
                where="lr_schedule.warmup",
                fix="set trainer.max_steps, or give the warm-up as a number of steps (0: none)",
            )
        return int(warmup)
    steps = int(warmup) if warmup >= 1 else math.ceil(total_steps * warmup)
    if steps > total_steps:
        raise ConfigError(
            f"{steps} warm-up steps are more than the {total_steps} steps of the run",
            where="lr_schedule.warmup",
            fix=f"give at most {total_steps}, or a fraction such as 0.1",
        )
    return steps


def build_schedule(
    settings: ScheduleSettings,
    optimizer: Optimizer,
    total_steps: int | None,
    monitor_mode: Literal["min", "max"] | None = None,
) -> LRScheduler:
    """The scheduler of the ``lr_schedule`` section.

    Args:
        settings: The section.
        optimizer: Its learning rates are the peaks; ``optimizer.defaults["lr"]`` is ``optimizer.lr``.
        total_steps: Optimizer steps of the whole run; None if unknown.
        monitor_mode: Whether ``settings.monitor`` is better low or high; ReduceLROnPlateau follows it.

    Raises:
        ConfigError: The schedule needs a number of steps that is unknown, warm-up and schedule contradict each other,
            or the class is unknown or refuses its arguments.
    """
    _warn_of_settings_without_effect(settings)
    ramps = [group.get("ramp") for group in optimizer.param_groups]
    if settings.name not in NAMES:
        if any(ramps):
            raise ConfigError(
                f"goes with {', '.join(NAMES)}, and not with {settings.name}",
                where="model.unfreeze: warmup_steps",
                fix="leave it out, or one of these as lr_schedule.name",
            )
        return _by_class(settings, optimizer, total_steps, monitor_mode)
    if total_steps is None and settings.name in _NEED_TOTAL_STEPS:
        raise ConfigError(
            f"{settings.name} needs the number of steps, which is not known for this data",
            where="lr_schedule.name",
            fix="set trainer.max_steps, or use constant_with_warmup with the warm-up as a number of steps",
        )
    whole = _multiplier(settings, optimizer.defaults["lr"], total_steps)
    of_groups = [partial(ramped, multiplier=whole, start=r[0], num_steps=r[1]) if r else whole for r in ramps]
    return LambdaLR(optimizer, of_groups)


def monitor_mode(settings: ScheduleSettings, higher_is_better: Mapping[str, bool]) -> Literal["min", "max"] | None:
    """Whether ``settings.monitor`` is better low or high; None where there is no such metric."""
    higher = higher_is_better.get((settings.monitor or "").removeprefix("val/"))
    return None if higher is None else ("max" if higher else "min")


def move_plateaus(configs: Iterable[Any], values: Mapping[str, float | None]) -> None:
    """ReduceLROnPlateau moves with each validation, before any checkpoint of this step is written.

    Args:
        configs: Lightning's, of all schedulers.
        values: Metrics of val.
    """
    for config in configs:
        if config.reduce_on_plateau and config.monitor is not None:
            value = values.get(config.monitor.removeprefix("val/"))
            config.scheduler.step(math.nan if value is None else value)


def schedule_config(settings: ScheduleSettings, scheduler: LRScheduler) -> dict[str, Any]:
    """What Lightning's ``configure_optimizers`` takes as ``lr_scheduler``."""
    config: dict[str, Any] = {"scheduler": scheduler, "interval": settings.interval, "frequency": 1}
    if isinstance(scheduler, ReduceLROnPlateau):
        # the module moves it; Lightning's way is after the hook in which checkpoints are written, and not on resume
        config.update(interval="epoch", frequency=sys.maxsize, monitor=settings.monitor)
    return config


def _by_class(
    settings: ScheduleSettings,
    optimizer: Optimizer,
    total_steps: int | None,
    monitor_mode: Literal["min", "max"] | None,
) -> LRScheduler:
    found = scheduler_class(settings.name, NAMES)
    if issubclass(found, ReduceLROnPlateau) and settings.monitor is None:
        raise ConfigError(
            "ReduceLROnPlateau needs a metric to watch", where="lr_schedule.monitor", fix="write e.g. monitor: val/loss"
        )
    if settings.monitor is not None and not issubclass(found, ReduceLROnPlateau):
        log.warning("lr_schedule.monitor has no effect with lr_schedule.name: %s", settings.name)
    if can_warm_up(found, settings.interval):
        warmup_steps = num_warmup_steps(settings.warmup, total_steps)
    elif settings.warmup in (_DEFAULT_WARMUP, 0):
        warmup_steps = 0
    else:
        raise ConfigError(
            f"a warm-up cannot stand before {found.__name__} with interval: {settings.interval}",
            where="lr_schedule.warmup",
            fix="leave it out; or use interval: step and a scheduler without a way up of its own",
        )
    steps_left = None if total_steps is None or settings.interval == "epoch" else total_steps - warmup_steps
    return build_torch_schedule(found, optimizer, settings.init_args, warmup_steps, steps_left, monitor_mode)


def _multiplier(settings: ScheduleSettings, lr: float, total_steps: int | None) -> Callable[[int], float]:
    if settings.name == "constant":
        return partial(constant_with_warmup, warmup_steps=0)
    warmup_steps = num_warmup_steps(settings.warmup, total_steps)
    if settings.name == "constant_with_warmup":
        return partial(constant_with_warmup, warmup_steps=warmup_steps)
    if settings.name == "inverse_sqrt":
        return partial(inverse_sqrt, warmup_steps=warmup_steps)
    assert total_steps is not None
    if settings.name == "linear":
        return partial(linear, warmup_steps=warmup_steps, total_steps=total_steps)
    if settings.name == "cosine":
        return partial(cosine, warmup_steps=warmup_steps, total_steps=total_steps, num_cycles=settings.num_cycles)
    if settings.lr_end >= lr:
        raise ConfigError(
            f"{settings.lr_end:g} is not below optimizer.lr ({lr:g})",
            where="lr_schedule.lr_end",
            fix=f"give less than {lr:g}",
        )
    return partial(
        polynomial,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        power=settings.power,
        lr=lr,
        lr_end=settings.lr_end,
    )


def _warn_of_settings_without_effect(settings: ScheduleSettings) -> None:
    unused = [
        key for key, (default, name) in _ONLY_FOR.items() if name != settings.name and getattr(settings, key) != default
    ]
    if settings.name == "constant" and settings.warmup not in (_DEFAULT_WARMUP, 0):
        unused.append("warmup")
    if settings.name in NAMES and settings.monitor is not None:
        unused.append("monitor")
    for key in unused:
        log.warning("lr_schedule.%s has no effect with lr_schedule.name: %s", key, settings.name)
