"""Tokenizing happens once: encoded splits on disk, under a key made of all that decides their content."""

import hashlib
import inspect
import json
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

import datasets
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from lit_tune.data.file_tables import quiet_datasets
from lit_tune.errors import StorageError

log = logging.getLogger("lit_tune")
FIX = "data.cache_dir: a folder you can write to with room for it, or set LIT_TUNE_CACHE"
ENCODING_VERSION = 2
"""Raised whenever the code that encodes changes its output."""


def default_cache_dir() -> Path:
    """``$LIT_TUNE_CACHE``, else ``lit_tune`` in the user's cache folder.

    Raises:
        StorageError: Nothing is set and the user has no home.
    """
    if named := os.environ.get("LIT_TUNE_CACHE"):
        return Path(named)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "lit_tune"
    try:
        return Path.home() / ".cache" / "lit_tune"
    except RuntimeError as e:  # a user id without an entry in passwd, as containers like to run
        raise StorageError(
            "this user has no home folder to keep tokenized data in", where="data.cache_dir", fix=FIX
        ) from e


def digest(*parts: Any) -> str:
    """128 bits of a stable hash over plain data."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    # vocabularies of characters hold lone surrogates (CANINE's)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


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
    """Version of the encoding code: ours by number, a user's own task by the source of the modules it is made of.

    The whole module, because a method may call a function beside its class.
    """
    own = [c for c in type(task).__mro__ if c is not object and not c.__module__.startswith(("lit_tune.", "abc"))]
    return digest(ENCODING_VERSION, type(task).__qualname__, [source_of(c) for c in own])


def source_of(cls: type) -> str:
    """Source of the module a class stands in; typed at a prompt it has none, and its byte code serves."""
    module = sys.modules.get(cls.__module__)
    for thing in (module, cls):
        try:
            return inspect.getsource(thing)  # type: ignore[arg-type]
        except (OSError, TypeError):
            continue
    return repr({name: bytecode(f.__code__) for name, f in vars(cls).items() if hasattr(f, "__code__")})


def bytecode(code: CodeType) -> list[Any]:
    """What a function does, nested functions included, without the addresses that change from run to run."""
    constants = [bytecode(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), code.co_names, constants]


def load(folder: Path) -> tuple[dict[str, datasets.Dataset], dict[str, Any]] | None:
    """The splits and notes of an entry, or None where there is none.

    A folder is renamed into place when it is complete, so what does not load was damaged later: it is dropped, and made
    again.
    """
    if not folder.exists():
        return None
    try:
        with quiet_datasets():
            notes = json.loads((folder / "meta.json").read_text("utf-8"))
            return {name: datasets.load_from_disk(str(folder / name)) for name in notes["splits"]}, notes
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as e:
        log.warning("tokenized data in %s is damaged (%s) and is made again", folder, str(e).splitlines()[0][:100])
        shutil.rmtree(folder, ignore_errors=True)
        return None


@contextmanager
def draft(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` to work in, gone at the end; a process that is killed leaves it, and nobody reads it.

    Raises:
        StorageError: The cache cannot be written: no permission, no room.
    """
    # not tempfile's: its folders are closed to other users, and a cache may be shared
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir(parents=True)
        yield temporary
    except OSError as e:
        raise StorageError(
            f"cannot write the cache of tokenized data: {e.strerror or e}", where=str(folder.parent), fix=FIX
        ) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save(folder: Path, splits: dict[str, datasets.Dataset], notes: dict[str, Any], temporary: Path) -> None:
    """Write an entry; of two processes that write the same one, the first wins and the other's copy is dropped.

    Args:
        folder: Where the entry will be.
        splits: Encoded splits.
        notes: Plain data to keep with them.
        temporary: From :func:`draft`.

    Raises:
        OSError: It cannot be written; :func:`draft` explains it.
    """
    entry = temporary / "entry"
    with quiet_datasets():
        for name, rows in splits.items():
            rows.save_to_disk(str(entry / name))
    (entry / "meta.json").write_text(json.dumps({**notes, "splits": list(splits)}, indent=1), "utf-8")
    for path in entry.rglob("*"):  # after a power cut a renamed folder may else hold empty files
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    try:
        entry.rename(folder)
    except OSError:
        if not (folder / "meta.json").is_file():
            raise
