"""Which optimizer steps are left out because their loss or gradient is not a number, and when that ends the run."""

import logging
from dataclasses import dataclass

from lit_tune.errors import NumericsError
from lit_tune.optim.window import Totals

log = logging.getLogger("lit_tune")

MAX_SCALER_SKIPS = 32
"""Steps in a row that the fp16 scaler may skip. It starts at 2**16 and halves at each (torch.amp.GradScaler): by then
gradients are scaled by 2**-16, and what still overflows is no matter of scale."""

MAX_ROWS_SHOWN = 8


@dataclass(frozen=True)
class BadStep:
    """An optimizer step whose loss or gradient is not a number.

    Args:
        step: Its number, from 1.
        totals: Over all ranks.
        norm: Gradient norm before clipping.
        lr: Highest learning rate.
        rows: Rows of train that are to blame, or all of the step.
        num_targets: Labels in the step, those that do not count included.
    """

    step: int
    totals: Totals
    norm: float
    lr: float
    rows: list[int]
    num_targets: int

    def __str__(self) -> str:
        """What is wrong, and with which rows."""
        rows = ", ".join(str(r) for r in self.rows[:MAX_ROWS_SHOWN])
        more = f" and {len(self.rows) - MAX_ROWS_SHOWN:,} more" if len(self.rows) > MAX_ROWS_SHOWN else ""
        if self.totals.denominator == 0:
            what = f"0 of {self.num_targets:,} targets are trained on"
        else:
            loss = self.totals.loss_sum / self.totals.denominator
            what = f"loss {loss:.4g}, gradient norm {self.norm:.4g}, lr {self.lr:.3g}"
        return f"{what}; rows of train: {rows}{more}"


class StepGuard:
    """Counts what is left out.

    Args:
        allowed: ``optimizer.skip_nonfinite``.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed, self.num_left_out = allowed, 0
        self.scaler_skips = 0
        """Steps in a row that the fp16 scaler has skipped."""

    def scaler_skipped(self, bad: BadStep, checkpoint: str | None) -> None:
        """The scaler skips this step and halves its scale: the ordinary course of fp16, unless it never ends.

        Raises:
            NumericsError: Too many in a row.
        """
        self.scaler_skips += 1
        if self.scaler_skips >= MAX_SCALER_SKIPS:
            raise NumericsError(
                f"the fp16 scaler has skipped {self.scaler_skips} steps in a row: {bad}\n{kept(checkpoint)}",
                where=f"step {bad.step:,}",
                fix="trainer.precision: bf16-mixed or 32-true, or a smaller optimizer.lr",
            )

    def leave_out(self, bad: BadStep, checkpoint: str | None, precision: str) -> None:
        """Leave this step out, where that is allowed once more.

        Args:
            bad: The step.
            checkpoint: The newest one.
            precision: ``trainer.precision``.

        Raises:
            NumericsError: It is not.
        """
        if self.num_left_out < self.allowed:
            self.num_left_out += 1
            log.warning("step %d is left out (%d of %d): %s", bad.step, self.num_left_out, self.allowed, bad)
            return
        before = f" after {self.num_left_out:,} steps that were left out" if self.num_left_out else ""
        allow = f"optimizer.skip_nonfinite: {max(10, 2 * self.allowed)} leaves such steps out"
        if bad.totals.denominator == 0:
            fix = f"labels of -100 and classes of weight 0 do not count; a longer data.max_length cuts less; {allow}"
        else:
            wider = "trainer.precision: bf16-mixed, " if precision.startswith("16") else ""
            fix = f"look at these rows, {wider}or a smaller optimizer.lr; {allow}"
        raise NumericsError(
            f"{bad}\nThe weights were not changed{before}. {kept(checkpoint)}", where=f"step {bad.step:,}", fix=fix
        )


def kept(checkpoint: str | None) -> str:
    """Where one can go back to."""
    return f"Last good checkpoint: {checkpoint}" if checkpoint else "No checkpoint was written yet"
