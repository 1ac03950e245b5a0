"""When to validate: counted in optimizer steps, and always at the end of the run."""

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_tune.callbacks.monitor import resolve_monitor
from lit_tune.errors import ConfigError

NEVER = sys.maxsize
"""A ``val_check_batch`` that no batch number is a multiple of."""


class EvalSchedule(Callback):
    """Validation every k optimizer steps, or at the end of each epoch, and after the last step.

    Lightning's ``val_check_interval`` counts micro-batches, so that it lands inside accumulation windows; a run that
    ``max_steps`` ends within an epoch is never validated, nor is the last epoch where ``check_val_every_n_epoch`` does
    not divide their number. Before each batch this sets the trainer's ``val_check_batch`` to that batch or to never.

    Args:
        every_n_steps: Optimizer steps between validations; None: every ``trainer.check_val_every_n_epoch`` epochs.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        self.every_n_steps = every_n_steps
        self.every_n_epochs = 1
        self.total_steps: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take ``check_val_every_n_epoch`` over from Lightning.

        Raises:
            ConfigError: Steps and epochs are both given, or the schedule watches a metric that is never logged.
        """
        if stage != "fit":
            return
        epochs = trainer.check_val_every_n_epoch or 1
        if self.every_n_steps and epochs > 1:
            raise ConfigError(
                f"{epochs} contradicts eval_every_steps: {self.every_n_steps}",
                where="trainer.check_val_every_n_epoch",
                fix="keep one of them",
            )
        if epochs > 1:  # a second fit with the same trainer finds the 1 that the first has left
            self.every_n_epochs = epochs
        trainer.check_val_every_n_epoch = 1
        schedule = getattr(pl_module, "schedule_settings", None)
        if schedule is not None and schedule.monitor is not None:  # ReduceLROnPlateau moves with each validation
            resolve_monitor(trainer, schedule.monitor, "lr_schedule.monitor")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last step of the run is known here; before the first batch nothing is due."""
        trainer.val_check_batch = NEVER
        self.total_steps = trainer.datamodule.total_steps()  # type: ignore[attr-defined]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Decide about the validation after this batch."""
        steps = trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        trainer.val_check_batch = batch_idx + 1 if steps and self.is_due(trainer) else NEVER

    def is_due(self, trainer: L.Trainer) -> bool:
        """Whether the step that this batch completes is followed by a validation."""
        step, epoch = trainer.global_step + 1, trainer.current_epoch + 1
        # a stream may end before max_steps: then the last epoch's end is the end
        if step == self.total_steps or (trainer.is_last_batch and epoch == trainer.max_epochs):
            return True
        if self.every_n_steps:
            return step % self.every_n_steps == 0
        return trainer.is_last_batch and epoch % self.every_n_epochs == 0
