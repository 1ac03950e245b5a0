"""A validation loss that is not a number ends the run with exit 6; what was best and last before stays so."""

import pytest
from tiny_runs import built, fit, lines
from toy import toy_rows, write_csv

from lit_tune.callbacks.checkpoints import step_of
from lit_tune.errors import NumericsError
from lit_tune.imports import allow_import


def diverge(tiny_model_dir, folder, settings, **overrides):
    """Three epochs of 5 steps; the loss is as the task's settings say."""
    allow_import("faulty")
    train = write_csv(folder / "train.csv", toy_rows(40, seed=1))
    val = write_csv(folder / "val.csv", toy_rows(10, seed=2))
    made = built(
        tiny_model_dir,
        train,
        folder / "run",
        data__val=overrides.pop("data__val", str(val)),
        data__train_batch_size=8,
        trainer__max_epochs=3,
        overfit__probe_size=0,
        checkpoint__monitor="val/loss",
        **{f"task__init_args__{key}": value for key, value in settings.items()},
        **overrides,
    )
    with pytest.raises(NumericsError) as caught:
        fit(made)
    return folder / "run", caught.value


@pytest.mark.parametrize("fault", ["loss", "inf"])
@pytest.mark.slow
def test_a_diverged_validation_ends_the_run_and_is_neither_best_nor_last(tiny_model_dir, tmp_path, fault):
    loss = {"class_path": "faulty.FaultyLoss", "init_args": {"calls": [1], "fault": fault, "while_training": False}}
    run, error = diverge(tiny_model_dir, tmp_path, {"loss": loss})
    assert error.exit_code == 6
    assert str(error).startswith("step 10: val/loss is nan: training has diverged")
    assert "best-0000005.ckpt" in str(error)
    assert sorted(step_of(p) for p in (run / "checkpoints").glob("*.ckpt")) == [5, 5]
    logged = [x["val/loss"] for x in lines(run / "metrics.jsonl") if "val/loss" in x]
    assert len(logged) == 2
    assert logged[1] is None
    assert not (run / "best").exists()


def test_a_val_split_without_a_target_that_counts_is_told_apart(tiny_model_dir, tmp_path):
    rows = [row for row in toy_rows(60, seed=2) if row["label"] == "bad"]
    val = write_csv(tmp_path / "bad.csv", rows)
    _, error = diverge(tiny_model_dir, tmp_path, {"class_weights": [0.0, 1.0, 1.0]}, data__val=str(val))
    assert str(error).startswith("step 5: 0 targets of val count")
