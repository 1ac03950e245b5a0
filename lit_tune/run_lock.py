"""One live process per run directory.

The lock is the operating system's (POSIX record lock): it ends with the process however that dies, children do not
inherit it, and it reaches over NFS. The text in the file only serves the message.
"""

import contextlib
import errno
import json
import os
import socket
import time
from pathlib import Path
from typing import IO

from lit_tune.errors import StorageError
from lit_tune.run_dir import LOCK_NAME

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class RunLock:
    """The lock of a run directory.

    Args:
        folder: The run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._file: IO[str] | None = None
        self._pid = 0

    def check(self) -> None:
        """Refuse a directory that another live process works in.

        Raises:
            StorageError: It is in use.
        """
        if self._file is None and self.path.is_file():
            self.acquire()
            self.release()

    def acquire(self) -> None:
        """Hold the directory until :meth:`release` or the end of the process.

        Raises:
            StorageError: Another live process holds it, or it cannot be written.
        """
        if self._file is not None or fcntl is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+", encoding="utf-8")
        except OSError as e:
            raise StorageError(
                f"cannot write {self.path.parent}: {e.strerror}", where="run_dir", fix="a folder you can write to"
            ) from e
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            is_taken, holder = e.errno in (errno.EACCES, errno.EAGAIN), self._holder(file)
            file.close()
            what = f"is in use by {holder}" if is_taken else f"cannot be locked: {e.strerror}"
            fix = "wait for it, or another run_dir" if is_taken else "a run_dir on a file system with locks"
            raise StorageError(f"{self.path.parent} {what}", where="run_dir", fix=fix) from e
        if not self._is_current(file):  # its holder deleted it between our opening and locking
            file.close()
            self.acquire()
            return
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}, file)
        file.flush()
        self._file, self._pid = file, os.getpid()

    def release(self) -> None:
        """Let others work in the directory; a forked child has nothing to let go of."""
        if self._file is not None and self._pid == os.getpid():
            with contextlib.suppress(OSError):  # the folder may be gone by now
                self.path.unlink()
            self._file.close()
            self._file = None

    def _is_current(self, file: IO[str]) -> bool:
        """Whether the open file is the one that others will find."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(file.fileno()))
        except OSError:
            return False

    @staticmethod
    def _holder(file: IO[str]) -> str:
        """Who holds the lock, for the message."""
        file.seek(0)
        try:
            who = json.loads(file.read())
            return f"process {who['pid']} on {who['host']}, since {who['since']}"
        except (ValueError, KeyError, TypeError):
            return "another process"
