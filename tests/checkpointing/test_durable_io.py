"""Saving, loading and deleting checkpoints: what is in the manifest, what is refused, what it costs in memory."""

import os
from pathlib import Path

import pytest
import torch
from checkpointing.faults import Board
from lightning.fabric.utilities.rank_zero import rank_zero_only

from lit_tune.checkpointing import durable_io, verified
from lit_tune.checkpointing.durable_io import DurableCheckpointIO, checkpoint_bytes
from lit_tune.checkpointing.verified import newest_verified, verify
from lit_tune.durable import fingerprint
from lit_tune.errors import StorageError
from lit_tune.run_dir import RunDir


@pytest.fixture
def run_dir(tmp_path):
    return RunDir(tmp_path / "run")


def content(step: int, **more) -> dict:
    weights = torch.full((100,), float(step))
    return {"global_step": step, "epoch": step // 2, "optimizer_states": [], "state_dict": {"w": weights}, **more}


def save(run_dir: RunDir, *steps: int) -> list[Path]:
    paths = [run_dir.checkpoints / f"last-{step:07d}.ckpt" for step in steps]
    for step, path in zip(steps, paths, strict=True):
        DurableCheckpointIO(run_dir).save_checkpoint(content(step), path)
    return paths


def spoil(path: Path, place: int = 700) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def test_the_manifest_knows_what_is_written(run_dir):
    run_dir.write({"status": "running"})
    (path,) = save(run_dir, 6)
    manifest = run_dir.read()
    assert manifest["status"] == "running"
    (entry,) = manifest["checkpoints"]
    size, digest = fingerprint(path)
    assert entry == {
        "path": "checkpoints/last-0000006.ckpt",
        "step": 6,
        "epoch": 3,
        "bytes": size,
        "xxh3_128": digest,
        "resumable": True,
        "format": 1,
        "versions": verified.versions_here(),
    }
    loaded = DurableCheckpointIO(run_dir).load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["w"], torch.full((100,), 6.0))
    assert [p.name for p in run_dir.checkpoints.iterdir()] == [path.name]


def test_the_entry_comes_before_the_name(run_dir, monkeypatch):
    """An entry without a file does no harm, a file without an entry cannot be verified."""
    known = []
    real = os.replace

    def replace(source, target):
        if Path(target).suffix == ".ckpt":
            known.append([e["path"] for e in run_dir.read()["checkpoints"]])
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    save(run_dir, 2)
    assert known == [["checkpoints/last-0000002.ckpt"]]


def test_bytes_are_on_the_disk_before_the_manifest_says_so_and_names_last(run_dir, monkeypatch):
    """What a power cut leaves at any moment is a prefix of this order."""
    calls = []

    def watch(name):
        real = getattr(os, name)

        def call(subject, *rest):
            path = os.readlink(f"/proc/self/fd/{subject}") if isinstance(subject, int) else subject
            calls.append((name, Path(path).name.replace(f".{os.getpid()}.tmp", "")))
            return real(subject, *rest)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace"):
        watch(name)
    save(run_dir, 2)
    assert calls == [
        ("fsync", ".last-0000002.ckpt"),
        ("fsync", ".manifest.json"),
        ("replace", ".manifest.json"),
        ("fsync", "run"),
        ("replace", ".last-0000002.ckpt"),
        ("fsync", "checkpoints"),
    ]


def test_until_a_file_is_replaced_the_old_one_is_known(run_dir, monkeypatch):
    """A run that goes on from step 2 writes step 4 again; killed in between, the old step 4 still counts."""
    save(run_dir, 2, 4)

    def fail(source, target):
        if Path(target).suffix == ".ckpt":
            raise OSError(5, "Input/output error")
        real(source, target)

    real = os.replace
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        DurableCheckpointIO(run_dir).save_checkpoint(content(4, other=1), run_dir.checkpoints / "last-0000004.ckpt")
    assert newest_verified(run_dir).step == 4
    monkeypatch.setattr(os, "replace", real)
    DurableCheckpointIO(run_dir).save_checkpoint(content(4, other=1), run_dir.checkpoints / "last-0000004.ckpt")
    assert [e["step"] for e in run_dir.read()["checkpoints"]] == [2, 4]


def test_what_is_removed_is_forgotten(run_dir):
    first, second = save(run_dir, 2, 4)
    durable = DurableCheckpointIO(run_dir)
    durable.remove_checkpoint(first)
    durable.remove_checkpoint(run_dir.checkpoints / "never.ckpt")
    assert [e["step"] for e in run_dir.read()["checkpoints"]] == [4]
    assert not first.exists()
    assert second.exists()


