"""SIGTERM and SIGINT: noted while a training step runs, an end at once at any other time.

No handler here does more than write down the signal or raise: a collective, a file or a lock inside a handler is how
runs hang. Whoever trains calls :func:`hold`, asks :func:`received` where it is safe to stop, saves, and raises
:class:`Interruption` itself.

Exit codes are the shell's: 128 + the signal's number (143 SIGTERM, 130 SIGINT).
"""

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)

UNWIND_SECONDS = 8.0
"""How long a process that is to end at once may take: `docker stop` kills after 10."""


class Interruption(SystemExit):
    """The run was told to end; not an error, so ``except Exception`` lets it pass.

    Args:
        signum: The signal, ``signal.SIGTERM`` or ``signal.SIGINT``.
        what: Where it found the run, for the person.
        is_shared: All ranks of the run raise it, at the same place.
    """

    def __init__(self, signum: int, what: str | None = None, is_shared: bool = False) -> None:
        super().__init__(128 + signum)
        self.signum, self.what = signum, what or f"ended by {signal.Signals(signum).name}"
        self.is_shared = is_shared

    def __str__(self) -> str:
        return self.what


class _State:
    """What the handlers know; one for the process, as signals are."""

    received = 0
    num_sigints = 0
    held = False
    owner = 0
    previous: dict[int, Any] = {}
    pending: BaseException | None = None
    is_settled = False
    guard: socket.socket | None = None
    """Python writes the number of each signal to it, also while the main thread is in native code."""


def install() -> None:
    """Take SIGTERM and SIGINT over, from the first line of the program on; again where somebody else took them.

    Outside the main thread Python allows no handlers: then nothing happens, and whoever owns the process decides.
    """
    if _State.owner != os.getpid():
        _State.received = _State.num_sigints = 0
        _State.held = _State.is_settled = False
        _State.previous, _State.owner = {}, os.getpid()
    for signum in SIGNALS:
        current = signal.getsignal(signum)
        if current is _handle:
            continue
        try:
            signal.signal(signum, _handle)
        except ValueError:  # not the main thread
            return
        _State.previous.setdefault(signum, current)
    _start_guard()


def uninstall() -> None:
    """Give the signals back to the handlers that were there before :func:`install`, and forget what was received."""
    if _State.owner == os.getpid():
        for signum, handler in _State.previous.items():
            if handler is not None:
                signal.signal(signum, handler)
        _stop_guard()
    _State.received = _State.num_sigints = _State.owner = 0
    _State.held = _State.is_settled = False
    _State.previous, _State.pending = {}, None


def is_installed() -> bool:
    """Whether the handlers in force are ours."""
    return all(signal.getsignal(s) is _handle for s in SIGNALS)


def received() -> int:
    """Number of the first signal received since :func:`install`, 0 if none."""
    return _State.received


def hold() -> None:
    """From here on a signal is only noted; who calls this asks :func:`received` once per step.

    Raises:
        Interruption: One came before, and a library swallowed the exception.
    """
    if _State.received:
        raise Interruption(_State.received)
    _State.held = True


def release() -> None:
    """From here on a signal ends the process at once again.

    Raises:
        Interruption: One was noted meanwhile.
    """
    _State.held = False
    if _State.received:
        raise Interruption(_State.received)


def is_held() -> bool:
    """Whether signals are only noted."""
    return _State.held


def raise_in_main(error: BaseException) -> None:
    """Raise an error in the main thread, from another one that has noticed it; also while signals are held.

    Nothing happens while the main thread is in native code: whoever calls this has another way to end the process.
    """
    if is_installed():
        _State.pending, _State.is_settled = error, True  # whoever raises ends the process in time
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGTERM)


def settle() -> None:
    """The signal has reached the end of the program, which from here on takes the time it takes."""
    _State.is_settled = True


def in_worker() -> None:
    """Called at the start of a loader's worker: it ends when its run says so, not when the whole group is signalled.

    The run needs its workers up to the step where it stops, and a worker that died would end it as a crash. Torch's own
    handler in a worker exits on a SIGTERM from its parent and dies of any other one (torch/csrc/DataLoader.cpp, 2.13);
    a thread that waits for the signal knows the sender too, and reacts while the worker hangs in native code. It ends
    the worker whose run was killed as well.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigtimedwait"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True, name="signals").start()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)


def _handle(signum: int, frame: FrameType | None) -> None:
    if os.getpid() != _State.owner:  # forked from the run; see in_worker for those that must outlive the signal
        if not _State.held:
            raise Interruption(signum)
        return
    if _State.pending is not None:
        error, _State.pending = _State.pending, None
        raise error
    is_first = not _State.received
    _State.received = _State.received or signum
    if signum == signal.SIGINT:
        _State.num_sigints += 1
        if _State.num_sigints > 1:  # the person means now: no clean-up, no file is touched
            os.write(2, b"\nlit-tune: interrupted twice, quitting at once\n")
            os._exit(128 + signum)
    if is_first and not _State.held:  # a second exception would tear the clean-up that the first one runs
        raise Interruption(signum)


def _start_guard() -> None:
    """A thread that ends the process where the main thread, in native code, does not react to a signal."""
    if _State.guard is not None:
        return
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    if before != -1:  # an event loop, as in a notebook, is told of signals that way already
        signal.set_wakeup_fd(before)
        return
    _State.guard = pythons
    threading.Thread(target=_watch_signals, args=(ours, pythons), daemon=True, name="signals").start()


def _stop_guard() -> None:
    if _State.guard is not None:
        with suppress(ValueError):  # not the main thread
            signal.set_wakeup_fd(-1)
        _State.guard.close()
        _State.guard = None


# a forked process would write its own signals into its parent's socket
os.register_at_fork(after_in_child=_stop_guard)


def _watch_signals(numbers: socket.socket, guard: socket.socket) -> None:
    first, num_sigints = 0, 0
    while read := numbers.recv(64):
        for signum in (s for s in read if s in SIGNALS):
            num_sigints += signum == signal.SIGINT
            if num_sigints > 1:
                time.sleep(UNWIND_SECONDS / 8)  # the handler does it, unless the main thread is in native code
                os._exit(128 + signal.SIGINT)
            if not (first or _State.held or _State.is_settled):
                first = signum
                threading.Thread(target=_end_late, args=(signum, guard), daemon=True, name="late end").start()
    numbers.close()


def _end_late(signum: int, guard: socket.socket) -> None:
    time.sleep(UNWIND_SECONDS)
    if _State.guard is guard and not _State.is_settled:  # else it was handled, and the process lives on: uninstall()
        os._exit(128 + signum)
