"""Predictions on disk while they are made: input order, on any number of ranks, memory flat in the number of rows."""

import csv
import heapq
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch.callbacks import Callback

from lit_tune.errors import ConfigError

FORMATS = (".jsonl", ".csv", ".parquet")
PARQUET_ROWS = 10_000
"""Rows per row group: what is kept in memory while a parquet file is written."""


def check_output(path: Path) -> None:
    """Refuse a file type that is not written.

    Raises:
        ConfigError: Not .jsonl, .csv or .parquet.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"{path} has no known file type", where="--output", fix=f"a name that ends in {', '.join(FORMATS)}"
        )


class PredictionWriter(Callback):
    """Writes what ``predict_step`` returns.

    Each rank appends its rows, whose numbers only grow, to a part file; rank zero merges the parts by row number.

    Args:
        path: Ends in ``.jsonl``, ``.csv`` or ``.parquet``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part: IO[str] | None = None
        self.num_rows = 0

    def part(self, rank: int) -> Path:
        """The part file of a rank, beside the output."""
        return self.path.with_name(f".{self.path.name}.part{rank}")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open this rank's part."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._part = self.part(trainer.global_rank).open("w", encoding="utf-8")

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the batch."""
        assert self._part is not None
        self._part.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in outputs)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Merge, rename into place, clean up."""
        if self._part is not None:
            self._part.close()
            self._part = None
        trainer.strategy.barrier("predictions written")
        if trainer.is_global_zero:
            parts = [self.part(rank) for rank in range(trainer.world_size)]
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            self.num_rows = write_records(merge(parts), temporary, self.path.suffix)
            temporary.replace(self.path)
            for part in parts:
                part.unlink()
        trainer.strategy.barrier("predictions merged")


def merge(parts: list[Path]) -> Iterator[dict[str, Any]]:
    """Records of several files, each sorted by row, as one sorted stream."""
    yield from heapq.merge(*(read_lines(p) for p in parts), key=lambda record: record["row"])


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of one file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def write_records(records: Iterator[dict[str, Any]], path: Path, suffix: str) -> int:
    """Write a stream of records; returns how many.

    csv and parquet get one column per class (``probability/<name>``), and lists of labels joined by ``|`` in csv.
    """
    if suffix == ".jsonl":
        return write_jsonl(records, path)
    return write_csv(map(flat, records), path) if suffix == ".csv" else write_parquet(map(flat, records), path)


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """One level of columns.

    >>> flat({"row": 0, "label": "a", "probabilities": {"a": 0.9, "b": 0.1}})
    {'row': 0, 'label': 'a', 'probability/a': 0.9, 'probability/b': 0.1}
    """
    columns = {k: v for k, v in record.items() if k != "probabilities"}
    return columns | {f"probability/{name}": p for name, p in record.get("probabilities", {}).items()}


def write_jsonl(records: Iterator[dict[str, Any]], path: Path) -> int:
    """One JSON object per line."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_csv(rows: Iterator[dict[str, Any]], path: Path) -> int:
    """Comma-separated with a header."""
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, fieldnames=list(row))
                writer.writeheader()
            writer.writerow({k: "|".join(v) if isinstance(v, list) else v for k, v in row.items()})
            count += 1
    return count


def write_parquet(rows: Iterator[dict[str, Any]], path: Path) -> int:
    """Row groups of bounded size."""
    count = 0
    writer: pq.ParquetWriter | None = None
    buffer: list[dict[str, Any]] = []

    def flush() -> None:
        nonlocal writer
        table = pa.Table.from_pylist(buffer, schema=writer.schema if writer else None)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
        buffer.clear()

    for row in rows:
        buffer.append(row)
        count += 1
        if len(buffer) == PARQUET_ROWS:
            flush()
    if buffer or writer is None:
        flush()
    assert writer is not None
    writer.close()
    return count
