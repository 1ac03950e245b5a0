"""Signals, each in a process of its own: forked, because the fork of a small process costs a millisecond."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lit_tune import interrupts
from lit_tune.interrupts import Interruption


def forked(function) -> int:
    """Exit code of a function in a process of its own; negative for a signal."""
    pid = os.fork()
    if not pid:
        code = 99
        try:
            code = function() or 0
        except SystemExit as error:
            code = error.code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def handlers():
    """Ours for the length of a test."""
    interrupts.install()
    yield
    interrupts.uninstall()


def send(*signals: int) -> None:
    for signum in signals:
        os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_outside_of_training_a_signal_ends_the_process_at_once(handlers, signum, code):
    with pytest.raises(Interruption) as caught:
        send(signum)
    assert caught.value.code == code
    assert interrupts.received() == signum


def test_while_held_it_is_noted_and_ends_the_process_when_released(handlers):
    interrupts.hold()
    send(signal.SIGTERM, signal.SIGTERM)
    assert interrupts.received() == signal.SIGTERM
    with pytest.raises(Interruption, match="SIGTERM"):
        interrupts.release()


def test_a_second_signal_does_not_tear_the_clean_up_of_the_first(handlers):
    with pytest.raises(Interruption):
        send(signal.SIGTERM)
    send(signal.SIGTERM, signal.SIGINT)


def test_a_second_ctrl_c_quits_at_once_whatever_runs():
    def twice():
        interrupts.install()
        interrupts.hold()
        try:
            send(signal.SIGINT, signal.SIGINT)
        finally:
            os._exit(1)  # no clean-up is run

    assert forked(twice) == 130


def test_a_signal_that_a_library_has_swallowed_ends_the_run_when_training_starts(handlers):
    class Swallows:
        def __del__(self):
            with contextlib.suppress(Interruption):
                send(signal.SIGTERM)

    Swallows().__del__()
    with pytest.raises(Interruption):
        interrupts.hold()


def test_a_process_in_native_code_ends_too():
    """A stand-in for a collective that waits for ever: no Python instruction runs, so no handler does."""
    code = """
import os, signal, threading, time
from lit_tune import interrupts
interrupts.UNWIND_SECONDS = 0.3
interrupts.install()
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
lock = threading.Lock(); lock.acquire()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # another thread gets it, so that the lock is not left
lock.acquire()
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 143


def test_a_process_that_has_dealt_with_the_signal_lives_on():
    def lives():
        interrupts.UNWIND_SECONDS = 0.05
        for _ in range(20):
            interrupts.install()
            with contextlib.suppress(Interruption):
                send(signal.SIGTERM)
            interrupts.uninstall()
        time.sleep(0.3)

    assert forked(lives) == 0


def test_the_handlers_before_come_back():
    def now():
        return [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]

    before = now()  # SIGINT is ignored in a job that a shell has put into the background
    interrupts.install()
    assert now() != before
    interrupts.uninstall()
    assert now() == before
    assert not interrupts.is_installed()


def test_installing_often_leaves_neither_threads_nor_files():
    def is_clean() -> bool:
        return not any(t.name == "signals" for t in threading.enumerate()) and len(os.listdir("/proc/self/fd")) <= files

    files = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        interrupts.install()
        interrupts.uninstall()
    deadline = time.monotonic() + 60
    while not is_clean():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_another_thread_raises_in_the_main_one_although_signals_are_held(handlers):
    interrupts.hold()
    thread = threading.Thread(target=interrupts.raise_in_main, args=(ZeroDivisionError(),))
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        thread.start()
        thread.join()
        time.sleep(60)
    assert interrupts.received() == 0


def worker(ready: int) -> int:
    """A loader's worker that never comes back."""
    interrupts.in_worker()
    os.write(ready, b"x")
    time.sleep(60)
    return 1


def test_a_worker_outlives_the_signals_of_its_group_and_ends_with_its_run():
    def run():
        interrupts.install()
        interrupts.hold()
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os._exit(worker(write))
        os.read(read, 1)
        for name in ("TERM", "INT"):
            subprocess.run(["kill", f"-{name}", str(pid)], check=True)
        time.sleep(0.1)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        os.kill(pid, signal.SIGTERM)  # from its parent, as DataLoader does
        assert os.waitpid(pid, 0)[1] == 0

    assert forked(run) == 0


def test_a_worker_ends_when_its_run_was_killed():
    read, write = os.pipe()

    def run():
        if not os.fork():
            os.close(read)
            os._exit(worker(write))
        os.close(write)
        os.read(read, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(run) == -signal.SIGKILL
    os.close(write)
    assert os.read(read, 1) == b""  # the end of the file: nobody holds the other end any more


def test_a_process_that_winds_up_is_given_the_time():
    def winds_up():
        interrupts.UNWIND_SECONDS = 0.05
        interrupts.install()
        try:
            send(signal.SIGTERM)
        except Interruption:
            interrupts.settle()
            time.sleep(0.5)
            return 7

    assert forked(winds_up) == 7
