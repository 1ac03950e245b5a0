"""One file -> one table of rows: by ``datasets`` (memory-mapped) where that keeps every value, else parsed here."""

import glob
import gzip
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from lit_tune.data.conll_files import parse_conll
from lit_tune.data.csv_files import check_csv
from lit_tune.data.file_content import explain_read_error, open_bytes, reader_encoding
from lit_tune.data.json_files import json_layout, parse_json_lines, read_json, rows_of_json
from lit_tune.data.squad_files import is_squad, squad_table
from lit_tune.data.txt_files import FILE, PARAGRAPH, parse_txt
from lit_tune.errors import DataError

# Text such as 007 or 12345678901234567890 is a name, not a number: only what reads back the same becomes one.
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_DECIMAL = r"^-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"

_STREAM_ROWS_CHECKED = 10_000


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep ``datasets`` from drawing progress bars and logging tracebacks of errors that we explain ourselves."""
    verbosity, had_bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled() is False
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if had_bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if had_bars:
            datasets.enable_progress_bars()


def _builder_options(kind: str, columns: list[str], delimiter: str, encoding: str) -> dict[str, Any]:
    """Arguments of ``datasets.load_dataset`` for a format; ``columns`` are a csv's."""
    if kind in ("csv", "tsv"):
        # all columns as text: pandas infers types per 10,000 rows, and one word in row 20,000 would break the read
        features = datasets.Features({name: datasets.Value("string") for name in columns})
        text = {"sep": delimiter, "encoding": reader_encoding(encoding)}
        return {"path": "csv", "features": features, "keep_default_na": False, "na_values": [], **text}
    if kind == "text":
        return {"path": "text", "encoding": reader_encoding(encoding)}
    if kind == "jsonl":
        return {"path": "json", "parse_agent_traces": False}  # else a column called "message" may change everything
    return {"path": kind}


def read_table(
    path: str, kind: str, delimiter: str, encoding: str, field: str | None, cache_name: str
) -> datasets.Dataset:
    """Read one file; ``cache_name`` is its fingerprint, so that an edited file never meets its old cache."""
    if kind == "conll":
        return _table_of(parse_conll(path, encoding), path)
    if kind in (PARAGRAPH, FILE):
        return _table_of(parse_txt(path, encoding, kind), path)
    if kind in ("json", "jsonl"):
        layout = "object" if field is not None else json_layout(path, encoding)
        if layout == "array" or (kind == "json" and layout == "object"):
            content = read_json(path, encoding)
            if field in (None, "data") and is_squad(content):
                return squad_table(content, path)
            return _table_of(rows_of_json(content, path, field), path)
        if reader_encoding(encoding) != "utf-8-sig":
            return _table_of(parse_json_lines(path, encoding), path)
        kind = "jsonl"
    columns = check_csv(path, delimiter, encoding) if kind in ("csv", "tsv") else []
    try:
        with quiet_datasets():
            options = _builder_options(kind, columns, delimiter, encoding)
            files = glob.escape(os.path.abspath(_unpacked(path, cache_name)))
            rows = datasets.load_dataset(**options, name=cache_name, data_files=files, split="train")
    except Exception as error:
        if kind == "jsonl":
            # a broken line raises with its number; else it was types that change along the file, which this reads
            return _table_of(parse_json_lines(path, encoding), path)
        raise explain_read_error(error, path, kind, encoding) from error
    if kind == "jsonl" and any(_is_time(feature) for feature in rows.features.values()):
        return _table_of(parse_json_lines(path, encoding), path)  # texts that look like dates stay texts
    if len(rows) == 0:
        raise DataError("file has no rows", where=path, fix="export it again")
    return rows


