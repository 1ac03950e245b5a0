"""A loss or gradient that is not a number never reaches the weights, whenever and wherever it comes from."""

import copy
import random
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from faulty import FaultyLoss
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from parity.runs import build
from tiny_runs import QUIET
from torch.multiprocessing import ProcessRaisedException
from toy import toy_rows, write_csv

from lit_tune.data.orders import Permutation
from lit_tune.errors import NumericsError
from lit_tune.imports import allow_import
from lit_tune.module import FineTuneModule
from lit_tune.optim.step_guard import MAX_SCALER_SKIPS

NUM_ROWS, BATCH = 40, 4


class States(Callback):
    """Weights, optimizer and schedule after each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > len(self.steps):
            self.steps.append(state(trainer, pl_module))


def state(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    weights = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = copy.deepcopy(trainer.optimizers[0].state_dict())
    return {"weights": weights, "optimizer": optimizer, "epoch": trainer.lr_scheduler_configs[0].scheduler.last_epoch}


def equal(a: Any, b: Any) -> bool:
    """The same numbers, bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("numerics") / "train.csv", toy_rows(NUM_ROWS, seed=3))


@pytest.fixture
def fit(rows, tiny_model_dir):
    """Train with a faulty loss; gives trainer, module, states after each step, and the error."""
    allow_import("faulty")

    def run(calls, fault="loss", *, skip=0, accumulate=1, **trainer):
        loss = {"class_path": "faulty.FaultyLoss", "init_args": {"calls": calls, "fault": fault}}
        settings = {"optimizer": {"lr": 1e-2, "skip_nonfinite": skip}, "config_overrides": {}}
        data = {"train": str(rows), "val_fraction": 0, "train_batch_size": BATCH}
        module, datamodule = build(tiny_model_dir, data, {"loss": loss}, settings)
        states = States()
        options = {"max_epochs": 1, "gradient_clip_val": 1.0, "accumulate_grad_batches": accumulate, **trainer}
        made = L.Trainer(**{**QUIET, **options}, callbacks=[states])
        try:
            made.fit(module, datamodule=datamodule)
        except NumericsError as error:
            return made, module, states.steps, error
        return made, module, states.steps, None

    return run


