"""The metric that decides is known to the task, with its direction, before any weight is loaded."""

import shutil
from types import SimpleNamespace

import pytest
from tiny_runs import SPEC, built, fit
from toy import toy_rows, write_csv

from lit_tune.__main__ import main
from lit_tune.callbacks.monitor import resolve_monitor
from lit_tune.errors import ConfigError
from lit_tune.tasks.base import Spec
from lit_tune.tasks.sequence_classification import SequenceClassification


def resolve(monitor, spec=SPEC):
    """Lightning's trainer is only asked for its datamodule."""
    data = SimpleNamespace(task=SequenceClassification(), spec=spec)
    return resolve_monitor(SimpleNamespace(datamodule=data), monitor, "checkpoint.monitor")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (SPEC, ("val/accuracy", True)),
        (Spec("multi_label_classification", label_names=["a", "b", "c"]), ("val/f1_micro", True)),
        (Spec("regression"), ("val/r2", True)),
    ],
)
def test_the_default_is_the_problems_primary_metric(spec, expected):
    assert resolve(None, spec) == expected


@pytest.mark.parametrize(
    ("spec", "name", "higher"),
    [
        (SPEC, "val/loss", False),
        (SPEC, "val/f1", True),
        (SPEC, "val/f1/good", True),
        (Spec("regression"), "val/mae", False),
        (Spec("regression"), "val/spearman", True),
    ],
)
def test_the_direction_follows_from_the_metric(spec, name, higher):
    assert resolve(name, spec) == (name, higher)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("val/acuracy", "Fix: checkpoint.monitor: val/accuracy"),
        ("accuracy", "Fix: checkpoint.monitor: val/accuracy"),
        ("val/r2", "single_label_classification"),
        ("train/loss", "not a validation metric"),
        ("train/loss", "Fix: checkpoint.monitor: val/loss"),
        ("probe/f1", "Fix: checkpoint.monitor: val/f1"),
    ],
)
def test_another_name_is_an_error_with_reason_and_remedy(name, says):
    with pytest.raises(ConfigError) as caught:
        resolve(name)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6


@pytest.mark.parametrize("section", ["checkpoint", "early_stopping"])  # early stopping follows checkpoint.monitor
def test_a_wrong_name_is_told_before_weights_load(tiny_model_dir, tmp_path, section):
    train = write_csv(tmp_path / "train.csv", toy_rows(20))
    no_weights = shutil.copytree(tiny_model_dir, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    wrong = {f"{section}__monitor": "val/f1_macros", "early_stopping__patience": 2}
    made = built(no_weights, train, tmp_path / "run", **wrong)
    with pytest.raises(ConfigError, match=f"{section}.monitor: val/f1_macro"):
        fit(made)


def test_train_loss_is_refused_from_the_command_line(tmp_path, capsys):
    options = ["--data.train", "a.csv", "--model.model_name_or_path", "m", "--run_dir", str(tmp_path / "r")]
    assert main(["fit", *options, "--checkpoint.monitor", "train/loss"]) == 2
    said = capsys.readouterr().err
    assert "not a validation metric" in said
    assert "Fix: checkpoint.monitor: val/loss" in said