def _unpacked(path: str, cache_name: str) -> str:
    """The file itself, or what its gzip holds, in the cache of ``datasets``, which does not unpack every format."""
    with open_bytes(path) as packed:
        if not isinstance(packed, gzip.GzipFile):
            return path
        folder = os.path.join(datasets.config.HF_DATASETS_CACHE, "unpacked")
        target = os.path.join(folder, cache_name)
        if not os.path.exists(target):
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as draft:
                copy = os.path.join(draft, "copy")
                with open(copy, "wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
                os.utime(copy, (0, 0))  # datasets takes the time for part of the content
                os.replace(copy, target)
    return target


def open_stream(
    paths: list[str], kind: str, delimiter: str, encoding: str, field: str | None, cache_names: list[str]
) -> datasets.IterableDataset:
    """Read files as one stream. An error in the middle comes up while iterating: see ``explain_read_error``."""
    packed = any(path.lower().endswith(".gz") for path in paths)
    recoded = kind == "jsonl" and reader_encoding(encoding) != "utf-8-sig"
    if (
        kind in ("json", "conll", PARAGRAPH, FILE) or recoded or (packed and kind in ("parquet", "arrow", "text"))
    ):  # readable only as a whole
        parts = [
            read_table(path, kind, delimiter, encoding, field, name)
            for path, name in zip(paths, cache_names, strict=True)
        ]
        return concatenate(parts, paths).to_iterable_dataset()
    columns: list[str] = []
    if kind in ("csv", "tsv"):
        columns = check_csv(paths[0], delimiter, encoding, max_rows=_STREAM_ROWS_CHECKED)
        for path in paths[1:]:
            _same_columns(columns, check_csv(path, delimiter, encoding, max_rows=_STREAM_ROWS_CHECKED), paths[0], path)
    try:
        with quiet_datasets():
            options = _builder_options(kind, columns, delimiter, encoding)
            files = [glob.escape(os.path.abspath(path)) for path in paths]
            return datasets.load_dataset(**options, data_files=files, split="train", streaming=True)
    except Exception as error:
        raise explain_read_error(error, paths[0], kind, encoding) from error


def _table_of(records: list[dict[str, Any]], path: str) -> datasets.Dataset:
    columns = list(dict.fromkeys(name for record in records for name in record))
    full = [{name: record.get(name) for name in columns} for record in records]
    try:
        # columns of mixed types (1, "a") become Json, whose values come back as they were, for labels.py to judge
        return datasets.Dataset.from_list(full, on_mixed_types="use_json")
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise explain_read_error(error, path, "json") from error


def _is_time(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("timestamp", "date", "time"))


def concatenate(parts: list[datasets.Dataset], paths: list[str]) -> datasets.Dataset:
    """One table of all files; columns may be in another order, and ints beside decimals, but not more."""
    if len(parts) == 1:
        return parts[0]
    features = dict(parts[0].features)
    for part, path in zip(parts, paths, strict=True):
        _same_columns(list(features), list(part.features), paths[0], path)
        for name, feature in part.features.items():
            common = _common_type(features[name], feature)
            if common is None:
                what = f"column {name!r} is {_type_name(feature)} here and {_type_name(features[name])} in {paths[0]}"
                raise DataError(what, where=path, fix="write it in one way in all files of a split")
            features[name] = common
    target = datasets.Features(features)
    with quiet_datasets():
        alike = [part.select_columns(list(features)) for part in parts]
        return datasets.concatenate_datasets([p if p.features == target else p.cast(target) for p in alike])


def _same_columns(first: list[str], other: list[str], first_path: str, path: str) -> None:
    missing, added = [c for c in first if c not in other], [c for c in other if c not in first]
    if missing or added:
        lacks = f" lacks {', '.join(map(repr, missing))}" if missing else ""
        has = f" has {', '.join(map(repr, added))} besides" if added else ""
        what = f"columns differ from those of {first_path}: this file{lacks}{' and' if lacks and has else ''}{has}"
        raise DataError(what, where=path, fix="give all files of a split the same columns")


def _common_type(a: Any, b: Any) -> Any:
    """The type that holds both without loss of meaning, or None."""
    if a == b or _type_name(b) == "null":
        return a
    if _type_name(a) == "null":
        return b
    if isinstance(a, datasets.List) and isinstance(b, datasets.List):
        inner = _common_type(a.feature, b.feature)
        return None if inner is None else datasets.List(inner)
    if isinstance(a, datasets.Value) and isinstance(b, datasets.Value):
        for dtype, family in (
            ("int64", ("int",)),
            ("float64", ("int", "float")),
            ("string", ("string", "large_string")),
        ):
            if a.dtype.startswith(family) and b.dtype.startswith(family):
                return datasets.Value(dtype)
    return None


def _type_name(feature: Any) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else str(feature)[:80]


def with_numeric_columns(rows: datasets.Dataset, text_columns: Collection[str]) -> datasets.Dataset:
    """Columns of a csv whose every cell is a number become numbers (in memory); the others stay memory-mapped text."""
    numbers = {name: _as_numbers(rows.data[name]) for name in rows.column_names if name not in text_columns}
    found = {name: column for name, column in numbers.items() if column is not None}
    if not found:
        return rows
    in_memory = datasets.Dataset(pa.table(found))
    if len(found) == len(rows.column_names):
        return in_memory.select_columns(rows.column_names)
    joined = datasets.concatenate_datasets([rows.remove_columns(list(found)), in_memory], axis=1)
    return joined.select_columns(rows.column_names)


def _as_numbers(texts: pa.ChunkedArray) -> pa.ChunkedArray | None:
    for pattern, dtype in ((_INTEGER, pa.int64()), (_DECIMAL, pa.float64())):
        # most columns are told by their first rows
        if all(pc.all(pc.match_substring_regex(part, pattern)).as_py() for part in (texts.slice(0, 100), texts)):
            if dtype == pa.float64() and not pc.any(pc.match_substring_regex(texts, r"[.eE]")).as_py():
                return None  # integers of 19 digits and more: ids, which a float would round
            return pc.cast(texts, dtype)
    return None
