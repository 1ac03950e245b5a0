"""One accumulation window: the sums of its micro-batches, and the totals over all ranks that decide about the step."""

import math
import signal
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from lit_tune.errors import OutOfMemory
from lit_tune.optim.clipping import gradient_norm
from lit_tune.optim.rank_sum import sum_over_ranks

T = TypeVar("T")


@dataclass(frozen=True)
class Totals:
    """What all ranks know of an optimizer step before it is taken.

    Args:
        loss_sum: Sum of the losses.
        denominator: What the mean divides by.
        sums: (2,) the two, on the device.
        factor: What the gradients are multiplied by, so that they are those of the mean.
        norm: Of the gradient of the mean, before clipping.
        is_finite: Whether loss and gradient are numbers, on every rank.
        stop_signal: The largest signal that any rank has received: 0, SIGINT (2) or SIGTERM (15).
    """

    loss_sum: float
    denominator: float
    sums: torch.Tensor
    factor: float
    norm: float
    is_finite: bool
    stop_signal: int

    @property
    def has_finite_loss(self) -> bool:
        """Whether the loss is a number, whatever its gradient is."""
        return math.isfinite(self.loss_sum) and math.isfinite(self.denominator) and self.denominator != 0


def sums_dtype(device: torch.device) -> torch.dtype:
    """Sums of losses are kept in float64, which MPS lacks."""
    return torch.float32 if device.type == "mps" else torch.float64


class Window:
    """Sums of the micro-batches of one optimizer step on one rank.

    Args:
        device: Where the losses are.
        scale: What the losses were divided by before the backward pass.
    """

    def __init__(self, device: torch.device, scale: float) -> None:
        self.sums = torch.zeros(2, dtype=sums_dtype(device), device=device)
        """(2,) loss sum and denominator."""
        self.scale = scale
        self.micro_batches: list[tuple[list[int], torch.Tensor]] = []
        """Rows and loss sum of each micro-batch, to name those that are to blame; nothing is copied."""
        self.num_targets = 0
        self.error: OutOfMemory | None = None
        """Why this rank has given the step up; it takes part in the collectives all the same."""

    def add(self, loss_sum: torch.Tensor, denominator: torch.Tensor, rows: list[int], num_targets: int) -> None:
        """Count a micro-batch.

        Args:
            loss_sum: 0-dim.
            denominator: 0-dim.
            rows: Row numbers in train.
            num_targets: Labels in it, those that do not count included.
        """
        loss_sum = loss_sum.detach()
        self.sums += torch.stack([loss_sum, denominator.detach()]).to(self.sums)
        self.micro_batches.append((rows, loss_sum))
        self.num_targets += num_targets

    def close(
        self,
        gradients: list[torch.Tensor],
        signum: int,
        num_ranks: int,
        sums_gradients: bool,
    ) -> Totals:
        """Totals over all ranks: the one all-reduce of an optimizer step carries sums and flags.

        Args:
            gradients: Of this window; averaged over the ranks by DDP, or this rank's own.
            signum: Signal that this rank has received, or 0.
            num_ranks: Ranks that train together.
            sums_gradients: The gradients are this rank's own: sum them in place.

        Raises:
            OutOfMemory: A rank has given the step up.
        """
        own_norm = gradient_norm(gradients) if self.error is None else torch.zeros_like(self.sums[0])
        mine = [self.error is not None, signum == signal.SIGINT, signum == signal.SIGTERM]
        totals = self.sums
        if num_ranks > 1:
            is_bad = (~torch.isfinite(own_norm)).to(self.sums).reshape(1)
            totals = torch.cat([self.sums, is_bad, torch.tensor(mine).to(self.sums)])
            sum_over_ranks([totals])  # Lightning's strategy.reduce has all ranks wait for each other first
        # one transfer: the only time that the host waits for the device
        loss_sum, denominator, *counts, norm = torch.cat([totals, own_norm.to(totals).reshape(1)]).tolist()
        flags = [count > 0 for count in counts] or [not math.isfinite(norm), *mine]
        bad_gradient, gave_up, interrupted, terminated = flags
        if gave_up:
            raise next(error for error in of_all_ranks(self.error) if error is not None)
        if sums_gradients:
            sum_over_ranks(gradients)
            norm, num_ranks = float(gradient_norm(gradients)), 1
        factor = self.scale * num_ranks / denominator if denominator else math.nan
        norm *= abs(factor)
        stop = int(signal.SIGTERM if terminated else signal.SIGINT if interrupted else 0)
        is_finite = not bad_gradient and math.isfinite(norm) and math.isfinite(loss_sum)
        return Totals(loss_sum, denominator, totals[:2], factor, norm, is_finite, stop)

    def blame(self) -> tuple[list[int], int]:
        """Rows of the micro-batches whose loss is not a number, else all rows; and the labels in them, of all ranks.

        Called on every rank: they agree on the totals.
        """
        bad = [row for ids, loss in self.micro_batches if not bool(torch.isfinite(loss)) for row in ids]
        found = of_all_ranks((bad, [row for ids, _ in self.micro_batches for row in ids], self.num_targets))
        suspects = [row for rows, _, _ in found for row in rows] or [row for _, rows, _ in found for row in rows]
        return [row for row in suspects if row >= 0], sum(count for _, _, count in found)


def of_all_ranks(value: T) -> list[T]:
    """What each rank gives; pickled, for rare events only."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def power_of_two_near(expected: float) -> float:
    """The constant that losses are divided by before the denominator is known; dividing by it is exact.

    Raw sums overflow fp16, whose largest number is 65504.

    >>> power_of_two_near(48), power_of_two_near(0.1)
    (64.0, 1.0)
    """
    return 2.0 ** round(math.log2(max(1.0, expected)))
