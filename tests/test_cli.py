"""LightningCLI underneath: ``build`` for Python users, and that each section reaches what it describes."""

import os
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import lit_tune
from lit_tune import build
from lit_tune.callbacks.eval_schedule import EvalSchedule
from lit_tune.callbacks.overfit_detector import OverfitCallback
from lit_tune.cli import LitTuneCLI, parse
from lit_tune.datamodule import TokenizedDataModule
from lit_tune.errors import ConfigError, ProblemList
from lit_tune.module import FineTuneModule

GOOD = {"data.train": "a.csv", "model.model_name_or_path": "m"}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def built():
    def run(**changes):
        return build(overrides={**GOOD, **{key.replace("__", "."): value for key, value in changes.items()}})

    return run


def callbacks_of(trainer, kind):
    return [c for c in trainer.callbacks if isinstance(c, kind)]


def test_build_gives_trainer_module_and_datamodule(built):
    trainer, module, datamodule = made = built()
    assert made._fields == ("trainer", "module", "datamodule")
    assert type(trainer) is lightning.Trainer
    assert type(module) is FineTuneModule
    assert type(datamodule) is TokenizedDataModule


@pytest.mark.slow  # a process of its own
def test_build_prints_nothing_writes_nothing_and_ignores_a_foreign_command_line(tmp_path):
    code = f"""
import sys
sys.argv = ["ipykernel_launcher.py", "-f", "/run/kernel.json", "--optimizer.lr", "abc"]
import lit_tune
trainer, module, datamodule = lit_tune.build(overrides={GOOD})
assert trainer.max_epochs == 3
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(lit_tune.__file__).parents[1])},
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_config_is_an_exception_for_python_users():
    with pytest.raises(ConfigError, match="expected a number above 0, got 'abc'"):
        build(overrides={**GOOD, "optimizer.lr": "abc"})
    with pytest.raises(ProblemList) as caught:
        build(overrides=["--optimizer.lr", "abc", "--data.trian", "a.csv"])
    assert [p.where for p in caught.value.problems] == [
        "data.trian",
        "model.model_name_or_path",
        "optimizer.lr",
    ]
    with pytest.raises(ConfigError, match="there is no file"):
        build("nowhere.yaml")


def test_files_dicts_and_overrides_overlay_each_other_in_order(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {train: a.csv, max_length: 9}\ntrainer: {max_epochs: 5}")
    config = [tmp_path / "a.yaml", {"model": {"model_name_or_path": "m"}, "trainer": {"max_epochs": 6}}]
    assert build(config).trainer.max_epochs == 6
    assert build(config, {"trainer": {"max_epochs": 7}}).trainer.max_epochs == 7
    assert build(config, {"trainer.max_epochs": 8}).trainer.max_epochs == 8
    assert build(config, ["--trainer.max_epochs=9"]).trainer.max_epochs == 9
    assert build(str(tmp_path / "a.yaml"), {"model.model_name_or_path": "m"}).trainer.max_epochs == 5


def test_each_section_reaches_its_callback(built):
    trainer = built(
        eval_every_steps=7,
        checkpoint__monitor="val/f1",
        checkpoint__keep_best=2,
        checkpoint__every_n_steps=11,
        early_stopping__patience=4,
        early_stopping__min_delta=0.01,
        overfit__gap=0.2,
        overfit__window=5,
    ).trainer
    assert callbacks_of(trainer, EvalSchedule)[0].every_n_steps == 7
    best, last = callbacks_of(trainer, ModelCheckpoint)
    assert (best.save_top_k, best.asked) == (2, "val/f1")
    assert last._every_n_train_steps == 11
    (stopping,) = callbacks_of(trainer, EarlyStopping)
    assert (stopping.patience, stopping.min_delta) == (4, pytest.approx(0.01, abs=0.02))
    assert stopping.asked == "val/f1"
    (overfit,) = callbacks_of(trainer, OverfitCallback)
    assert (overfit.settings.gap, overfit.settings.window, overfit.monitor) == (0.2, 5, "val/f1")


def test_early_stopping_is_off_by_default(built):
    assert callbacks_of(built().trainer, EarlyStopping) == []


def test_callbacks_and_options_of_the_user_reach_the_trainer(built):
    trainer = built(
        trainer__callbacks=[{"class_path": "LearningRateMonitor", "init_args": {"logging_interval": "step"}}],
        trainer__accumulate_grad_batches=4,
        trainer__max_time="00:01:00:00",
        trainer__limit_train_batches=0.5,
        trainer__deterministic=True,
        trainer__precision="bf16-mixed",
    ).trainer
    torch.use_deterministic_algorithms(False)
    assert callbacks_of(trainer, LearningRateMonitor)[0].logging_interval == "step"
    assert trainer.accumulate_grad_batches == 4
    assert trainer.limit_train_batches == 0.5
    assert trainer.precision == "bf16-mixed"


def test_loggers_write_into_the_run_directory(built, tmp_path):
    loggers = built(run_dir=str(tmp_path / "r"), logger=["tensorboard", "csv"]).trainer.loggers
    for kind in (TensorBoardLogger, CSVLogger):
        assert any(isinstance(logger, kind) for logger in loggers)
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger | CSVLogger):
            assert str(logger.log_dir).startswith(str(tmp_path / "r"))


def test_module_and_datamodule_hold_equal_but_not_the_same_tasks(built):
    _, module, datamodule = built(**{"task__init_args__text_columns": ["a", "b"]})
    assert module.task is not datamodule.task
    assert module.task.text_columns == datamodule.task.text_columns == ["a", "b"]


def test_optimizer_and_schedule_reach_the_module(built):
    module = built(optimizer__lr=3e-5, optimizer__betas=[0.9, 0.98], lr_schedule__name="cosine").module
    assert (module.optimizer_settings.lr, module.optimizer_settings.betas) == (3e-5, (0.9, 0.98))
    assert module.schedule_settings.name == "cosine"


def test_the_same_seed_gives_the_same_random_numbers_after_build(built):
    built(seed_everything=5)
    first = torch.rand(3)
    built(seed_everything=5)
    assert torch.equal(first, torch.rand(3))


def test_a_checkpoint_cannot_overrule_the_config():
    options = {f"--{key}={value}" for key, value in GOOD.items()}
    cli = parse(sorted(options))
    names = {a.dest for a in cli.parser._actions}
    assert "ckpt_path" not in names
    assert "weights_only" not in names
    assert "_parse_ckpt_path" in LitTuneCLI.__dict__


def test_a_class_that_refuses_its_arguments_is_a_config_error(built):
    with pytest.raises(ConfigError, match="is not a valid duration"):
        built(trainer__max_time="a while")
