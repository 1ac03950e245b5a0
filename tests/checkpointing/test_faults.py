"""A fault at any call of a save (full disk, broken disk, no permission, quota, kill) leaves a verified checkpoint."""

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from checkpointing.faults import (
    ERRORS,
    INTERVAL,
    KINDS,
    STEPS,
    Board,
    Fault,
    calls_of_a_run,
    check,
    child,
    hit,
    hit_by_strace,
    save,
    small_disk,
    train,
)

from lit_tune.checkpointing.durable_io import DurableCheckpointIO
from lit_tune.checkpointing.verified import newest_verified
from lit_tune.errors import StorageError
from lit_tune.run_dir import RunDir

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def other_disk(tmp_path):
    """A folder on another file system than TMPDIR, where a rename out of TMPDIR would be a copy; if there is one."""
    if not SHARED_MEMORY.is_dir() or SHARED_MEMORY.stat().st_dev == os.stat(tempfile.gettempdir()).st_dev:
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=SHARED_MEMORY))
    yield folder
    shutil.rmtree(folder)


def faults_at(calls: dict[str, int], every: dict[str, int]) -> list[Fault]:
    """A kill and an error at each call of each kind, or at every n-th; the errors take turns."""
    found = []
    for kind in KINDS:
        for number in range(1, calls[kind] + 1, every.get(kind, 1)):
            found.append(Fault(kind, number, "SIGKILL"))
            found.append(Fault(kind, number, ERRORS[len(found) // 2 % len(ERRORS)]))
    return found


def hit_all(folder: Path, faults: list[Fault], run, inject=hit) -> int:
    """Run each case in a directory of its own; all that are wrong are told."""
    wrong = []
    for number, fault in enumerate(faults):
        place = folder / str(number)
        try:
            check(*(inject(place, fault, run) if inject is hit else inject(place, fault)), fault)
        except (AssertionError, StorageError) as error:
            wrong.append(f"{fault}: {error}")
        shutil.rmtree(place, ignore_errors=True)
    assert not wrong, f"{len(wrong)} of {len(faults)}:\n" + "\n".join(wrong[:20])
    return len(faults)


def test_a_fault_at_any_call_of_a_save_leaves_a_verified_checkpoint(other_disk):
    calls = calls_of_a_run(other_disk / "whole", save)
    assert min(calls.values()) >= STEPS // INTERVAL - 1
    faults = faults_at(calls, {"write": 80, "open": 10, "fsync": 6, "replace": 2, "unlink": 2})
    assert hit_all(other_disk, faults, save) >= 30


def test_a_run_survives_one_failed_save_and_ends_with_7_after_two_in_a_row(tmp_path):
    calls = calls_of_a_run(tmp_path / "whole")
    once = [Fault("fsync", calls["fsync"] // 2, "ENOSPC"), Fault("write", 300, "SIGKILL")]
    assert hit_all(tmp_path, once, train) == 2
    fault = Fault("fsync", calls["fsync"] // 2, "ENOSPC", lasts=True)
    run_dir, status, steps = hit(tmp_path / "lasts", fault)
    check(run_dir, status, steps, fault)
    assert status == StorageError.exit_code
    assert steps < STEPS


@pytest.mark.slow
def test_faults_in_runs_whose_output_is_on_another_disk_than_tmpdir(other_disk):
    calls = calls_of_a_run(other_disk / "whole")
    assert hit_all(other_disk, faults_at(calls, {"write": 7}), train) >= 350


@pytest.mark.slow
def test_faults_that_last(tmp_path):
    calls = calls_of_a_run(tmp_path / "whole")
    chosen = random.Random(0).sample(range(2, calls["fsync"]), 8)
    faults = [Fault(k, n, e, lasts=True) for n in chosen for k in ("write", "fsync", "replace") for e in ERRORS[:2]]
    assert hit_all(tmp_path, faults, train) == 48


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_faults_of_the_system_calls_themselves(tmp_path):
    calls = calls_of_a_run(tmp_path / "whole")
    wanted = {"write": range(1, calls["write"], 11), "fsync": range(1, calls["fsync"], 2), "unlink": range(1, 4)}
    wanted["rename"] = range(1, calls["replace"], 2)
    faults = []
    for name, numbers in wanted.items():
        for number in numbers:
            faults += [Fault(name, number, "SIGKILL"), Fault(name, number, ERRORS[number % len(ERRORS)])]
    assert hit_all(tmp_path, faults, train, hit_by_strace) >= 150


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_really_is_full(tmp_path):
    """Sizes from too small for anything to enough; and a checkpoint larger than it looked, so that writing fails."""
    outcomes = set()
    for number, kilobytes in enumerate([*range(1000, 1200, 8), 2000, 4000]):
        with small_disk(tmp_path / str(number), f"size={kilobytes}k") as disk:
            run_dir, board = RunDir(disk / "run"), Board()
            _, status = os.waitpid(child(lambda r=run_dir, b=board: train(r, b)), 0)
            code, choice = os.waitstatus_to_exitcode(status), newest_verified(run_dir)
            outcomes.add((code, choice is not None))
            assert code in (0, StorageError.exit_code)
            assert not list(run_dir.path.rglob(".*.tmp"))
            assert code != 0 or choice.step >= STEPS - INTERVAL
    assert {(0, True), (StorageError.exit_code, False)} <= outcomes


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_fills_up_in_the_middle_of_a_file(tmp_path):
    for number, kilobytes in enumerate(range(3200, 5200, 100)):
        with small_disk(tmp_path / str(number), f"size={kilobytes}k") as disk:
            run_dir = RunDir(disk / "run")
            durable = DurableCheckpointIO(run_dir)
            content = {"global_step": 2, "epoch": 0, "optimizer_states": [], "state_dict": {"w": torch.ones(64)}}
            durable.save_checkpoint(content, run_dir.checkpoints / "last-0000002.ckpt")
            larger = {**content, "global_step": 4, "text": "x" * 6_000_000}  # its size is not seen before it is written
            with pytest.raises(StorageError, match="No space left on device"):
                durable.save_checkpoint(larger, run_dir.checkpoints / "last-0000004.ckpt")
            assert [p.name for p in run_dir.checkpoints.iterdir()] == ["last-0000002.ckpt"]
            assert newest_verified(run_dir).step == 2
