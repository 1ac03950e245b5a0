"""Which parameters are not trained."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lit_tune.errors import ConfigError, nearest
from lit_tune.models.layers import head_parameter_names, layer_depths, num_layers

log = logging.getLogger("lit_tune")
BACKBONE = "backbone"
"""The pattern that means everything but the head."""

_BELOW = re.compile(r"layers below (.*)")
_WHERE = "model.freeze"
_SHOWN_NAMES = 4


@dataclass(frozen=True)
class FreezeReport:
    """What was frozen.

    Args:
        names: Names of the frozen parameters, in the model's order.
        num_parameters: Their number of elements.
    """

    names: list[str]
    num_parameters: int


def freeze(model: nn.Module, patterns: list[str]) -> FreezeReport:
    r"""Switch off ``requires_grad`` of every parameter that a pattern matches.

    Args:
        model: A Hugging Face model.
        patterns: Each is ``backbone`` (everything but the head), ``layers below 4`` (the embeddings and layers 1 to 3;
            the lowest is 1), or a regular expression that is searched in parameter names (``re.search``):
            ``embeddings``, or ``layer\.[0-5]\.``. A tied parameter has its first name only.

    Raises:
        ConfigError: A pattern that matches nothing or is no regular expression, or nothing is left to train. The model
            is unchanged then.
    """
    frozen = {name for pattern in patterns for name in matching(model, pattern)}
    if not any(p.requires_grad for name, p in model.named_parameters() if name not in frozen):
        raise ConfigError(
            f"{' and '.join(patterns)} would freeze every parameter: nothing is left to train",
            where=_WHERE,
            fix=f"leave at least the head: freeze: {BACKBONE}",
        )
    report = [(name, parameter) for name, parameter in model.named_parameters() if name in frozen]
    for _, parameter in report:
        parameter.requires_grad_(False)
    found = FreezeReport([name for name, _ in report], sum(parameter.numel() for _, parameter in report))
    log.info("frozen: %s parameters in %d tensors", f"{found.num_parameters:,}", len(found.names))
    return found


def frozen_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The largest submodules that have parameters, none of them trainable: module name -> module.

    They belong in eval mode (their dropout would only add noise to features that cannot adapt). ``model.train()``
    undoes that, so set it again whenever training mode is switched on.
    """
    found: dict[str, nn.Module] = {}

    def visit(name: str, module: nn.Module) -> None:
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            found[name] = module
        elif parameters:
            for child_name, child in module.named_children():
                visit(f"{name}.{child_name}" if name else child_name, child)

    visit("", model)
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; then each submodule is in its own mode again, which ``model.train()`` would not do."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training


def train_mode(model: nn.Module, is_whole: bool = False, tell: bool = True) -> None:
    """Training mode, dropout on: transformers gives models in eval mode and Lightning leaves them so.

    A submodule without any trainable parameter runs in eval mode: its dropout would only add noise.

    Args:
        model: The model.
        is_whole: There is an adapter in it, which changes what all of it computes: dropout is on everywhere, as with
            peft used alone. Only running means of frozen normalisation layers stay, which no adapter saves.
        tell: Say in one line which submodules run in eval mode.
    """
    model.train()
    if is_whole:
        for module in model.modules():
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return
    frozen = frozen_modules(model)
    for module in frozen.values():
        module.eval()
    if frozen and tell:
        more = f" and {len(frozen) - _SHOWN_NAMES} more" if len(frozen) > _SHOWN_NAMES else ""
        those = "it" if len(frozen) == 1 else "them"
        log.info("eval mode, because nothing in %s is trained: %s%s", those, ", ".join([*frozen][:_SHOWN_NAMES]), more)


def matching(model: nn.Module, pattern: str, where: str = _WHERE) -> set[str]:
    """Names of the parameters that a pattern means; see :func:`freeze`.

    Raises:
        ConfigError: There are none, or it is no pattern.
    """
    names = [name for name, _ in model.named_parameters()]
    if pattern == BACKBONE:
        head = head_parameter_names(model)
        if not head:
            raise ConfigError(
                "the model has no head, so that its whole is the backbone",
                where=where,
                fix="name what to freeze by regular expressions, e.g. embeddings",
            )
        return set(names) - head
    if below := _BELOW.fullmatch(pattern):
        limit = number_of_layers(model, below[1], where, f"layers below {min(3, max(1, num_layers(model)))}")
        return {name for name, depth in layer_depths(model).items() if depth < limit}
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"{pattern!r} is not a regular expression: {error}",
            where=where,
            fix=r"write a literal dot as \. and a * as .*",
        ) from error
    matched = {name for name in names if regex.search(name)}
    if not matched:
        raise _unmatched(pattern, names, where)
    return matched


def number_of_layers(model: nn.Module, text: str, where: str, example: str) -> int:
    """The number in ``layers below 4`` or ``top 2``: 1 to the layers that the model has.

    Raises:
        ConfigError: It is another one, or no layers were found.
    """
    count = num_layers(model)
    if count == 0:
        raise ConfigError(
            f"no stack of layers was found in {type(model).__name__}", where=where, fix="parts of parameters' names"
        )
    if not (text.isdecimal() and 1 <= int(text) <= count):
        raise ConfigError(f"the model has layers 1 to {count}, not {text}", where=where, fix=f"e.g. {example}")
    return int(text)


def _unmatched(pattern: str, names: list[str], where: str) -> ConfigError:
    parts = dict.fromkeys([BACKBONE, *(part for name in names for part in name.split(".") if not part.isdigit())])
    guess = nearest(pattern, parts) or nearest(pattern, names)
    step = max(1, len(names) // _SHOWN_NAMES)
    shown = ", ".join(names[::step][:_SHOWN_NAMES])
    return ConfigError(
        f"{pattern!r} matches none of the {len(names)} parameter names; some of them: {shown}",
        where=where,
        fix=f"did you mean {guess}?" if guess else f"write {BACKBONE}, or a part of a parameter's name",
    )
