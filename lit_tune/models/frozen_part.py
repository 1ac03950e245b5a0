"""The frozen part of a model, and the one place behind it that takes its outputs: these are kept, and put back.

Nothing is known of the kinds of models. A forward pass shows which frozen modules run before anything that is trained
or random, and which module is called next. What that module is given depends on the row alone, because frozen modules
run in eval mode. When it is put back, the frozen modules are not run: stubs give tensors of the shapes that they give,
full of NaN. Whatever else of the model would read them becomes NaN, too, so that a comparison of one batch tells.

Shapes: B examples, T tokens, H features.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils import _pytree as pytree

from lit_tune.models.layers import layer_depths

Run = Callable[[], Any]
"""Calls the model with one batch."""


class NoFrozenPartError(Exception):
    """Why what a model's frozen modules compute cannot be put back."""


@dataclass(frozen=True)
class Call:
    """What a module was given first, and what it gave."""

    given: torch.Size
    gave: Any


class Stub:
    """Gives what a module gives, with the right shapes and NaN for numbers, at no cost.

    Args:
        calls: Of the module with batches of several shapes. A dimension follows one of the first input's where it was
            as large in each of them, else it is always the same.

    Raises:
        NoFrozenPartError: Neither is so.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        flat = [pytree.tree_flatten(call.gave) for call in calls]
        if any(spec != flat[0][1] for _, spec in flat):
            raise NoFrozenPartError("it gives different things to different batches")
        self.spec, self.leaves = flat[0][1], []
        for outputs in zip(*(leaves for leaves, _ in flat), strict=True):
            is_tensor = isinstance(outputs[0], Tensor)
            rules = shape_rules([c.given for c in calls], [o.shape for o in outputs]) if is_tensor else []
            self.leaves.append((outputs[0].dtype, rules) if is_tensor else None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = first_tensor([*args, *kwargs.values()])
        leaves = [None if leaf is None else nothing(*leaf, given) for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.spec)


def nothing(dtype: torch.dtype, rules: Sequence[tuple[bool, int]], given: Tensor) -> Tensor:
    """A tensor in which no number means anything."""
    fill = float("nan") if dtype.is_floating_point else 0
    shape = [given.shape[number] if follows else number for follows, number in rules]
    return torch.full((), fill, dtype=dtype, device=given.device).expand(shape)


def shape_rules(given: Sequence[torch.Size], gave: Sequence[torch.Size]) -> list[tuple[bool, int]]:
    """For each dimension of an output: (True, the input's dimension that it follows), or (False, its size).

    Raises:
        NoFrozenPartError: It is neither.

    >>> shape_rules([torch.Size([4, 7]), torch.Size([2, 5])], [torch.Size([4, 7, 16]), torch.Size([2, 5, 16])])
    [(True, 0), (True, 1), (False, 16)]
    """
    if len({len(shape) for shape in [*gave]}) > 1:
        raise NoFrozenPartError("what it gives has not always as many dimensions")
    rules = []
    for dim in range(len(gave[0])):
        sizes = [shape[dim] for shape in gave]
        follows = [(True, d) for d in (0, 1) if all(d < len(g) for g in given) and [g[d] for g in given] == sizes]
        constant = [(False, sizes[0])] if len(set(sizes)) == 1 else []
        # of one shape only, or of several that are equal by chance: the first two are those of the batch
        found = [*[r for r in follows if r[1] == dim], *(constant if dim > 1 else []), *follows, *constant]
        if not found:
            raise NoFrozenPartError(f"dimension {dim} of what it gives follows none of its input's")
        rules.append(found[0])
    return rules


def first_tensor(values: Sequence[Any]) -> Tensor:
    """The first tensor among a module's arguments.

    Raises:
        NoFrozenPartError: There is none.
    """
    found = next((v for v in values if isinstance(v, Tensor)), None)
    if found is None:
        raise NoFrozenPartError("it is given no tensor")
    return found


class FrozenPart:
    """The frozen modules of a model that run before the rest, and the module that takes what they give.

    Args:
        model: The model.
        frozen: Names of the frozen modules.
        taker: Name of the module that takes their outputs: the first tensor of numbers that it is given.
    """

    def __init__(self, model: nn.Module, frozen: Sequence[str], taker: str) -> None:
        self.model, self.frozen, self.taker = model, list(frozen), taker
        self.stubs: dict[str, Stub] = {}

    def given(self, run: Run) -> Tensor:
        """What the taker is given when it is called first.

        Raises:
            NoFrozenPartError: No tensor of numbers.
        """
        found: list[Tensor] = []

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not found:  # a dropout may be called again, further on
                found.extend([v for v in [*args, *kwargs.values()] if is_numbers(v)][:1])

        handle = self.model.get_submodule(self.taker).register_forward_pre_hook(look, with_kwargs=True)
        try:
            run()
        finally:
            handle.remove()
        if not found:
            raise NoFrozenPartError(f"{self.taker} is given no tensor of numbers")
        return found[0].detach()

    def learn(self, runs: Sequence[Run]) -> None:
        """Learn which shapes the frozen modules give.

        Args:
            runs: With batches of several shapes.

        Raises:
            NoFrozenPartError: They follow no rule.
        """
        calls: dict[str, list[Call]] = {name: [] for name in self.frozen}

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                calls[name].append(Call(first_tensor([*args, *kwargs.values()]).shape, output))

            return hook

        with ExitStack() as stack:
            for name in self.frozen:
                handle = self.model.get_submodule(name).register_forward_hook(note(name), with_kwargs=True)
                stack.callback(handle.remove)
            for run in runs:
                run()
        if any(len(found) != len(runs) for found in calls.values()):
            raise NoFrozenPartError("a frozen module is called more than once in a pass")
        self.stubs = {name: Stub(found) for name, found in calls.items()}

    @contextmanager
    def put_back(self, features: Tensor) -> Iterator[None]:
        """While this lasts the frozen modules do not run, and the taker is given these when it is called first.

        Args:
            features: As :meth:`given` has them, for the batch with which the model is called once.
        """

        def swap(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            handle.remove()
            place = next(k for k, v in [*enumerate(args), *kwargs.items()] if is_numbers(v))
            return tuple(features if i == place else v for i, v in enumerate(args)), {
                name: features if name == place else v for name, v in kwargs.items()
            }

        handle = self.model.get_submodule(self.taker).register_forward_pre_hook(swap, with_kwargs=True)
        modules = [(self.model.get_submodule(name), stub) for name, stub in self.stubs.items()]
        try:
            for module, stub in modules:
                module.forward = stub  # type: ignore[method-assign]
            yield
        finally:
            handle.remove()
            for module, _ in modules:
                vars(module).pop("forward", None)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers of the frozen modules, by name."""
        for name in self.frozen:
            module = self.model.get_submodule(name)
            yield from module.named_parameters(prefix=name)
            yield from module.named_buffers(prefix=name)


def is_numbers(value: Any) -> bool:
    """Whether it is a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def find_parts(model: nn.Module, run: Run) -> list[FrozenPart]:
    """The frozen part of a model with each module that might take its outputs, the innermost first.

    The innermost is given least: a dropout before the head one vector, where the head is given all tokens.

    Args:
        model: In training mode, its frozen modules in eval mode.
        run: Calls it.

    Raises:
        NoFrozenPartError: No layer is frozen that comes before what is trained.
    """
    before: list[str] = []
    running: list[str] = []
    around: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            is_inside = any(outer in before for outer in running)
            running.append(name)
            if not around and not is_inside and is_frozen(module):
                before.append(name)
            elif not around and is_live(module):
                around.extend(reversed(running))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(enter(name)).remove)
            stack.callback(module.register_forward_hook(lambda *_: running.pop() and None).remove)
        run()
    depths = layer_depths(model)
    if not any(depth > 0 and name.startswith(f"{b}.") for b in before for name, depth in depths.items()):
        raise NoFrozenPartError("no layer is frozen that comes before what is trained")
    takers = [name for name in around if name and not any(b.startswith(f"{name}.") for b in before)]
    return [FrozenPart(model, before, taker) for taker in takers]


def is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters, and none of them is trained."""
    trained = [p.requires_grad for p in module.parameters()]
    return bool(trained) and not any(trained)


def is_live(module: nn.Module) -> bool:
    """Whether what a module gives is trained or random, not counting the modules in it."""
    is_random = isinstance(module, _DropoutNd) and module.training and module.p > 0
    return is_random or any(p.requires_grad for p in module.parameters(recurse=False))
