"""Every value of whole runs against transformers.get_scheduler, and torch's classes against themselves."""

import copy
import inspect
import io
import logging
import math
import sys

import pytest
import torch
from jsonargparse import ArgumentParser
from torch.optim import lr_scheduler
from transformers import TrainingArguments, get_scheduler

from lit_tune.errors import ConfigError, ProblemList
from lit_tune.optim import schedules
from lit_tune.optim.schedules import NAMES, ScheduleSettings, build_schedule, num_warmup_steps, schedule_config
from lit_tune.optim.torch_schedules import WarmupThen


def optimizer_with(*lrs):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    return torch.optim.SGD(groups, lr=lrs[0], momentum=0.9)


def run(scheduler, steps, optimizer=None):
    """Learning rates of all groups used in each step, and after the last one."""
    optimizer = optimizer or scheduler.optimizer
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return [*rates, [group["lr"] for group in optimizer.param_groups]]


def their_warmup_steps(warmup, total_steps):
    return TrainingArguments(output_dir=".", warmup_steps=warmup, use_cpu=True).get_warmup_steps(total_steps)


WHOLE_RUNS = [
    (total_steps, warmup)
    for total_steps in (1, 2, 7, 30, 101)
    for warmup in (0.0, 0.07, 0.1, 0.5, 0.999, 1.0, 5.0, 30.0)
    if warmup <= total_steps  # more is an error here; tested below
]


@pytest.mark.parametrize(("total_steps", "warmup"), WHOLE_RUNS)
@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_a_run_equals_transformers(name, total_steps, warmup):
    extra = {"cosine": {"num_cycles": 1.5}, "polynomial": {"power": 2.0, "lr_end": 1e-3}}.get(name, {})
    settings = ScheduleSettings(name=name, warmup=warmup, **extra)
    warmup_steps = their_warmup_steps(warmup, total_steps)
    # transformers' polynomial divides by zero in the one value behind a run that is all warm-up; tested below
    steps = total_steps - 1 if name == "polynomial" and warmup_steps == total_steps else total_steps
    ours = run(build_schedule(settings, optimizer_with(0.1, 0.03), total_steps), steps)
    reference = get_scheduler(
        name, optimizer_with(0.1, 0.03), warmup_steps, total_steps, scheduler_specific_kwargs=extra
    )
    theirs = run(reference, steps)
    assert len(ours) == steps + 1
    torch.testing.assert_close(
        torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_polynomial_that_is_all_warm_up_ends_at_its_end():
    settings = ScheduleSettings(name="polynomial", warmup=2.0, lr_end=0.01)
    rates = [lr for (lr,) in run(build_schedule(settings, optimizer_with(0.1), 2), 4)]
    assert rates == pytest.approx([0.0, 0.05, 0.01, 0.01, 0.01])


@pytest.mark.parametrize("total_steps", [1, 3, 10, 99, 100, 1000, 12345])
@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.1, 0.3, 1.0])
def test_warm_up_steps_are_counted_as_in_hf_trainer(warmup, total_steps):
    assert num_warmup_steps(warmup, total_steps) == their_warmup_steps(warmup, total_steps)


TORCH_CLASSES = {
    "StepLR": {"step_size": 3, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 5], "gamma": 0.1},
    "ConstantLR": {"factor": 0.5, "total_iters": 3},
    "LinearLR": {"start_factor": 0.5, "total_iters": 4},
    "ExponentialLR": {"gamma": 0.8},
    "PolynomialLR": {"total_iters": 6, "power": 2.0},
    "CosineAnnealingLR": {"T_max": 8},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
}


@pytest.mark.parametrize("warmup_steps", [1, 4])
@pytest.mark.parametrize("name", TORCH_CLASSES)
def test_after_a_warm_up_a_torch_class_runs_as_if_it_were_alone(name, warmup_steps):
    settings = ScheduleSettings(name=name, warmup=warmup_steps, init_args=TORCH_CLASSES[name])
    rates = run(build_schedule(settings, optimizer_with(0.1, 0.02), 20), warmup_steps + 10)
    alone_optimizer = optimizer_with(0.1, 0.02)
    alone = run(getattr(lr_scheduler, name)(alone_optimizer, **TORCH_CLASSES[name]), 10)
    assert rates[warmup_steps:] == alone
    assert rates[:warmup_steps] == [[peak * step / warmup_steps for peak in alone[0]] for step in range(warmup_steps)]


