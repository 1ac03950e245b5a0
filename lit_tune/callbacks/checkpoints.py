"""The ``checkpoint`` section: which Lightning checkpoints are kept, and which one is best."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lit_tune.callbacks.monitor import mode_of, resolve_monitor
from lit_tune.callbacks.patient_checkpoint import PatientCheckpoint

log = logging.getLogger("lit_tune")


class BestCheckpoint(PatientCheckpoint):
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

    @property
    def state_key(self) -> str:
        """One per run, whatever it monitors: ``load_state_dict`` decides what is still of use."""
        return type(self).__name__

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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the files that are there, wherever the folder lies now; another metric starts afresh."""
        if state_dict["monitor"] != self.monitor:
            log.warning("the best by %s does not count any more: now it is %s", state_dict["monitor"], self.monitor)
            return
        super().load_state_dict(moved(state_dict, str(self.dirpath)))
        self._take(self.best_k_models)
        self.current_score = state_dict["current_score"]

    def check_monitor_top_k(self, trainer: L.Trainer, current: torch.Tensor | None = None) -> bool:
        """Lightning turns NaN into the worst value and still saves it while there is room."""
        if current is None or not torch.isfinite(current):
            return False
        return super().check_monitor_top_k(trainer, current)


class LastCheckpoint(PatientCheckpoint):
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
        self._seen_step, self._is_due = 0, False

    @property
    def state_key(self) -> str:
        """One per run, however often it saves: other settings find the same state."""
        return type(self).__name__

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take charge of the newest files that are there, up to the one the run goes on from."""
        newest = max((step_of(Path(p)) for p in state_dict["best_k_models"]), default=0)
        assert self.dirpath is not None
        files = [p for p in Path(self.dirpath).glob("last-*.ckpt") if step_of(p) <= newest]
        self._take({str(p): torch.tensor(step_of(p)) for p in sorted(files, key=step_of)})
        if self.best_k_models:
            self.best_model_path, self.best_model_score = list(self.best_k_models.items())[-1]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A resumed run has its first step saved already."""
        super().on_train_start(trainer, pl_module)
        self._seen_step, self._is_due = trainer.global_step, False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save right after the optimizer step, or after the validation and the epoch's end that follow it.

        Saved before a validation that is due, a resumed run would skip it. Lightning's own hook also waits, at the last
        batch of an epoch, for a validation that may not come, and then saves in the middle of the next window.
        """
        if not self._every_n_train_steps or trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        self._is_due = trainer.global_step % self._every_n_train_steps == 0
        if self._is_due and not trainer.is_last_batch and not is_validation_next(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what had to wait for this validation."""
        if self._is_due and not trainer.is_last_batch:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what had to wait for the end of the epoch, or every epoch."""
        if self._is_due or not self._every_n_train_steps:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The end of the run is always kept."""
        self.save(trainer)
        super().on_train_end(trainer, pl_module)

    def save(self, trainer: L.Trainer) -> None:
        """Save, except where this step is saved already or nothing is to be written."""
        self._is_due = False
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


def step_of(checkpoint: Path) -> int:
    """The optimizer step in a checkpoint's name; 0 in any other.

    >>> step_of(Path("checkpoints/best-0000120.ckpt")), step_of(Path("notes.txt"))
    (120, 0)
    """
    number = checkpoint.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def moved(state: dict[str, Any], folder: str) -> dict[str, Any]:
    """A checkpoint callback's state with the paths of the files that are in ``folder``."""

    def path_now(path: str) -> str:
        now = Path(folder) / Path(path).name
        return str(now) if path and now.is_file() else ""

    kept = {path_now(path): score for path, score in state["best_k_models"].items() if path_now(path)}
    paths = {name: path_now(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
    return {**state, **paths, "dirpath": folder, "best_k_models": kept}


def is_validation_next(trainer: L.Trainer) -> bool:
    """Whether Lightning validates after the micro-batch that has just ended."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


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
