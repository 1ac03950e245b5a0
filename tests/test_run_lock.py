"""One live process per run directory: refused with its name while it lives, free at once when it is dead."""

import errno
import fcntl
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from toy import toy_rows, write_jsonl

from lit_tune.__main__ import main
from lit_tune.errors import StorageError
from lit_tune.run_dir import LOCK_NAME
from lit_tune.run_lock import RunLock


def forked(work: Callable[[], int]) -> int:
    """Exit code of a child that does some work."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def refused(folder: Path) -> int:
    """0 if another process may take the directory, 7 if it may not."""
    try:
        RunLock(folder).acquire()
    except StorageError as e:
        return e.exit_code
    return 0


@pytest.fixture
def holder(tmp_path):
    """Pid of a process that holds ``tmp_path``; it waits to be killed."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            lock = RunLock(tmp_path)
            lock.acquire()
            os.write(done, b"x")
            signal.pause()
        finally:
            os._exit(0)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    os.close(done)
    yield pid
    if os.waitpid(pid, os.WNOHANG) == (0, 0):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_second_process_is_told_who_holds_the_directory(holder, tmp_path):
    with pytest.raises(StorageError, match=f"is in use by process {holder} on {socket.gethostname()}, since") as caught:
        RunLock(tmp_path).acquire()
    assert "Fix: " in str(caught.value)
    with pytest.raises(StorageError, match=str(holder)):
        RunLock(tmp_path).check()
    assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == holder  # refused, and nothing touched


def test_the_command_is_refused_with_exit_7_before_it_touches_anything(holder, tmp_path, tiny_model_dir, capsys):
    train = write_jsonl(tmp_path.parent / f"{tmp_path.name}.jsonl", toy_rows(8))
    options = ["--data.train", train, "--model.model_name_or_path", str(tiny_model_dir), "--run_dir", str(tmp_path)]
    for flags in ([], ["--overwrite"]):
        assert main(["fit", *options, *flags]) == 7
        assert f"process {holder}" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == [LOCK_NAME]


def test_the_lock_of_a_killed_process_is_taken_over_at_once(holder, tmp_path):
    os.kill(holder, signal.SIGKILL)
    os.waitid(os.P_PID, holder, os.WEXITED | os.WNOWAIT)
    assert (tmp_path / LOCK_NAME).is_file()  # it had no time to delete it
    lock = RunLock(tmp_path)
    lock.check()
    lock.acquire()
    assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    lock.release()


def test_what_a_dead_process_left_half_written_is_no_obstacle(tmp_path):
    (tmp_path / LOCK_NAME).write_text('{"pid": 1')
    assert forked(lambda: refused(tmp_path)) == 0


def test_a_holder_that_could_not_write_its_name_is_another_process(holder, tmp_path):
    (tmp_path / LOCK_NAME).write_text("")
    with pytest.raises(StorageError, match="in use by another process"):
        RunLock(tmp_path).acquire()


def test_children_neither_hold_the_lock_nor_let_go_of_it(tmp_path):
    lock = RunLock(tmp_path)
    lock.acquire()
    forked(lambda: lock.release() or 0)
    assert (tmp_path / LOCK_NAME).is_file()
    assert forked(lambda: refused(tmp_path)) == 7
    lock.release()
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_child_that_outlives_the_holder_does_not_keep_it(tmp_path):
    """A loader's worker must not block the next run."""
    ready, done = os.pipe()

    def hold() -> int:
        lock = RunLock(tmp_path)
        lock.acquire()
        worker = os.fork()
        if worker == 0:
            os.close(ready)
            signal.pause()
        os.write(done, str(worker).encode())
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert forked(hold) == -signal.SIGKILL
    worker = int(os.read(ready, 20))
    try:
        assert forked(lambda: refused(tmp_path)) == 0
    finally:
        os.kill(worker, signal.SIGKILL)


def test_it_is_free_again_after_release_in_the_same_process(tmp_path):
    lock = RunLock(tmp_path / "new" / "run")
    for _ in range(2):
        lock.acquire()
        lock.acquire()  # twice is once
        assert forked(lambda: refused(tmp_path / "new" / "run")) == 7
        lock.release()
        lock.release()
        assert forked(lambda: refused(tmp_path / "new" / "run")) == 0


def test_a_lock_file_deleted_between_opening_and_locking_is_not_held(tmp_path, monkeypatch):
    """The holder unlinks it and lets go; whoever had opened it would hold what nobody else can find."""
    real, calls = fcntl.lockf, []

    def deleted_before(file, operation):
        calls.append(operation)
        if len(calls) == 1:
            (tmp_path / LOCK_NAME).unlink()
        return real(file, operation)

    monkeypatch.setattr(fcntl, "lockf", deleted_before)
    lock = RunLock(tmp_path)
    lock.acquire()
    assert len(calls) == 2
    assert forked(lambda: refused(tmp_path)) == 7
    lock.release()


def test_a_file_system_without_locks_is_not_called_in_use(tmp_path, monkeypatch):
    def none(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    with pytest.raises(StorageError, match="cannot be locked: No locks available"):
        RunLock(tmp_path).acquire()


def test_a_directory_that_is_gone_can_be_let_go(tmp_path):
    lock = RunLock(tmp_path / "run")
    lock.acquire()
    lock.path.unlink()
    lock.path.parent.rmdir()
    lock.release()
    lock.check()
    assert not (tmp_path / "run").exists()  # asking leaves nothing behind