def test_a_scheduler_that_multiplies_starts_from_the_peak_after_warm_up():
    # torch's SequentialLR goes on from 0.075 here, the last value of the warm-up
    scheduler = WarmupThen(lr_scheduler.MultiplicativeLR(optimizer_with(0.1), lambda _: 0.5), warmup_steps=4)
    rates = [lr for (lr,) in run(scheduler, 6)]
    assert rates == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1, 0.05, 0.025])
    assert scheduler.get_last_lr() == rates[-1:]


@pytest.mark.parametrize("name", [*NAMES, *TORCH_CLASSES, "OneCycleLR", "ReduceLROnPlateau"])
def test_a_schedule_goes_on_from_every_step_of_a_plain_checkpoint(name):
    plateau = name == "ReduceLROnPlateau"
    init_args = {"patience": 1} if plateau else TORCH_CLASSES.get(name, {})
    settings = ScheduleSettings(
        name=name,
        warmup=0.0 if plateau or name == "OneCycleLR" else 3.0,
        monitor="val/loss" if plateau else None,
        init_args=init_args,
    )

    def step(scheduler):
        scheduler.optimizer.step()
        scheduler.step(1.0) if plateau else scheduler.step()
        return [group["lr"] for group in scheduler.optimizer.param_groups]

    whole = build_schedule(settings, optimizer_with(0.1, 0.05), 10, "min")
    expected, states = [], []
    for _ in range(10):
        file = io.BytesIO()
        torch.save([whole.state_dict(), whole.optimizer.state_dict()], file)
        states.append(file.getvalue())
        expected.append(step(whole))
    for start, state in enumerate(states):
        resumed = build_schedule(settings, optimizer_with(0.1, 0.05), 10, "min")
        schedule_state, optimizer_state = torch.load(io.BytesIO(state), weights_only=True)
        before = copy.deepcopy(schedule_state)
        resumed.load_state_dict(schedule_state)
        resumed.optimizer.load_state_dict(optimizer_state)
        assert schedule_state == before, "loading must not change what was loaded"
        assert [step(resumed) for _ in range(10 - start)] == expected[start:]


def test_lengths_and_peaks_are_filled_in():
    built = build_schedule(ScheduleSettings(name="CosineAnnealingLR", warmup=0.2), optimizer_with(0.1), 10)
    assert run(built, 10)[-1] == pytest.approx([0.0])
    settings = ScheduleSettings(name="OneCycleLR")
    rates = run(build_schedule(settings, optimizer_with(0.1, 0.02), 10), 10)
    by_hand = optimizer_with(0.1, 0.02)
    assert rates == run(lr_scheduler.OneCycleLR(by_hand, max_lr=[0.1, 0.02], total_steps=10), 10)


def test_by_epoch_there_is_no_warm_up_and_no_length():
    settings = ScheduleSettings(name="StepLR", interval="epoch", init_args={"step_size": 1, "gamma": 0.5})
    built = build_schedule(settings, optimizer_with(0.4), 100)
    assert [lr for (lr,) in run(built, 2)] == [0.4, 0.2, 0.1]
    assert schedule_config(settings, built) == {"scheduler": built, "interval": "epoch", "frequency": 1}
    with pytest.raises(ConfigError, match="needs T_max"):
        build_schedule(ScheduleSettings(name="CosineAnnealingLR", interval="epoch"), optimizer_with(0.4), 100)


def test_plateau_follows_its_metric_and_is_left_alone_by_lightning():
    settings = ScheduleSettings(name="ReduceLROnPlateau", monitor="val/f1", init_args={"patience": 0, "factor": 0.5})
    built = build_schedule(settings, optimizer_with(0.4), None, "max")
    for value in (0.5, 0.6, 0.6):
        built.step(value)
    assert built.optimizer.param_groups[0]["lr"] == 0.2
    assert schedule_config(settings, built) == {
        "scheduler": built,
        "interval": "epoch",
        "frequency": sys.maxsize,
        "monitor": "val/f1",
    }


