"""Data sets of the Hugging Face Hub, and folders that ``datasets`` wrote."""

import os
import re
from typing import Any

import datasets
import xxhash
import yaml
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

from lit_tune import hub_access
from lit_tune.data.file_content import explain_read_error
from lit_tune.data.file_tables import quiet_datasets
from lit_tune.errors import DataError, LitTuneError, nearest

USUAL_NAMES = {"train": ("train",), "val": ("validation", "val", "dev", "valid"), "test": ("test",)}
"""Our split -> what data sets call it."""

PLAIN_FORMATS = ("parquet", "csv", "json", "text", "arrow", "cache")
"""Builders of ``datasets`` that read rows and nothing else: no pickles, archives, media or scripts. ``cache`` is what a
Hub data set is read with offline."""

_HASHED_ROWS = 10_000
_README_CHARACTERS = 100_000


def open_dataset(
    split: str, dataset: str, name: str | None, revision: str | None, split_name: str | None, streaming: bool
) -> tuple[datasets.Dataset | datasets.IterableDataset, str, str] | None:
    """Open one split.

    Args:
        split: ``train``, ``val`` or ``test``.
        dataset: A Hub id, a folder written by ``save_to_disk``, or a folder laid out like a Hub repository.
        name: Configuration, e.g. ``mrpc``.
        revision: Branch, tag or commit.
        split_name: What the data set calls the split; default: the usual names.
        streaming: Give an ``IterableDataset``.

    Returns:
        Rows, the data set's own name of the split, fingerprint; None if there is no such split and none was named.

    Raises:
        DataError: Not found, gated, offline, no such configuration or split.
    """
    try:
        with quiet_datasets():
            if os.path.isfile(os.path.join(dataset, "dataset_dict.json")):
                return _from_saved(split, dataset, datasets.load_from_disk(dataset), split_name, streaming)
            if os.path.isfile(os.path.join(dataset, "state.json")):
                saved = datasets.load_from_disk(dataset)
                parts = datasets.DatasetDict({str(saved.split or "train"): saved})
                return _from_saved(split, dataset, parts, split_name, streaming)
            return _from_repository(split, dataset, name, revision, split_name, streaming)
    except LitTuneError:
        raise
    except Exception as error:
        raise _explain_hub_error(error, dataset, name, revision) from error


def content_fingerprint(rows: datasets.Dataset) -> str:
    """Hash of columns, types and values; the same however the rows are stored and chunked. About 1 GB/s."""
    state = xxhash.xxh3_128(repr(rows.features).encode())
    for table in rows.with_format("arrow").iter(batch_size=_HASHED_ROWS):
        for batch in table.combine_chunks().to_batches():
            state.update(memoryview(batch.serialize()))
    return state.hexdigest()


def _from_saved(
    split: str, dataset: str, parts: datasets.DatasetDict, split_name: str | None, streaming: bool
) -> tuple[Any, str, str] | None:
    found = choose_split(split, list(parts), split_name, dataset)
    if found is None:
        return None
    rows = parts[found]
    fingerprint = content_fingerprint(rows)
    return (rows.to_iterable_dataset() if streaming else rows), found, fingerprint


def _from_repository(
    split: str, dataset: str, name: str | None, revision: str | None, split_name: str | None, streaming: bool
) -> tuple[Any, str, str] | None:
    if dataset.startswith((".", "/", "~")) or dataset.count("/") > 1:  # cannot be a Hub id
        dataset = os.path.expanduser(dataset)
        if not os.path.isdir(dataset):
            folder = os.path.dirname(dataset.rstrip("/")) or "."
            near = nearest(os.path.basename(dataset), os.listdir(folder)) if os.path.isdir(folder) else None
            fix = f"data.dataset: {os.path.join(folder, near)}" if near else "check the path; for files use data.train"
            raise DataError(f"there is no folder {dataset}", where="data.dataset", fix=fix)
    if not os.path.isdir(dataset) and not hub_access.is_reachable():
        datasets.config.HF_HUB_OFFLINE = True
    refuse_distant_files(dataset)
    builder = datasets.load_dataset_builder(dataset, name, revision=revision)
    if builder.name not in PLAIN_FORMATS:
        raise DataError(
            f"its files are read by {builder.name!r}; rows come from parquet, csv, json, text and arrow files",
            where=dataset,
            fix="a copy in parquet, e.g. data.revision: refs/convert/parquet; or data.train for files",
        )
    available = [str(s) for s in (builder.info.splits or builder.config.data_files or {})]
    found = choose_split(split, available, split_name, dataset)
    if found is None:
        return None
    # without these, cells such as NA and None of a csv repository become null
    options = {"keep_default_na": False, "na_values": []} if builder.name == "csv" else {}
    rows = datasets.load_dataset(dataset, name, revision=revision, split=found, streaming=streaming, **options)
    if streaming:  # the builder's hash is the commit
        return rows, found, xxhash.xxh3_128_hexdigest(repr([dataset, builder.config_id, builder.hash, found]).encode())
    if len(rows) == 0:
        raise DataError(f"split {found!r} has no rows", where=dataset, fix="choose another split")
    return rows, found, content_fingerprint(rows)


