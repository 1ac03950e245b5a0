"""Training ends where the metric no longer improves, in its own direction, and says so with numbers."""

import math

import pytest
from tiny_runs import fit_scripted

from lit_tune.callbacks.early_stopping import build_early_stopping
from lit_tune.callbacks.eval_schedule import EvalSchedule
from lit_tune.errors import ConfigError

NAN = math.nan


def stopped_after(scores, monitor=None, eval_every=None, *, patience=2, min_delta=0.0, **trainer):
    """Optimizer steps at the validations there were; an epoch has two steps."""
    script = [{"val/accuracy": s, "val/loss": s} for s in scores]
    callbacks = [EvalSchedule(eval_every), *build_early_stopping(patience, min_delta, monitor)]
    _, module = fit_scripted(script, callbacks, **trainer)
    return module.validated


def test_it_is_off_without_patience():
    assert build_early_stopping() == []


@pytest.mark.parametrize(
    ("monitor", "scores", "expected"),
    [
        (None, [0.5, 0.6, 0.6, 0.59, 0.9], [2, 4, 6, 8]),
        ("val/accuracy", [0.1, 0.2, 0.3, 0.4, 0.5], [2, 4, 6, 8, 10]),
        ("val/loss", [0.5, 0.6, 0.6, 0.1, 0.1], [2, 4, 6]),
        ("val/loss", [0.5, 0.4, 0.3, 0.2, 0.1], [2, 4, 6, 8, 10]),
    ],
)
def test_it_stops_after_patience_validations_without_improvement(monitor, scores, expected):
    assert stopped_after(scores, monitor) == expected


@pytest.mark.parametrize(
    ("monitor", "scores"), [("val/accuracy", [0.5, 0.54, 0.58, 0.62]), ("val/loss", [0.62, 0.58, 0.54, 0.5])]
)
def test_changes_below_min_delta_are_no_improvement(monitor, scores):
    # 0.58 is more than 0.05 better than the 0.5 that is remembered, and so on: no two in a row without
    assert stopped_after(scores, monitor, min_delta=0.05) == [2, 4, 6, 8]
    assert stopped_after(scores, monitor, min_delta=0.05, patience=1) == [2, 4]
    assert stopped_after(scores, monitor, min_delta=0.2) == [2, 4, 6]


@pytest.mark.parametrize("monitor", ["val/accuracy", "val/loss"])
def test_an_undefined_metric_is_no_improvement_and_no_end(monitor):
    better = [0.1, 0.5, 0.6, 0.7] if monitor == "val/accuracy" else [0.7, 0.6, 0.5, 0.1]
    assert stopped_after([NAN, *better], monitor) == [2, 4, 6, 8, 10]
    assert stopped_after([better[0], NAN, NAN, *better], monitor) == [2, 4, 6]


def test_it_counts_validations_not_epochs(messages):
    steps = stopped_after([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], eval_every=3, batches=12, max_epochs=2)
    assert steps == [3, 6, 9]


def test_it_says_why_once_and_with_numbers(messages):
    stopped_after([0.5, 0.625, 0.6, 0.6])
    said = [m for m in messages if "early stopping" in m]
    assert said == ["early stopping: val/accuracy did not improve on 0.6250 for 2 validations, at step 8"]


def test_it_says_so_where_the_metric_never_was_a_number(messages):
    stopped_after([NAN, NAN], patience=1)
    assert messages == ["early stopping: val/accuracy was not a number for 1 validation, at step 2"]


def test_an_unknown_metric_is_an_error_that_names_the_nearest():
    with pytest.raises(ConfigError, match=r"early_stopping\.monitor: val/f1_macro"):
        stopped_after([0.5], "val/f1_macros")
