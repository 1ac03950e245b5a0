"""Which files a config means: paths and globs, and the one format they share."""

import glob
import os
from collections.abc import Sequence

from lit_tune.errors import DataError, nearest

KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".conll": "conll",
    ".iob2": "conll",
    ".bio": "conll",
}
"""File ending (before ``.gz``) -> format."""


def find_files(paths: str | Sequence[str], key: str) -> list[str]:
    """Resolve paths and globs, in the order given, globs sorted.

    Raises:
        DataError: Nothing there (with the nearest names), a folder, a URL, or a file named twice.
    """
    found: list[str] = []
    for given in [paths] if isinstance(paths, str) else paths:
        path = os.path.expanduser(given)
        if os.path.isfile(path):
            found.append(path)
            continue
        if os.path.isdir(path):
            fix = f"{key}: {os.path.join(given, '*.csv')} (a glob), or data.dataset for a folder saved by datasets"
            raise DataError(f"{given} is a folder", where=key, fix=fix)
        if "://" in given:
            raise DataError(
                f"{given} is an address, not a file", where=key, fix="download it first, or use data.dataset"
            )
        matches = sorted(m for m in glob.glob(path, recursive=True) if os.path.isfile(m))
        if not matches:
            raise _nothing_there(given, path, key)
        found += matches
    twice = sorted({path for path in found if found.count(path) > 1})
    if twice or not found:
        raise DataError(
            f"file {twice[0]} is named twice" if twice else "no files given", where=key, fix="name each file once"
        )
    return found


def _nothing_there(given: str, path: str, key: str) -> DataError:
    folder, name = os.path.split(path)
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    names = sorted(n for n in os.listdir(folder or ".") if not n.startswith("."))
    near = nearest(name, names)
    if near:
        fix = f"{key}: {os.path.join(folder, near)}"
    else:
        fix = f"choose from {folder or 'the current folder'}: {', '.join(names[:8]) or 'it is empty'}"
    is_glob = glob.has_magic(path)
    return DataError(
        f"{'glob' if is_glob else 'file'} {given} {'matches nothing' if is_glob else 'does not exist'}",
        where=key,
        fix=fix,
    )


def common_kind(paths: list[str], key: str) -> str:
    """The one format of all files.

    Raises:
        DataError: An unknown ending, or several formats.
    """
    kinds: dict[str, str] = {}
    for path in paths:
        ending = os.path.splitext(path.lower().removesuffix(".gz"))[1]
        if ending not in KINDS:
            allowed = ", ".join(KINDS)
            raise DataError(
                f"{path} has the ending {ending!r}; known are {allowed}, plain or .gz", where=key, fix="convert it"
            )
        kinds.setdefault(KINDS[ending], path)
    if len(kinds) > 1:
        mixed = ", ".join(f"{kind} ({path})" for kind, path in kinds.items())
        raise DataError(f"files of several formats: {mixed}", where=key, fix="convert them to one format")
    return next(iter(kinds))
