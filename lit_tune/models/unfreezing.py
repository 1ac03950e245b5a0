"""Frozen parameters that are trained later, from an epoch or an optimizer step on.

Whether a parameter is trained is a pure function of (epoch, step), and the optimizer holds all that ever are from the
beginning. A frozen one has no gradient, and torch's optimizers pass by what has none: no state, no decay, and AdamW
counts the steps of its bias correction from the first gradient on, as if the group had been added then. So a run that
goes on needs nothing but its counters (Lightning's BaseFinetuning adds groups at the time, and a run that goes on finds
its parameters frozen again: https://github.com/Lightning-AI/pytorch-lightning/issues/21901).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lit_tune.errors import ConfigError
from lit_tune.models.freezing import matching, number_of_layers, train_mode
from lit_tune.models.layers import layer_depths, num_layers
from lit_tune.models.unfreeze_settings import KEY, GradualSettings, StageSettings, UnfreezeSettings

log = logging.getLogger("lit_tune")


@dataclass(frozen=True)
class Stage:
    """Parameters that are trained from the same moment on.

    Args:
        names: Of the parameters, in the model's order.
        label: What they are, for people.
        at_epoch: Whole epochs before they are trained, or None.
        at_step: Optimizer steps before they are trained, or None.
        lr: Learning rate of the uppermost of them; None: what they would have had without freezing.
        warmup_steps: Optimizer steps in which their rate rises from 0.
        where: The config key.
    """

    names: tuple[str, ...]
    label: str
    at_epoch: int | None = None
    at_step: int | None = None
    lr: float | None = None
    warmup_steps: int = 0
    where: str = KEY

    @property
    def when(self) -> str:
        """``epoch 1`` or ``step 500``."""
        return f"step {self.at_step}" if self.at_epoch is None else f"epoch {self.at_epoch}"

    def is_trained(self, epoch: int, step: int) -> bool:
        """Whether they are trained.

        Args:
            epoch: Whole epochs that are done.
            step: Optimizer steps that are done.
        """
        return epoch >= self.at_epoch if self.at_epoch is not None else step >= (self.at_step or 0)

    def first_step(self, steps_per_epoch: int | None) -> int | None:
        """Optimizer steps before they are trained; None where nobody knows how long an epoch is."""
        if self.at_epoch is None:
            return self.at_step
        return None if steps_per_epoch is None else self.at_epoch * steps_per_epoch


def plan_stages(model: nn.Module, settings: UnfreezeSettings | None, unused: Sequence[str] = ()) -> list[Stage]:
    """The stages of a model that has just been frozen.

    Args:
        model: Its parameters without ``requires_grad`` are the frozen ones.
        settings: ``model.unfreeze``.
        unused: Names of modules that the task leaves out of training for good.

    Raises:
        ConfigError: A stage means nothing that is there, or nothing that is frozen until then.
    """
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad and not set(unused) & set(n.split("."))]
    if settings is None:
        return []
    depths = layer_depths(model)
    if isinstance(settings, GradualSettings):
        return _one_by_one(frozen, depths, num_layers(model), settings)
    stages: list[Stage] = []
    for i, given in enumerate(settings):
        where = f"{KEY}[{i}]"
        wanted = _wanted(model, given, depths, where)
        taken = {name for stage in stages for name in stage.names}
        names = tuple(name for name in frozen if name in wanted and name not in taken)
        if not names:
            raise ConfigError(
                f"{_asked(given)} has nothing that is still frozen then",
                where=where,
                fix="remove it; or write the stages in the order of time, those that mean less before those with more",
            )
        label = _asked(given) if given.patterns else describe_depths([depths[n] for n in names], num_layers(model))
        stages.append(Stage(names, label, given.at_epoch, given.at_step, given.lr, given.warmup_steps, where))
    return stages


def _one_by_one(frozen: list[str], depths: dict[str, int], layers: int, settings: GradualSettings) -> list[Stage]:
    """Each frozen layer a stage, from the top (Howard and Ruder 2018, 3.3: https://arxiv.org/abs/1801.06146)."""
    stages = []
    for i, depth in enumerate(sorted({depths[name] for name in frozen}, reverse=True), start=1):
        names = tuple(name for name in frozen if depths[name] == depth)
        epoch = None if settings.every_epochs is None else i * settings.every_epochs
        step = None if settings.every_steps is None else i * settings.every_steps
        label = describe_depths([depth], layers)
        stages.append(Stage(names, label, epoch, step, settings.lr, settings.warmup_steps))
    return stages


def _wanted(model: nn.Module, given: StageSettings, depths: dict[str, int], where: str) -> set[str]:
    """What a stage means, frozen or not."""
    if given.patterns is not None:
        patterns = [given.patterns] if isinstance(given.patterns, str) else given.patterns
        return {name for pattern in patterns for name in matching(model, pattern, f"{where}.patterns")}
    assert given.layers is not None
    if given.layers == "all":
        return set(depths)
    count = number_of_layers(model, given.layers.removeprefix("top "), f"{where}.layers", "layers: top 1")
    return {name for name, depth in depths.items() if depth > num_layers(model) - count}


def _asked(given: StageSettings) -> str:
    patterns = [given.patterns] if isinstance(given.patterns, str) else given.patterns or []
    return " and ".join(patterns) or f"layers: {given.layers}"


def describe_depths(depths: list[int], layers: int) -> str:
    """Which layers these are.

    >>> describe_depths([4, 5, 6], 6), describe_depths([0, 1, 7], 6)
    ('layers 4 to 6', 'embeddings, layer 1, head')
    """
    inner = sorted({depth for depth in depths if 0 < depth <= layers})
    parts = ["embeddings"] if 0 in depths else []
    if inner:
        parts.append(f"layer {inner[0]}" if len(inner) == 1 else f"layers {inner[0]} to {inner[-1]}")
    return ", ".join(parts + (["head"] if max(depths) > layers else []))


def describe_plan(stages: Sequence[Stage], model: nn.Module) -> str:
    """When what is trained: one line."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    found = [f"{s.when} {s.label} ({sum(sizes[n] for n in s.names):,})" for s in stages]
    return "; ".join(found)


class Unfreezing:
    """Sets ``requires_grad`` as the moment wants it.

    Args:
        model: Frozen; None before there is one.
        stages: From :func:`plan_stages`.
    """

    def __init__(self, model: nn.Module | None = None, stages: Sequence[Stage] = ()) -> None:
        self.model, self.stages = model, stages

    def follow(self, trainer: Any) -> None:
        """Before a micro-batch: train what is due, its dropout on, and have DDP sum its gradients too.

        Args:
            trainer: Its counters say which moment it is; ``requires_grad`` changes between optimizer steps only.
        """
        if self.model is None or not self.stages:
            return
        due = [s for s in self.stages if s.is_trained(trainer.current_epoch, trainer.global_step)]
        opened = [stage for stage in due if not self.model.get_parameter(stage.names[0]).requires_grad]
        if not opened:
            return
        own = dict(self.model.named_parameters())
        for stage in opened:
            for name in stage.names:
                own[name].requires_grad_(True)
        train_mode(self.model, tell=False)
        follow_in_ddp(trainer.strategy)
        if getattr(self.model, "_compiled_call_impl", None) is not None:
            torch._dynamo.reset()  # each change is compiled anew, and the ninth would not be (recompile_limit is 8)
        for stage in opened:
            log.info("unfrozen %s", _opened_line(stage, own, trainer))


def _opened_line(stage: Stage, own: dict[str, nn.Parameter], trainer: Any) -> str:
    ids = {id(own[name]) for name in stage.names}
    groups = [g for g in trainer.optimizers[0].param_groups if ids & {id(p) for p in g["params"]}]
    rates = sorted({g.get("initial_lr", g["lr"]) for g in groups})
    lr = " to ".join(dict.fromkeys(f"{rate:.3g}" for rate in (rates[0], rates[-1])))
    size = sum(own[name].numel() for name in stage.names)
    trained = sum(p.numel() for p in own.values() if p.requires_grad)
    return (
        f"at step {trainer.global_step} (epoch {trainer.current_epoch}): {stage.label}, {size:,} parameters, "
        f"lr {lr} times the schedule; {trained:,} trained now"
    )


def follow_in_ddp(strategy: Any) -> None:
    """Wrap the module anew: DDP knows only the parameters that were trained when it was made.

    That keeps its sums during the backward pass, and costs one broadcast of the weights each time. With
    ``find_unused_parameters`` it could know all from the start, and would walk the graph and sum zeros at every step.

    Args:
        strategy: The trainer's; nothing is done where it is not DDP.
    """
    wrapped = strategy.model
    if not isinstance(wrapped, DistributedDataParallel):
        return
    sums = wrapped.require_backward_grad_sync
    wrapped._remove_autograd_hooks()  # the old reducer would count gradients until it is collected
    strategy.model = strategy.lightning_module
    strategy.configure_ddp()
    strategy.model.require_backward_grad_sync = sums
