import csv
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from lit_tune.callbacks.jsonl_metrics import JsonlLogger
from lit_tune.callbacks.overfit_detector import OverfitCallback, takes_text
from lit_tune.errors import ConfigError
from lit_tune.stats.overfitting import OverfitDetector
from lit_tune.stats.verdict import Observation, State
from lit_tune.tasks.base import Spec
from lit_tune.tasks.sequence_classification import SequenceClassification

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*isinstance.treespec.*")

SPEC = Spec(
    "single_label_classification",
    label_names=["bad", "good"],
    num_rows=100,
    baseline={"accuracy": 0.5, "loss": 0.693},
)
HEALTHY = [(0.80, 0.79, 0.5, 0.50), (0.86, 0.85, 0.4, 0.42), (0.89, 0.87, 0.3, 0.38)]
OVERFIT = [*HEALTHY, (0.95, 0.865, 0.1, 0.48), (0.97, 0.86, 0.1, 0.5), (0.98, 0.86, 0.1, 0.5)]
LEARNING_RATE = 4e-5


class Scripted(L.LightningModule):
    """A real module of one weight, whose validations log what a script says: (train, val, train loss, val loss)."""

    def __init__(self, script: list[tuple], metric: str = "accuracy", name_probe: bool = True) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.script, self.metric, self.name_probe = script, metric, name_probe
        self.position = 0

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return (self.weight * batch[0]).sum()

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        train, val, train_loss, val_loss = self.script[self.position]
        self.position += 1
        values = {f"val/{self.metric}": val, "val/loss": val_loss}
        if self.name_probe:
            values |= {f"probe/{self.metric}": train, "probe/loss": train_loss}
        self.log_dict(values, logger=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def advice_settings(self) -> dict:
        return {"optimizer.lr": LEARNING_RATE, "optimizer.weight_decay": 0.01, "num_val_rows": 5000}


class Rows(L.LightningDataModule):
    def __init__(self, spec: Spec = SPEC, text_overlap: float | None = None, has_val: bool = True) -> None:
        super().__init__()
        self.task, self.spec, self.text_overlap, self.has_val = SequenceClassification(), spec, text_overlap, has_val

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 1)), batch_size=1)

    def val_dataloader(self) -> torch.utils.data.DataLoader | list:
        return self.train_dataloader() if self.has_val else []


def run(
    tmp_path, script, callback=None, module=None, data=None, loggers=False, callbacks=(), ckpt_path=None, **options
):
    """Fit for one epoch per line of the script."""
    callback = callback or OverfitCallback()
    callback.monitor = callback.monitor or "val/accuracy"
    settings = {"max_epochs": max(1, len(script)), "enable_checkpointing": False} | options
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=loggers,
        callbacks=[callback, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module or Scripted(script), datamodule=data or Rows(), ckpt_path=ckpt_path)
    return callback, trainer


@pytest.fixture(autouse=True)
def spoken(caplog):
    caplog.set_level(logging.INFO, logger="lit_tune")
    return caplog


def expected_states(script):
    detector = OverfitDetector("accuracy", True, SPEC.baseline)
    names = ("accuracy", "loss")
    states = []
    for i, (train, val, train_loss, val_loss) in enumerate(script):
        measured = (dict(zip(names, (train, train_loss), strict=True)), dict(zip(names, (val, val_loss), strict=True)))
        states.append(str(detector.observe(Observation(4 * (i + 1), i + 1.0, *measured)).state))
    return states


