"""Which learning rate and weight decay each parameter gets.

Learning rate: ``lr * layer_lr_decay ** (depth of the head - depth)``: the head learns with ``lr``, the last layer with
``lr * layer_lr_decay`` and the embeddings slowest (discriminative fine-tuning: Howard and Ruder 2018,
https://arxiv.org/abs/1801.06146; in this form in ELECTRA, https://arxiv.org/abs/2003.10555). ``head_lr`` replaces the
head's. What is unfrozen later has groups of its own from the start, with a rate of its own where it has one.

Weight decay: none on biases and on the weights of normalisation layers, the same parameters as HF Trainer's.
"""

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from lit_tune.errors import ConfigError
from lit_tune.models.layers import head_parameter_names, layer_depths, num_layers
from lit_tune.models.unfreezing import Stage

ParamGroup = dict[str, Any]
"""What torch's optimizers take (``params lr weight_decay``), plus ``name``, which they keep."""


def build_param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    head_lr: float | None = None,
    layer_lr_decay: float = 1.0,
    stages: Sequence[Stage] = (),
    steps_per_epoch: int | None = None,
) -> list[ParamGroup]:
    """Parameters that are trained, now or later, in groups of equal rate and weight decay, each in exactly one.

    Args:
        model: A Hugging Face model; parameters without ``requires_grad`` that no stage names are left out.
        lr: Learning rate of the head, and of everything if ``layer_lr_decay`` is 1.
        weight_decay: Weight decay of the parameters that get any.
        head_lr: Learning rate of the head; None: ``lr``.
        layer_lr_decay: Factor in (0, 1] per layer from the head down.
        stages: What is trained later.
        steps_per_epoch: Optimizer steps of an epoch; None where it is not known.

    Returns:
        Groups from the embeddings to the head, with a unique ``name``: ``layer 3, decay``, ``head, no decay``;
        ``backbone`` where layers do not differ, ``all`` where head and backbone do not either; with ``from epoch 1``
        where it is trained later.

    Raises:
        ConfigError: Nothing is trainable, or the model lacks the head or the layers that a setting is about.
    """
    later = {name: number for number, stage in enumerate(stages, start=1) for name in stage.names}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad or name in later}
    _refuse(model, trainable, head_lr, layer_lr_decay)
    head = head_parameter_names(model)
    undecayed, depths, top = no_decay_names(model), layer_depths(model), num_layers(model) + 1
    layers_differ, head_differs = layer_lr_decay != 1.0, layer_lr_decay != 1.0 or head_lr is not None
    groups: dict[tuple[int, int, bool], ParamGroup] = {}
    for name, parameter in trainable.items():
        # A part is a depth where layers differ; else 0 is the backbone, and everything where the head does not differ.
        part = depths[name] if layers_differ else (top if head_differs and name in head else 0)
        number, decays = later.get(name, 0), name not in undecayed
        if (part, number, decays) not in groups:
            label = _part_name(part, top, layers_differ) if head_differs else "all"
            rate = head_lr if part == top and head_lr is not None else lr * layer_lr_decay ** (top - part)
            group = {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0}
            if number:
                stage = stages[number - 1]
                label = f"{label if layers_differ else stage.label} from {stage.when}"
                highest = max(depths[n] for n in stage.names) if layers_differ else part
                own_rate = rate if stage.lr is None else stage.lr * layer_lr_decay ** (highest - part)
                group |= {"lr": own_rate, **_ramp(stage, steps_per_epoch)}
            groups[part, number, decays] = {"name": f"{label}, {'decay' if decays else 'no decay'}", **group}
        groups[part, number, decays]["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], -key[1], not key[2]))]


def _refuse(model: nn.Module, trainable: Collection[str], head_lr: float | None, layer_lr_decay: float) -> None:
    """Settings about something that the model lacks."""
    if not trainable:
        raise ConfigError(
            "every parameter is frozen: nothing is left to train", where="model.freeze", fix="freeze less"
        )
    if head_lr is not None and not head_parameter_names(model) & set(trainable):
        raise ConfigError(
            "the model has no trainable head to give this learning rate to",
            where="optimizer.head_lr",
            fix="leave it out",
        )
    if layer_lr_decay != 1.0 and num_layers(model) == 0:
        raise ConfigError(
            f"no stack of layers was found in {type(model).__name__}",
            where="optimizer.layer_lr_decay",
            fix="leave it out",
        )


def no_decay_names(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay must not touch: biases and weights of normalisation layers.

    By the type of the module that holds the weight: ``LayerNorm`` and any class with ``norm`` in its name, which covers
    the RMS norms that every architecture defines for itself. A name with ``bias`` in it counts as a bias (T5's
    ``relative_attention_bias``), as in HF Trainer.
    """
    modules = dict(model.named_modules())
    found = set()
    for name, _ in model.named_parameters():
        holder = modules[name.rpartition(".")[0]]
        if "bias" in name.lower() or isinstance(holder, nn.LayerNorm) or "norm" in type(holder).__name__.lower():
            found.add(name)
    return found


def _ramp(stage: Stage, steps_per_epoch: int | None) -> ParamGroup:
    """The entry of a group that rises from 0 by itself: its first step, and in how many."""
    if not stage.warmup_steps:
        return {}
    start = stage.first_step(steps_per_epoch)
    if start is None:
        raise ConfigError(
            "an epoch of a stream has no known length, so that nobody knows where the warm-up begins",
            where=f"{stage.where}.warmup_steps",
            fix="give at_step (every_steps), or leave warmup_steps out",
        )
    return {"ramp": [start, stage.warmup_steps]}


def describe_groups(groups: list[ParamGroup]) -> list[str]:
    """One line per group for the log.

    >>> import torch
    >>> group = {"name": "head, decay", "params": [torch.zeros(768, 2)], "lr": 2e-5, "weight_decay": 0.01}
    >>> describe_groups([group])
    ['head, decay: lr 2e-05, weight decay 0.01, 1 tensor, 1,536 parameters']
    """
    lines = []
    for group in groups:
        count = len(group["params"])
        size = sum(p.numel() for p in group["params"])
        lines.append(
            f"{group['name']}: lr {group['lr']:.3g}, weight decay {group['weight_decay']:g}, "
            f"{count} tensor{'' if count == 1 else 's'}, {size:,} parameters"
        )
    return lines


def _part_name(part: int, top: int, layers_differ: bool) -> str:
    if part == top:
        return "head"
    if not layers_differ:
        return "backbone"
    return "embeddings" if part == 0 else f"layer {part}"
