"""Before training: whether two checkpoints fit, estimated from parameters and optimizer states."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_runs import QUIET, Batches
from torch import nn

from lit_tune import durable
from lit_tune.checkpointing.free_space import FreeSpace, expected_bytes
from lit_tune.errors import StorageError


class Module(L.LightningModule):
    def __init__(self, optimizer: str = "AdamW", options: dict | None = None) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(300, 300), nn.Linear(300, 1)
        self.optimizer, self.options = optimizer, options or {}
        self.steps = 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return self.head(self.base(torch.ones(300))).sum()

    def configure_optimizers(self):
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=1e-3, **self.options)


def train(module, *callbacks, **trainer):
    saves = {"enable_checkpointing": True} if callbacks else {}
    made = L.Trainer(**{**QUIET, **saves, **trainer}, max_epochs=1, callbacks=list(callbacks))
    made.fit(module, Batches(2))
    return made


@pytest.mark.parametrize(
    ("optimizer", "options"), [("AdamW", {}), ("SGD", {"momentum": 0.9}), ("RMSprop", {"momentum": 0.9})]
)
def test_the_estimate_is_the_size_of_the_file(tmp_path, optimizer, options):
    module = Module(optimizer, options)
    expected = expected_bytes(module, [module.configure_optimizers()])
    made = train(module)
    made.save_checkpoint(tmp_path / "x.ckpt")
    size = (tmp_path / "x.ckpt").stat().st_size
    assert size <= expected <= size + 2**20


def free(monkeypatch, count: int) -> None:
    class Usage:
        pass

    Usage.free = count
    monkeypatch.setattr(durable.shutil, "disk_usage", lambda folder: Usage)


def test_a_run_whose_checkpoints_will_not_fit_does_not_start(tmp_path, monkeypatch):
    module = Module()
    needed = 2 * expected_bytes(module, [module.configure_optimizers()])
    free(monkeypatch, needed - 1)
    with pytest.raises(StorageError, match="are needed") as caught:
        train(module, FreeSpace(tmp_path), ModelCheckpoint(tmp_path))
    assert caught.value.exit_code == 7
    assert module.steps == 0
    free(monkeypatch, needed)
    train(module, FreeSpace(tmp_path), ModelCheckpoint(tmp_path))
    assert module.steps == 2


def test_a_run_that_keeps_nothing_needs_no_space(tmp_path, monkeypatch):
    free(monkeypatch, 0)
    train(Module(), FreeSpace(tmp_path), ModelCheckpoint(tmp_path, save_top_k=0))
    train(Module(), FreeSpace(tmp_path), ModelCheckpoint(tmp_path), fast_dev_run=True)
