"""Frozen parameters are not in the checkpoints; loading takes them from the base model and notices another one."""

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tiny_runs import QUIET, Batches, built, fit
from torch import nn
from toy import make_tiny_model, toy_rows, write_csv
from transformers import AutoModel, AutoModelForSequenceClassification

from lit_tune.checkpointing.durable_io import DurableCheckpointIO
from lit_tune.checkpointing.frozen import KEY, FrozenWeights
from lit_tune.checkpointing.verified import newest_verified
from lit_tune.errors import StorageError
from lit_tune.run_dir import RunDir


class Tied(L.LightningModule):
    """A frozen base whose weight has two names, a frozen buffer, a trained head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.decoder = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.decoder.weight = self.embedding.weight
        self.embedding.weight.requires_grad_(False)
        self.register_buffer("count", torch.zeros(1))
        torch.manual_seed(9)
        self.middle, self.head = nn.Linear(3, 3), nn.Linear(5, 1)

    def training_step(self, batch, batch_idx):
        self.count += 1
        return self.head(self.decoder(self.middle(self.embedding(torch.tensor([1, 2]))))).sum()

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.1)


def train(module, folder, *callbacks, epochs=1, ckpt_path=None) -> Path:
    """Fit and save; returns the checkpoint."""
    durable = DurableCheckpointIO(RunDir(folder))
    trainer = L.Trainer(**QUIET, max_epochs=epochs, plugins=durable, callbacks=[FrozenWeights(), *callbacks])
    trainer.fit(module, Batches(3), ckpt_path=ckpt_path)
    path = folder / "checkpoints" / f"last-{trainer.global_step:07d}.ckpt"
    trainer.save_checkpoint(path)
    return path


def names(path: Path) -> set[str]:
    return set(torch.load(path, weights_only=True)["state_dict"])


def test_frozen_parameters_are_left_out_under_all_their_names(tmp_path):
    module = Tied()
    path = train(module, tmp_path)
    assert names(path) == {"count", "middle.weight", "middle.bias", "head.weight", "head.bias", KEY}
    assert set(torch.load(path, weights_only=True)["state_dict"][KEY]) == {"embedding.weight", "decoder.weight"}


def test_a_run_goes_on_with_the_weights_of_the_base(tmp_path):
    whole = Tied()
    train(whole, tmp_path / "whole", epochs=2)
    path = train(Tied(), tmp_path / "cut", epochs=1)
    resumed = Tied()
    train(resumed, tmp_path / "cut", epochs=2, ckpt_path=path)
    for name, value in whole.state_dict().items():
        if name != KEY:
            assert torch.equal(value, resumed.state_dict()[name])
    assert torch.equal(whole.embedding.weight, resumed.embedding.weight)


def test_another_base_is_noticed(tmp_path):
    path = train(Tied(), tmp_path)
    with pytest.raises(StorageError, match=r"base model has changed: embedding\.weight") as caught:
        train(Tied(seed=1), tmp_path, epochs=2, ckpt_path=path)
    assert caught.value.exit_code == 7
    assert "Fix: " in str(caught.value)


class Change(Callback):
    """Does something to the module in the middle of training."""

    def __init__(self, change):
        self.change = change

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            self.change(pl_module)


@torch.no_grad()
def write_into_frozen(module):
    module.embedding.weight.mul_(2)


def thaw(module):
    module.embedding.weight.requires_grad_(True)


def freeze_what_was_trained(module):
    module.middle.weight.requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "written"),
    [
        (write_into_frozen, "embedding.weight"),
        (thaw, "embedding.weight"),
        (freeze_what_was_trained, "middle.weight"),
    ],
)
def test_what_is_not_as_the_base_has_it_is_written(tmp_path, change, written):
    module = Tied()
    path = train(module, tmp_path, Change(change))
    assert written in names(path)
    resumed = Tied()
    train(resumed, tmp_path, ckpt_path=path)  # the run is over: loads, and trains nothing
    assert torch.equal(resumed.get_parameter(written), module.get_parameter(written))


def test_what_a_checkpoint_brought_is_not_taken_for_the_base_later(tmp_path):
    """Trained in the first run, frozen in the second: the base model does not have these values."""
    path = train(Tied(), tmp_path)
    second = Tied()
    second.middle.weight.requires_grad_(False)
    second.configure_optimizers = lambda: torch.optim.AdamW([*second.middle.parameters(), *second.head.parameters()])
    path = train(second, tmp_path, epochs=2, ckpt_path=path)
    assert "middle.weight" in names(path)
    assert "embedding.weight" not in names(path)


def test_nothing_frozen_changes_nothing(tmp_path):
    module = Tied()
    thaw(module)
    assert names(train(module, tmp_path)) == set(module.state_dict())


def test_a_half_precision_run_takes_the_base_in_its_own_type(tmp_path):
    module = Tied().bfloat16()
    path = train(module, tmp_path)
    loaded = Tied()  # freshly loaded, in float32
    callback = FrozenWeights()
    callback.setup(None, loaded, "fit")
    loaded.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    assert torch.equal(loaded.embedding.weight, Tied().embedding.weight)


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
def test_a_frozen_backbone_is_exported_whole_and_its_checkpoints_are_small(tiny_model_dir, tmp_path):
    train_file = write_csv(tmp_path / "train.csv", toy_rows(40))
    sizes = {}
    for freeze in (None, "backbone"):
        run = tmp_path / str(freeze)
        made = fit(built(tiny_model_dir, train_file, run, model__freeze=freeze, overfit__probe_size=0))
        choice = newest_verified(RunDir(run))
        sizes[freeze] = choice.path.stat().st_size
        exported = AutoModelForSequenceClassification.from_pretrained(run / "best").state_dict()
        assert all(torch.equal(value, exported[name]) for name, value in made.module.model.state_dict().items())
    assert sizes["backbone"] < 0.3 * sizes[None]


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
def test_a_base_model_that_was_replaced_is_told_by_name(tmp_path):
    folder = make_tiny_model(tmp_path / "base")
    train_file = write_csv(tmp_path / "train.csv", toy_rows(40))
    settings = {"model__freeze": "backbone", "overfit__probe_size": 0, "data__val_fraction": 0}
    fit(built(folder, train_file, tmp_path / "run", **settings))
    path = newest_verified(RunDir(tmp_path / "run")).path
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    model.save_pretrained(folder)
    made = built(folder, train_file, tmp_path / "second", trainer__max_epochs=2, **settings)
    with pytest.raises(StorageError, match="base model has changed") as caught:
        made.trainer.fit(made.module, datamodule=made.datamodule, ckpt_path=str(path))
    assert str(folder) in str(caught.value)


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
def test_the_best_weights_may_be_older_than_an_unfreezing(tiny_model_dir, tmp_path):
    """What is trained later is in every checkpoint; what never is stays out."""
    train_file = write_csv(tmp_path / "train.csv", toy_rows(60))
    settings = {"model__freeze": "backbone", "model__unfreeze": [{"at_epoch": 1, "layers": "top 1", "lr": 5.0}]}
    settings |= {"data__val_fraction": 0.3}
    made = fit(built(tiny_model_dir, train_file, tmp_path / "run", trainer__max_epochs=2, **settings))
    best, last = (
        torch.load(next((tmp_path / "run" / "checkpoints").glob(f"{name}*.ckpt")), weights_only=True)
        for name in ("best", "last")
    )
    assert best["epoch"] < last["epoch"]  # a learning rate of 5 has spoilt the model
    trained = "model.bert.encoder.layer.1.output.dense.weight"
    assert not torch.equal(best["state_dict"][trained], last["state_dict"][trained])
    base = AutoModel.from_pretrained(tiny_model_dir).state_dict()
    assert torch.equal(best["state_dict"][trained], base["encoder.layer.1.output.dense.weight"])
    assert "model.bert.encoder.layer.0.output.dense.weight" not in last["state_dict"]
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "best").state_dict()
    assert torch.equal(exported[trained.removeprefix("model.")], best["state_dict"][trained])
    assert all(torch.equal(value, exported[name]) for name, value in made.module.model.state_dict().items())
