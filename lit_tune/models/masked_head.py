"""Logits of some tokens only: with 30,000 of them the last layer of a small encoder takes half of all time.

Shapes: B rows, T tokens, M places, V the vocabulary, H hidden.
"""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


def logits_at(model: PreTrainedModel, inputs: dict[str, Any], places: Tensor) -> Tensor:
    """(M, V) logits of the tokens at some places.

    The output layer is given nothing but these tokens. An architecture that uses its weights without calling it
    (MobileBERT), and a compiled model, which a new hook would compile anew, compute all logits, of which these are
    taken.

    Args:
        model: With a head over the vocabulary.
        inputs: (B, T) tensors for the model.
        places: (M,) places in the flattened batch.
    """
    head = model.get_output_embeddings()
    if head is None or getattr(model, "_compiled_call_impl", None) is not None:
        return _taken(model(**inputs).logits, places)

    def keep(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_taken(args[0], places), *args[1:])

    hook = head.register_forward_pre_hook(keep)
    try:
        logits = model(**inputs).logits
    finally:
        hook.remove()
    return logits if logits.dim() == 2 else _taken(logits, places)


def _taken(of_all: Tensor, places: Tensor) -> Tensor:
    return of_all.flatten(0, -2)[places]