def test_a_run_reached_through_a_link_or_moved_knows_its_checkpoints(run_dir, tmp_path):
    save(run_dir, 2)
    (tmp_path / "link").symlink_to(run_dir.path)
    assert verify(RunDir(tmp_path / "link"), run_dir.checkpoints / "last-0000002.ckpt").step == 2
    moved = RunDir(run_dir.path.rename(tmp_path / "moved"))
    assert newest_verified(moved).path == moved.checkpoints / "last-0000002.ckpt"


def test_a_checkpoint_of_another_run_is_looked_up_in_that_run(run_dir, tmp_path):
    (path,) = save(RunDir(tmp_path / "other"), 8)
    assert verify(run_dir, path).step == 8
    assert DurableCheckpointIO(run_dir).load_checkpoint(path)["global_step"] == 8
    spoil(path)
    with pytest.raises(StorageError, match="damaged"):
        verify(run_dir, path)


def test_only_rank_zero_writes(run_dir, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    (path,) = save(run_dir, 2)
    assert not run_dir.path.exists()
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    save(run_dir, 2)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    DurableCheckpointIO(run_dir).remove_checkpoint(path)
    assert path.exists()


class Code:
    """Not a plain type."""


def test_what_could_not_be_loaded_again_is_refused_when_it_is_saved(run_dir):
    path = run_dir.checkpoints / "last-0000002.ckpt"
    with pytest.raises(StorageError, match=r"more than plain types and tensors: \S*Code") as caught:
        DurableCheckpointIO(run_dir).save_checkpoint(content(2, callbacks=Code()), path)
    assert str(path) in str(caught.value)
    assert list(run_dir.checkpoints.iterdir()) == []


@pytest.mark.parametrize("path", ["https://example.org/x.ckpt", "s3://bucket/x.ckpt", "file:///x.ckpt"])
def test_urls_are_refused(run_dir, path):
    durable = DurableCheckpointIO(run_dir)
    for call in (durable.load_checkpoint, durable.remove_checkpoint, lambda p: durable.save_checkpoint({}, p)):
        with pytest.raises(StorageError, match="not URLs"):
            call(path)


def test_code_is_never_loaded(run_dir):
    (path,) = save(run_dir, 2)
    with pytest.raises(StorageError, match="code"):
        DurableCheckpointIO(run_dir).load_checkpoint(path, weights_only=False)


def test_a_disk_that_returns_other_bytes_is_noticed_and_tried_again(run_dir, monkeypatch):
    monkeypatch.setattr(durable_io, "PAUSES_SECONDS", (0.0, 0.0))
    tries = []
    real = fingerprint

    def flaky(path):
        tries.append(path)
        if len(tries) < 3:
            spoil(path)
        return real(path)

    monkeypatch.setattr(durable_io, "fingerprint", flaky)
    save(run_dir, 2)
    assert len(tries) == 3
    assert newest_verified(run_dir).step == 2
    monkeypatch.setattr(durable_io, "fingerprint", lambda path: (0, ""))
    with pytest.raises(StorageError, match="what is read back is not what was written"):
        save(run_dir, 4)
    assert newest_verified(run_dir).step == 2


def test_space_is_asked_for_before_each_save(run_dir, monkeypatch):
    asked = []
    monkeypatch.setattr(durable_io, "check_free_space", lambda folder, size: asked.append((folder, size)))
    (path,) = save(run_dir, 2)
    assert asked == [(run_dir.checkpoints, checkpoint_bytes(content(2)))]
    assert path.stat().st_size <= asked[0][1] <= path.stat().st_size + 2**20


def test_shared_storage_counts_once():
    weight = torch.zeros(1000)
    assert checkpoint_bytes({"a": weight, "b": weight, "c": weight[:10]}) == 4000 + 2**20


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_a_save_streams_its_extra_memory_is_under_a_tenth(run_dir):
    board, size = Board(), 96_000_000
    number = os.fork()
    if number == 0:
        tensors = {f"w{i}": torch.ones(size // 32) for i in range(8)}
        durable = DurableCheckpointIO(run_dir)
        durable.save_checkpoint(content(1), run_dir.checkpoints / "warm.ckpt")
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_bytes()
        durable.save_checkpoint(content(2, **tensors), run_dir.checkpoints / "last-0000002.ckpt")
        board[0], board[1] = peak_bytes() - before, 1
        os._exit(0)
    os.waitpid(number, 0)
    assert board[1] == 1
    assert (run_dir.checkpoints / "last-0000002.ckpt").stat().st_size > size
    assert board[0] < 0.1 * size


# ---- which checkpoint a run goes on from -----------------------------------------------------------------------------


def test_there_is_nothing_to_go_on_from_in_a_new_run(run_dir):
    assert newest_verified(run_dir) is None
    run_dir.write({"status": "running"})
    assert newest_verified(run_dir) is None


def test_the_newest_is_the_one_of_the_highest_step_whatever_the_clock_says(run_dir):
    paths = save(run_dir, 10, 9, 100)
    for age, path in enumerate(paths):
        os.utime(path, (1e9 - age, 1e9 - age))
    assert (newest_verified(run_dir).step, newest_verified(run_dir).epoch) == (100, 50)


def test_a_damaged_one_is_passed_over_and_the_loss_is_told(run_dir):
    *_, fine, cut, flipped, gone = save(run_dir, 2, 4, 6, 8, 10)
    cut.write_bytes(cut.read_bytes()[:-1])
    spoil(flipped)
    gone.unlink()
    (run_dir.checkpoints / "last-0000099.ckpt").write_bytes(fine.read_bytes())
    choice = newest_verified(run_dir)
    assert (choice.path, choice.step, choice.steps_lost) == (fine, 4, 6)
    said = {r.path.name: r.why for r in choice.refused}
    assert said["last-0000099.ckpt"] == "the manifest does not know it"
    assert "not there" in said[gone.name]
    assert "hash" in said[flipped.name]
    assert "bytes" in said[cut.name]


def test_where_all_are_damaged_the_run_does_not_start_again_in_silence(run_dir):
    for path in save(run_dir, 2, 4):
        spoil(path)
    with pytest.raises(StorageError, match="none of its 2 checkpoints is whole") as caught:
        newest_verified(run_dir)
    assert len(str(caught.value).splitlines()) <= 6
    assert "--overwrite" in str(caught.value)


def test_a_run_killed_before_its_first_checkpoint_had_its_name_starts_again(run_dir):
    (path,) = save(run_dir, 2)
    path.unlink()
    assert newest_verified(run_dir) is None


def test_weights_alone_are_nothing_to_go_on_from(run_dir):
    save(run_dir, 2)
    path = run_dir.checkpoints / "weights.ckpt"
    weights = {k: v for k, v in content(9).items() if k != "optimizer_states"}
    DurableCheckpointIO(run_dir).save_checkpoint(weights, path)
    assert newest_verified(run_dir).step == 2
    with pytest.raises(StorageError, match="weights alone"):
        verify(run_dir, path)


@pytest.mark.parametrize("other", [["format"], ["torch"], ["lightning"], ["format", "torch", "lightning", "lit-tune"]])
def test_another_version_is_told_with_a_table_and_not_passed_over(run_dir, monkeypatch, other):
    (path,) = save(run_dir, 2)
    here = {name: "9.9.9" if name in other else version for name, version in verified.versions_here().items()}
    monkeypatch.setattr(verified, "versions_here", lambda: here)
    if "format" in other:
        monkeypatch.setattr(verified, "CHECKPOINT_FORMAT", 2)
    for call in (newest_verified, lambda r: verify(r, path), lambda r: DurableCheckpointIO(r).load_checkpoint(path)):
        with pytest.raises(StorageError, match="written by other versions") as caught:
            call(run_dir)
        text = str(caught.value)
        assert len(text.splitlines()) <= 6
        assert all(name in text for name in other)
        assert "Fix: " in text
    if "format" in other:
        with pytest.raises(StorageError, match="written by other versions"):
            newest_verified(run_dir, any_version=True)
    else:
        assert "--allow-changed" in text
        assert newest_verified(run_dir, any_version=True).step == verify(run_dir, path, any_version=True).step == 2
        assert DurableCheckpointIO(run_dir, any_version=True).load_checkpoint(path)["global_step"] == 2


def test_the_last_part_of_a_version_may_differ(run_dir, monkeypatch):
    save(run_dir, 2)
    here = verified.versions_here()
    patched = {name: ".".join([*version.split("+")[0].split(".")[:2], "99"]) for name, version in here.items()}
    monkeypatch.setattr(verified, "versions_here", lambda: patched)
    assert newest_verified(run_dir).step == 2
