"""A loss that goes wrong on purpose, named by class path in configs of tests."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class FaultyLoss(nn.Module):
    """Cross-entropy, except in some of its calls while training.

    Args:
        calls: Numbers of the calls that go wrong, from 0.
        fault: ``loss``: value and gradient are NaN; ``inf``: infinite; ``value``: the value alone is NaN;
            ``gradient``: the gradient alone is NaN; ``memory``: torch says that it has no memory left;
            ``memory in backward``: it says so in the backward pass.
        rank: Only on this rank.
        above_rows: Only in batches with more rows than this.
        while_training: False: in evaluation instead.
    """

    def __init__(
        self,
        calls: list[int],
        fault: str = "loss",
        rank: int | None = None,
        above_rows: int = 0,
        while_training: bool = True,
    ) -> None:
        super().__init__()
        self.above_rows = above_rows
        self.calls, self.fault, self.rank, self.while_training = calls, fault, rank, while_training
        self.called = 0

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = functional.cross_entropy(logits, labels, reduction="none")
        if torch.is_grad_enabled() != self.while_training:
            return losses
        self.called += 1
        here = len(labels) > self.above_rows and (self.rank is None or self.rank == torch.distributed.get_rank())
        return self.broken(logits, losses) if here and self.called - 1 in self.calls else losses

    def broken(self, logits: Tensor, losses: Tensor) -> Tensor:
        if self.fault == "memory":
            out_of_memory()
        if self.fault == "memory in backward":
            logits.register_hook(out_of_memory)
            return losses
        if self.fault == "gradient":
            logits.register_hook(lambda g: g * math.nan)
            return losses
        return losses + math.nan if self.fault == "value" else losses * (math.inf if self.fault == "inf" else math.nan)


def out_of_memory(*_) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