def refuse_distant_files(folder: str) -> None:
    """A folder's README may name its files; ``datasets`` fetches what it names from anywhere, offline too (5.2).

    Raises:
        DataError: It names an address, or a file outside of the folder.
    """
    for name in ("README.md", ".huggingface.yaml"):
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            continue
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(_README_CHARACTERS)
        head = text.split("---\n")[1:2] if name == "README.md" else [text]
        try:
            card = yaml.safe_load(head[0]) if head else {}
        except (yaml.YAMLError, ValueError, RecursionError):
            card = text  # its every word
        named = card.get("configs") if isinstance(card, dict) else card
        if re.search(r"://|(?<![\w.])(?:/|~|\.\./)", str(named)):
            raise DataError("names files that are not in this folder", where=path, fix="data.train: the files")


def choose_split(split: str, available: list[str], split_name: str | None, dataset: str) -> str | None:
    """The data set's name of our split.

    Raises:
        DataError: ``split_name`` is given and not there, or several splits could be meant (``validation_matched``).
    """
    key = f"data.{split}_split"
    has = ", ".join(available) or "none"
    if split_name is not None:
        if split_name in available:
            return split_name
        near = nearest(split_name, available)
        raise DataError(
            f"{dataset} has no split {split_name!r}; it has {has}", where=key, fix=f"{key}: {near or '<split>'}"
        )
    for usual in USUAL_NAMES.get(split, ()):
        if usual in available:
            return usual
    variants = [s for s in available if split == "val" and s.startswith(USUAL_NAMES["val"])]
    if variants:
        raise DataError(
            f"{dataset} has no split 'validation' but {', '.join(variants)}", where=key, fix=f"{key}: {variants[0]}"
        )
    return None


def _explain_hub_error(error: Exception, dataset: str, name: str | None, revision: str | None) -> LitTuneError:
    chain: list[BaseException] = [error]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None and deeper not in chain:
        chain.append(deeper)
    where = "data.dataset"
    if isinstance(error, IndexError) and os.path.isdir(dataset):  # datasets 5.2 saves no file then, and trips over it
        return DataError("a split in it has no rows", where=dataset, fix="save it again without the empty split")
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if any(isinstance(e, GatedRepoError) for e in chain) or "gated dataset" in said:
        page = f"https://huggingface.co/datasets/{dataset}"
        return DataError(
            f"{dataset} is gated", where=where, fix=f"accept its terms on {page}, then run `hf auth login`"
        )
    if isinstance(error, DatasetNotFoundError) and said.startswith("Revision"):
        return DataError(
            f"{dataset} has no revision {revision!r}", where="data.revision", fix="a branch, tag or commit"
        )
    if isinstance(error, DatasetNotFoundError):
        fix = (
            f"check the spelling{_or_folder(dataset)}; if it is private, run `hf auth login`; for files use data.train"
        )
        return DataError(f"there is no data set {dataset} on the Hub, and no such folder", where=where, fix=fix)
    if isinstance(error, ConnectionError) or any(isinstance(e, OfflineModeIsEnabled) for e in chain):
        mode = " (offline mode: HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        fix = "connect once so that it is cached, or copy it here with `save_to_disk` and name the folder"
        fix += _or_folder(dataset)
        return DataError(f"{dataset} is not cached here and the Hub cannot be reached{mode}", where=where, fix=fix)
    if isinstance(error, ValueError) and ("BuilderConfig" in said or "Config name is missing" in said):
        listed = " ".join(str(error).split())
        listed = listed[listed.find("[") : listed.find("]") + 1][:300]
        what = f"{dataset} has no configuration {name!r}" if name else f"{dataset} has several configurations"
        return DataError(f"{what}; there are {listed}", where="data.name", fix="data.name: one of these")
    if isinstance(error, RuntimeError) and "scripts are no longer supported" in said:
        fix = "use a copy in parquet, e.g. data.revision: refs/convert/parquet"
        return DataError(f"{dataset} is a Python script, which is not run", where=where, fix=fix)
    if isinstance(error, datasets.data_files.EmptyDatasetError):
        return DataError(
            f"{dataset} holds no data files", where=where, fix="check the name, or use data.train for files"
        )
    if any(isinstance(e, HfHubHTTPError) for e in chain):
        fix = "try again later; check data.dataset and data.revision"
        return DataError(f"the Hub refused {dataset}: {said}", where=where, fix=fix)
    return explain_read_error(error, dataset, "a data set")


def _or_folder(name: str) -> str:
    """A folder here that the name most probably means, for the end of a remedy."""
    folder = os.path.dirname(name) or "."
    near = nearest(os.path.basename(name), os.listdir(folder)) if os.path.isdir(folder) else None
    return f"; or {os.path.join(os.path.dirname(name), near)}, here" if near else ""
