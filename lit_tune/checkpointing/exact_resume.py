"""What a checkpoint needs beyond Lightning's own content, so that a resumed run equals an uninterrupted one bit by bit.

The order of rows is a pure function of (seed, epoch), randomness one of (seed, epoch, batch, rank) (``seeds``), and the
position comes from the trainer's counters (``position``): there is no random state and no loader state to keep.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_tune.checkpointing.entries import CHECKPOINT_FORMAT
from lit_tune.checkpointing.position import Cut, Position, position_of, write_loops
from lit_tune.errors import StorageError
from lit_tune.optim.adopt import adopt_settings

SECTION = "lit_tune"
"""Key of our part of a checkpoint."""


class ExactResume(Callback):
    """Writes the position into checkpoints, and cuts the log back to it.

    Args:
        metrics_path: metrics.jsonl of the run.
    """

    def __init__(self, metrics_path: Path) -> None:
        self.metrics_path = metrics_path
        self.resumed: Position | None = None
        """Where the run goes on, or None for one that starts."""
        self._start()

    def _start(self) -> None:
        self._validated: tuple[int, int] | None = None

    # ---- saving ------------------------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """This batch's validation is done."""
        self._validated = self._batch(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the position, Lightning's counters from it, and how long the log is."""
        loop: Any = trainer.fit_loop
        fetcher = loop._data_fetcher
        is_next = fetcher is not None and loop.epoch_loop._should_check_val_fx(fetcher)
        position = position_of(trainer, is_next and self._validated != self._batch(trainer))
        batches = loop.epoch_loop.batch_progress
        is_last = batches.is_last_batch or batches.current.processed == trainer.num_training_batches
        write_loops(checkpoint["loops"]["fit_loop"], position, is_last)
        checkpoint["epoch"] = position.epoch
        checkpoint[SECTION] = {
            "format": CHECKPOINT_FORMAT,
            "position": position.to_dict(),
            "cut": asdict(cut_of(trainer)),
            "num_skipped_steps": pl_module.num_skipped_steps,
            "metrics_bytes": self.metrics_path.stat().st_size if self.metrics_path.is_file() else 0,
        }

    # ---- loading -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """A second fit with the same trainer starts afresh."""
        if stage == "fit":
            self.resumed = None
            self._start()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the position, and forget what was logged after it.

        Raises:
            StorageError: Not a checkpoint of ours.
        """
        if trainer.state.fn != "fit":
            return
        if SECTION not in checkpoint:
            raise StorageError(
                "this checkpoint was not written by lit-tune: it does not say where the run stood",
                where=str(trainer.ckpt_path),
                fix="start from its weights: export them to a folder for model.model_name_or_path",
            )
        ours = checkpoint[SECTION]
        written, now = Cut(**ours["cut"]), cut_of(trainer)
        self.resumed = Position.from_dict(ours["position"])
        if written != now:
            self.resumed = written.recut(self.resumed, now)
            write_loops(checkpoint["loops"]["fit_loop"], self.resumed, is_last_batch=False)
        pl_module.num_skipped_steps = ours["num_skipped_steps"]
        if trainer.is_global_zero:
            truncate(self.metrics_path, ours["metrics_bytes"])

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """A validation that is still due comes first; what the config says now holds."""
        if self.resumed is None:
            return
        if self.resumed.is_validation_due:
            trainer.val_check_batch = self.resumed.batch
        for config in trainer.lr_scheduler_configs:
            adopt_settings(trainer.optimizers[0], config.scheduler, pl_module.configured)

    def _batch(self, trainer: L.Trainer) -> tuple[int, int]:
        """Epoch and micro-batch, to tell whether a validation belongs to it."""
        loop = trainer.fit_loop
        return loop.epoch_progress.current.ready, loop.epoch_loop.batch_progress.current.ready


def cut_of(trainer: L.Trainer) -> Cut:
    """How this run cuts its steps."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    return Cut(data.train_batch_size, data.num_ranks, data.accumulate)


def truncate(path: Path, size: int) -> None:
    """Cut a log back to its first ``size`` bytes; a shorter one stays as it is."""
    if path.is_file() and path.stat().st_size > size:
        with path.open("r+b") as file:
            file.truncate(size)
