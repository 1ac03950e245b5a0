"""Files that are whole or not there, after a crash too, and whose bytes are known: temporary file, fsync, rename, hash.

The order is what counts. The data is on the disk before the new name points to it, and the name is on the disk before
anybody is told that it is there. TMPDIR plays no part: a rename out of it would be a copy where the output lies on
another file system, and a copy can be cut.
"""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import xxhash

from lit_tune.errors import StorageError

HASH = "xxh3_128"
"""17 GB/s on one core, where sha256 does 1.6; it tells damage, not forgery."""

_PIECE_BYTES = 1 << 20
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.tmp")


class Fingerprint(NamedTuple):
    """Size and hash of a file.

    Args:
        bytes: Its size.
        digest: Its xxh3_128 in hexadecimal digits.
    """

    bytes: int
    digest: str


class HashedFile:
    """A file under construction; what is written is hashed on the way, so that nothing is held in memory.

    :meth:`write` never raises, because torch's writer turns an error in the middle of an archive into another one;
    the first error is kept and raised by :meth:`written`.

    Args:
        path: The file; what is there is replaced.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._hash = xxhash.xxh3_128()
        self._bytes = 0
        self._error: BaseException | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Append; returns the number of bytes, as files do."""
        view = memoryview(data).cast("B")
        if self._error is None:
            try:
                self._hash.update(view)
                self._bytes += len(view)
                rest = view
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except BaseException as e:
                self._error = e
        return len(view)

    def flush(self) -> None:
        """Nothing is buffered here."""

    def written(self) -> Fingerprint:
        """Size and hash of what was written.

        Raises:
            OSError: The first write that failed.
        """
        if self._error is not None:
            raise self._error
        return Fingerprint(self._bytes, self._hash.hexdigest())

    def sync(self) -> None:
        """Wait until the bytes are on the disk.

        Raises:
            OSError: They are not.
        """
        os.fsync(self._file)

    def close(self) -> None:
        """Close; more than once does no harm."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)


def temporary_of(path: Path) -> Path:
    """Where a file is written before it gets its name: in the same folder, with the process in its name."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_durably(path: Path, data: bytes) -> None:
    """Replace a small file in one step.

    Raises:
        OSError: It could not be done; the file is what it was, no temporary file is left where that can be helped.
    """
    temporary = temporary_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = HashedFile(temporary)
        try:
            file.write(data)
            file.written()
            file.sync()
        finally:
            file.close()
        os.replace(temporary, path)
    except BaseException:
        discard(temporary)
        raise
    sync_folder(path.parent)


def discard(path: Path) -> None:
    """Remove a file or folder if that is possible; there is a more important error to tell."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            os.unlink(path)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk.

    Raises:
        OSError: They may not be.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_tree(folder: Path) -> None:
    """Wait until a folder written by somebody else, with all below it, is on the disk.

    Raises:
        OSError: It may not be.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sync_folder(path)  # a file opens for reading as a folder does
    for path in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        sync_folder(path)


def fingerprint(path: Path) -> Fingerprint:
    """Size and hash of a file, read in pieces of 1 MiB.

    Raises:
        OSError: It cannot be read.
    """
    digest, size = xxhash.xxh3_128(), 0
    piece = memoryview(bytearray(_PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(piece):
            digest.update(piece[:read])
            size += read
    return Fingerprint(size, digest.hexdigest())


def fingerprints(folder: Path) -> dict[str, Fingerprint]:
    """Size and hash of each file in a folder, by its name.

    Raises:
        OSError: One cannot be read.
    """
    return {path.name: fingerprint(path) for path in sorted(folder.iterdir()) if path.is_file()}


def sweep_temporaries(folder: Path) -> list[Path]:
    """Remove what died processes left half-written in a run directory and its ``checkpoints``.

    Call it when the run directory is locked and nothing is written yet.

    Args:
        folder: The run directory.

    Returns:
        What was removed.
    """
    removed = []
    for place in (folder, folder / "checkpoints"):
        for path in sorted(place.glob(".*.tmp")) if place.is_dir() else []:
            match = _TEMPORARY.fullmatch(path.name)
            if match and not _is_being_written(path, int(match["pid"])):
                discard(path)
                removed.append(path)
    return removed


def _is_being_written(path: Path, pid: int) -> bool:
    """Whether the process that began the file lives; another one may have its number now, as in a new container."""
    if pid == os.getpid():
        return False
    try:
        # 1 s: file systems and the kernel round times differently
        return psutil.Process(pid).create_time() <= path.stat().st_mtime + 1.0
    except (psutil.Error, OSError):
        return False


def check_free_space(folder: Path, bytes_needed: int) -> None:
    """Refuse to begin what the disk cannot hold. Quotas are not seen here; the write tells of them.

    Args:
        folder: Where it is to be written; it may not exist yet.
        bytes_needed: How much.

    Raises:
        StorageError: There is less.
    """
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < bytes_needed:
        raise StorageError(
            f"{megabytes(bytes_needed)} are needed, {megabytes(free)} are free",
            where=str(folder),
            fix="free some space, or a run_dir on another disk",
        )


def megabytes(count: int) -> str:
    """A size for messages.

    >>> megabytes(1_234_567_890)
    '1,234.6 MB'
    """
    return f"{count / 1e6:,.1f} MB"
