"""How long preflight looks at a million rows: ``python benchmarks/preflight.py [--rows N] [--json FILE]``.

Synthetic texts of 5 to 35 words (138 MB of csv, 161 MB of json lines for a million rows), three classes. Measured is
what ``lit-tune check`` does before it tokenizes: reading (with the check of every cell and the conversion to Arrow),
labels, null and empty texts, duplicates, the held-out split, leakage. Not measured: importing, tokenizing, trial steps.
Every run starts with an empty cache of ``datasets``, as with a new file.
"""

import argparse
import csv
import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
from transformers import BertConfig

from lit_tune.data.raw_data import RawData
from lit_tune.models.text_reader import TextReader
from lit_tune.preparation import Preparation
from lit_tune.tasks.sequence_classification import SequenceClassification


def write_rows(folder: Path, count: int) -> dict[str, Path]:
    """The same rows as csv and as json lines."""
    rng = random.Random(0)
    words = [f"w{i}" for i in range(30_000)]
    paths = {kind: folder / f"rows.{kind}" for kind in ("csv", "jsonl")}
    with paths["csv"].open("w", newline="") as table, paths["jsonl"].open("w") as lines:
        writer = csv.writer(table)
        writer.writerow(["text", "label"])
        for _ in range(count):
            row = {"text": " ".join(rng.choices(words, k=rng.randint(5, 35))), "label": rng.choice(["a", "b", "c"])}
            writer.writerow(row.values())
            lines.write(json.dumps(row) + "\n")
    return paths


def measure(path: Path, folder: Path) -> dict[str, float]:
    """Seconds by phase: ``read``, ``look`` and ``total``, as wall clock and (``cpu``) of all threads."""
    datasets.config.HF_DATASETS_CACHE = str(folder / f"cache_{path.suffix[1:]}")
    reader = TextReader("none")
    reader.__dict__["config"] = BertConfig()  # the rows are looked at without a model
    preparation = Preparation(
        task=SequenceClassification(),
        raw=RawData(files={"train": str(path)}, text_columns=("text",)),
        reader=reader,
        val_fraction=0.1,
        limits={},
        seed=42,
        new_head=False,
        num_workers=0,
        cache_dir=folder,
        stream_probe=0,
    )
    marks = [(time.perf_counter(), time.process_time())]
    problems: list = []
    raw = preparation.load_raw(("train", "val"), problems)
    marks.append((time.perf_counter(), time.process_time()))
    used = preparation.look_at(raw, problems)
    marks.append((time.perf_counter(), time.process_time()))
    assert sum(map(len, used.values())) == len(raw["train"])
    (t0, c0), (t1, c1), (t2, c2) = marks
    return {"read": t1 - t0, "look": t2 - t1, "total": t2 - t0, "cpu": c2 - c0, "cpu_read": c1 - c0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, path in write_rows(Path(name), arguments.rows).items():
            results[kind] = measure(path, Path(name))
    print(f"{arguments.rows:,} rows   {'read':>7} {'look':>7} {'total':>7} {'cpu':>7}   seconds")
    for kind, found in results.items():
        print(f"{kind:<14}   " + " ".join(f"{found[k]:7.2f}" for k in ("read", "look", "total", "cpu")))
    print(f"peak memory      {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": arguments.rows, "seconds": results}, indent=2))


if __name__ == "__main__":
    main()
