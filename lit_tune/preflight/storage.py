"""Can the run be written where it should go: a file, synced and renamed as a checkpoint is; and room."""

import os
import shutil
from pathlib import Path

from lit_tune.durable import discard, megabytes, write_durably
from lit_tune.errors import StorageError
from lit_tune.preflight.findings import Finding, warning


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


def room(folder: Path, key: str, needed: int, what: str) -> list[Finding]:
    """Compare free space with what is needed; little more than that is worth a warning."""
    free = shutil.disk_usage(existing(folder)).free
    said = f"{what} need {megabytes(needed)}, {megabytes(free)} are free on the disk of {folder}"
    fix = f"free some space, or {key} on another disk"
    if free < needed:
        return [Finding("error", StorageError(said, where=key, fix=fix))]
    return [warning(said, where=key, fix=fix)] if free < 1.5 * needed else []


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.expanduser().absolute()
    return next((p for p in (folder, *folder.parents) if p.is_dir() or p.exists()), Path("/"))
