"""The ``checkpoint`` section: which Lightning checkpoints are kept, and which one is best."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lit_tune.callbacks.monitor import mode_of, resolve_monitor


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoints with the best monitored metric; a metric that is not a number is never best.

    Args:
        dirpath: Folder of the checkpoints.
        monitor: Full metric name, or None for the task's primary metric.
        keep: How many.
    """

    def __init__(self, dirpath: Path, monitor: str | None, keep: int) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best-{step:07d}",
            monitor=monitor or "val/loss",  # replaced in setup(), where the labels are known
            save_top_k=keep,
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self.asked = monitor

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Resolve the metric and its direction; without validation there is no best."""
        if stage == "fit":
            if "val" not in trainer.datamodule.encoded:  # type: ignore[attr-defined]
                self.save_top_k = 0
            else:
                self.monitor, higher = resolve_monitor(trainer, self.asked, "checkpoint.monitor")
                self.mode = mode_of(higher)
                worst = -torch.inf if higher else torch.inf
                self.kth_value = torch.tensor(worst)
        super().setup(trainer, pl_module, stage)

    def check_monitor_top_k(self, trainer: L.Trainer, current: torch.Tensor | None = None) -> bool:
        """Lightning turns NaN into the worst value and still saves it while there is room."""
        if current is None or not torch.isfinite(current):
            return False
        return super().check_monitor_top_k(trainer, current)


class LastCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoints.

    Args:
        dirpath: Folder of the checkpoints.
        keep: How many.
        every_n_steps: Optimizer steps between two; None: at the end of each epoch, after its validation.
    """

    def __init__(self, dirpath: Path, keep: int, every_n_steps: int | None) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="last-{step:07d}",
            monitor="step",
            mode="max",
            save_top_k=keep,
            auto_insert_metric_name=False,
            every_n_train_steps=every_n_steps,
            save_on_train_epoch_end=every_n_steps is None,
            enable_version_counter=False,
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save right after the optimizer step.

        Lightning's own waits, at the last batch of an epoch, for a validation that may not come, and then saves in the
        middle of the next accumulation window.
        """
        if self._every_n_train_steps and trainer.global_step % self._every_n_train_steps == 0:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The end of the run is always kept."""
        self.save(trainer)
        super().on_train_end(trainer, pl_module)

    def save(self, trainer: L.Trainer) -> None:
        """Save, except where this step is saved already or nothing is to be written."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


def build_checkpoint_callbacks(
    dirpath: Path,
    monitor: str | None = None,
    keep_best: int = 1,
    keep_last: int = 1,
    every_n_steps: int | None = None,
) -> list[Callback]:
    """Callbacks that keep the best and the last checkpoints.

    Args:
        dirpath: Folder of the checkpoints.
        monitor: Metric that decides which checkpoint is best, e.g. ``val/f1``; default: the task's primary metric. Its
            direction is known.
        keep_best: How many of the best checkpoints to keep; 0 keeps none, -1 all.
        keep_last: How many of the newest checkpoints to keep; 0 keeps none, -1 all.
        every_n_steps: Write the newest checkpoint every n optimizer steps; default: at the end of each epoch.
    """
    return [BestCheckpoint(dirpath, monitor, keep_best), LastCheckpoint(dirpath, keep_last, every_n_steps)]
