"""The ``optimizer`` section: settings, and the optimizer built from them."""

import inspect
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lit_tune.errors import ConfigError, LitTuneError, nearest, raise_problems
from lit_tune.imports import import_class
from lit_tune.models.unfreezing import Stage
from lit_tune.optim.param_groups import ParamGroup, build_param_groups, describe_groups

log = logging.getLogger(__name__)

CLASSES = {
    "adamw": "torch.optim.AdamW",
    # what HF Trainer's optim="adafactor" gives, not torch.optim.Adafactor, whose updates differ
    "adafactor": "transformers.optimization.Adafactor",
    "sgd": "torch.optim.SGD",
    "adamw_8bit": "bitsandbytes.optim.AdamW8bit",
}
"""Short names of ``optimizer.name``."""

# Where nothing is said: SGD without momentum is rarely meant; HF's Adafactor refuses a learning rate unless
# `relative_step` is off, and HF Trainer switches both off (transformers 5.23, trainer_optimizer.py).
_OWN_DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "adafactor": {"relative_step": False, "scale_parameter": False},
}

# Fused kernels, https://docs.pytorch.org/docs/stable/optim.html; others (Adagrad: CPU only) are fused only on request.
_FUSED_CLASSES = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_FUSED_DEVICES = ("cuda", "cpu", "mps", "xpu")

_SECTION_KEYS = ("lr", "weight_decay", "betas", "eps", "momentum", "fused")


class OptimizerSettings:
    """Settings of the ``optimizer`` section; plain types only.

    Args:
        name: ``adamw``, ``adafactor`` (as HF Trainer's: fixed learning rate), ``sgd``, ``adamw_8bit`` (needs the extra
            ``lit-tune[8bit]``), the name of a class in ``torch.optim``, or a class path.
        lr: Peak learning rate, > 0.
        weight_decay: Weight decay, >= 0; biases and normalisation weights get none.
        betas: Decay rates of the running means of gradient and squared gradient, in [0, 1). Default: the optimizer's
            own (adamw: 0.9, 0.999).
        eps: Added to the denominator, >= 0. Default: the optimizer's own (adamw: 1e-8).
        momentum: Momentum in [0, 1), for optimizers that have it. Default: 0.9 for ``sgd``, else the optimizer's own.
        head_lr: Learning rate of the head; default: ``lr``.
        layer_lr_decay: Each layer learns with this factor times the rate of the layer above it, in (0, 1].
        fused: Fused kernels: faster on a GPU. Default: on for adamw and sgd, except with ``precision: 16-mixed``.
        skip_nonfinite: Steps of a run that may be left out because their loss or gradient is not a number; one more
            ends it. Weights, optimizer and schedule stay as they were. What an fp16 scaler skips does not count.
        init_args: Further arguments of the class: ``{amsgrad: true}``.

    Raises:
        ConfigError: A value out of range; several are reported together.
    """

    def __init__(
        self,
        name: str = "adamw",
        lr: float = 5e-5,
        weight_decay: float = 0.01,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        momentum: float | None = None,
        head_lr: float | None = None,
        layer_lr_decay: float = 1.0,
        fused: bool | None = None,
        skip_nonfinite: int = 0,
        init_args: dict[str, Any] = {},  # noqa: B006 - never mutated; a plain default prints as itself in --help
    ) -> None:
        self.name = name
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = None if betas is None else tuple(betas)
        self.eps = eps
        self.momentum = momentum
        self.head_lr = head_lr
        self.layer_lr_decay = layer_lr_decay
        self.fused = fused
        self.skip_nonfinite = skip_nonfinite
        self.init_args = dict(init_args)
        raise_problems(self._out_of_range())

    def _out_of_range(self) -> list[LitTuneError]:
        checks = [
            ("lr", self.lr, _finite(self.lr) and self.lr > 0, "more than 0; 1e-5 to 5e-5 is usual for fine-tuning"),
            ("weight_decay", self.weight_decay, _finite(self.weight_decay) and self.weight_decay >= 0, "at least 0"),
            ("betas", self.betas, self.betas is None or _are_betas(self.betas), "two numbers in [0, 1)"),
            ("eps", self.eps, self.eps is None or (_finite(self.eps) and self.eps >= 0), "at least 0"),
            ("momentum", self.momentum, self.momentum is None or 0 <= self.momentum < 1, "in [0, 1)"),
            (
                "head_lr",
                self.head_lr,
                self.head_lr is None or (_finite(self.head_lr) and self.head_lr > 0),
                "more than 0",
            ),
            ("skip_nonfinite", self.skip_nonfinite, self.skip_nonfinite >= 0, "at least 0 (off)"),
            ("layer_lr_decay", self.layer_lr_decay, 0 < self.layer_lr_decay <= 1, "more than 0 and at most 1 (off)"),
        ]
        return [
            ConfigError(
                f"{value} is out of range",
                where=f"optimizer.{key}",
                fix=f"give {'' if key == 'betas' else 'a number '}{allowed}",
            )
            for key, value, good, allowed in checks
            if not good
        ]


