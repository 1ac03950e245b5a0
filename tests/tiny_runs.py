"""Whole runs in under a second, and a module whose validations follow a script; shared by several tests."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lit_tune.cli import Built, build
from lit_tune.datamodule import TokenizedDataModule
from lit_tune.module import FineTuneModule
from lit_tune.tasks.base import Spec
from lit_tune.tasks.sequence_classification import SequenceClassification

SPEC = Spec("single_label_classification", label_names=["bad", "good"], num_rows=12, baseline={"accuracy": 0.5})
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
}


def fit_plain(
    model_dir: Path,
    data: dict[str, Any],
    callbacks: Sequence[Callback] = (),
    *,
    task: dict[str, Any] | None = None,
    module: dict[str, Any] | None = None,
    **trainer: Any,
) -> L.Trainer:
    """Module, datamodule and a bare Lightning trainer with these callbacks."""
    the_task = SequenceClassification(**(task or {}))
    torch.manual_seed(5)
    datamodule = TokenizedDataModule(the_task, model_name_or_path=str(model_dir), **{"val_fraction": 0, **data})
    settings = {"optimizer": {"lr": 1e-2}, "config_overrides": NO_DROPOUT, **(module or {})}
    run = L.Trainer(**{**QUIET, **trainer}, callbacks=list(callbacks))
    run.fit(FineTuneModule(str(model_dir), the_task, **settings), datamodule=datamodule)
    return run


def built(model_dir: Path, train: Path | str, run_dir: Path, **overrides: Any) -> Built:
    """What ``lit_tune.build`` gives for a small run; ``trainer__max_epochs=1`` overrides a key."""
    settings = {
        "data.train": str(train),
        "model.model_name_or_path": str(model_dir),
        "run_dir": str(run_dir),
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "optimizer.lr": 0.01,
        "logger": "none",
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    return build(overrides=settings)


def fit(made: Built, *callbacks: Callback) -> Built:
    """Train what was built."""
    made.trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
    made.trainer.fit(made.module, datamodule=made.datamodule)
    return made


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a json lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings by their keys as options of the command line."""
    return [text for key, value in settings.items() for text in (f"--{key}", str(value))]


class Messages(logging.Handler):
    """What lit-tune says, as text; pytest's own handler hears nothing once the command line has run."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


class Batches:
    """A loader of tensors that all are one."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter([torch.ones(1)] * self.count)


class Scripted(L.LightningModule):
    """A module of one weight whose validations log one entry of a script after another."""

    def __init__(self, script: Sequence[dict[str, float]]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.script = list(script)
        self.validated: list[int] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.weight * batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.script[len(self.validated)], logger=False)
        self.validated.append(self.trainer.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class ScriptedData(L.LightningDataModule):
    """Batches, and what callbacks ask a datamodule."""

    def __init__(self, batches: int, has_val: bool = True, spec: Spec = SPEC) -> None:
        super().__init__()
        self.task, self.spec, self.batches = SequenceClassification(), spec, batches
        self.encoded = {"train": [], "val": []} if has_val else {"train": []}

    def train_dataloader(self) -> Batches:
        return Batches(self.batches)

    def val_dataloader(self) -> Batches | list:
        return Batches(1) if "val" in self.encoded else []

    def total_steps(self) -> int:
        trainer = self.trainer
        assert trainer is not None
        steps = -(-self.batches // trainer.accumulate_grad_batches) * trainer.max_epochs
        return steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)


def fit_scripted(
    script: Sequence[dict[str, float]],
    callbacks: Sequence[Callback],
    *,
    batches: int = 2,
    has_val: bool = True,
    **trainer: Any,
) -> tuple[L.Trainer, Scripted]:
    """Train the scripted module; by default one epoch per entry of the script."""
    # otherwise Lightning adds a checkpoint callback of its own, which writes into the working folder
    saves = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    settings = {**QUIET, "max_epochs": len(script), "enable_checkpointing": saves, **trainer}
    run, module = L.Trainer(**settings, callbacks=list(callbacks)), Scripted(script)
    run.fit(module, datamodule=ScriptedData(batches, has_val))
    return run, module
