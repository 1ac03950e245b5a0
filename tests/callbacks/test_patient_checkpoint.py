"""A failed save: what the callback then claims, what is deleted and when, and that all ranks hear of it."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tiny_runs import fit_scripted

from lit_tune.callbacks.checkpoints import build_checkpoint_callbacks, step_of
from lit_tune.checkpointing.durable_io import DurableCheckpointIO
from lit_tune.checkpointing.verified import newest_verified
from lit_tune.errors import StorageError
from lit_tune.run_dir import RunDir


class Flaky(DurableCheckpointIO):
    """A disk on which the saves at some steps fail, and deletions while ``stuck``."""

    def __init__(self, run_dir: RunDir, fails: dict[str, set[int]], stuck: set[int] = frozenset()) -> None:
        super().__init__(run_dir)
        self.fails, self.stuck, self.removed = fails, stuck, []

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        role = Path(path).name.partition("-")[0]
        if checkpoint.get("global_step") in self.fails.get(role, ()):
            raise OSError(28, "No space left on device")
        super().save_checkpoint(checkpoint, path, storage_options)

    def remove_checkpoint(self, path):
        if Path(path).name in {f"last-{step:07d}.ckpt" for step in self.stuck}:
            self.stuck = set()
            raise OSError(13, "Permission denied")
        self.removed.append(Path(path).name)
        super().remove_checkpoint(path)


def run(folder, fails=None, stuck=frozenset(), accuracies=(0.5, 0.6, 0.7, 0.8), settings=None, callbacks=(), **trainer):
    """Epochs of two steps each; returns the trainer, its best and last callbacks and the disk."""
    run_dir = RunDir(folder)
    disk = Flaky(run_dir, fails or {}, stuck)
    script = [{"val/accuracy": a, "val/loss": 1.0} for a in accuracies]
    ours = build_checkpoint_callbacks(run_dir.checkpoints, **(settings or {}))
    made, _ = fit_scripted(script, [*callbacks, *ours], plugins=disk, **trainer)
    return made, *ours, disk


def there(folder) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def test_a_failed_save_is_told_once_and_nothing_claims_the_file(tmp_path, messages):
    _, best, _, _ = run(tmp_path, {"best": {4}, "last": {4}}, accuracies=(0.5, 0.9, 0.7))
    assert there(tmp_path) == ["best-0000006.ckpt", "last-0000006.ckpt"]
    assert [step_of(Path(p)) for p in best.best_k_models] == [6]
    assert float(best.best_model_score) == pytest.approx(0.7)
    assert len([m for m in messages if "step 4 was not saved, training goes on" in m]) == 2
    assert all("No space left on device" in m for m in messages if "not saved" in m)


def test_the_state_in_the_next_checkpoint_does_not_name_the_lost_file(tmp_path):
    run(tmp_path, {"best": {4}}, accuracies=(0.5, 0.9))
    content = torch.load(tmp_path / "checkpoints" / "last-0000004.ckpt", weights_only=True)
    state = content["callbacks"]["BestCheckpoint"]
    assert Path(state["best_model_path"]).name == "best-0000002.ckpt"
    assert [Path(p).name for p in state["best_k_models"]] == ["best-0000002.ckpt"]
    assert float(state["best_model_score"]) == pytest.approx(0.5)


@pytest.mark.parametrize("role", ["best", "last"])
def test_two_failed_saves_in_a_row_end_the_run(tmp_path, role):
    with pytest.raises(StorageError, match="No space left on device") as caught:
        run(tmp_path, {role: {4, 6}})
    assert caught.value.exit_code == 7
    assert newest_verified(RunDir(tmp_path)).step == (4 if role == "best" else 6)


def test_failures_that_are_not_in_a_row_are_survived(tmp_path):
    run(tmp_path, {"best": {2, 6}, "last": {2, 6}})
    assert there(tmp_path) == ["best-0000008.ckpt", "last-0000008.ckpt"]


def test_a_first_save_that_fails_leaves_nothing_claimed(tmp_path):
    _, best, _, _ = run(tmp_path, {"best": {2}}, accuracies=(0.5, 0.4))
    assert [step_of(Path(p)) for p in best.best_k_models] == [4]
    _, best, _, _ = run(tmp_path / "b", {"best": {2}}, accuracies=(0.5,))
    assert (best.best_model_path, best.best_k_models, best.best_model_score) == ("", {}, None)


def test_the_end_is_saved_by_a_second_try(tmp_path):
    """The epoch's save has failed; the end of training saves the same step again."""
    tries = []

    class Once(Flaky):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            tries.append(Path(path).name)
            if tries.count("last-0000004.ckpt") == 1 and tries[-1] == "last-0000004.ckpt":
                raise OSError(5, "Input/output error")
            super().save_checkpoint(checkpoint, path, storage_options)

    ours = build_checkpoint_callbacks(tmp_path / "checkpoints")
    fit_scripted([{"val/accuracy": 0.5}] * 2, ours, plugins=Once(RunDir(tmp_path), {}))
    assert tries.count("last-0000004.ckpt") == 2
    assert newest_verified(RunDir(tmp_path)).step == 4


