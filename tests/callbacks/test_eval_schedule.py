"""Validations happen between optimizer steps, as often as asked, and always after the last step."""

import shutil

import pytest
from lightning.pytorch.callbacks import Callback
from tiny_runs import fit_plain
from toy import CLASSES, toy_rows, write_csv

from lit_tune.callbacks.eval_schedule import EvalSchedule
from lit_tune.errors import ConfigError


class Watch(Callback):
    """Optimizer steps at which there was a validation; none may lie within an accumulation window."""

    def __init__(self):
        self.steps, self.within, self.position = [], [], {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.open = not (trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0)

    def on_validation_end(self, trainer, pl_module):
        self.steps.append(trainer.global_step)
        self.within.append(self.open)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    files = {
        "train": write_csv(folder / "train.csv", toy_rows(37, seed=3)),
        "val": write_csv(folder / "val.csv", toy_rows(9, seed=4)),
    }
    return {"train_batch_size": 5, "probe_size": 0, **{name: str(path) for name, path in files.items()}}


def validated(model, data, every=None, task=None, **trainer):
    watch = Watch()
    callbacks = [EvalSchedule(every), watch]
    fit_plain(model, data, callbacks, task=task, accumulate_grad_batches=3, **{"max_epochs": 3, **trainer})
    assert not any(watch.within)
    return watch.steps


@pytest.mark.parametrize(
    ("every", "trainer", "expected"),
    [  # 8 batches an epoch in windows of 3, 3 and 2: 3 steps an epoch, 9 in all
        (None, {}, [3, 6, 9]),
        (1, {"max_epochs": 1}, [1, 2, 3]),
        (2, {}, [2, 4, 6, 8, 9]),
        (4, {}, [4, 8, 9]),
        (100, {}, [9]),
        (None, {"max_steps": 7, "max_epochs": -1}, [3, 6, 7]),
        (4, {"max_steps": 7, "max_epochs": -1}, [4, 7]),
        (2, {"limit_train_batches": 4}, [2, 4, 6]),
        (None, {"check_val_every_n_epoch": 2}, [6, 9]),  # Lightning alone: [6]
        (None, {"check_val_every_n_epoch": 5}, [9]),  # Lightning alone: none
        (None, {"limit_val_batches": 0}, []),
    ],
)
def test_validations_come_when_they_are_due(tiny_model_dir, data, every, trainer, expected):
    assert validated(tiny_model_dir, data, every, **trainer) == expected


@pytest.mark.parametrize(
    ("every", "trainer", "expected"),
    [
        (None, {"max_steps": 7, "max_epochs": -1}, [3, 6, 7]),
        (2, {"max_steps": 7, "max_epochs": -1}, [2, 4, 6, 7]),
        (4, {"max_steps": 99, "max_epochs": 2}, [4, 6]),  # the stream ends before max_steps
        (2, {"max_steps": 99, "max_epochs": 2, "limit_train_batches": 4}, [2, 4]),
    ],
)
def test_validations_of_a_stream(tiny_model_dir, data, every, trainer, expected):
    task = {"label_names": list(CLASSES)}
    assert validated(tiny_model_dir, {**data, "streaming": True}, every, task, **trainer) == expected


def test_steps_and_epochs_together_are_refused_before_weights_load(tiny_model_dir, data, tmp_path):
    no_weights = shutil.copytree(tiny_model_dir, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ConfigError, match="check_val_every_n_epoch: 2 contradicts eval_every_steps: 4") as caught:
        validated(no_weights, data, 4, check_val_every_n_epoch=2)
    assert "Fix:" in str(caught.value)


def test_a_second_fit_keeps_the_epochs_between_validations(tiny_model_dir, data):
    schedule, watch = EvalSchedule(), Watch()
    trainer = fit_plain(tiny_model_dir, data, [schedule, watch], max_epochs=2, check_val_every_n_epoch=2)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(trainer.lightning_module, datamodule=trainer.datamodule)
    assert watch.steps == [16, 32]