def test_a_run_logs_gap_code_and_state_of_every_validation_but_the_sanity_check(tmp_path):
    loggers = [
        JsonlLogger(tmp_path / "metrics.jsonl"),
        CSVLogger(tmp_path, name="csv", version=""),
        TensorBoardLogger(tmp_path, name="tb", version=""),
    ]
    run(tmp_path, OVERFIT, loggers=loggers, num_sanity_val_steps=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    states = [line["overfit/state"] for line in lines if "overfit/state" in line]
    assert states == expected_states(OVERFIT)
    assert states[:3] == ["healthy"] * 3
    assert states[3:] == ["moderate overfitting", "severe overfitting", "severe overfitting"]
    numbers = [line for line in lines if "overfit/gap" in line]
    assert [line["overfit/gap"] for line in numbers] == pytest.approx([t - v for t, v, _, _ in OVERFIT], abs=1e-6)
    assert [line["overfit/code"] for line in numbers] == [0, 0, 0, 4, 5, 5]
    assert [(line["step"], line["epoch"]) for line in numbers] == [(4 * n, n) for n in range(1, 7)]
    rows = list(csv.DictReader((tmp_path / "csv" / "metrics.csv").read_text().splitlines()))
    assert [float(row["overfit/code"]) for row in rows if row["overfit/code"]] == [0, 0, 0, 4, 5, 5]
    assert list((tmp_path / "tb").glob("events*"))


def test_the_console_warns_when_it_gets_worse_and_gives_each_advice_once_and_at_the_end(tmp_path, spoken):
    run(tmp_path, OVERFIT, max_epochs=6)
    said = [(r.levelname, r.getMessage()) for r in spoken.records if r.name == "lit_tune"]
    verdicts = [level for level, text in said if text.startswith(("healthy", "moderate", "severe"))]
    assert verdicts == ["INFO"] * 3 + ["WARNING"] * 2 + ["INFO"]
    assert "moderate overfitting: train accuracy 0.950, val accuracy 0.865, gap 0.085 > 0.050" in [t for _, t in said]
    advice = [t for _, t in said if "early_stopping.patience: 2 (now off)" in t]
    assert len(advice) == 2  # when it became moderate, and at the end; severe had nothing new to say
    end = next(i for i, (_, text) in enumerate(said) if text.startswith("verdict: "))
    assert "Best at epoch 3 (val accuracy 0.870, gap 0.020); later epochs overfit (gap 0.120)" in said[end][1]
    assert "  try trainer.max_epochs: 3 (now 6): val/accuracy was best in epoch 3" in [t for _, t in said[end:]]
    assert any("optimizer.weight_decay: 0.05 (now 0.01)" in t for _, t in said)


def test_a_healthy_run_is_told_so_without_advice(tmp_path, spoken):
    callback, _ = run(tmp_path, HEALTHY)
    assert {r.levelname for r in spoken.records if r.name == "lit_tune"} == {"INFO"}
    assert not any("  try " in r.getMessage() for r in spoken.records)
    assert callback.last_verdict is not None
    assert callback.last_verdict.state == State.HEALTHY
    assert callback.summary()["advice"] == []


def test_the_summary_is_strict_json_with_verdict_best_and_advice(tmp_path):
    callback, _ = run(tmp_path, OVERFIT)
    summary = json.loads(json.dumps(callback.summary(), allow_nan=False))
    assert (summary["state"], summary["code"], summary["monitor"]) == ("severe overfitting", 5, "val/accuracy")
    assert summary["best"]["epoch"] == 3
    assert summary["best"]["state"] == "healthy"
    assert summary["advice"][0].startswith("early_stopping.patience: 2")


def test_early_stopping_that_is_on_is_not_advised_again(tmp_path):
    stopping = EarlyStopping("val/accuracy", patience=2, mode="max")
    callback, _ = run(tmp_path, OVERFIT, callbacks=[stopping], max_epochs=6)
    assert not any("early_stopping" in line for line in callback.summary()["advice"])


# ---- action ----------------------------------------------------------------------------------------------------------


def test_warn_trains_on(tmp_path):
    _, trainer = run(tmp_path, OVERFIT)
    assert trainer.current_epoch == 6


def test_stop_ends_a_severe_run_at_the_first_validation_that_is_not_its_best(tmp_path, spoken):
    _, trainer = run(tmp_path, OVERFIT, OverfitCallback(action="stop"))
    assert trainer.current_epoch == 5
    assert "overfit.action stop: training ends here, at step 20" in [r.getMessage() for r in spoken.records]


def test_stop_lets_a_run_go_on_while_val_improves(tmp_path):
    improving = [(0.95, 0.80, 0.1, 0.5), (0.97, 0.82, 0.1, 0.5), (0.98, 0.84, 0.1, 0.5)]
    callback, trainer = run(tmp_path, improving, OverfitCallback(action="stop"))
    assert callback.last_verdict is not None
    assert callback.last_verdict.state == State.SEVERE
    assert trainer.current_epoch == 3


def test_stop_ends_a_diverging_run(tmp_path):
    script = [(0.90, 0.89, 0.40, 0.40), (0.91, 0.88, 0.35, 0.43), (0.92, 0.88, 0.30, 0.46), (0.92, 0.88, 0.30, 0.5)]
    _, trainer = run(tmp_path, script, OverfitCallback(action="stop"))
    assert trainer.current_epoch == 3


# ---- what cannot be measured -----------------------------------------------------------------------------------------


def test_a_run_without_validation_is_not_measured_and_advised_to_have_one(tmp_path, spoken):
    module = Scripted([])
    module.advice_settings = lambda: {"num_val_rows": None, "num_train_rows": 4}
    callback, _ = run(tmp_path, [], module=module, data=Rows(has_val=False), limit_val_batches=0)
    summary = callback.summary()
    assert summary["message"] == "not measured: no validation was run"
    assert summary["best"] is None
    assert summary["advice"] == ["data.val_fraction: 0.1 (now 0): without val rows nothing can be said"]


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_is_not_measured_and_breaks_no_logger(tmp_path, odd):
    loggers = [JsonlLogger(tmp_path / "metrics.jsonl")]
    callback, _ = run(tmp_path, [HEALTHY[0], (0.8, odd, 0.4, 0.4)], loggers=loggers)
    assert callback.summary()["state"] == "not measured"
    json.dumps(callback.summary(), allow_nan=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["overfit/code"] for line in lines if "overfit/code" in line] == [0, -3]


def test_a_run_without_a_probe_is_not_measured(tmp_path):
    callback, _ = run(tmp_path, HEALTHY, module=Scripted(HEALTHY, name_probe=False))
    assert "the probe of the train split was not measured" in callback.summary()["message"]


def test_a_callback_that_is_off_says_nothing(tmp_path, spoken):
    callback, _ = run(tmp_path, OVERFIT, OverfitCallback(enabled=False, action="stop"))
    assert not [r for r in spoken.records if r.name == "lit_tune"]
    assert callback.summary()["message"] == "not measured: overfit.enabled is false"


def test_validating_alone_gives_no_verdict(tmp_path):
    callback, trainer = run(tmp_path, HEALTHY)
    before = callback.summary()
    trainer.validate(Scripted(OVERFIT[-1:]), datamodule=Rows(), verbose=False)
    assert callback.summary() == before


# ---- the metric ------------------------------------------------------------------------------------------------------


def test_the_default_monitor_is_the_tasks_primary_metric(tmp_path):
    callback, task = OverfitCallback(), SequenceClassification()
    name = task.primary_metric(SPEC)
    module = Scripted(HEALTHY, metric=name)
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 3}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
    L.Trainer(callbacks=[callback], **settings, **quiet).fit(module, datamodule=Rows())
    assert callback.summary()["monitor"] == f"val/{name}"
    assert callback.summary()["state"] == "healthy"


