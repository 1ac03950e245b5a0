"""How a checkpoint reaches the disk: streamed, synced, verified, entered in the manifest, and only then named."""

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, cast

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.serialization import get_crc32_options, set_crc32_options

from lit_tune.checkpointing.entries import add_entry, drop_entries, entry_of, name_in
from lit_tune.checkpointing.verified import check_format, checked
from lit_tune.durable import (
    Fingerprint,
    HashedFile,
    check_free_space,
    discard,
    fingerprint,
    sync_folder,
    temporary_of,
)
from lit_tune.errors import StorageError, is_out_of_memory
from lit_tune.run_dir import RunDir

log = logging.getLogger("lit_tune")

RETRIED = (errno.EIO, errno.ESTALE, errno.EDQUOT)
"""What a network file system says while it is in trouble. After a failed fsync the kernel forgets which pages were not
written, so that the whole file is written again."""

HANDED_OVER = ".temp.ckpt"
"""Weights on their way from a forked rank zero to the process that started it (lightning 2.6.6,
strategies/launchers/multiprocessing.py); no checkpoint."""

_ZIP = b"PK\x03\x04"

PAUSES_SECONDS = (0.1, 1.0)
"""Before the second and the third try."""


class DurableCheckpointIO(CheckpointIO):
    """Checkpoints of one run directory: whole, verified and known to its manifest, or not there.

    A save streams into a temporary file in the target's folder, waits for the disk, reads back and compares, enters
    size and hash in the manifest, renames, and waits for the folder. The manifest comes first: an entry without a file
    does no harm, a file without an entry cannot be verified.

    Args:
        run_dir: Whose manifest knows the checkpoints.
        any_version: Read what other versions of the packages wrote.
    """

    def __init__(self, run_dir: RunDir, any_version: bool = False) -> None:
        self.run_dir, self.any_version = run_dir, any_version

    @rank_zero_only
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; returns when it would survive a power cut.

        Raises:
            StorageError: It cannot be written. The files that were there are what they were.
        """
        target = local(path)
        if target.name == HANDED_OVER:
            torch.save(checkpoint, target)
            return
        if storage_options is not None:
            raise StorageError("storage_options have no effect here", where=str(target), fix="leave them out")
        temporary = temporary_of(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            check_free_space(target.parent, checkpoint_bytes(checkpoint))
            written = retried(lambda: write_verified(checkpoint, temporary, target), target)
            entry = entry_of(self.run_dir, target, checkpoint, written)
            add_entry(self.run_dir, entry)
            os.replace(temporary, target)
        except OSError as e:
            discard(temporary)
            raise StorageError(
                f"the checkpoint cannot be written: {e.strerror or e}",
                where=str(target),
                fix="free some space" if e.errno in (errno.ENOSPC, errno.EDQUOT) else "a run_dir on a disk that works",
            ) from e
        except BaseException:
            discard(temporary)
            raise
        self._settle(target, entry)

    def _settle(self, target: Path, entry: dict[str, Any]) -> None:
        try:
            sync_folder(target.parent)
        except OSError as e:
            raise StorageError(
                f"the checkpoint may not survive a power cut: {e.strerror}", where=str(target), fix="check the disk"
            ) from e
        try:
            drop_entries(self.run_dir, entry["path"], but=entry)
        except StorageError as e:  # an entry of a file that was replaced does no harm
            log.warning("the manifest keeps an entry too many: %s", e)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint whose size and hash are what the manifest says.

        Args:
            path: A file of this run, or of another run directory.
            map_location: As for ``torch.load``.
            weights_only: A checkpoint is data: plain types and tensors are all that is ever read.

        Raises:
            StorageError: Damaged, unknown, of another format, or not there.
        """
        source = local(path)
        if weights_only is False:
            raise StorageError("a checkpoint with code in it is never loaded", where=str(source), fix="weights_only")
        if source.name == HANDED_OVER:
            return load_plain(source, map_location or "cpu")
        entry = checked(self.run_dir, source)
        check_format(entry, source, self.any_version)
        return load_plain(source, map_location or "cpu")

    @rank_zero_only
    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint and forget it.

        Raises:
            StorageError: It cannot be deleted.
        """
        target = local(path)
        try:
            target.unlink(missing_ok=True)
        except OSError as e:
            raise StorageError(f"cannot be deleted: {e.strerror}", where=str(target), fix="delete it yourself") from e
        drop_entries(self.run_dir, name_in(self.run_dir, target))


def local(path: str | Path) -> Path:
    """The path as a file here.

    Raises:
        StorageError: It is a URL.
    """
    if "://" in str(path):
        raise StorageError("checkpoints are files on this machine, not URLs", where=str(path), fix="a local path")
    return Path(path)


def write_verified(checkpoint: dict[str, Any], path: Path, target: Path) -> Fingerprint:
    """Stream a checkpoint to the disk, read it back, compare.

    Args:
        checkpoint: What is written.
        path: The temporary file.
        target: Its name later, for messages.

    Returns:
        Size and hash.

    Raises:
        OSError: It cannot be written, or what is read is not what was written.
        StorageError: It could not be loaded again.
    """
    file = HashedFile(path)
    try:
        with without_crc32():
            torch.save(checkpoint, cast(IO[bytes], file))
        written = file.written()
        with ThreadPoolExecutor(1) as beside:
            reading = beside.submit(read_back, path, written, target)
            file.sync()
            reading.result()
    finally:
        file.close()
    return written


def read_back(path: Path, written: Fingerprint, target: Path) -> None:
    """Compare what the kernel holds; it need not be on the disk yet.

    Raises:
        OSError: It is not what was written.
        StorageError: It could not be loaded again.
    """
    if fingerprint(path) != written:
        raise OSError(errno.EIO, "what is read back is not what was written", str(path))
    load_plain(path, "meta", shown=target)  # reads no tensor


@contextmanager
def without_crc32() -> Iterator[None]:
    """torch.save without its checksums, which torch.load ignores: a quarter of the time, and the hash tells more."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


