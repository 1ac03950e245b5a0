"""Which optimizer steps are left out because their loss or gradient is not a number, and when that ends the run."""

import logging
from dataclasses import dataclass
from typing import Any

from lit_tune.errors import NumericsError
from lit_tune.optim.window import Totals, Window

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
        lr: Highest learning rate.
        rows: Rows of train that are to blame, or all of the step.
        num_targets: Labels in the step, those that do not count included.
    """

    step: int
    totals: Totals
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
            what = f"loss {loss:.4g}, gradient norm {self.totals.norm:.4g}, lr {self.lr:.3g}"
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

    def leave_out(self, totals: Totals, window: Window, trainer: Any, step: int) -> None:
        """Leave a step out, where that is allowed; called on all ranks.

        An fp16 scaler skips a step whose gradient overflows and halves its scale: the ordinary course, unless it never
        ends. A loss that is not a number is no matter of scale.

        Args:
            totals: Of the step.
            window: Its micro-batches on this rank.
            trainer: Lightning's.
            step: Its number, from 1.

        Raises:
            NumericsError: It ends the run.
        """
        lr = max(float(group["lr"]) for group in trainer.optimizers[0].param_groups)
        bad = BadStep(step, totals, lr, *window.blame())
        if scaler_of(trainer) is not None and totals.has_finite_loss:
            self.scaler_skips += 1
            if self.scaler_skips >= MAX_SCALER_SKIPS:
                raise self.endless(bad, trainer)
        elif self.num_left_out < self.allowed:
            self.num_left_out += 1
            log.warning("step %d is left out (%d of %d): %s", step, self.num_left_out, self.allowed, bad)
        else:
            raise self.refused(bad, trainer)

    def endless(self, bad: BadStep, trainer: Any) -> NumericsError:
        """The scaler finds no scale that works."""
        return NumericsError(
            f"the fp16 scaler has skipped {self.scaler_skips} steps in a row: {bad}\n{kept(trainer)}",
            where=f"step {bad.step:,}",
            fix="trainer.precision: bf16-mixed or 32-true, or a smaller optimizer.lr",
        )

    def refused(self, bad: BadStep, trainer: Any) -> NumericsError:
        """No step may be left out any more."""
        before = f" after {self.num_left_out:,} steps that were left out" if self.num_left_out else ""
        allow = f"optimizer.skip_nonfinite: {max(10, 2 * self.allowed)} leaves such steps out"
        if bad.totals.denominator == 0:
            fix = f"labels of -100 and classes of weight 0 do not count; a longer data.max_length cuts less; {allow}"
        else:
            wider = "trainer.precision: bf16-mixed, " if str(trainer.precision).startswith("16") else ""
            fix = f"look at these rows, {wider}or a smaller optimizer.lr; {allow}"
        return NumericsError(
            f"{bad}\nThe weights were not changed{before}. {kept(trainer)}", where=f"step {bad.step:,}", fix=fix
        )


def scaler_of(trainer: Any) -> Any | None:
    """The fp16 scaler of ``precision: 16-mixed``, or None."""
    return getattr(trainer.precision_plugin, "scaler", None)


def kept(trainer: Any) -> str:
    """Where one can go back to."""
    checkpoints = [getattr(c, "best_model_path", "") for c in trainer.checkpoint_callbacks]
    newest = next((path for path in reversed(checkpoints) if path), None)
    return f"Last good checkpoint: {newest}" if newest else "No checkpoint was written yet"
