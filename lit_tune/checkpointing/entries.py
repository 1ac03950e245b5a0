"""What the manifest knows of a checkpoint: the entries under ``checkpoints``."""

import os
from pathlib import Path
from typing import Any

import lightning
import torch

from lit_tune import __version__
from lit_tune.durable import HASH, Fingerprint
from lit_tune.run_dir import RunDir

CHECKPOINT_FORMAT = 1
"""Raised when a checkpoint of an earlier lit-tune cannot be continued by this one."""


def versions_here() -> dict[str, str]:
    """Versions that decide whether a checkpoint can be continued exactly."""
    return {"lit-tune": __version__, "lightning": lightning.__version__, "torch": str(torch.__version__)}


def name_in(run_dir: RunDir, path: Path) -> str:
    """How a checkpoint is called in the manifest: relative to the run directory, which may be moved.

    The folder may be reached through a link, as /app/runs is in the image.
    """
    target, root = real(path), real(run_dir.path)
    return target.relative_to(root).as_posix() if target.is_relative_to(root) else str(target)


def real(path: Path) -> Path:
    """The path without links; unlike ``Path.resolve`` it does not raise where links lead in a circle."""
    return Path(os.path.realpath(path))


def entry_of(run_dir: RunDir, path: Path, checkpoint: dict[str, Any], written: Fingerprint) -> dict[str, Any]:
    """The entry of a checkpoint that is about to get its name."""
    return {
        "path": name_in(run_dir, path),
        "step": checkpoint.get("global_step"),
        "epoch": checkpoint.get("epoch"),
        "bytes": written.bytes,
        HASH: written.digest,
        "resumable": "optimizer_states" in checkpoint,
        "format": CHECKPOINT_FORMAT,
        "versions": versions_here(),
    }


def entries(run_dir: RunDir) -> list[dict[str, Any]]:
    """All entries, in the order they were written.

    Raises:
        StorageError: The manifest cannot be read.
    """
    return list(run_dir.read().get("checkpoints", []))


def add_entry(run_dir: RunDir, entry: dict[str, Any]) -> None:
    """Make a checkpoint known.

    An earlier one of the same path stays known beside it: until the rename it is the one that is there.

    Raises:
        StorageError: The manifest cannot be read or written.
    """
    run_dir.update({"checkpoints": [*(e for e in entries(run_dir) if e != entry), entry]})


def drop_entries(run_dir: RunDir, name: str, but: dict[str, Any] | None = None) -> None:
    """Forget the entries of a path, all or all but one.

    Raises:
        StorageError: The manifest cannot be read or written.
    """
    before = entries(run_dir)
    after = [e for e in before if e["path"] != name or e == but]
    if len(after) < len(before):
        run_dir.update({"checkpoints": after})
