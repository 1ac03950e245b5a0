"""Which checkpoints are kept, which one is best, and what is in the files."""

import math
from pathlib import Path

import pytest
import torch
from tiny_runs import fit_plain, fit_scripted
from toy import toy_rows, write_csv

from lit_tune.callbacks.checkpoints import BestCheckpoint, build_checkpoint_callbacks, step_of
from lit_tune.callbacks.eval_schedule import EvalSchedule

NAN = math.nan


def kept(folder: Path, role: str) -> list[int]:
    return sorted(step_of(path) for path in folder.glob(f"{role}-*.ckpt"))


def run(folder, accuracies, losses=None, *, eval_every=None, settings=None, **trainer):
    """Kept best steps, kept last steps, and the step of the best; an epoch has two steps."""
    script = [{"val/accuracy": a, "val/loss": b} for a, b in zip(accuracies, losses or accuracies, strict=True)]
    callbacks = [EvalSchedule(eval_every), *build_checkpoint_callbacks(folder, **(settings or {}))]
    made, _ = fit_scripted(script, callbacks, **trainer)
    best = next(c for c in made.checkpoint_callbacks if isinstance(c, BestCheckpoint))
    return (
        kept(folder, "best"),
        kept(folder, "last"),
        step_of(Path(best.best_model_path)) if best.best_model_path else None,
    )


@pytest.mark.parametrize(
    ("monitor", "expected"),
    [(None, 4), ("val/accuracy", 4), ("val/loss", 6)],  # accuracy is highest at step 4, loss lowest at step 6
)
def test_the_best_is_the_highest_or_lowest_as_the_metric_demands(tmp_path, monitor, expected):
    found = run(tmp_path, [0.5, 0.7, 0.6], [0.9, 0.8, 0.3], settings={"monitor": monitor})
    assert found == ([expected], [6], expected)


@pytest.mark.parametrize(("keep", "expected"), [(0, []), (1, [6]), (2, [2, 6]), (9, [2, 4, 6, 8]), (-1, [2, 4, 6, 8])])
def test_the_best_k_are_kept(tmp_path, keep, expected):
    best, _, first = run(tmp_path, [0.6, 0.5, 0.7, 0.55], settings={"keep_best": keep})
    assert best == expected
    assert first == (6 if keep else None)


@pytest.mark.parametrize(
    ("monitor", "bad"), [("val/accuracy", NAN), ("val/loss", NAN), ("val/loss", math.inf), ("val/loss", -math.inf)]
)
@pytest.mark.parametrize("keep", [1, 3, -1])
def test_what_is_not_a_finite_number_is_never_best_even_while_there_is_room(tmp_path, monitor, bad, keep):
    best, last, first = run(tmp_path, [bad, 0.5, bad], settings={"monitor": monitor, "keep_best": keep})
    assert (best, last, first) == ([4], [6], 4)


def test_a_run_of_undefined_metrics_has_no_best(tmp_path):
    assert run(tmp_path, [NAN, NAN]) == ([], [4], None)


def test_of_equal_metrics_the_first_is_best(tmp_path):
    assert run(tmp_path / "1", [0.5, 0.5, 0.5]) == ([2], [6], 2)
    assert run(tmp_path / "2", [0.5, 0.5, 0.5], settings={"keep_best": 2}) == ([2, 4], [6], 2)


def test_several_validations_in_an_epoch_compete(tmp_path):
    best, last, _ = run(tmp_path, [0.1, 0.9, 0.2, 0.3], eval_every=2, max_epochs=2, batches=4)
    assert (best, last) == ([4], [8])


@pytest.mark.parametrize(("keep", "expected"), [(0, []), (1, [6]), (2, [4, 6]), (-1, [2, 4, 6])])
def test_the_newest_are_kept(tmp_path, keep, expected):
    assert run(tmp_path, [0.5, 0.7, 0.6], settings={"keep_last": keep})[1] == expected


