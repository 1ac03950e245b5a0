"""The default run directory: the same data and model find the same run again."""

import re
from pathlib import PurePosixPath
from typing import Any

MAX_PART_CHARACTERS = 60
_UNTELLING = {"train", "training", "data", "dataset"}
_SUFFIXES = {".gz", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".txt"}


def run_dir_of(data: dict[str, Any], model: str) -> str:
    """``runs/<data>_<model>``.

    Args:
        data: The ``data`` section.
        model: ``model.model_name_or_path``.

    >>> run_dir_of({"dataset": "nyu-mll/glue", "name": "mrpc"}, "google/bert-base")
    'runs/glue-mrpc_bert-base'
    >>> run_dir_of({"train": "data/hikes/train.csv.gz"}, "./models/tiny/")
    'runs/hikes_tiny'
    """
    return f"runs/{_data_name(data)}_{_clean(PurePosixPath(model).name) or 'model'}"


def _data_name(data: dict[str, Any]) -> str:
    if data.get("dataset"):
        parts = [PurePosixPath(data["dataset"]).name, data.get("name")]
        return _clean("-".join(p for p in parts if p)) or "data"
    files = next((data[split] for split in ("train", "val", "test", "predict") if data.get(split)), None)
    if not files:
        return "data"
    path = PurePosixPath(files if isinstance(files, str) else files[0])
    stem = path.name
    while PurePosixPath(stem).suffix in _SUFFIXES:
        stem = PurePosixPath(stem).stem
    if _clean(stem).lower() in _UNTELLING | {""} and _clean(path.parent.name):
        stem = path.parent.name  # data/hikes/train.csv is about hikes
    return _clean(stem) or "data"


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:MAX_PART_CHARACTERS]
