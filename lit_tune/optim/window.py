"""One accumulation window: the sums of its micro-batches, and the totals over all ranks that decide about the step."""

import math
import signal
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Totals:
    """What all ranks know of an optimizer step before it is taken.

    Args:
        loss_sum: Sum of the losses.
        denominator: What the mean divides by.
        sums: (2,) the two, on the device.
        has_finite_gradient: Whether every entry of the gradient is a number, on every rank.
        stop_signal: The largest signal that any rank has received: 0, SIGINT (2) or SIGTERM (15).
    """

    loss_sum: float
    denominator: float
    sums: torch.Tensor
    has_finite_gradient: bool
    stop_signal: int

    @property
    def has_finite_loss(self) -> bool:
        """Whether the loss is a number; where nothing was counted it is not even undefined."""
        return math.isfinite(self.loss_sum) and math.isfinite(self.denominator)


class Window:
    """Sums of the micro-batches of one optimizer step on one rank.

    Args:
        dtype: Of the sums.
        device: Where the losses are.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.sums = torch.zeros(2, dtype=dtype, device=device)
        """(2,) loss sum and denominator."""
        self.micro_batches: list[tuple[list[int], torch.Tensor]] = []
        """Rows and loss sum of each micro-batch, to name those that are to blame; nothing is copied."""
        self.num_targets = 0

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

    def totals(self, norm: float, signum: int, reduce: Callable[[torch.Tensor], torch.Tensor] | None) -> Totals:
        """Sums over all ranks: the one collective of an optimizer step.

        Args:
            norm: Of the gradient, on this rank.
            signum: Signal that this rank has received, or 0.
            reduce: Sums a tensor over the ranks; None where there is one.
        """
        flags = [not math.isfinite(norm), signum == signal.SIGINT, signum == signal.SIGTERM]
        if reduce is None:
            sums = self.sums
        else:
            total = reduce(torch.cat([self.sums, torch.tensor(flags).to(self.sums)]))
            sums, flags = total[:2], [count > 0 for count in total[2:].tolist()]
        is_bad, interrupted, terminated = flags
        stop = signal.SIGTERM if terminated else signal.SIGINT if interrupted else 0
        loss_sum, denominator = sums.tolist()
        return Totals(loss_sum, denominator, sums, not is_bad, int(stop))

    def blame(self) -> tuple[list[int], int]:
        """Rows of the micro-batches whose loss is not a number, else all rows; and the labels in them, of all ranks.

        Called on every rank: they agree on the totals.
        """
        bad = [row for ids, loss in self.micro_batches if not bool(torch.isfinite(loss)) for row in ids]
        found = [(bad, [row for ids, _ in self.micro_batches for row in ids], self.num_targets)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            mine, found = found[0], found * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(found, mine)
        suspects = [row for rows, _, _ in found for row in rows] or [row for _, rows, _ in found for row in rows]
        return [row for row in suspects if row >= 0], sum(count for _, _, count in found)


def power_of_two_near(expected: float) -> float:
    """The constant that losses are divided by before the denominator is known; dividing by it is exact.

    Raw sums overflow fp16, whose largest number is 65504.

    >>> power_of_two_near(48), power_of_two_near(0.1)
    (64.0, 1.0)
    """
    return 2.0 ** round(math.log2(max(1.0, expected)))