def test_the_old_file_goes_after_the_new_one_is_verified(tmp_path):
    seen = []

    class Watching(Flaky):
        def remove_checkpoint(self, path):
            seen.append((newest_verified(self.run_dir).step, step_of(Path(path)), len(there(tmp_path))))
            super().remove_checkpoint(path)

    ours = build_checkpoint_callbacks(tmp_path / "checkpoints", keep_best=0)
    fit_scripted([{"val/accuracy": 0.5}] * 3, ours, plugins=Watching(RunDir(tmp_path), {}))
    assert seen == [(4, 2, 2), (6, 4, 2)]


def test_a_file_that_cannot_be_deleted_is_tried_again(tmp_path, messages):
    *_, disk = run(tmp_path, stuck={2}, settings={"keep_best": 0})
    assert disk.removed == ["last-0000002.ckpt", "last-0000004.ckpt", "last-0000006.ckpt"]
    assert there(tmp_path) == ["last-0000008.ckpt"]
    assert any("an old checkpoint stays for now" in m for m in messages)


def test_leftovers_of_a_killed_run_go_when_a_newer_one_is_verified(tmp_path):
    """Killed between save and deletion, or continued from an earlier step than the newest."""
    run(tmp_path, accuracies=(0.5, 0.6), settings={"keep_last": -1, "keep_best": -1})
    run_dir = RunDir(tmp_path)
    resumed_from = run_dir.checkpoints / "last-0000002.ckpt"
    kept = run_dir.checkpoints / "of_mine.ckpt"
    shutil.copy(resumed_from, kept)
    for name in ("last-0000009.ckpt", "best-0000001.ckpt"):
        shutil.copy(resumed_from, run_dir.checkpoints / name)
    before = there(tmp_path)
    run(tmp_path, accuracies=(0.5,), fast_dev_run=True)
    assert there(tmp_path) == before, "a development run deletes nothing"
    run(tmp_path, accuracies=(0.7, 0.7, 0.7))
    assert there(tmp_path) == ["best-0000002.ckpt", "last-0000006.ckpt", "of_mine.ckpt"]


class FullOnRankZero(Callback):
    """The disk of rank zero is full for the saves of one step."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step

    def setup(self, trainer, pl_module, stage):
        real = os.fsync

        def fsync(descriptor):
            if trainer.is_global_zero and trainer.global_step == self.step:
                raise OSError(28, "No space left on device")
            real(descriptor)

        os.fsync = fsync

    def on_train_end(self, trainer, pl_module):
        best, last = trainer.checkpoint_callbacks
        claims = [best.best_model_path, *best.best_k_models, *last.best_k_models, best.best_model_score.item()]
        (self.folder / f"rank{trainer.global_rank}").write_text(repr([Path(str(c)).name for c in claims]))


@pytest.mark.ddp
def test_a_save_that_fails_on_rank_zero_is_heard_of_on_all_ranks(tmp_path):
    run(
        tmp_path,
        accuracies=(0.5, 0.9, 0.7),
        callbacks=[FullOnRankZero(tmp_path, 4)],
        devices=2,
        strategy="ddp_fork",
        default_root_dir=tmp_path,
    )
    first, second = ((tmp_path / f"rank{i}").read_text() for i in range(2))
    assert first == second
    assert "best-0000006.ckpt" in first
    assert there(tmp_path) == ["best-0000006.ckpt", "last-0000006.ckpt"]
