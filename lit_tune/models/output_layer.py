"""What a model has made of each token before its output layer, so that logits are computed where they are needed.

One token has 128,000 logits in the vocabulary of Llama 3: 0.5 MB, and in training three times as much for their loss.

Shapes: B rows, T tokens, H hidden, V the vocabulary.
"""

import logging
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

log = logging.getLogger("lit_tune")

LARGEST = 1000.0
"""Of the logits by which a model is tried: caps are at 30 to 50 (Gemma 2, Grok)."""

_found: WeakKeyDictionary[PreTrainedModel, dict[bool, bool]] = WeakKeyDictionary()
"""Models that were tried, without and with gradients -> whether the output layer comes last."""


@dataclass(frozen=True)
class OutputLayer:
    """Gives logits, by the module itself: with its adapter, its rows of added tokens, its weights tied or not.

    Args:
        layer: The module.
        size: V.
    """

    layer: nn.Module
    size: int

    def __call__(self, states: Tensor) -> Tensor:
        """(..., V) of (..., H)."""
        return self.layer(states) if states.dim() == 3 else self.layer(states[None])[0]  # as the model calls it


def states_and_head(model: PreTrainedModel, inputs: dict[str, Any]) -> tuple[Tensor, OutputLayer | None]:
    """What the output layer reads of each token, and that layer, which gives their logits.

    Some models do something to the logits after it: Gemma 2 caps them, Cohere and Granite scale them, BART adds a bias.
    Whether one does is not guessed but tried, see :func:`is_last`. Of those all logits are computed; and of a compiled
    model, which a hook would compile anew.

    Args:
        model: With a head over the vocabulary.
        inputs: (B, T) tensors for the model, without labels.

    Returns:
        (B, T, H), and the layer; or (B, T, V) the logits, and None.
    """
    head = model.get_output_embeddings()
    if head is None or not _is_known_last(model, head, inputs):
        return model(**inputs, use_cache=False).logits, None
    states, _ = _run(model, head, inputs, None)
    return states, OutputLayer(head, int(model.config.get_text_config().vocab_size))


def _is_known_last(model: PreTrainedModel, head: nn.Module, inputs: dict[str, Any]) -> bool:
    """The answer of the first time, which is given again; one line where it is no."""
    known, with_gradients = _found.setdefault(model, {}), torch.is_grad_enabled()
    if with_gradients not in known:
        is_compiled = getattr(model, "_compiled_call_impl", None) is not None
        answer = not is_compiled and is_last(model, head, inputs)
        if not (answer or known):
            why = "it is compiled" if is_compiled else "it changes them after its output layer"
            log.info("logits   of all tokens at once, which takes memory: %s, %s", type(model).__name__, why)
        known[with_gradients] = answer
    return known[with_gradients]


def is_last(model: PreTrainedModel, head: nn.Module, inputs: dict[str, Any]) -> bool:
    """Whether a model returns what its output layer gives, as it is.

    The layer is made to give numbers from -1000 to 1000: they must come out, the very same, and where gradients are
    wanted nothing that is trained may have touched them (a bias of zeros changes nothing yet).

    Args:
        model: The model; nothing of it is changed, nor what is drawn next.
        head: Its output layer.
        inputs: (B, T) tensors; the first row is read.
    """
    first = {name: tensor[:1] for name, tensor in inputs.items()}
    numbers: list[Tensor] = []

    def give(module: Any, args: Any, output: Tensor) -> Tensor:
        numbers.append(torch.linspace(-LARGEST, LARGEST, output.numel(), device=output.device).view_as(output))
        numbers[-1] = numbers[-1].to(output.dtype)
        return numbers[-1]

    devices = [tensor.device for tensor in first.values() if tensor.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices):
        try:
            _, logits = _run(model, head, first, give)
        except _OtherHeadError:
            return False
    return len(numbers) == 1 and not logits.requires_grad and torch.equal(logits.to(numbers[0]), numbers[0])


class _OtherHeadError(Exception):
    """The output layer is not called once with one tensor (B, T, H)."""


def _run(model: PreTrainedModel, head: nn.Module, inputs: dict[str, Any], instead: Any) -> tuple[Tensor, Tensor]:
    """What the output layer is given, while it computes the logits of one token alone; and what the model returns.

    Args:
        model: The model.
        head: Its output layer.
        inputs: Tensors for the model.
        instead: A forward hook that gives the layer another output.

    Raises:
        _OtherHeadError: It is called in another way.
    """
    given: list[Tensor] = []

    def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if given or kwargs or len(args) != 1 or args[0].dim() != 3:
            raise _OtherHeadError
        given.append(args[0])
        return (args[0][:1, :1],), kwargs

    hooks = [head.register_forward_pre_hook(keep, with_kwargs=True)]
    if instead is not None:
        hooks.append(head.register_forward_hook(instead))
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    if not given:
        raise _OtherHeadError
    return given[0], logits
