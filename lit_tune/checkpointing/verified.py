"""Which checkpoint a run goes on from: the newest whose bytes are those that were written."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_tune.checkpointing.entries import CHECKPOINT_FORMAT, entries, name_in, real, versions_here
from lit_tune.durable import HASH, Fingerprint, fingerprint
from lit_tune.errors import StorageError
from lit_tune.run_dir import RunDir

log = logging.getLogger("lit_tune")


@dataclass(frozen=True)
class Refused:
    """A checkpoint that is not used.

    Args:
        path: The file.
        step: Its optimizer step; None where the manifest does not know it.
        why: What is wrong with it.
    """

    path: Path
    step: int | None
    why: str

    def __str__(self) -> str:
        return f"{self.path.name}: {self.why}"


@dataclass(frozen=True)
class Choice:
    """A checkpoint that was verified.

    Args:
        path: The file.
        step: Optimizer steps it holds.
        epoch: The epoch it was written in, from 0.
        refused: Newer ones that are damaged or gone, and files the manifest does not know.
    """

    path: Path
    step: int
    epoch: int
    refused: tuple[Refused, ...] = ()

    @property
    def steps_lost(self) -> int:
        """Optimizer steps to be done again because newer checkpoints are damaged or gone."""
        return max(0, *(r.step - self.step for r in self.refused if r.step is not None), 0)


def newest_verified(run_dir: RunDir, any_version: bool = False) -> Choice | None:
    """The newest checkpoint to go on from, or None where there is none yet.

    Order is by step: times of files change when they are copied.

    Args:
        run_dir: The run.
        any_version: Take what other versions of the packages wrote.

    Raises:
        StorageError: There are checkpoints, and all are damaged; or another version wrote the newest one that is whole;
            or the manifest cannot be read.
    """
    known = [e for e in entries(run_dir) if e.get("resumable")]
    refused = [Refused(path, None, "the manifest does not know it") for path in unknown_files(run_dir)]
    steps = sorted({(int(e["step"]), str(e["path"])) for e in known}, reverse=True)
    for step, name in steps:
        path = run_dir.path / name
        try:
            entry = checked(run_dir, path, [e for e in known if e["path"] == name])
        except StorageError as e:
            gone = "not there: it was being written when the run ended, or was deleted"
            refused.append(Refused(path, step, e.what if path.exists() else gone))
            continue
        check_format(entry, path, any_version)
        return Choice(path, int(entry["step"]), int(entry["epoch"]), tuple(refused))
    damaged = [r for r in refused if r.step is not None and r.path.exists()]
    if damaged:
        raise StorageError(
            f"none of its {len(damaged)} checkpoints is whole ({'; '.join(map(str, damaged[:2]))})",
            where=str(run_dir.checkpoints),
            fix="restore them from a copy, or --overwrite to start again",
        )
    for each in refused:
        log.warning("not used  %s", each)
    return None


def verify(run_dir: RunDir, path: str | Path, any_version: bool = False) -> Choice:
    """A checkpoint that was named explicitly, of this run directory or of another one.

    Raises:
        StorageError: It is damaged, not there, unknown to the manifest beside it, of another version, or holds weights
            alone.
    """
    source = Path(path)
    entry = checked(run_dir, source)
    check_format(entry, source, any_version)
    if not entry.get("resumable"):
        raise StorageError("it holds weights alone", where=str(source), fix="another checkpoint of this run")
    return Choice(source, int(entry["step"]), int(entry["epoch"]))


def checked(run_dir: RunDir, path: Path, known: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The manifest's entry that a file fits.

    Args:
        run_dir: The run; a file elsewhere is looked up in the manifest of the run directory it lies in.
        path: The file.
        known: Entries of this file, where they are read already.

    Raises:
        StorageError: There is no such file, no entry, or size or hash differ.
    """
    if known is None:
        here = real(path).is_relative_to(real(run_dir.path))
        owner = run_dir if here else RunDir(real(path).parent.parent)
        known = [e for e in entries(owner) if e["path"] == name_in(owner, path)]
    fix = "resume: auto takes the newest checkpoint that is whole"
    if not path.is_file():
        raise StorageError("there is no such file", where=str(path), fix=fix)
    if not known:
        raise StorageError(
            "the manifest does not know this file: nobody can tell whether it is whole", where=str(path), fix=fix
        )
    sizes = {int(e["bytes"]) for e in known}
    size = path.stat().st_size
    if size not in sizes:
        raise StorageError(f"it is damaged: {size:,} bytes, {max(sizes):,} were written", where=str(path), fix=fix)
    try:
        found = fingerprint(path)
    except OSError as e:
        raise StorageError(f"it cannot be read: {e.strerror}", where=str(path), fix=fix) from e
    for entry in known:
        if Fingerprint(int(entry["bytes"]), str(entry[HASH])) == found:
            return entry
    raise StorageError("it is damaged: its hash is not that of what was written", where=str(path), fix=fix)


def unknown_files(run_dir: RunDir) -> list[Path]:
    """Files in ``checkpoints`` that no entry names."""
    names = {e["path"] for e in entries(run_dir)}
    there = sorted(run_dir.checkpoints.glob("*.ckpt")) if run_dir.checkpoints.is_dir() else []
    return [path for path in there if name_in(run_dir, path) not in names]


def check_format(entry: dict[str, Any], path: Path, any_version: bool = False) -> None:
    """Refuse a checkpoint of another format, or of versions that need not go on as the one that wrote it.

    The last part of a version (2.6.6 for 2.6.5) may differ.

    Args:
        entry: The manifest's.
        path: The file.
        any_version: Other versions are only told; the format still counts.

    Raises:
        StorageError: With a table of the versions.
    """
    here = {"format": str(CHECKPOINT_FORMAT), **versions_here()}
    wrote = {"format": str(entry.get("format")), **(entry.get("versions") or {})}
    other = [name for name in here if release(here[name]) != release(str(wrote.get(name, "unknown")))]
    if not other:
        return
    if any_version and "format" not in other:
        log.warning("%s was written by %s", path.name, ", ".join(f"{n} {wrote.get(n, 'unknown')}" for n in other))
        return
    rows = "".join(f"\n  {name:<10} {wrote.get(name, 'unknown'):<14} {here[name]}" for name in other)
    raise StorageError(
        f"it was written by other versions (name, theirs, installed):{rows}",
        where=str(path),
        fix="install those versions; or --allow-changed goes on, perhaps not bit for bit"
        if "format" not in other
        else "install the version that wrote it, or start again with another run_dir",
    )


def release(version: str) -> tuple[str, ...]:
    """Major and minor part of a version.

    >>> release("2.13.0+cpu"), release("1")
    (('2', '13'), ('1',))
    """
    return tuple(version.partition("+")[0].split(".")[:2])