def load_plain(path: Path, map_location: Any, shown: Path | None = None) -> dict[str, Any]:
    """Read a checkpoint that holds nothing but plain types and tensors.

    Raises:
        StorageError: It holds more, which would be code, or is no checkpoint.
        OSError: It cannot be read.
    """
    where, fix = str(shown or path), "restore it from a copy"
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:  # torch would read its formats of before 2020, and unpack a tar into TMPDIR
            raise StorageError("it is no checkpoint", where=where, fix=fix)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=False)
    except UnpicklingError as e:
        named = re.search(r"(?:GLOBAL|global|class) `?'?([\w.]+)", str(e))
        raise StorageError(
            f"it holds more than plain types and tensors{f': {named[1]}' if named else ''}",
            where=where,
            fix="callbacks and hyper-parameters with plain types in their state",
        ) from e
    except Exception as e:  # torch has no class for what may be wrong with a file
        if isinstance(e, OSError) or is_out_of_memory(e):
            raise
        raise StorageError(f"it cannot be read: {(str(e).splitlines() or [''])[0][:200]}", where=where, fix=fix) from e
    if not isinstance(checkpoint, dict):
        raise StorageError(f"it holds a {type(checkpoint).__name__}, no checkpoint", where=where, fix=fix)
    return checkpoint


def retried(write: Callable[[], Fingerprint], target: Path) -> Fingerprint:
    """Try again what may be a moment's trouble.

    Raises:
        OSError: The last try's.
    """
    for pause in PAUSES_SECONDS:
        try:
            return write()
        except OSError as e:
            if e.errno not in RETRIED:
                raise
            log.warning("%s: %s; trying again", target, e.strerror)
            time.sleep(pause)
    return write()


def checkpoint_bytes(checkpoint: Any) -> int:
    """Size of the file that a checkpoint will be: its tensors, and 1 MiB for all else.

    >>> checkpoint_bytes({"a": [torch.zeros(1_000_000), {"b": torch.zeros(10, dtype=torch.int8)}], "c": "x"}) - 2**20
    4000010
    """
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in _tensors(checkpoint))}
    return sum(storages.values()) + (1 << 20)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
