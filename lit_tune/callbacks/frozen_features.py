"""``model.cache_features``: what the frozen part of a model gives is computed once for each row, and then read."""

import logging
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lit_tune.callbacks.hang_watchdog import HangWatchdog
from lit_tune.data.features import FeatureFile
from lit_tune.data.units import WholeRows
from lit_tune.features.passes import Passes, choose_part
from lit_tune.features.recording import provide, stored
from lit_tune.models.adapters import is_adapted
from lit_tune.models.frozen_part import FrozenPart, NoFrozenPartError

log = logging.getLogger("lit_tune")
VAL_STAGES = ("val", "probe")
"""As in the module."""


class FrozenFeatures(Callback):
    """Puts back what the frozen part has given for a row, in training and validation.

    Nothing of the model is changed between batches. Where it cannot be done the run goes on without, and one line says
    why.
    """

    def __init__(self) -> None:
        self.part: FrozenPart | None = None
        self.file: FeatureFile | None = None
        self._places: dict[str, np.ndarray] = {}
        self._active = ExitStack()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Compute, or find in the cache, and compare with the model."""
        self.stop()
        if not is_wanted(trainer, pl_module):
            return

        def moved(doing: str) -> None:
            for watchdog in (c for c in trainer.callbacks if isinstance(c, HangWatchdog)):
                watchdog.moved(doing)

        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        passes = Passes(trainer, pl_module)
        try:
            with torch.random.fork_rng(devices):
                part = choose_part(passes)
                self.file = provide(passes, part, moved)
        except NoFrozenPartError as error:
            log.info("features of the frozen part are not cached: %s", error)
            return
        self.part, self._places = part, passes.places()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.begin("train", batch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._active.close()

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.begin(VAL_STAGES[dataloader_idx], batch)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._active.close()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.stop()

    def begin(self, stage: str, batch: dict[str, Any]) -> None:
        """Until the batch ends the frozen part is not run."""
        if self.part is None or self.file is None:
            return
        rows = self._places[stage][[max(i, 0) for i in batch["example_ids"]]].tolist()
        self._active.enter_context(self.part.put_back(stored(self.file, rows, batch)))

    def stop(self) -> None:
        """From here on the model runs as it is."""
        self._active.close()
        self.part = self.file = None


def is_wanted(trainer: Any, pl_module: Any) -> bool:
    """Whether a part of the model stays frozen and reads the same rows more than once.

    Nothing is said where it is otherwise: language models, whose head is their embeddings and whose rows are blocks of
    several texts or have tokens hidden at random; windows of long documents; streams; adapters; recomputed activations.
    It follows from config and data alone, not from what is in the cache, so that a run that goes on computes as before.
    """
    data, model = trainer.datamodule, pl_module.model
    runs_otherwise = (pl_module.quantization, pl_module.compile_model, pl_module.gradient_checkpointing)
    changes = is_adapted(model) or pl_module.unfreezing.stages or any(runs_otherwise)
    if not (pl_module.cache_features and pl_module.freeze_patterns) or changes:
        return False
    if data.streaming or getattr(data.collator(), "is_random", False) or model.get_output_embeddings() is not None:
        return False
    train, val = data.units("train", training=True), data.units("val") if "val" in data.encoded else None
    if not all(type(units) is WholeRows and "input_ids" in units.rows.column_names for units in (train, val or train)):
        return False
    steps = data.total_steps()
    is_repeated = steps is None or steps > -(-len(train) // data.effective_batch)
    return is_repeated and isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy)
