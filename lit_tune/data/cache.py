"""Tokenizing happens once: encoded splits on disk, under a key made of all that decides their content."""

import hashlib
import inspect
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from lit_tune.data.file_tables import quiet_datasets
from lit_tune.errors import StorageError

ENCODING_VERSION = 1
"""Raised whenever the code that encodes changes its output."""


def default_cache_dir() -> Path:
    """``$LIT_TUNE_CACHE``, else ``lit_tune`` in the user's cache folder."""
    fallback = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit_tune"
    return Path(os.environ.get("LIT_TUNE_CACHE") or fallback)


def digest(*parts: Any) -> str:
    """128 bits of a stable hash over plain data."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what the tokenizer does, not of where it was loaded from.

    Truncation and padding are left out: a call changes them inside the tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("truncation", None)
        state.pop("padding", None)
    else:
        state = {"vocab": tokenizer.get_vocab(), "init": repr(sorted(tokenizer.init_kwargs.items(), key=str))}
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    return digest(type(tokenizer).__name__, state, special, tokenizer.padding_side, tokenizer.truncation_side)


def code_fingerprint(task: object) -> str:
    """Version of the encoding code: ours by number, a user's own task by its source."""
    cls = type(task)
    source = "" if cls.__module__.startswith("lit_tune.") else inspect.getsource(cls)
    return digest(ENCODING_VERSION, cls.__qualname__, source)


def load(folder: Path) -> tuple[dict[str, datasets.Dataset], dict[str, Any]] | None:
    """The splits and notes of an entry, or None where there is none.

    ``meta.json`` is written last, and the folder is renamed into place: an entry that exists is complete.
    """
    meta = folder / "meta.json"
    if not meta.is_file():
        return None
    notes = json.loads(meta.read_text("utf-8"))
    return {name: datasets.load_from_disk(str(folder / name)) for name in notes["splits"]}, notes


def save(folder: Path, splits: dict[str, datasets.Dataset], notes: dict[str, Any]) -> None:
    """Write an entry; of two processes that write the same one, the first wins and the other's copy is dropped.

    Raises:
        StorageError: The cache folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as e:
        raise StorageError(
            f"cannot write the cache of tokenized data: {e.strerror}",
            where=str(folder.parent),
            fix="data.cache_dir: a folder you can write to, or set LIT_TUNE_CACHE",
        ) from e
    try:
        with quiet_datasets():
            for name, rows in splits.items():
                rows.save_to_disk(str(temporary / name))
        (temporary / "meta.json").write_text(json.dumps({**notes, "splits": list(splits)}, indent=1), "utf-8")
        temporary.rename(folder)
    except OSError as e:
        shutil.rmtree(temporary, ignore_errors=True)
        if not (folder / "meta.json").is_file():
            raise StorageError(
                f"cannot write the cache of tokenized data: {e.strerror}",
                where=str(folder),
                fix="free some space, or data.cache_dir: another folder",
            ) from e