def test_a_loss_is_judged_as_a_share_of_the_baseline_loss(tmp_path):
    callback = OverfitCallback()
    callback.monitor = "val/loss"
    script = [(0.9, 0.9, 0.30, 0.40)]
    run(tmp_path, script, callback)
    summary = callback.summary()
    assert summary["numbers"]["gap"] == pytest.approx(0.1 / 0.693, abs=1e-6)
    assert summary["state"] == "severe overfitting"


def test_a_regression_is_not_advised_label_smoothing_which_it_would_refuse(tmp_path):
    spec = Spec("regression", num_rows=100, baseline={"mse": 1.0, "loss": 1.0})
    callback = OverfitCallback()
    callback.monitor = "val/mse"
    module = Scripted([(0.3, 0.8, 0.3, 0.8)], metric="mse")
    module.advice_settings = lambda: {
        "optimizer.weight_decay": 0.1,
        "early_stopping.patience": 2,
        "task.init_args.label_smoothing": 0.0,
    }
    run(tmp_path, [()], callback, module, Rows(spec))
    assert callback.summary()["state"] == "severe overfitting"
    assert callback.summary()["advice"] == []


def test_measured_overlap_of_texts_turns_an_easy_run_into_leakage(tmp_path):
    script = [(0.999, 0.998, 0.01, 0.01)]
    assert run(tmp_path, script)[0].summary()["state"] == "suspiciously easy"
    assert run(tmp_path, script, data=Rows(text_overlap=0.4))[0].summary()["state"] == "leakage"


