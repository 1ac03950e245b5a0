"""SIGTERM and SIGINT: noted while a training step runs, an end at once at any other time.

No handler here does more than write down the signal or raise: a collective, a file or a lock inside a handler is how
runs hang. Whoever trains calls :func:`hold`, asks :func:`received` where it is safe to stop, saves, and raises
:class:`Interruption` itself.

Exit codes are the shell's: 128 + the signal's number (143 SIGTERM, 130 SIGINT).
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption(SystemExit):
    """The run was told to end; not an error, so ``except Exception`` lets it pass.

    Args:
        signum: The signal, ``signal.SIGTERM`` or ``signal.SIGINT``.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return signal.Signals(self.signum).name


class _State:
    """What the handlers know; one for the process, as signals are."""

    received = 0
    num_sigints = 0
    held = False
    owner = 0
    previous: dict[int, Any] = {}


def install() -> None:
    """Take SIGTERM and SIGINT over, from the first line of the program on; again where somebody else took them.

    Outside the main thread Python allows no handlers: then nothing happens, and whoever owns the process decides.
    """
    if _State.owner != os.getpid():
        _State.received = _State.num_sigints = 0
        _State.held = False
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


def uninstall() -> None:
    """Give the signals back to the handlers that were there before :func:`install`, and forget what was received."""
    if _State.owner == os.getpid():
        for signum, handler in _State.previous.items():
            if handler is not None:
                signal.signal(signum, handler)
    _State.received = _State.num_sigints = _State.owner = 0
    _State.held, _State.previous = False, {}


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


def in_worker() -> None:
    """Called at the start of a loader's worker: it ends when its run says so, not when the whole group is signalled.

    The run needs its workers up to the step where it stops, and a worker that died would end it as a crash. Torch's own
    handler in a worker exits on a SIGTERM from its parent and dies of any other one (torch/csrc/DataLoader.cpp, 2.13);
    a thread that waits for the signal knows the sender too, and reacts while the worker hangs in native code.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True, name="signals").start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _handle(signum: int, frame: FrameType | None) -> None:
    if os.getpid() != _State.owner:  # forked from the run; see in_worker for those that must outlive the signal
        if not _State.held:
            raise Interruption(signum)
        return
    is_first = not _State.received
    _State.received = _State.received or signum
    if signum == signal.SIGINT:
        _State.num_sigints += 1
        if _State.num_sigints > 1:  # the person means now: no clean-up, no file is touched
            os.write(2, b"\nlit-tune: interrupted twice, quitting at once\n")
            os._exit(128 + signum)
    if is_first and not _State.held:  # a second exception would tear the clean-up that the first one runs
        raise Interruption(signum)
