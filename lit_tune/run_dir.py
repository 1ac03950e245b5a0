"""The run directory: what lies where, and the manifest that says what happened.

config.yaml manifest.json metrics.jsonl samples.jsonl run.log tensorboard/ checkpoints/ best/ predictions.jsonl
test_metrics.json
"""

import errno
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import xxhash

from lit_tune.durable import HASH, write_durably
from lit_tune.errors import StorageError

LOCK_NAME = ".lock"
"""Held by the process that works in the directory (``run_lock``)."""

ARTEFACTS = (
    "config.yaml",
    "metrics.jsonl",
    "samples.jsonl",
    "run.log",
    "tensorboard",
    "csv",
    "wandb",
    "checkpoints",
    "best",
    "predictions.jsonl",
    "test_metrics.json",
    "manifest.json",  # last: as long as it is there, what remains is known to be ours
)
"""All that lit-tune writes; ``--overwrite`` deletes these and nothing else."""

LOGGER_FOLDERS = ("tensorboard", "csv", "wandb")
"""Lightning opens loggers before any callback is asked: alone, these folders are the start of the run that asks."""

PACKAGES = ("lit-tune", "torch", "lightning", "transformers", "datasets", "torchmetrics", "tokenizers", "safetensors")
MANIFEST_FORMAT = 1
EXPORT_HASHES = "best_files"
"""Manifest field: size and hash of each file of ``best/``."""


class RunDir:
    """Paths of a run and its manifest.

    Args:
        path: The directory; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.manifest = self.path / "manifest.json"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.log = self.path / "run.log"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self.predictions = self.path / "predictions.jsonl"
        self.test_metrics = self.path / "test_metrics.json"

    def __str__(self) -> str:
        return str(self.path)

    def check_free(self, overwrite: bool) -> None:
        """Refuse a directory that holds anything, unless it may be overwritten.

        Raises:
            StorageError: Non-empty, not a directory, or out of reach; or ``overwrite`` would delete what no run wrote.
        """
        try:
            if self.path.exists() and not self.path.is_dir():
                raise StorageError(f"{self.path} is a file", where="run_dir", fix="another run_dir")
            found = sorted(p.name for p in self.path.iterdir()) if self.path.exists() else []
        except OSError as e:
            raise StorageError(f"cannot read {self.path}: {e.strerror}", where="run_dir", fix="another run_dir") from e
        foreign = [name for name in found if name in ARTEFACTS and name not in LOGGER_FOLDERS]
        if overwrite:
            if foreign and not self.manifest.is_file():
                raise StorageError(
                    f"{self.path} holds {', '.join(foreign[:4])}, and no manifest.json says that a run wrote it",
                    where="--overwrite",
                    fix="another run_dir, or delete it yourself",
                )
            return
        found = [name for name in found if name not in LOGGER_FOLDERS and name != LOCK_NAME]
        if not found:
            return
        manifest = self.read()
        status = manifest.get("status")
        if status and not manifest.get("trained"):
            return  # it never took a step: a mistake in the data or the model, told and mended, or it was killed
        state = f"holds a run with status {status!r}" if status else f"is not empty ({', '.join(found[:4])})"
        raise StorageError(
            f"{self.path} {state}",
            where="run_dir",
            fix="--overwrite deletes that run first, or --run_dir NEW",
        )

    def claim(self, overwrite: bool) -> None:
        """Make the directory, emptied of an earlier run's files where ``overwrite`` allows it.

        Raises:
            StorageError: It is in use, or cannot be written.
        """
        self.check_free(overwrite)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if overwrite and self.manifest.is_file():  # killed while it deletes, it finds a run that counts no more
                self.write({"format": MANIFEST_FORMAT, "status": "overwritten", "trained": False})
            for name in ARTEFACTS:
                if name in LOGGER_FOLDERS and not overwrite:
                    continue
                target = self.path / name
                if target.is_dir() and not target.is_symlink():
                    shutil.rmtree(target)
                else:
                    target.unlink(missing_ok=True)
            probe = self.path / f".write_probe.{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as e:
            raise StorageError(
                f"cannot write {self.path}: {e.strerror}", where="run_dir", fix="a folder you can write to"
            ) from e

    def read(self) -> dict[str, Any]:
        """The manifest, or an empty dict where there is none.

        Raises:
            StorageError: It is there, and cannot be read or is not what was written.
        """
        if not self.manifest.exists():
            return {}
        try:
            return unseal(self.manifest.read_bytes())
        except (OSError, ValueError) as e:
            raise StorageError(
                f"cannot be read: {e}", where=str(self.manifest), fix="restore it, or a new run_dir"
            ) from e

    def write(self, manifest: dict[str, Any]) -> None:
        """Replace the manifest in one step, sealed with its own hash: a reader never sees half of it, or damage.

        Raises:
            StorageError: It cannot be written.
        """
        _replace(self.manifest, seal(manifest))

    def update(self, fields: dict[str, Any]) -> None:
        """Change some of the manifest's fields."""
        self.write({**self.read(), **fields})