@pytest.mark.parametrize("max_steps", [-1, 7])
@pytest.mark.parametrize("eval_every", [None, 100])
def test_every_n_steps_counts_optimizer_steps_and_saves_between_windows(tmp_path, eval_every, max_steps):
    """Lightning's own defers at the last batch of an epoch, and then saves within the next window."""
    settings = {"every_n_steps": 2, "keep_last": -1}
    trainer = {"accumulate_grad_batches": 3, "batches": 7, "max_epochs": 3, "max_steps": max_steps}
    _, last, _ = run(tmp_path, [0.5, 0.7, 0.6], eval_every=eval_every, settings=settings, **trainer)
    assert last == ([2, 4, 6, 8, 9] if max_steps < 0 else [2, 4, 6, 7])
    for path in tmp_path.glob("last-*.ckpt"):
        content = torch.load(path, weights_only=True)
        assert content["global_step"] == step_of(path)
        batches = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        assert batches["current"]["ready"] % 3 == 0 or batches["is_last_batch"]


def test_the_last_one_is_the_end_also_where_max_steps_ends_an_epoch(tmp_path):
    assert run(tmp_path, [0.5, 0.7, 0.6], batches=4, max_epochs=-1, max_steps=9)[1] == [9]


def test_a_file_too_many_is_not_kept_for_ever(tmp_path):
    """A run was killed after the save of step 6, before it could delete that of step 2, or now wants fewer."""
    for step in (2, 4, 6):
        (tmp_path / f"last-{step:07d}.ckpt").touch()
        (tmp_path / f"best-{step:07d}.ckpt").touch()
    best, last = build_checkpoint_callbacks(tmp_path, "val/loss", keep_best=1, keep_last=2)
    last.load_state_dict({"best_k_models": {"elsewhere/last-0000006.ckpt": torch.tensor(6)}})
    assert [step_of(Path(p)) for p in last.best_k_models] == [4, 6]
    assert step_of(Path(last.kth_best_model_path)) == 4
    best.mode = "min"
    scores = {f"old/best-{step:07d}.ckpt": torch.tensor(loss) for step, loss in ((2, 0.5), (4, 0.3), (6, 0.4))}
    paths = dict.fromkeys(("best_model_path", "kth_best_model_path"), "old/best-0000004.ckpt")
    state = {"monitor": "val/loss", "best_k_models": scores, "last_model_path": "", "current_score": None, **paths}
    best.load_state_dict({**state, "best_model_score": torch.tensor(0.3), "kth_value": torch.tensor(0.5)})
    assert [step_of(Path(p)) for p in best.best_k_models] == [4]
    assert (step_of(Path(best.kth_best_model_path)), float(best.kth_value)) == (4, pytest.approx(0.3))


def test_without_validation_nothing_is_best(tmp_path):
    assert run(tmp_path / "1", [0.5, 0.7], has_val=False) == ([], [4], None)
    assert run(tmp_path / "2", [0.5, 0.7], limit_val_batches=0) == ([], [4], None)


def test_a_development_run_saves_nothing(tmp_path):
    run(tmp_path / "c", [0.5, 0.7], fast_dev_run=True)
    assert not (tmp_path / "c").exists()


def test_checkpoints_hold_plain_types_and_no_state_of_a_metric(tiny_model_dir, tmp_path):
    train, val = (str(write_csv(tmp_path / f"{n}.csv", toy_rows(20, seed=n))) for n in range(2))
    callbacks = [EvalSchedule(), *build_checkpoint_callbacks(tmp_path / "c")]
    data = {"train": train, "val": val}
    trainer = fit_plain(tiny_model_dir, data, callbacks, max_epochs=1, enable_checkpointing=True)
    files = list((tmp_path / "c").glob("*.ckpt"))
    assert {f.name for f in files} == {"best-0000002.ckpt", "last-0000002.ckpt"}
    for file in files:
        content = torch.load(file, weights_only=True)
        assert set(content["state_dict"]) == {f"model.{n}" for n in trainer.lightning_module.model.state_dict()}
        assert content["hyper_parameters"]["spec"]["label_names"] == ["bad", "fine", "good"]
