"""When to validate: counted in optimizer steps, and always at the end of the run."""

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

NEVER = sys.maxsize
"""A ``val_check_batch`` that no batch number is a multiple of."""


class EvalSchedule(Callback):
    """Validation every k optimizer steps, or at the end of each epoch, and after the last step.

    Lightning's ``val_check_interval`` counts micro-batches, so that it lands inside accumulation windows; and a run
    that ``max_steps`` ends within an epoch is never validated. Before each batch this sets the trainer's
    ``val_check_batch`` to that batch or to never.

    Args:
        every_n_steps: Optimizer steps between validations; None: each epoch.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        self.every_n_steps = every_n_steps
        self.total_steps: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last step of the run is known here."""
        self.total_steps = trainer.datamodule.total_steps()  # type: ignore[attr-defined]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Decide about the validation after this batch."""
        steps = trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        step = trainer.global_step + 1
        due = step % self.every_n_steps == 0 if self.every_n_steps else trainer.is_last_batch
        trainer.val_check_batch = batch_idx + 1 if steps and (due or step == self.total_steps) else NEVER
