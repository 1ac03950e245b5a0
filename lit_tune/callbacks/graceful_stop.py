"""SIGTERM and SIGINT during training: finish the optimizer step, save, end on all ranks with 143 or 130."""

import logging
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from lit_tune import interrupts
from lit_tune.callbacks.checkpoints import LastCheckpoint, step_of
from lit_tune.interrupts import Interruption

log = logging.getLogger("lit_tune")

EVAL_BATCHES_BETWEEN_LOOKS = 16
"""In a validation the ranks ask each other every so many batches: a tiny all-reduce each."""


class GracefulStop(Callback):
    """Ends a run that was told to end, where nothing is lost.

    A handler only notes the signal. The module's one all-reduce per optimizer step carries it to all ranks
    (``module.stop_signal``), so that all of them leave at the same step, whichever of them was told.

    Stands after everything that keeps state and before the export: once the last step is saved, a signal ends the
    process at once.
    """

    def __init__(self) -> None:
        self.last_step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """From here on signals are only noted."""
        interrupts.hold()
        self.last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After the micro-batch that completed an optimizer step: stop if any rank was told to.

        Raises:
            Interruption: On all ranks at the same step.
        """
        if trainer.global_step == self.last_step:
            return
        self.last_step = trainer.global_step
        if pl_module.stop_signal:
            self.stop(trainer, pl_module.stop_signal)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A long validation is left too; it is due again when the run goes on.

        Raises:
            Interruption: On all ranks after the same batch.
        """
        if not interrupts.is_held() or trainer.sanity_checking:
            return
        signum = interrupts.received()
        if trainer.world_size > 1:
            if (batch_idx + 1) % EVAL_BATCHES_BETWEEN_LOOKS:
                return
            told = torch.tensor(signum, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
            signum = int(told)
        if signum:
            self.stop(trainer, signum)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """The last step is saved; what follows can be done again."""
        interrupts.release()

    def stop(self, trainer: Any, signum: int) -> None:
        """Save and leave; called on all ranks at the same place.

        Raises:
            Interruption: Always.
        """
        step, name = trainer.global_step, signal.Signals(signum).name
        last = next((c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), None)
        if last is not None:
            last.save(trainer)
        saved = last is not None and bool(last.best_model_path) and step_of(Path(last.best_model_path)) == step
        goes_on = "the same command continues there" if saved else "nothing of it was saved"
        raise Interruption(signum, f"ended by {name} after step {step}: {goes_on}", is_shared=True)