def build_optimizer(
    settings: OptimizerSettings,
    model: nn.Module,
    fused_allowed: bool,
    stages: Sequence[Stage] = (),
    steps_per_epoch: int | None = None,
) -> torch.optim.Optimizer:
    """The optimizer over the parameters that are trained now or later, in named groups (``param_groups``), logged.

    Args:
        settings: The ``optimizer`` section.
        model: The model, on the device it is trained on.
        fused_allowed: False where a fused optimizer is wrong: with 16-mixed, Lightning hands fused optimizers gradients
            that are still scaled.
        stages: What is trained later.
        steps_per_epoch: Optimizer steps of an epoch; None where it is not known.

    Raises:
        ConfigError: Unknown or missing class, a setting the class does not have, or one that it refuses.
    """
    optimizer_class = _optimizer_class(settings.name)
    signature = _parameters_of(optimizer_class)
    _check_init_args(settings, optimizer_class, signature)
    given = _given_settings(settings, optimizer_class, signature)
    arguments = {**_OWN_DEFAULTS.get(settings.name.lower(), {}), **given, **settings.init_args}
    rates = (settings.lr, settings.weight_decay, settings.head_lr, settings.layer_lr_decay)
    groups = build_param_groups(model, *rates, stages, steps_per_epoch)
    if _use_fused(settings, optimizer_class, signature, groups, fused_allowed):
        arguments["fused"] = True
    try:
        optimizer: torch.optim.Optimizer = optimizer_class(groups, lr=settings.lr, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{optimizer_class.__name__} refuses its settings: {error}",
            where="optimizer",
            fix="change the setting it names, or choose another optimizer.name",
        ) from error
    if settings.name.lower() == "adamw_8bit":
        _keep_embeddings_in_32_bit(model)
    _log_optimizer(settings, optimizer_class, signature, arguments, groups)
    return optimizer


def _log_optimizer(
    settings: OptimizerSettings,
    optimizer_class: Any,
    signature: dict[str, inspect.Parameter],
    arguments: dict[str, Any],
    groups: list[ParamGroup],
) -> None:
    if "weight_decay" not in signature and settings.weight_decay > 0:
        log.warning("optimizer.weight_decay has no effect: %s has none", optimizer_class.__name__)
    extra = "".join(f", {key} {value}" for key, value in arguments.items())
    log.info("Optimizer %s: lr %g%s", optimizer_class.__name__, settings.lr, extra)
    if settings.name.lower() == "adafactor":
        log.info("Adafactor follows optimizer.lr and lr_schedule, not its own relative step sizes, as in HF Trainer")
    for line in describe_groups(groups):
        log.info("  %s", line)


def _keep_embeddings_in_32_bit(model: nn.Module) -> None:
    """As HF Trainer does: rare tokens make an embedding's statistics too uneven for 8 bits.

    https://huggingface.co/docs/bitsandbytes/main/en/explanations/optimizers
    """
    manager = import_class("bitsandbytes.optim.GlobalOptimManager", where="optimizer.name").get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})


def _finite(value: float) -> bool:
    return math.isfinite(value)


def _are_betas(betas: tuple[float, ...]) -> bool:
    return len(betas) == 2 and all(0 <= beta < 1 for beta in betas)


