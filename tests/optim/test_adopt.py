"""Settings of the config after a checkpoint was loaded."""

import copy

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, StepLR

from lit_tune.optim.adopt import adopt_settings, configured_settings
from lit_tune.optim.torch_schedules import WarmupThen


def made(lr, weight_decay=0.01, steps=10, step_lr=False):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([{"params": [weight], "weight_decay": weight_decay}], lr=lr)
    scheduler = StepLR(optimizer, 2, 0.5) if step_lr else LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
    return weight, optimizer, scheduler


def trained(weight, optimizer, scheduler, steps):
    for _ in range(steps):
        weight.grad = torch.ones(3)
        optimizer.step()
        scheduler.step()
    return copy.deepcopy(optimizer.state_dict()), scheduler.state_dict()


def resumed(state, **settings):
    _, optimizer, scheduler = made(**settings)
    configured = configured_settings(optimizer, scheduler)
    optimizer.load_state_dict(state[0])
    scheduler.load_state_dict(state[1])
    return optimizer, scheduler, adopt_settings(optimizer, scheduler, configured)


def test_nothing_changes_where_nothing_changed():
    for step_lr in (False, True):
        state = trained(*made(0.1, step_lr=step_lr), 4)
        optimizer, scheduler, changed = resumed(state, lr=0.1, step_lr=step_lr)
        assert changed == []
        assert optimizer.state_dict()["param_groups"] == state[0]["param_groups"]
        assert scheduler.base_lrs == [0.1]


def test_new_rate_and_decay_hold_and_the_moments_stay():
    state = trained(*made(0.1), 4)
    optimizer, scheduler, changed = resumed(state, lr=0.2, weight_decay=0.5)
    assert changed == ["initial_lr", "weight_decay"]
    group = optimizer.param_groups[0]
    assert group["weight_decay"] == 0.5
    assert group["lr"] == 0.2 * (1 - 4 / 10)
    assert optimizer.state_dict()["state"][0]["step"] == 4
    optimizer.step()
    scheduler.step()
    assert group["lr"] == 0.2 * (1 - 5 / 10)


def test_a_longer_run_goes_on_with_its_own_rate():
    state = trained(*made(0.1), 10)
    assert state[0]["param_groups"][0]["lr"] == 0
    optimizer, _, changed = resumed(state, lr=0.1, steps=20)
    assert changed == []
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5


def test_other_schedules_are_scaled():
    state = trained(*made(0.1, step_lr=True), 4)
    optimizer, _, _ = resumed(state, lr=0.4, step_lr=True)
    assert optimizer.param_groups[0]["lr"] == 0.4 * 0.25


@pytest.mark.parametrize("kind", ["one cycle", "cosine", "cosine after a warm-up"])
def test_a_class_whose_length_has_changed_goes_on_as_if_it_had_been_longer_from_the_start(kind):
    def built(steps):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        if kind == "one cycle":
            return weight, optimizer, OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
        warmup = 2 if "warm-up" in kind else 0
        inner = CosineAnnealingLR(optimizer, T_max=steps - warmup)
        return weight, optimizer, WarmupThen(inner, warmup) if warmup else inner

    state = trained(*built(10), 9)
    _, optimizer, scheduler = built(20)
    configured = configured_settings(optimizer, scheduler)
    optimizer.load_state_dict(state[0])
    scheduler.load_state_dict(copy.deepcopy(state[1]))
    assert "length" in adopt_settings(optimizer, scheduler, configured)
    longer = built(20)
    trained(*longer, 9)
    for _ in range(11):
        for name in ("lr", "betas"):
            assert optimizer.param_groups[0][name] == longer[1].param_groups[0][name]
        optimizer.step()
        scheduler.step()
        trained(*longer, 1)
