"""A checkpoint callback for disks that are full at times: one failed save is survived, no file is claimed in vain."""

import logging
import weakref
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_tune.errors import StorageError

log = logging.getLogger("lit_tune")

MAX_FAILURES = 1
"""Failed saves in a row that a run survives; the next one ends it."""

CLAIMS = (
    "best_k_models",
    "kth_best_model_path",
    "kth_value",
    "best_model_path",
    "best_model_score",
    "current_score",
    "_last_global_step_saved",
    "_last_checkpoint_saved",
)
"""Attributes in which Lightning says, before it saves, what it has saved."""


class PatientCheckpoint(ModelCheckpoint):
    """Lightning's, but a failed save takes nothing with it, and old files go when a new one is verified.

    Its attributes never name a file that was not written, on any rank. What could not be deleted, or was left by a run
    that was killed between save and deletion, is deleted after a later save.
    """

    _failures = 0
    _unwanted: tuple[str, ...] = ()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Files that a resumed run does not count as its own are of a future that it does again."""
        super().on_train_start(trainer, pl_module)
        self._failures = 0
        role = str(self.filename).partition("-")[0]
        there = [] if trainer.fast_dev_run else sorted(Path(str(self.dirpath)).glob(f"{role}-*.ckpt"))  # type: ignore[attr-defined]
        self._unwanted = tuple(str(path) for path in there if str(path) not in self.best_k_models)

    def _take(self, found: dict[str, torch.Tensor]) -> None:
        """Take charge of the best of the files that are there, at most as many as are kept.

        A run that was killed between a save and the deletion of what it replaces leaves one too many, fewer are wanted
        after a change of the config; Lightning, which replaces a file only where it has exactly ``save_top_k`` of them,
        would keep all that follow.

        Args:
            found: Path -> what it is kept by.
        """
        in_order = sorted(found, key=lambda path: float(found[path]), reverse=self.mode == "max")
        kept = set(in_order if self.save_top_k == -1 else in_order[: self.save_top_k])
        self.best_k_models = {path: score for path, score in found.items() if path in kept}
        if self.best_k_models and self.save_top_k in (-1, len(self.best_k_models)):
            worst = max if self.mode == "min" else min
            self.kth_best_model_path = worst(self.best_k_models, key=lambda path: float(found[path]))
            self.kth_value = found[self.kth_best_model_path]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing is left over."""
        super().on_train_end(trainer, pl_module)
        self._delete_unwanted(trainer)

    def _update_best_and_save(
        self, current: torch.Tensor, trainer: L.Trainer, monitor_candidates: dict[str, torch.Tensor]
    ) -> None:
        """Save; a failure leaves the callback as it was.

        Raises:
            StorageError: The second failure in a row.
        """
        before: dict[str, Any] = {name: getattr(self, name) for name in CLAIMS}
        before["best_k_models"] = dict(self.best_k_models)
        try:
            super()._update_best_and_save(current, trainer, monitor_candidates)
        except StorageError as e:
            written = set(self.best_k_models) - set(before["best_k_models"])
            vars(self).update(before)
            self._unwanted += tuple(written)  # it may be there, if only its last sync has failed
            self._failures += 1
            if self._failures > MAX_FAILURES:
                raise
            log.warning("step %d was not saved, training goes on: %s", trainer.global_step, e)
            return
        self._failures = 0
        self._delete_unwanted(trainer)

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        """Save; rank zero alone writes, and all ranks hear how it went.

        Raises:
            StorageError: On every rank.
        """
        failure = None
        try:
            trainer.save_checkpoint(filepath, self.save_weights_only)
        except (OSError, StorageError) as e:
            failure = (e.what, e.where, e.fix) if isinstance(e, StorageError) else (str(e), filepath, "check the disk")
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other ranks wait
        failure = trainer.strategy.broadcast(failure)
        if failure is not None:
            what, where, fix = failure
            raise StorageError(what, where=where, fix=fix)
        self._last_global_step_saved, self._last_checkpoint_saved = trainer.global_step, filepath
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(weakref.proxy(self))

    def _should_remove_checkpoint(self, trainer: L.Trainer, previous: str, current: str) -> bool:
        """Lightning spares the file a run was resumed from; here the newer one is verified by now."""
        return previous != current and Path(str(self.dirpath)).absolute() in Path(previous).absolute().parents

    def _remove_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        """Called when the new checkpoint is verified."""
        self._unwanted += (filepath,)

    def _delete_unwanted(self, trainer: L.Trainer) -> None:
        """Delete what nobody claims; what cannot be deleted is tried again after the next save."""
        remaining = []
        for path in dict.fromkeys(self._unwanted):
            if path in self.best_k_models:
                continue
            try:
                trainer.strategy.remove_checkpoint(path)
            except (OSError, StorageError) as e:
                log.warning("an old checkpoint stays for now: %s", e)
                remaining.append(path)
        self._unwanted = tuple(remaining)