def _optimizer_class(name: str) -> Any:
    path = CLASSES.get(name.lower(), name)  # `SGD` and `sgd` are one thing; `torch.optim.SGD` has torch's defaults
    found = import_class(path, where="optimizer.name", search=("torch.optim",), aliases=CLASSES)
    if not issubclass(found, torch.optim.Optimizer):
        raise ConfigError(
            f"{name} is not a torch optimizer", where="optimizer.name", fix=f"one of {', '.join(CLASSES)}"
        )
    return found


def _parameters_of(optimizer_class: Any) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(optimizer_class.__init__).parameters)
    return {name: p for name, p in parameters.items() if name not in ("self", "params")}


def _has(key: str, signature: dict[str, inspect.Parameter]) -> bool:
    """Whether the class takes ``key`` in the form the section has it: HF's Adafactor has a pair as ``eps``."""
    if key not in signature:
        return False
    default = signature[key].default
    if key == "betas":
        return not isinstance(default, tuple | list) or len(default) == 2
    return not isinstance(default, tuple | list)


def _given_settings(
    settings: OptimizerSettings, optimizer_class: Any, signature: dict[str, inspect.Parameter]
) -> dict[str, Any]:
    """What of ``betas eps momentum weight_decay`` to hand to the class.

    ``weight_decay`` stands in every group; it is handed over too, so that the optimizer's own record is right.
    """
    given = [key for key in ("betas", "eps", "momentum") if getattr(settings, key) is not None]
    for key in given:
        if not _has(key, signature):
            in_other_form = key in signature
            raise ConfigError(
                f"{optimizer_class.__name__} {'takes another kind of' if in_other_form else 'has no'} {key}",
                where=f"optimizer.{key}",
                fix=f"write optimizer.init_args.{key}: {signature[key].default}" if in_other_form else "leave it out",
            )
    given += ["weight_decay"] if "weight_decay" in signature else []
    return {key: getattr(settings, key) for key in given}


def _check_init_args(
    settings: OptimizerSettings, optimizer_class: Any, signature: dict[str, inspect.Parameter]
) -> None:
    """One place per setting, and no argument that the class does not have."""
    takes_anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.values())
    for key in settings.init_args:
        where = f"optimizer.init_args.{key}"
        if key == "params":
            raise ConfigError("the parameters come from the model", where=where, fix="leave it out")
        if key in _SECTION_KEYS and (key not in signature or _has(key, signature)):
            raise ConfigError(f"{key} is a key of the section itself", where=where, fix=f"write optimizer.{key}")
        if key not in signature and not takes_anything:
            known = [name for name in signature if name not in _SECTION_KEYS or not _has(name, signature)]
            guess = nearest(key, known)
            raise ConfigError(
                f"{optimizer_class.__name__} has no argument {key}; it has {', '.join(known) or 'none'}",
                where=where,
                fix=f"did you mean {guess}?" if guess else "leave it out",
            )


def _use_fused(
    settings: OptimizerSettings,
    optimizer_class: Any,
    signature: dict[str, inspect.Parameter],
    groups: list[ParamGroup],
    fused_allowed: bool,
) -> bool:
    """Decide on fused kernels: what was asked for, or by default wherever they are right and available."""
    parameters = [p for group in groups for p in group["params"]]
    devices = {p.device.type for p in parameters}
    possible = devices <= set(_FUSED_DEVICES) and all(p.is_floating_point() for p in parameters)
    if settings.fused is None:
        other_kernel = settings.init_args.get("foreach") or settings.init_args.get("differentiable")
        return fused_allowed and possible and optimizer_class in _FUSED_CLASSES and not other_kernel
    if not settings.fused:
        return False
    reasons = [
        (not fused_allowed, "does not work with trainer.precision: 16-mixed"),
        ("fused" not in signature, f"does not exist for {optimizer_class.__name__}"),
        (not possible, f"does not exist on {', '.join(sorted(devices))}"),
    ]
    for applies, reason in reasons:
        if applies:
            raise ConfigError(f"a fused optimizer {reason}", where="optimizer.fused", fix="leave it out")
    return True
