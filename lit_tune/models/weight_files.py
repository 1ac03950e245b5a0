"""The weights of a model as files: are they there, whole, and what they were, before any of them is loaded.

A safetensors file has no checksum of its own, so a flipped bit loads silently. Where somebody has told what the bytes
should be, they are hashed: the Hub (sha256 of large files) and a run of lit-tune (its manifest).
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import safe_open

from lit_tune.durable import fingerprint
from lit_tune.errors import ModelError
from lit_tune.models.load_errors import KEY, check_folder, explain

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class WeightFiles:
    """Where the weights are.

    Args:
        files: safetensors files on this machine; empty where they have to be downloaded first.
        download_bytes: What has to be downloaded.
    """

    files: list[Path]
    download_bytes: int = 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each tensor, from the files' headers."""
        found: dict[str, tuple[int, ...]] = {}
        for path in self.files:
            with safe_open(str(path), framework="pt") as tensors:
                found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        return found


def find_weights(name: str, revision: str | None) -> WeightFiles:
    """Find the weights of a model and read their headers; nothing is downloaded.

    Args:
        name: Hub id or folder.
        revision: Branch, tag or commit.

    Raises:
        ModelError: There are none in safetensors, a file is missing or damaged, or the Hub cannot be asked.
    """
    folder = Path(name)
    if folder.is_dir():
        if problem := check_folder(folder):
            raise problem
        return WeightFiles(sorted(folder.glob("*.safetensors")))
    try:
        cached = [try_to_load_from_cache(name, file, revision=revision) for file in (SINGLE, INDEX)]
    except HFValidationError as error:
        raise explain(error, name, revision) from error
    there = [Path(path) for path in cached if isinstance(path, str)]
    if not there:
        return _on_the_hub(name, revision)
    if problem := check_folder(there[0].parent):
        raise ModelError(problem.what, where=KEY, fix=f"delete {there[0].parent} and download the model again")
    return WeightFiles(sorted(there[0].parent.glob("*.safetensors")))


def verify(weights: WeightFiles, written: Mapping[str, str]) -> None:
    """Compare files with the hashes that are known of them. About 1.6 GB/s.

    Args:
        weights: The files.
        written: Of a run's export: file name -> xxh3_128.

    Raises:
        ModelError: A file is not what was published or written.
    """
    for path in weights.files:
        expected = _published(path)
        if expected is not None:
            with path.open("rb") as file:
                is_same = hashlib.file_digest(file, "sha256").hexdigest() == expected
        else:
            expected = written.get(path.name)
            is_same = expected is None or fingerprint(path).digest == expected
        if not is_same:
            raise ModelError(
                f"{path} is damaged: its bytes are not those that were written (hash {expected})",
                where=KEY,
                fix="delete it and copy or download it again",
            )


def _on_the_hub(name: str, revision: str | None) -> WeightFiles:
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    except Exception as error:
        raise explain(error, name, revision) from error
    files = {f.rfilename: f.size or 0 for f in info.siblings or []}
    weights = {n: size for n, size in files.items() if n.endswith(".safetensors") and "/" not in n}
    if not weights:
        raise explain(FileNotFoundError("no safetensors"), name, revision)
    return WeightFiles([], sum(weights.values()))


def _published(path: Path) -> str | None:
    """The sha256 the Hub gave: the name of the file in its cache, or a note beside a folder that `hf download` made."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    note = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    try:
        lines = note.read_text("utf-8").splitlines()
    except OSError:
        return None
    return lines[1] if len(lines) > 1 and _SHA256.fullmatch(lines[1]) else None