@pytest.mark.parametrize("rounds", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_a_fault_at_any_moment_is_caught_before_the_weights_change(fit, rounds):
    """Bit for bit the state of the step before: weights, moments, schedule. Dropout is on."""
    rng = random.Random(7)
    clean: dict[tuple[int, float | None], list] = {}
    for fault in ("loss", "inf", "value", "gradient") * rounds:
        accumulate, call = rng.choice((1, 2)), rng.randrange(2, NUM_ROWS // BATCH)
        clip = rng.choice((1.0, None))
        if (accumulate, clip) not in clean:
            clean[accumulate, clip] = fit([], accumulate=accumulate, gradient_clip_val=clip)[2]
        good = clean[accumulate, clip]
        assert len(good) == NUM_ROWS // BATCH // accumulate
        trainer, module, steps, error = fit([call], fault, accumulate=accumulate, gradient_clip_val=clip)
        taken = call // accumulate
        assert error is not None, (fault, call)
        assert error.exit_code == 6
        assert error.where == f"step {taken + 1}"
        assert equal(steps, good[:taken])
        assert equal(state(trainer, module)["weights"], good[taken - 1]["weights"])
        assert equal(trainer.optimizers[0].state_dict()["state"], good[taken - 1]["optimizer"]["state"])


@pytest.mark.parametrize(
    ("fault", "precision"), [("loss", "32-true"), ("value", "bf16-mixed"), ("gradient", "bf16-mixed")]
)
def test_a_skipped_step_leaves_weights_optimizer_and_schedule_as_they_were(fit, fault, precision):
    _, module, steps, error = fit([4, 7], fault, skip=2, precision=precision)
    assert error is None
    assert module.num_skipped_steps == 2
    assert len(steps) == 10
    assert equal(steps[4], steps[3])
    assert equal(steps[7], steps[6])
    assert not equal(steps[5]["weights"], steps[4]["weights"])
    assert {float(s["step"]) for s in steps[-1]["optimizer"]["state"].values()} == {8.0}
    assert steps[-1]["epoch"] == 8


def test_one_step_more_than_may_be_skipped_ends_the_run(fit):
    _, _, steps, error = fit([2, 5, 6], skip=2)
    assert len(steps) == 6
    assert error is not None
    assert error.where == "step 7"
    assert "after 2 steps that were left out" in str(error)


def test_the_message_names_rows_lr_norm_and_what_to_do(fit):
    trainer, _, _, error = fit([3], "loss", accumulate=2)
    order = [r for batch in trainer.datamodule.train_sampler() for r in batch]
    rows = ", ".join(str(r) for r in order[3 * BATCH : 4 * BATCH])
    lr = f"{trainer.optimizers[0].param_groups[0]['lr']:.3g}"
    assert str(error).splitlines() == [
        f"step 2: loss nan, gradient norm nan, lr {lr}; rows of train: {rows}",
        "The weights were not changed. No checkpoint was written yet",
        "Fix: look at these rows, or a smaller optimizer.lr; optimizer.skip_nonfinite: 10 leaves such steps out",
    ]


def test_a_step_without_any_target_divides_by_nothing(rows, tiny_model_dir, fit):
    module, datamodule = build(
        tiny_model_dir,
        {"train": str(rows), "val_fraction": 0, "train_batch_size": BATCH},
        {"class_weights": [0.0, 0.0, 0.0]},
    )
    trainer = L.Trainer(**{**QUIET, "max_epochs": 1})
    with pytest.raises(NumericsError, match="step 1: 0 of 4 targets are trained on; rows of train: "):
        trainer.fit(module, datamodule=datamodule)
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_a_micro_batch_without_any_target_is_nothing_special(rows, tiny_model_dir):
    """Its window has targets: the cut into micro-batches must not matter."""
    losses = []
    for batch, accumulate in ((8, 1), (1, 8)):
        data = {"train": str(rows), "val_fraction": 0, "train_batch_size": batch}
        module, datamodule = build(tiny_model_dir, data, {"class_weights": [0.0, 1.0, 1.0]})
        trainer = L.Trainer(**{**QUIET, "max_epochs": 1, "accumulate_grad_batches": accumulate})
        trainer.fit(module, datamodule=datamodule)
        losses.append(float(module.last_step["loss_sum"] / module.last_step["denominator"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def fp16(init_scale=2.0**16):
    """fp16 with its scaler, which works on the CPU too."""
    return [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=init_scale))]


def test_steps_that_an_fp16_scaler_skips_are_its_own_business_and_hold_the_schedule(fit):
    _, module, steps, error = fit([], plugins=fp16(2.0**23))
    assert error is None
    assert 0 < module.num_skipped_steps < 10
    assert equal(steps[0]["weights"], dict(steps[module.num_skipped_steps - 1]["weights"]))
    assert steps[-1]["epoch"] == 10 - module.num_skipped_steps


def test_a_scaler_that_finds_no_scale_ends_the_run(fit):
    _, _, steps, error = fit(list(range(99)), "gradient", plugins=fp16(), max_epochs=9)
    assert len(steps) == MAX_SCALER_SKIPS - 1
    assert error is not None
    assert str(error).startswith("step 32: the fp16 scaler has skipped 32 steps in a row: loss ")


def test_a_bad_loss_is_no_matter_of_scale(fit):
    _, module, steps, error = fit([3], "loss", plugins=fp16())
    assert error is not None
    assert error.where == "step 4"
    assert "bf16-mixed" in str(error)
    assert equal(dict(module.named_parameters()), steps[-1]["weights"])


def test_the_faulty_loss_is_plain_cross_entropy_where_nothing_is_wrong():
    logits, labels = torch.randn(5, 3, requires_grad=True), torch.tensor([0, 1, 2, 1, 0])
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(FaultyLoss([])(logits, labels), expected)


class Telling(FineTuneModule):
    """Writes what its rank was told, and the weights then, into a file: on one pipe two ranks interleave."""

    folder: Path

    def tell(self, text):
        told = {"text": text, "weights": dict(self.named_parameters()), "step": self.trainer.global_step}
        torch.save(told, self.folder / f"rank{self.trainer.global_rank}.pt")
        torch.distributed.barrier()  # the first rank that ends takes the other with it

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        try:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        except NumericsError as error:
            self.tell(str(error))
            raise

    def on_train_end(self):
        self.tell(f"skipped {self.num_skipped_steps}")


def fit_two_ranks(tiny_model_dir, rows, folder, calls, fault, skip=0):
    allow_import("faulty")
    loss = {"class_path": "faulty.FaultyLoss", "init_args": {"calls": calls, "fault": fault, "rank": 1}}
    settings = {"optimizer": {"lr": 1e-2, "skip_nonfinite": skip}, "config_overrides": {}}
    data = {"train": str(rows), "val_fraction": 0, "train_batch_size": BATCH, "group_by_length": False}
    module, datamodule = build(tiny_model_dir, data, {"loss": loss}, settings)
    module.__class__, module.folder = Telling, folder
    limit = timedelta(seconds=60)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=limit)
    options = {"max_epochs": 1, "devices": 2, "strategy": strategy}
    trainer = L.Trainer(**{**QUIET, **options})
    with nullcontext() if skip else pytest.raises(ProcessRaisedException, match="NumericsError"):
        trainer.fit(module, datamodule=datamodule)
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert equal(first, second)
    return first, Permutation(NUM_ROWS, datamodule.seed, 0)(np.arange(NUM_ROWS)).tolist()


@pytest.mark.ddp
@pytest.mark.parametrize("fault", ["loss", "value", "gradient"])
def test_two_ranks_stop_together_when_one_has_a_bad_loss(tiny_model_dir, rows, tmp_path, fault):
    told, order = fit_two_ranks(tiny_model_dir, rows, tmp_path, [2], fault)
    assert told["step"] == 2
    assert told["text"].startswith("step 3: ")
    assert all(torch.isfinite(w).all() for w in told["weights"].values())
    of_rank = {rank: order[2 * 2 * BATCH :][rank * BATCH : (rank + 1) * BATCH] for rank in (0, 1)}
    blamed = of_rank[1] if fault != "gradient" else of_rank[0] + of_rank[1]
    assert told["text"].splitlines()[0].endswith("rows of train: " + ", ".join(str(r) for r in blamed))


@pytest.mark.ddp
def test_two_ranks_skip_together(tiny_model_dir, rows, tmp_path):
    told, _ = fit_two_ranks(tiny_model_dir, rows, tmp_path, [2, 3], "value", skip=2)
    assert told["text"] == "skipped 2"
    assert told["step"] == 5