@pytest.mark.parametrize(
    ("settings", "total_steps", "where", "message"),
    [
        ({}, None, "lr_schedule.name", "set trainer.max_steps"),
        ({"name": "cosine", "warmup": 5.0}, None, "lr_schedule.name", "set trainer.max_steps"),
        ({"name": "inverse_sqrt"}, None, "lr_schedule.warmup", "as a number of steps"),
        ({"warmup": 11.0}, 10, "lr_schedule.warmup", "more than the 10 steps"),
        ({"name": "polynomial", "lr_end": 0.1}, 10, "lr_schedule.lr_end", "not below optimizer.lr"),
        ({"name": "linaer"}, 10, "lr_schedule.name", "did you mean linear"),
        ({"name": "SetpLR"}, 10, "lr_schedule.name", "did you mean StepLR"),
        ({"name": "torch.optim.AdamW"}, 10, "lr_schedule.name", "not a torch scheduler"),
        ({"name": "StepLR"}, 10, "lr_schedule.init_args", "needs step_size"),
        ({"name": "StepLR", "init_args": {"step_sise": 2}}, 10, "lr_schedule.init_args.step_sise", "mean step_size"),
        ({"name": "LambdaLR", "init_args": {"lr_lambda": "x"}}, 10, "lr_schedule.init_args", "not callable"),
        ({"name": "StepLR", "interval": "epoch", "warmup": 5.0}, 10, "lr_schedule.warmup", "cannot stand before"),
        ({"name": "OneCycleLR", "warmup": 0.2}, 10, "lr_schedule.warmup", "cannot stand before"),
        ({"name": "ReduceLROnPlateau"}, 10, "lr_schedule.monitor", "needs a metric"),
        (
            {"name": "ReduceLROnPlateau", "monitor": "val/f1", "init_args": {"mode": "min"}},
            10,
            "lr_schedule.init_args.mode",
            "better high",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_an_error_with_a_place(settings, total_steps, where, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_schedule(ScheduleSettings(**settings), optimizer_with(0.1), total_steps, "max")
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"warmup": -0.1}, "warmup"),
        ({"warmup": 2.5}, "warmup"),
        ({"warmup": math.nan}, "warmup"),
        ({"warmup": math.inf}, "warmup"),
        ({"num_cycles": 0.0}, "num_cycles"),
        ({"power": -1.0}, "power"),
        ({"lr_end": -1e-7}, "lr_end"),
        ({"interval": "epoch"}, "interval"),
        ({"init_args": {"gamma": 0.5}}, "init_args"),
    ],
)
def test_a_setting_out_of_range_names_its_key(settings, key):
    with pytest.raises(ConfigError) as caught:
        ScheduleSettings(**settings)
    assert caught.value.where == f"lr_schedule.{key}"


def test_several_settings_out_of_range_are_reported_together():
    with pytest.raises(ProblemList) as caught:
        ScheduleSettings(warmup=-1.0, power=0.0)
    assert [problem.where for problem in caught.value.problems] == ["lr_schedule.warmup", "lr_schedule.power"]


def test_schedules_that_need_no_length_do_without():
    assert run(build_schedule(ScheduleSettings(name="constant"), optimizer_with(0.1), None), 3) == [[0.1]] * 4
    settings = ScheduleSettings(name="constant_with_warmup", warmup=2.0)
    assert run(build_schedule(settings, optimizer_with(0.1), None), 3) == [[0.0], [0.05], [0.1], [0.1]]


@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        ({"name": "constant"}, []),
        ({"name": "constant", "warmup": 0.0}, []),
        ({"name": "constant", "warmup": 50.0}, ["warmup"]),
        ({"name": "cosine", "num_cycles": 1.0}, []),
        ({"name": "linear", "num_cycles": 1.0, "power": 2.0, "lr_end": 0.0}, ["num_cycles", "power", "lr_end"]),
        ({"name": "linear", "monitor": "val/loss"}, ["monitor"]),
        ({"name": "ExponentialLR", "monitor": "val/loss", "init_args": {"gamma": 0.9}}, ["monitor"]),
    ],
)
def test_settings_without_effect_are_said(settings, unused, caplog):
    with caplog.at_level(logging.WARNING, logger=schedules.__name__):
        build_schedule(ScheduleSettings(**settings), optimizer_with(0.1), 100)
    expected = [f"lr_schedule.{key} has no effect with lr_schedule.name: {settings['name']}" for key in unused]
    assert [record.getMessage() for record in caplog.records] == expected


def test_the_signature_is_the_section_and_a_plain_dict_is_the_way_back():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ScheduleSettings, "lr_schedule")
    section = parser.parse_args(["--lr_schedule.name=cosine", "--lr_schedule.warmup=100"]).lr_schedule.as_dict()
    assert set(section) == set(inspect.signature(ScheduleSettings).parameters)
    settings = ScheduleSettings(**section)
    assert (settings.name, settings.warmup) == ("cosine", 100)
