"""Any scheduler class of torch as ``lr_schedule``, with or without warm-up."""

import inspect
from typing import Any, Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from lit_tune.errors import ConfigError, nearest
from lit_tune.imports import import_class

_NOT_ARGUMENTS = ("self", "optimizer", "last_epoch")


class WarmupThen(LRScheduler):
    """A straight rise from 0 to the first learning rates of another scheduler, which then runs as if it were alone.

    torch's ``SequentialLR`` does not do that: it rises to the optimizer's rate even if the scheduler starts below it
    (``LinearLR``), and a scheduler without a closed form (``MultiplicativeLR``) goes on from the last value of the
    warm-up, so that its whole run lies too low (torch 2.13).

    Args:
        scheduler: Freshly built on the optimizer, not stepped yet.
        warmup_steps: Calls of :meth:`step` until the scheduler's own first value; more than 0.
    """

    def __init__(self, scheduler: LRScheduler, warmup_steps: int) -> None:
        # Not super().__init__: it would take a first step of its own and wrap the optimizer a second time.
        self.scheduler = scheduler
        self.optimizer = scheduler.optimizer
        self.warmup_steps = warmup_steps
        self.last_epoch = 0
        self._peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._set([0.0 for _ in self._peaks])

    def step(self, epoch: int | None = None) -> None:
        """Move on by one optimizer step; ``epoch`` is torch's deprecated argument and must stay None."""
        assert epoch is None
        self.last_epoch += 1
        if self.last_epoch <= self.warmup_steps:
            self._set([peak * self.last_epoch / self.warmup_steps for peak in self._peaks])
        else:
            self.scheduler.step()
            self._last_lr = self.get_lr()

    def get_lr(self) -> list[float | torch.Tensor]:
        """The learning rates in force, one per group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Own position and the inner scheduler's state; plain types only."""
        own = {key: value for key, value in vars(self).items() if key not in ("optimizer", "scheduler")}
        return {**own, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state of :meth:`state_dict`; the learning rates come back with the optimizer's own state."""
        own = {key: value for key, value in state_dict.items() if key != "scheduler"}
        vars(self).update(own)
        self.scheduler.load_state_dict(state_dict["scheduler"])

    def _set(self, lrs: list[float]) -> None:
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        self._last_lr = self.get_lr()


def scheduler_class(name: str, built_in: tuple[str, ...]) -> type[LRScheduler]:
    """The class ``lr_schedule.name`` means.

    Raises:
        ConfigError: Unknown, not allowed, or not a scheduler.
    """
    found = import_class(name, where="lr_schedule.name", search=("torch.optim.lr_scheduler",), aliases=built_in)
    if not issubclass(found, LRScheduler):
        raise ConfigError(
            f"{name} is not a torch scheduler", where="lr_schedule.name", fix=f"one of {', '.join(built_in)}"
        )
    return found


def can_warm_up(scheduler: type[LRScheduler], interval: str) -> bool:
    """Whether a warm-up in optimizer steps can stand before the scheduler.

    Not before one that moves by epochs or by a metric, nor before one that has its own way up.
    """
    return interval == "step" and not issubclass(scheduler, ReduceLROnPlateau | OneCycleLR | CyclicLR)


def build_torch_schedule(
    scheduler: type[LRScheduler],
    optimizer: Optimizer,
    init_args: dict[str, Any],
    warmup_steps: int,
    steps_left: int | None,
    monitor_mode: Literal["min", "max"] | None = None,
) -> LRScheduler:
    """Build the scheduler, filling in what follows from the run, and put the warm-up before it.

    Args:
        scheduler: A class for which :func:`can_warm_up` holds, if ``warmup_steps`` is not 0.
        optimizer: Its learning rates are the peaks; they fill in ``max_lr``.
        init_args: The class's arguments.
        warmup_steps: Optimizer steps of warm-up; 0 for none.
        steps_left: Calls of ``step`` after the warm-up, if known; fills in ``T_max`` and ``total_steps``.
        monitor_mode: Fills in ``mode`` of ReduceLROnPlateau.

    Raises:
        ConfigError: An argument is unknown, missing, contradicts the run, or is refused by the class.
    """
    parameters = {n: p for n, p in inspect.signature(scheduler).parameters.items() if n not in _NOT_ARGUMENTS}
    _check_init_args(scheduler, parameters, init_args)
    arguments = {**_filled_in(scheduler, parameters, init_args, optimizer, steps_left), **init_args}
    if issubclass(scheduler, ReduceLROnPlateau) and monitor_mode is not None:
        arguments["mode"] = _checked_mode(init_args.get("mode", monitor_mode), monitor_mode)
    missing = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in arguments]
    if missing:
        raise ConfigError(
            f"{scheduler.__name__} needs {' and '.join(missing)}",
            where="lr_schedule.init_args",
            fix=f"write lr_schedule.init_args.{missing[0]}: ...",
        )
    try:
        built = scheduler(optimizer, **arguments)
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(
            f"{scheduler.__name__} refuses its arguments: {error}",
            where="lr_schedule.init_args",
            fix="change the argument it names, or choose another lr_schedule.name",
        ) from error
    return WarmupThen(built, warmup_steps) if warmup_steps else built


def _check_init_args(
    scheduler: type[LRScheduler], parameters: dict[str, inspect.Parameter], init_args: dict[str, Any]
) -> None:
    for key in init_args:
        if key not in parameters:
            guess = nearest(key, parameters)
            raise ConfigError(
                f"{scheduler.__name__} has no argument {key}; it has {', '.join(parameters)}",
                where=f"lr_schedule.init_args.{key}",
                fix=f"did you mean {guess}?" if guess else "leave it out",
            )


def _checked_mode(mode: str, monitor_mode: Literal["min", "max"]) -> str:
    if mode != monitor_mode:
        raise ConfigError(
            f"mode is {mode}, but the monitored metric is better {'low' if monitor_mode == 'min' else 'high'}",
            where="lr_schedule.init_args.mode",
            fix="leave it out: it follows from the metric",
        )
    return mode


def _filled_in(
    scheduler: type[LRScheduler],
    parameters: dict[str, inspect.Parameter],
    init_args: dict[str, Any],
    optimizer: Optimizer,
    steps_left: int | None,
) -> dict[str, Any]:
    """Arguments that follow from the run and were not given."""
    known: dict[str, Any] = {"max_lr": [group["lr"] for group in optimizer.param_groups]}
    if steps_left is not None:
        known["T_max"] = steps_left
    if steps_left is not None and issubclass(scheduler, OneCycleLR) and "epochs" not in init_args:
        known["total_steps"] = steps_left
    return {key: value for key, value in known.items() if key in parameters}
