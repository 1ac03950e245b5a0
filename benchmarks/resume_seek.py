"""How long does a resumed run look for its place? From making the loader to its first batch, at step 0 and far inside.

    python benchmarks/resume_seek.py [--rows 10000000] [--step 100000] [--repeats 3] [--folder .]
        [--json FILE] [--markdown] [--quick]

A memory-mapped data set of so many rows of 8 tokens is written once. Then, in turns, the median of the repeats: the
loader that lit-tune trains with (batch 16, its own shuffled order), and a DataLoader with shuffling whose batches
before the place are read and thrown away, which is what a loader without a position has to do (2,000 batches are
timed, the rest is proportional). Both make the order of all rows, which takes most of the time at step 0. About a
minute and 0.5 GB of disk.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from exactness import aligned
from torch.utils.data import DataLoader

from lit_tune.data.collators import Padding, TextCollator
from lit_tune.data.loader import BatchLoader, EncodedRows, identity
from lit_tune.data.samplers import TrainBatchSampler
from lit_tune.data.units import WholeRows

BATCH, TOKENS, CHUNK = 16, 8, 1_000_000
MOST_READ = 2_000
COLLATOR = TextCollator(Padding(pad_token_id=0), "class", 2)


def write_rows(path: Path, count: int) -> datasets.Dataset:
    """Rows of random tokens, memory-mapped."""
    schema = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.int64()})
    random = np.random.default_rng(0)
    with pa.ipc.new_stream(path, schema) as writer:
        for start in range(0, count, CHUNK):
            size = min(CHUNK, count - start)
            tokens = pa.array(random.integers(1, 1000, size * TOKENS, dtype=np.int32))
            ids = pa.ListArray.from_arrays(pa.array(np.arange(size + 1, dtype=np.int32) * TOKENS), tokens)
            writer.write_batch(pa.record_batch([ids, pa.array(np.arange(size) % 2)], schema=schema))
    return datasets.Dataset.from_file(str(path))


def ours(rows: datasets.Dataset, step: int) -> list[int]:
    """The first rows a resumed run of lit-tune trains on."""
    loader = BatchLoader(WholeRows(rows), TrainBatchSampler(len(rows), BATCH, 1, 1, 0, seed=42), COLLATOR)
    loader.load_state_dict({"epoch": 0, "batch": step})
    return next(iter(loader))["example_ids"]


def reading_on(rows: datasets.Dataset, step: int) -> list[int]:
    """The same of a shuffling loader without a position."""
    order = torch.Generator().manual_seed(42)
    batches = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(rows, generator=order), BATCH, False)
    loader: Any = DataLoader(EncodedRows(WholeRows(rows), COLLATOR), batch_sampler=batches, collate_fn=identity)
    for i, batch in enumerate(loader):
        if i == step:
            return batch["example_ids"]
    raise ValueError(f"there are fewer than {step} batches")


def seconds(first_batch: Callable[[datasets.Dataset, int], list[int]], rows: datasets.Dataset, step: int) -> float:
    """Time to the first batch."""
    started = time.perf_counter()
    assert len(first_batch(rows, step)) == BATCH
    return time.perf_counter() - started


def measure(rows: datasets.Dataset, step: int, repeats: int) -> list[dict[str, Any]]:
    """One line per way: medians at step 0 and at ``step``."""
    ways = {"lit-tune": (ours, step), "reading on from the beginning": (reading_on, min(step, MOST_READ))}
    lines = []
    for name, (way, place) in ways.items():
        seconds(way, rows, 0)  # warm-up: page cache, imports
        pairs = [(seconds(way, rows, 0), seconds(way, rows, place)) for _ in range(repeats)]
        at_0, at_place = (statistics.median(column) for column in zip(*pairs, strict=True))
        more = (at_place - at_0) * step / place  # step is place for lit-tune
        lines.append({"loader": name, "at_0_seconds": at_0, "at_step_seconds": at_0 + more, "difference_seconds": more})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--step", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--quick", action="store_true", help="10,000 rows, step 500, once")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.step, args.repeats = 10_000, 500, 1
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        rows = write_rows(Path(scratch) / "rows.arrow", args.rows)
        lines = measure(rows, args.step, args.repeats)
    header = ["loader", "first batch at step 0", f"at step {args.step:,}", "difference"]
    cells = [[x["loader"], *(f"{x[k]:.2f} s" for k in list(x)[1:])] for x in lines]
    print(f"{args.rows:,} memory-mapped rows, batch {BATCH}, torch {torch.__version__}\n")
    print(aligned([header, *cells], args.markdown))
    if args.json:
        args.json.write_text(json.dumps({"rows": args.rows, "step": args.step, "lines": lines}, indent=2) + "\n")


if __name__ == "__main__":
    main()
