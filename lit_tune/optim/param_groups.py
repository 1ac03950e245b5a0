"""Which learning rate and weight decay each parameter gets.

Learning rate: ``lr * layer_lr_decay ** (depth of the head - depth)``: the head learns with ``lr``, the last layer with
``lr * layer_lr_decay`` and the embeddings slowest (discriminative fine-tuning: Howard and Ruder 2018,
https://arxiv.org/abs/1801.06146; in this form in ELECTRA, https://arxiv.org/abs/2003.10555). ``head_lr`` replaces the
head's.

Weight decay: none on biases and on the weights of normalisation layers, the same parameters as HF Trainer's.
"""

from typing import Any

from torch import nn

from lit_tune.errors import ConfigError
from lit_tune.models.layers import head_parameter_names, layer_depths, num_layers

ParamGroup = dict[str, Any]
"""What torch's optimizers take (``params lr weight_decay``), plus ``name``, which they keep."""


def build_param_groups(
    model: nn.Module, lr: float, weight_decay: float, head_lr: float | None = None, layer_lr_decay: float = 1.0
) -> list[ParamGroup]:
    """Trainable parameters in groups of equal learning rate and weight decay, each parameter in exactly one.

    Args:
        model: A Hugging Face model; parameters without ``requires_grad`` are left out.
        lr: Learning rate of the head, and of everything if ``layer_lr_decay`` is 1.
        weight_decay: Weight decay of the parameters that get any.
        head_lr: Learning rate of the head; None: ``lr``.
        layer_lr_decay: Factor in (0, 1] per layer from the head down.

    Returns:
        Groups from the embeddings to the head, with a unique ``name``: ``layer 3, decay``, ``head, no decay``;
        ``backbone`` where layers do not differ, ``all`` where head and backbone do not either.

    Raises:
        ConfigError: Nothing is trainable, or the model lacks the head or the layers that a setting is about.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ConfigError(
            "every parameter is frozen: nothing is left to train", where="model.freeze", fix="freeze less"
        )
    head = head_parameter_names(model) & trainable.keys()
    if head_lr is not None and not head:
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
    undecayed, depths, top = no_decay_names(model), layer_depths(model), num_layers(model) + 1
    layers_differ, head_differs = layer_lr_decay != 1.0, layer_lr_decay != 1.0 or head_lr is not None
    groups: dict[tuple[int, bool], ParamGroup] = {}
    for name, parameter in trainable.items():
        # A part is a depth where layers differ; else 0 is the backbone, and everything where the head does not differ.
        part = depths[name] if layers_differ else (top if head_differs and name in head else 0)
        decays = name not in undecayed
        label = _part_name(part, top, layers_differ) if head_differs else "all"
        group = groups.setdefault(
            (part, decays),
            {
                "name": f"{label}, {'decay' if decays else 'no decay'}",
                "params": [],
                "lr": head_lr if part == top and head_lr is not None else lr * layer_lr_decay ** (top - part),
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], not key[1]))]


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
