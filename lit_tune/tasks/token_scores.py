"""What a model says about the tokens of a batch: logits of those that are predicted, never all at once.

Shapes: B rows, T tokens, N of them predicted, H hidden, V the vocabulary.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_tune.data.documents import PREDICTED
from lit_tune.losses import in_chunks, token_losses
from lit_tune.models.linear_loss import is_plain, linear_loss_sum
from lit_tune.models.output_layer import OutputLayer, states_and_head
from lit_tune.tasks.base import BOOKKEEPING, Batch

EXPORT_POSITIONS = 64
"""Positions of a row whose logits are compared after an export: all of 8 rows of 512 with a vocabulary of 128,000 would
be 2 GB."""

LOGITS_AT_ONCE = 2**28
"""Logits of the rows that go through the model at a time where nothing is trained; 64 rows of 4,096 tokens would want
much memory in the layers below, too."""

MOST_CHUNKS, SMALLEST_CHUNK = 8, 2**24
"""Targets are cut into so many chunks, for the loss, as long as each of them has so many logits (64 MB in float32).

The peak memory of the loss of 2,048 targets with a vocabulary of 128,000 is then 17 % of that of all logits, half of
which is the gradient of an output layer of 512 (benchmarks/lm_loss.py). Twice as many would take a quarter less, and
add up that gradient twice as often.
"""


class TokenScores:
    """What a model says about the tokens of a batch.

    Logits are computed of the tokens that predict something, and never all at once; what is computed of them is kept
    for whoever asks next: the loss, or the metrics after it.

    Args:
        labels: (B, T) the token to predict at each position, or -100.
        states: (B, T, H) what the output layer reads; or (B, T, V) logits.
        label_smoothing: Of the loss that is trained; ``losses`` are those without it.
        head: The output layer; None: ``states`` are logits.
        places: (N,) where in the flattened labels something is predicted; found here where it is not known.
    """

    def __init__(
        self,
        labels: Tensor,
        states: Tensor,
        label_smoothing: float = 0.0,
        head: OutputLayer | None = None,
        places: Tensor | None = None,
    ) -> None:
        self.labels, self.label_smoothing, self.head = labels, label_smoothing, head
        # virtual tokens of an adapter stand before the row
        self.states = states[:, -labels.shape[1] :]
        self.places = (labels.flatten() >= 0).nonzero()[:, 0] if places is None else places
        self.written: list[str] = []
        """What the model wrote for the first rows, where it was asked to."""
        self.prompts: list[str] = []
        """To what."""

    @classmethod
    def none(cls) -> "TokenScores":
        """Of no tokens."""
        return cls(torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1, 1))

    @property
    def logits(self) -> Tensor:
        """(B, T, V) of all tokens; T is :data:`EXPORT_POSITIONS` at most where nothing is trained."""
        return self.logits_of(self.states)

    def logits_of(self, states: Tensor) -> Tensor:
        """(..., V) of (..., H)."""
        return states if self.head is None else self.head(states)

    @property
    def targets(self) -> tuple[Tensor, Tensor]:
        """(N, H) states and (N,) labels where something is predicted."""
        states, labels = self.states.flatten(0, 1), self.labels.flatten()
        return states.index_select(0, self.places), labels.index_select(0, self.places)

    @cached_property
    def target_logits(self) -> Tensor:
        """(N, V) of the tokens that predict something, all at once; losses are those of these from then on."""
        return self.logits_of(self.targets[0])

    @property
    def has_target_logits(self) -> bool:
        """Whether all of them have been computed."""
        return "target_logits" in vars(self)

    def measured(self, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """(B, T, ...) what is measured of logits (n, V) and labels (n,); 0 where nothing is predicted."""
        states, labels = self.targets
        if self.has_target_logits:
            found = measure(self.target_logits, labels)
        else:
            found = in_chunks(lambda some, wanted: measure(self.logits_of(some), wanted), states, labels, self.chunk)
        everywhere = found.new_zeros(self.labels.numel(), *found.shape[1:]).index_copy(0, self.places, found)
        return everywhere.view(*self.labels.shape, *found.shape[1:])

    @property
    def chunk(self) -> int:
        """Targets whose logits are in memory at a time."""
        size = self.states.shape[-1] if self.head is None else self.head.size
        return max(1, SMALLEST_CHUNK // size, -(-len(self.places) // MOST_CHUNKS))

    @cached_property
    def losses(self) -> Tensor:
        """(B, T) in nats, 0 where nothing is predicted."""
        return self.measured(token_losses)

    @cached_property
    def smoothed(self) -> Tensor:
        """(B, T) the losses with label smoothing."""
        return self.measured(self.smoothed_of) if self.label_smoothing else self.losses

    @cached_property
    def is_right(self) -> Tensor:
        """(B, T) whether the likeliest token is the one."""
        return self.measured(is_likeliest)

    def smoothed_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(n,) losses with label smoothing."""
        return token_losses(logits, labels, self.label_smoothing)

    @cached_property
    def loss_sum(self) -> Tensor:
        """Of the losses with label smoothing, 0-dim."""
        layer = None if self.head is None or self.has_target_logits else self.head.layer
        if torch.is_grad_enabled() and isinstance(layer, nn.Linear) and is_plain(layer):
            return linear_loss_sum(layer, *self.targets, self.label_smoothing, self.chunk)
        return self.smoothed.sum()

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """(Summed loss, predicted tokens)."""
        return self.loss_sum, (self.labels >= 0).sum().to(self.loss_sum.dtype)

    @classmethod
    def join(cls, some: list["TokenScores"]) -> "TokenScores":
        """Those of several parts of a batch, with the states of the first positions alone."""
        labels = torch.cat([part.labels for part in some])
        joined = cls(labels, torch.cat([part.states[:, :EXPORT_POSITIONS] for part in some]), head=some[0].head)
        joined.losses = torch.cat([part.losses for part in some])
        joined.smoothed = torch.cat([part.smoothed for part in some])
        joined.is_right = torch.cat([part.is_right for part in some])
        joined.loss_sum = joined.smoothed.sum()
        return joined

    def slim(self) -> "TokenScores":
        """The same without most of the states; all that is asked of logits is computed together."""

        def together(logits: Tensor, labels: Tensor) -> Tensor:
            plain = token_losses(logits, labels)
            smoothed = self.smoothed_of(logits, labels) if self.label_smoothing else plain
            return torch.stack([plain, smoothed, is_likeliest(logits, labels).to(plain)], -1)

        self.losses, self.smoothed, is_right = self.measured(together).unbind(-1)
        self.is_right = is_right.bool()
        return self.join([self])


def is_likeliest(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) whether the token is the one with the largest logit."""
    return logits.argmax(-1) == labels


def score_tokens(model: PreTrainedModel, batch: Batch, label_smoothing: float = 0.0) -> TokenScores:
    """Run the model on blocks, or on documents that were cut into rows.

    Where nothing is trained the rows go through it a few at a time; of documents at most as many rows as there are
    documents: one may be a book.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name not in BOOKKEEPING}
    labels, vocabulary = batch["labels"], model.config.get_text_config().vocab_size
    if torch.is_grad_enabled():
        states, head = states_and_head(model, inputs)
        return TokenScores(labels, states, label_smoothing, head, batch.get("aside", {}).get(PREDICTED))
    at_once = min(len(batch["example_ids"]), max(1, LOGITS_AT_ONCE // (labels.shape[1] * vocabulary)))
    some = []
    for start in range(0, len(labels), at_once):
        rows = slice(start, start + at_once)
        states, head = states_and_head(model, {name: tensor[rows] for name, tensor in inputs.items()})
        some.append(TokenScores(labels[rows], states, label_smoothing, head).slim())
    return TokenScores.join(some)
