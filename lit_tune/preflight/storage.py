"""Can the run be written where it should go: a file, synced and renamed as a checkpoint is; and room."""

import os
import shutil
from pathlib import Path

from lit_tune.durable import check_free_space, discard, megabytes, write_durably
from lit_tune.errors import LitTuneError, StorageError, collected
from lit_tune.preflight.findings import Finding, errors, warning


def probe(folder: Path, key: str, fix: str) -> list[Finding]:
    """Write, sync and rename a file where the folder is, or where it will be made."""
    there = existing(folder)
    target = there / f".lit_tune_probe.{os.getpid()}"
    try:
        write_durably(target, b"probe")
    except OSError as e:
        return [Finding("error", StorageError(f"cannot write {folder}: {e.strerror}", where=key, fix=fix))]
    finally:
        discard(target)
    return []


def room(folder: Path, needed: int, wanted: int) -> list[Finding]:
    """Compare free space with what is needed.

    Args:
        folder: Where it will be written; need not exist.
        needed: Bytes without which a run cannot start.
        wanted: Bytes that it writes in the end.
    """
    problems: list[LitTuneError] = []
    with collected(problems):
        check_free_space(folder, needed)
    free = shutil.disk_usage(existing(folder)).free
    if problems or free > wanted:
        return errors(problems)
    return [
        warning(
            f"the run writes {megabytes(wanted)}, {megabytes(free)} are free",
            where=str(folder),
            fix="free some space, or a run_dir on another disk",
        )
    ]


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.expanduser().absolute()
    return next((p for p in (folder, *folder.parents) if p.is_dir() or p.exists()), Path("/"))
