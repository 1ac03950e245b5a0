"""Files that are whole or not there: order of what reaches the disk, leftovers of dead processes, hashes."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
import xxhash

from lit_tune import durable
from lit_tune.durable import (
    HashedFile,
    check_free_space,
    fingerprint,
    fingerprints,
    sweep_temporaries,
    sync_tree,
    temporary_of,
    write_durably,
)
from lit_tune.errors import StorageError


@pytest.fixture
def calls(monkeypatch):
    """What reaches the kernel, in order."""
    seen = []

    def watch(name):
        real = getattr(os, name)

        def call(subject, *rest, **named):
            path = Path(os.readlink(f"/proc/self/fd/{subject}")) if isinstance(subject, int) else Path(subject)
            seen.append((name, path.name))
            return real(subject, *rest, **named)

        monkeypatch.setattr(os, name, call)

    for name in ("write", "fsync", "replace"):
        watch(name)
    return seen


def test_data_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, calls):
    write_durably(tmp_path / "x.json", b"content")
    temporary = f".x.json.{os.getpid()}.tmp"
    expected = [("write", temporary), ("fsync", temporary), ("replace", temporary), ("fsync", tmp_path.name)]
    assert calls == expected
    assert (tmp_path / "x.json").read_bytes() == b"content"


def test_a_folder_of_others_is_synced_with_all_below_it(tmp_path, calls):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(b"x")
    (tmp_path / "g").write_bytes(b"y")
    sync_tree(tmp_path)
    assert {name for kind, name in calls if kind == "fsync"} == {"f", "g", "a", tmp_path.name}
    assert calls[-1] == ("fsync", tmp_path.name)


def test_tmpdir_plays_no_part(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    write_durably(tmp_path / "deep" / "x", b"1")
    assert [p.name for p in tmp_path.rglob("*")] == ["deep", "x"]


def test_the_hash_is_that_of_the_bytes_however_they_come(tmp_path):
    data = os.urandom(3_000_001)
    file = HashedFile(tmp_path / "x")
    for begin in range(0, len(data), 700_001):
        file.write(memoryview(data)[begin : begin + 700_001])
    expected = (len(data), xxhash.xxh3_128_hexdigest(data))
    assert file.written() == expected
    file.close()
    assert fingerprint(tmp_path / "x") == expected
    assert fingerprints(tmp_path) == {"x": expected}


def test_torch_writes_the_same_file_as_to_a_path(tmp_path):
    content = {"w": torch.arange(1000.0), "text": "x", "list": [1, 2.5]}
    file = HashedFile(tmp_path / "x")
    torch.save(content, file)
    file.close()
    torch.save(content, tmp_path / "y")
    first, second = (torch.load(tmp_path / name, weights_only=True) for name in "xy")
    assert torch.equal(first["w"], second["w"])
    assert first["list"] == second["list"] == [1, 2.5]


def test_the_first_error_of_a_write_is_the_one_that_is_raised(tmp_path, monkeypatch):
    file = HashedFile(tmp_path / "x")
    numbers = iter([28, 5])

    def fail(descriptor, data):
        raise OSError(next(numbers), "")

    monkeypatch.setattr(os, "write", fail)
    torch.save({"w": torch.zeros(100)}, file)  # torch itself would make another error of it
    with pytest.raises(OSError, match=r"\[Errno 28\]"):
        file.written()
    file.close()


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_temporaries_of_dead_processes_are_swept_and_nothing_else(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    dead = dead_process()
    export = tmp_path / f".best.{dead}.tmp"
    export.mkdir()
    (export / "model.safetensors").write_text("x")
    swept = [
        tmp_path / f".manifest.json.{dead}.tmp",
        tmp_path / "checkpoints" / f".last-0000002.ckpt.{dead}.tmp",
        temporary_of(tmp_path / "checkpoints" / "mine.ckpt"),  # a start: what has our own number is another process's
    ]
    kept = [tmp_path / ".lock", tmp_path / "x.tmp", tmp_path / ".notes.tmp", tmp_path / f".x.{os.getppid()}.tmp"]
    for path in [*swept, *kept]:
        path.write_text("x")
    assert sorted(sweep_temporaries(tmp_path)) == sorted([*swept, export])
    assert sorted(tmp_path.rglob("*")) == sorted([*kept, tmp_path / "checkpoints"])
    assert sweep_temporaries(tmp_path / "not there") == []


def test_a_number_that_another_process_has_now_does_not_keep_a_file(tmp_path):
    """As in containers, where every run has the number 1."""
    file = tmp_path / f".x.{os.getppid()}.tmp"
    file.write_text("x")
    before = psutil.Process(os.getppid()).create_time() - 100
    os.utime(file, (before, before))
    assert sweep_temporaries(tmp_path) == [file]


def test_too_little_space_is_told_with_both_numbers(tmp_path, monkeypatch):
    class Usage:
        free = 1_500_000

    monkeypatch.setattr(durable.shutil, "disk_usage", lambda folder: Usage)
    check_free_space(tmp_path / "not" / "yet", 1_500_000)
    with pytest.raises(StorageError, match=r"2\.0 MB are needed, 1\.5 MB are free") as caught:
        check_free_space(tmp_path / "not" / "yet", 2_000_000)
    assert "Fix: free some space" in str(caught.value)
