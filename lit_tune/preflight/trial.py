"""A few real training steps: the memory of the longest batch, and the time of usual ones."""

import logging
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lit_tune.callbacks.throughput import peak_memory
from lit_tune.models.text_reader import TextReader
from lit_tune.module import FineTuneModule
from lit_tune.optim.schedules import ScheduleSettings
from lit_tune.preflight.findings import Finding, warning
from lit_tune.tasks.base import Batch, Spec

USUAL_BATCHES = 5
BUDGET_SECONDS = 20.0
"""After it no further step is begun; two are always taken."""
NEARLY_FULL = 0.9


@dataclass(frozen=True)
class Trial:
    """What was measured.

    Args:
        device: Where.
        rows: Rows of the batch.
        tokens: Width of the longest batch.
        peak_bytes: Most memory in use: of the GPU, or of this process.
        memory_bytes: What the GPU has; None elsewhere.
        seconds: Median time of a usual batch: forward, backward and update.
    """

    device: str
    rows: int
    tokens: int
    peak_bytes: int
    memory_bytes: int | None
    seconds: float


class TrialData(L.LightningDataModule):
    """Given batches, and what the module asks its datamodule.

    Args:
        batches: Collated.
        spec: The labels.
        reader: With the tokenizer.
        seed: Of new weights.
    """

    def __init__(self, batches: list[Batch], spec: Spec, reader: TextReader, seed: int) -> None:
        super().__init__()
        self.batches, self.spec, self.reader, self.default_seed = batches, spec, reader, seed
        self.tokenizer = reader.tokenizer

    @property
    def effective_batch(self) -> int:
        """Rows per optimizer step."""
        return len(self.batches[0]["example_ids"])

    def total_steps(self) -> int:
        """One per batch."""
        return len(self.batches)

    def train_dataloader(self) -> "GivenBatches":
        """The batches as they are."""
        return GivenBatches(self.batches)


class GivenBatches:
    """A loader of given batches; a plain list would be several loaders to Lightning."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Stopwatch(Callback):
    """Times each step, and ends a trial that takes long."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin."""
        self._begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Wait for the device, and note the time."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.seconds.append(time.perf_counter() - self._begun)
        if len(self.seconds) >= 2 and sum(self.seconds) > BUDGET_SECONDS:
            trainer.should_stop = True


def try_out(module: FineTuneModule, data: TrialData, trainer_options: dict[str, Any]) -> Trial:
    """Train on the batches, the first of which should be the largest; the module is changed by it.

    Args:
        module: Built, weights not loaded yet.
        data: The batches.
        trainer_options: ``accelerator precision gradient_clip_val gradient_clip_algorithm`` of the run.

    Raises:
        LitTuneError: What the run would have raised at its first steps.
    """
    module.schedule_settings = ScheduleSettings("constant", warmup=0)  # the run's may be longer than a trial
    module.compile_model = False  # minutes, which a run has once
    if module.unfreeze_settings is not None:  # memory and time are those of the run when everything is trained
        module.unfreeze_settings, module.freeze_patterns = None, []
    watch = Stopwatch()
    trainer = L.Trainer(
        **trainer_options,
        devices=1,
        max_epochs=1,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    device = trainer.strategy.root_device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    log = logging.getLogger("lit_tune")
    level = log.level
    log.setLevel(logging.ERROR)  # which parameters are new, how the optimizer is set: the run says so itself
    try:
        trainer.fit(module, datamodule=data)
    finally:
        log.setLevel(level)
    usual = watch.seconds[1:] or watch.seconds
    largest = data.batches[0]
    return Trial(
        device=str(device),
        rows=len(largest["example_ids"]),
        tokens=largest["input_ids"].shape[1],
        peak_bytes=peak_memory(device),
        memory_bytes=torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        seconds=statistics.median(usual),
    )


def memory_findings(trial: Trial) -> list[Finding]:
    """A GPU that is nearly full with the longest batch."""
    if trial.memory_bytes is None or trial.peak_bytes < NEARLY_FULL * trial.memory_bytes:
        return []
    return [
        warning(
            f"the longest batch takes {trial.peak_bytes / 1e9:.1f} of {trial.memory_bytes / 1e9:.1f} GB",
            where="data.train_batch_size",
            fix="half of it with twice trainer.accumulate_grad_batches gives the same result",
        )
    ]
