"""The ``early_stopping`` section."""

import logging
import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping

from lit_tune.callbacks.checkpoints import BestCheckpoint
from lit_tune.callbacks.monitor import mode_of, resolve_monitor

log = logging.getLogger("lit_tune")


class PatientStopping(EarlyStopping):
    """Lightning's early stopping with the metric's own direction and a line that says why it stops.

    Args:
        monitor: Full metric name, or None for the task's primary metric.
        patience: Validations without improvement.
        min_delta: Smallest improvement that counts.
    """

    def __init__(self, monitor: str | None, patience: int, min_delta: float) -> None:
        super().__init__(
            monitor=monitor or "val/loss",
            patience=patience,
            min_delta=min_delta,
            verbose=False,
            check_finite=False,  # a metric undefined once (AUROC of a single class) is no improvement, nothing more
            check_on_train_epoch_end=False,  # after each validation, however they are spaced
        )
        self.asked = monitor
        self.said = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Resolve the metric and its direction."""
        if stage == "fit":
            best = [c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint) and c.asked == self.asked]
            key = "checkpoint.monitor" if best else "early_stopping.monitor"  # by default it follows the former
            self.monitor, higher = resolve_monitor(trainer, self.asked, key)
            self.mode = mode_of(higher)
            sign = 1 if higher else -1
            self.min_delta = sign * abs(self.min_delta)
            self.best_score = self.best_score.new_tensor(-sign * float("inf"))
        super().setup(trainer, pl_module, stage)

    @property
    def state_key(self) -> str:
        """One per run, whatever it monitors."""
        return type(self).__name__

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from where the checkpoint was written, with the patience of the config."""
        if state_dict["monitor"] == self.monitor:
            super().load_state_dict({**state_dict, "patience": self.patience})

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, and which metric it is about."""
        return {**super().state_dict(), "monitor": self.monitor}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that had stopped already does not go on, unless its patience was raised."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say it once, with the numbers."""
        super().on_validation_end(trainer, pl_module)
        if trainer.should_stop and self.wait_count >= self.patience and not self.said:
            self.said = True
            best = float(self.best_score)
            reason = f"did not improve on {best:.4f}" if math.isfinite(best) else "was not a number"
            count = f"{self.wait_count} validation" + ("s" if self.wait_count > 1 else "")
            log.info("early stopping: %s %s for %s, at step %d", self.monitor, reason, count, trainer.global_step)


def build_early_stopping(
    patience: int | None = None, min_delta: float = 0.0, monitor: str | None = None
) -> list[Callback]:
    """Stop when the monitored metric no longer improves; an undefined value is no improvement.

    Args:
        patience: Validations without improvement after which training stops; None is off.
        min_delta: Smallest change that counts as an improvement.
        monitor: Metric to watch; default: ``checkpoint.monitor``.
    """
    return [] if patience is None else [PatientStopping(monitor, patience, min_delta)]
