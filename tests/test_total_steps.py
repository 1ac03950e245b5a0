"""total_steps() is the number of optimizer steps the trainer then takes, and the schedule ends exactly there."""

import json

import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from tiny_runs import fit_plain
from toy import CLASSES, toy_rows, write_csv

LR = 0.01


class Watch(Callback):
    """Planned and taken steps, the rate each step used, the rate that stands at the end."""

    def __init__(self, path=None):
        self.path, self.used = path, []

    def on_train_start(self, trainer, pl_module):
        self.planned = trainer.datamodule.total_steps()
        self.base = [group["initial_lr"] for group in trainer.optimizers[0].param_groups]
        optimizer = trainer.optimizers[0]
        optimizer.register_step_pre_hook(lambda o, args, kwargs: self.used.append(o.param_groups[0]["lr"]))

    def on_train_end(self, trainer, pl_module):
        self.taken, self.end = trainer.global_step, trainer.optimizers[0].param_groups[0]["lr"]
        if self.path:
            found = {"planned": self.planned, "taken": self.taken, "end": self.end, "used": self.used}
            self.path.joinpath(f"rank{trainer.global_rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return {"train": str(write_csv(tmp_path_factory.mktemp("rows") / "train.csv", toy_rows(37, seed=3)))}


SCHEDULE = {"optimizer": {"lr": LR}, "lr_schedule": {"name": "linear", "warmup": 0}}


def check(planned, taken, used, end):
    assert planned == taken == len(used)
    assert used == pytest.approx([LR * (taken - i) / taken for i in range(taken)])
    assert end == 0


@pytest.mark.parametrize(
    ("batch", "accumulate", "trainer", "expected"),
    [  # 37 rows: 8 batches of 5, the last of 2 rows
        (5, 1, {"max_epochs": 2}, 16),
        (5, 3, {"max_epochs": 2}, 6),  # windows of 3, 3 and 2 batches
        (5, 3, {"max_epochs": 2, "limit_train_batches": 4}, 4),
        (5, 3, {"max_epochs": 2, "limit_train_batches": 3}, 2),
        (5, 1, {"max_epochs": 2, "limit_train_batches": 1}, 2),  # an int is batches, a float a share
        (5, 1, {"max_epochs": 2, "limit_train_batches": 1.0}, 16),
        (5, 3, {"max_epochs": 2, "limit_train_batches": 0.7}, 4),  # 5 of 8 batches
        (5, 1, {"max_epochs": 2, "limit_train_batches": 99}, 16),
        (5, 3, {"max_epochs": 9, "max_steps": 7}, 7),  # within the third epoch
        (5, 3, {"max_epochs": 1, "max_steps": 7}, 3),
        (5, 3, {"max_epochs": -1, "max_steps": 5}, 5),
        (5, 3, {"max_epochs": 9, "max_steps": 4, "limit_train_batches": 2}, 4),
        (37, 1, {"max_epochs": 2}, 2),
        (50, 3, {"max_epochs": 2}, 2),
        (5, 3, {"fast_dev_run": 2}, 1),
    ],
)
def test_planned_steps_are_the_steps_taken(tiny_model_dir, data, batch, accumulate, trainer, expected):
    watch = Watch()
    settings = {"train_batch_size": batch, **data}
    fit_plain(tiny_model_dir, settings, [watch], module=SCHEDULE, accumulate_grad_batches=accumulate, **trainer)
    assert watch.taken == expected
    check(watch.planned, watch.taken, watch.used, watch.end)


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": 3, "max_steps": 99, "limit_train_batches": 4}, 6),
    ],
)
def test_planned_steps_of_a_stream(tiny_model_dir, data, trainer, expected):
    watch = Watch()
    settings = {"train_batch_size": 5, "streaming": True, **data}
    task = {"label_names": list(CLASSES)}
    fit_plain(tiny_model_dir, settings, [watch], module=SCHEDULE, task=task, accumulate_grad_batches=3, **trainer)
    assert watch.taken == expected
    check(watch.planned, watch.taken, watch.used, watch.end)


def test_without_an_end_nothing_is_planned(tiny_model_dir, data):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = True

    watch = Watch()
    module = {"lr_schedule": {"name": "constant"}}
    fit_plain(tiny_model_dir, data, [watch, Stop()], module=module, max_epochs=-1)
    assert watch.planned is None


@pytest.mark.ddp
def test_two_ranks_plan_and_take_the_same_steps(tiny_model_dir, data, tmp_path):
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    settings = {"train_batch_size": 2, **data}  # windows of 12 rows: 3 full ones and one row, in one cut
    fit_plain(
        tiny_model_dir,
        settings,
        [Watch(tmp_path)],
        module=SCHEDULE,
        accumulate_grad_batches=3,
        max_epochs=2,
        devices=2,
        strategy=strategy,
    )
    found = [json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2)]
    assert found[0] == found[1]
    assert found[0]["taken"] == 8
    check(**found[0])
