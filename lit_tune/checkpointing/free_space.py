"""Whether the disk can hold the run's checkpoints, asked before training and not when the first one is due."""

from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lit_tune.checkpointing.durable_io import checkpoint_bytes
from lit_tune.durable import check_free_space

NUM_CHECKPOINTS = 2
"""The new one is written and verified before the old one goes."""

STATES_PER_PARAMETER = {"SGD": 1, "Adafactor": 0}
"""Numbers an optimizer keeps for each one it trains; Adam's kind keeps two. Adafactor: rows and columns only."""


class FreeSpace(Callback):
    """Refuses to start a training whose first checkpoints would not fit.

    Args:
        folder: Where checkpoints go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare.

        Raises:
            StorageError: Too little is free.
        """
        keeps = any(isinstance(c, ModelCheckpoint) and c.save_top_k != 0 for c in trainer.checkpoint_callbacks)
        if keeps and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            check_free_space(self.folder, NUM_CHECKPOINTS * expected_bytes(pl_module, trainer.optimizers))


def expected_bytes(pl_module: LightningModule, optimizers: list[torch.optim.Optimizer]) -> int:
    """Size of a checkpoint of this module once its optimizers have taken a step."""
    states = 0
    for optimizer in optimizers:
        trained = sum(p.numel() * p.element_size() for group in optimizer.param_groups for p in group["params"])
        states += trained * STATES_PER_PARAMETER.get(type(optimizer).__name__, 2)
    return checkpoint_bytes(pl_module.state_dict()) + states