def test_validation_in_the_middle_of_an_epoch_counts_parts_of_epochs(tmp_path):
    callback, _ = run(tmp_path, HEALTHY[:2], max_epochs=1, val_check_interval=2)
    assert callback.summary()["best"]["epoch"] == 1.0
    assert callback._detector is not None
    assert [p.epoch for p in callback._detector.points] == [0.5, 1.0]
    assert [p.step for p in callback._detector.points] == [2, 4]


def test_a_gap_of_exactly_the_limit_is_not_over_it_in_single_precision_either(tmp_path):
    assert float(torch.tensor(0.75)) - float(torch.tensor(0.70)) > 0.05 + 1e-9
    assert run(tmp_path, [(0.75, 0.70, 0.5, 0.5)])[0].summary()["state"] == "healthy"


# ---- going on --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_plain_types_and_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path):
    whole, _ = run(tmp_path, OVERFIT)
    first, trainer = run(tmp_path, OVERFIT[:4])
    path = tmp_path / "half.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)["callbacks"]["OverfitCallback"]
    assert json.loads(json.dumps(saved)) == first.state_dict()
    rest, _ = run(tmp_path, OVERFIT, module=Scripted(OVERFIT[4:]), ckpt_path=path)
    assert rest.summary() == whole.summary()


def test_a_resumed_run_with_another_metric_starts_anew_and_says_so(tmp_path, spoken):
    _, trainer = run(tmp_path, HEALTHY[:1])
    path = tmp_path / "one.ckpt"
    trainer.save_checkpoint(path)
    callback = OverfitCallback()
    callback.monitor = "val/loss"
    run(tmp_path, HEALTHY, callback, Scripted(HEALTHY[1:]), ckpt_path=path)
    assert "earlier verdicts were about val/accuracy; they start anew with val/loss" in spoken.text
    assert callback._detector is not None
    assert len(callback._detector.points) == 2


def test_a_second_fit_starts_afresh(tmp_path):
    callback, _ = run(tmp_path, OVERFIT)
    run(tmp_path, HEALTHY, callback)
    assert callback._detector is not None
    assert len(callback._detector.points) == 3


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"action": "halt"}, "overfit.action"),
        ({"probe_size": -1}, "overfit.probe_size"),
        ({"gap": 0.0}, "overfit.gap"),
        ({"window": 1}, "overfit.window"),
    ],
)
def test_settings_out_of_range_are_config_errors(settings, key):
    with pytest.raises(ConfigError, match=key):
        OverfitCallback(**settings)


def test_text_goes_to_our_logger_and_not_to_one_that_logs_tables(tmp_path):
    assert takes_text(JsonlLogger(tmp_path / "m.jsonl"))
    assert not takes_text(WandbLogger(save_dir=tmp_path, offline=True))
    assert not takes_text(CSVLogger(tmp_path))


DDP = """
import sys, logging
from pathlib import Path
from lit_tune.callbacks.overfit_detector import OverfitCallback
import importlib.util
spec = importlib.util.spec_from_file_location("scripted_runs", {test_file!r})
tests = importlib.util.module_from_spec(spec); spec.loader.exec_module(tests)
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="SAID %(message)s")
stopping = OverfitCallback(action="stop")
callback, trainer = tests.run(Path({folder!r}), tests.OVERFIT, stopping, devices=2, strategy="ddp")
told = str(trainer.current_epoch) + " " + callback.summary()["state"]
(Path({folder!r}) / ("told_by_" + str(trainer.global_rank))).write_text(told)  # two ranks on one pipe interleave
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_ranks_decide_the_same_and_only_one_speaks(tmp_path):
    script = tmp_path / "two_ranks.py"
    script.write_text(DDP.format(test_file=__file__, folder=str(tmp_path)))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script)], cwd=root, env=_environment(root), capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / f"told_by_{rank}").read_text() for rank in (0, 1)] == ["5 severe overfitting"] * 2
    assert done.stdout.count("SAID verdict: severe overfitting") == 1


def _environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
