"""Files -> one table of raw rows per split, memory-mapped where the format allows, with a place for every row.

Reading is ``datasets``' work wherever it does it well; where it does not (ragged csv, numbers and dates in json), the
file is checked or parsed here. Every fault of a file is a DataError.
"""

import os
from collections.abc import Collection
from typing import Any

import datasets
import numpy as np
import xxhash

from lit_tune.data.conll_files import LINE
from lit_tune.data.file_content import check_content, reader_encoding
from lit_tune.data.file_paths import common_kind, find_files
from lit_tune.data.file_tables import concatenate, open_stream, read_table, with_numeric_columns
from lit_tune.data.hub import open_dataset
from lit_tune.data.split import Split
from lit_tune.data.txt_files import FILE, PARAGRAPH, TxtRows
from lit_tune.errors import ConfigError

_READER_VERSION = 1
"""Raise it when the same bytes give other rows: it is part of every fingerprint."""

HAVE_LINES = ("conll", PARAGRAPH)
"""Formats whose rows have several lines, and know on which they begin."""


def load_files(
    split: str,
    paths: str | list[str],
    *,
    delimiter: str | None,
    encoding: str,
    field: str | None,
    streaming: bool,
    text_columns: Collection[str] = (),
    txt_rows: TxtRows = "line",
) -> Split:
    """Read the files of one split.

    Args:
        split: ``train``, ``val``, ``test`` or ``predict``; names the config key in messages.
        paths: A path, a glob, or a list of them: all csv, tsv, json, jsonl (or ndjson), parquet, arrow, txt (column
            ``text``) or conll (one word per line), plain or .gz. A json file in SQuAD's layout is one row per question.
        delimiter: Column separator of a csv; default: comma, tab for tsv.
        encoding: Encoding of csv, json, txt and conll.
        field: Key of a json file that holds the array of rows.
        streaming: Give an ``IterableDataset``. Only the beginning of each file is checked; faults further on come up
            while iterating, for ``file_content.explain_read_error``. All columns of a csv stay text.
        text_columns: Columns of a csv that stay text even if every cell is a number.
        txt_rows: What is a row of a txt file.

    Returns:
        Rows in the order of files and lines. In a csv every cell is text, also ``NA`` and ``null``, unless the whole
        column is numbers; a blank cell is ``""``.

    Raises:
        ConfigError: An unknown encoding, or a delimiter that is not one character.
        DataError: Whatever is wrong with the files.
    """
    shown = find_files(paths, f"data.{split}")
    kind = common_kind(shown, f"data.{split}")
    reader_encoding(encoding)
    delimiter = _delimiter(delimiter, kind)
    for path in shown:
        check_content(path, kind, encoding)
    kind = kind if kind != "text" else {"line": kind, "paragraph": PARAGRAPH, "file": FILE}[txt_rows]
    options = [_READER_VERSION, kind, delimiter, reader_encoding(encoding), field, sorted(text_columns)]
    fingerprints = [_file_fingerprint(path, options, head_only=streaming) for path in shown]
    fingerprint = xxhash.xxh3_128_hexdigest("".join(fingerprints).encode())
    if streaming:
        stream = open_stream(shown, kind, delimiter, encoding, field, fingerprints)
        stream = stream.remove_columns(LINE) if kind in HAVE_LINES else stream
        return Split(stream, split, [(path, 0) for path in shown], fingerprint)
    parts = [
        read_table(path, kind, delimiter, encoding, field, cache_name)
        for path, cache_name in zip(shown, fingerprints, strict=True)
    ]
    lines = None
    if kind in HAVE_LINES:
        lines = np.concatenate([np.asarray(part[LINE][:]) for part in parts])
        parts = [part.remove_columns(LINE) for part in parts]
    rows = concatenate(parts, shown)
    if kind in ("csv", "tsv"):
        rows = with_numeric_columns(rows, text_columns)
    files = [(path, len(part)) for path, part in zip(shown, parts, strict=True)]
    return Split(rows, split, files, fingerprint, lines=lines)


def load_hub(
    split: str,
    dataset: str,
    *,
    name: str | None,
    revision: str | None,
    split_name: str | None,
    streaming: bool,
) -> Split | None:
    """Open one split of a Hub data set, or of a folder written by ``save_to_disk``.

    Args:
        split: ``train``, ``val`` or ``test``.
        dataset: Hub id or folder.
        name: Configuration, e.g. ``mrpc``.
        revision: Branch, tag or commit.
        split_name: What the data set calls the split; default: train; validation, val, dev or valid; test.
        streaming: Give an ``IterableDataset``.

    Returns:
        The split; None if the data set has none of the usual names and ``split_name`` is None.

    Raises:
        DataError: Not found, gated, offline, no such configuration or split, damaged files.
    """
    found = open_dataset(split, dataset, name, revision, split_name, streaming)
    if found is None:
        return None
    rows, own_name, fingerprint = found
    source = f"{dataset}/{name}[{own_name}]" if name else f"{dataset}[{own_name}]"
    return Split(rows, split, [], fingerprint, source)


def class_label_names(split: Split, column: str) -> list[str] | None:
    """Names of a ``datasets.ClassLabel`` column, or of a list of them, in the order of their ids; else None."""
    feature = (split.rows.features or {}).get(column)
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def _delimiter(delimiter: str | None, kind: str) -> str:
    if delimiter is None:
        return "\t" if kind == "tsv" else ","
    delimiter = "\t" if delimiter == r"\t" else delimiter  # '\t' in a shell or in single quotes
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise ConfigError(f"{delimiter!r} is not one character", where="data.delimiter", fix=r"e.g. ';' or \"\t\"")
    return delimiter


def _file_fingerprint(path: str, options: list[Any], head_only: bool) -> str:
    state = xxhash.xxh3_128(repr(options).encode())
    with open(path, "rb") as file:
        if head_only:
            state.update(f"{os.path.basename(path)} {os.path.getsize(path)}".encode())
            state.update(file.read(1 << 20))
        else:
            while block := file.read(1 << 22):
                state.update(block)
    return state.hexdigest()