def write_json(path: Path, value: Any) -> None:
    """JSON through a temporary file in the same folder and a rename; numbers that are not finite become null.

    Raises:
        StorageError: It cannot be written.
    """
    _replace(path, _json_bytes(value))


def _replace(path: Path, data: bytes) -> None:
    try:
        write_durably(path, data)
    except OSError as e:
        fix = "free some space" if e.errno in (errno.ENOSPC, errno.EDQUOT) else "a disk that can be written"
        raise StorageError(f"cannot be written: {e.strerror}", where=str(path), fix=fix) from e


def _json_bytes(value: Any) -> bytes:
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")


_NO_DIGEST = b"0" * 32


def seal(manifest: dict[str, Any]) -> bytes:
    """JSON whose last key is the hash of the text, with zeros in the place of the hash."""
    fields = {key: value for key, value in manifest.items() if key != HASH}
    text = _json_bytes({**fields, HASH: _NO_DIGEST.decode()})
    place = text.rindex(_NO_DIGEST)
    digest = xxhash.xxh3_128_hexdigest(text).encode()
    return text[:place] + digest + text[place + len(digest) :]


def unseal(data: bytes) -> dict[str, Any]:
    """What :func:`seal` was given.

    Raises:
        ValueError: A byte differs from what was written.
    """
    head, key, tail = data.rpartition(f'"{HASH}": "'.encode())
    digest = tail[: len(_NO_DIGEST)]
    if not key or xxhash.xxh3_128_hexdigest(head + key + _NO_DIGEST + tail[len(digest) :]).encode() != digest:
        raise ValueError("it is damaged, or was changed by hand: its own hash does not fit")
    fields = json.loads(data)
    del fields[HASH]
    wrong = next((key for key in _SHAPES.keys() & fields.keys() if not fits(fields[key], _SHAPES[key])), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is not what lit-tune writes there")
    return fields


_NUMBER, _FIELDS = (int, float, type(None)), (dict, type(None))
_SHAPES: dict[str, Any] = {
    "status": str,
    "trained": bool,
    "steps": int,
    "seconds": _NUMBER,
    "exported": str,
    "checkpoints": [{"path": str, "bytes": int, HASH: str, "step": _NUMBER, "epoch": _NUMBER, "versions": _FIELDS}],
    "spec": {
        "problem_type": str,
        "label_names": [str],
        "label_counts": [int],
        "num_rows": int,
        "baseline": {str: _NUMBER},
        "unit": (str, type(None)),
        "num_units": (int, type(None)),
    },
    "verdict": _FIELDS,
    EXPORT_HASHES: {str: [(int, str)]},
}
"""What is read back of a manifest: its hash tells damage, not who has written it."""


def fits(value: Any, shape: Any) -> bool:
    """Whether plain data has the types it should.

    Args:
        value: Plain data.
        shape: A type or several; ``[shape]`` for a list; ``{str: shape}`` for a mapping, or ``{key: shape}`` for one
            whose keys are known; what is missing counts as None.

    >>> fits({"a": [1, 2]}, {"a": [int]}), fits({"a": "x"}, {"a": [int]}), fits({"b": 1}, {str: int})
    (True, False, True)
    """
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(v, shape[0]) for v in value)
    if not isinstance(shape, dict):
        return isinstance(value, shape)
    if not isinstance(value, dict):
        return False
    if str in shape:
        return all(fits(v, shape[str]) for v in value.values())
    return all(fits(value.get(key), inner) for key, inner in shape.items())


def finite(value: Any) -> Any:
    """The same tree of plain types, without the numbers that JSON lacks.

    >>> finite({"val/auroc": float("nan"), "steps": [1, 2.5]})
    {'val/auroc': None, 'steps': [1, 2.5]}
    """
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def environment() -> dict[str, Any]:
    """Versions, platform and the commit of the working folder: what one needs to run it again."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        # not platform.platform(), which starts a process to ask for the processor and drops it
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
        "git_commit": git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def git_commit() -> str | None:
    """Commit of the working folder, with ``-dirty`` where files were changed; None outside a repository."""
    try:
        described = subprocess.run(
            # the working folder may be anybody's: its git config must not name a program to run
            ["git", "-c", "core.fsmonitor=false", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None if described.returncode == 0 else None


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys, as they are written on the command line.

    >>> flat({"optimizer": {"lr": 2e-05, "init_args": {}}, "logger": ["csv"]})
    {'optimizer.lr': 2e-05, 'optimizer.init_args': {}, 'logger': ['csv']}
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return found
