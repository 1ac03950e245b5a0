"""Predictions on disk while they are made: input order, on any number of ranks, memory flat in the number of rows."""

import csv
import heapq
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch.callbacks import Callback

from lit_tune.errors import ConfigError, NumericsError, StorageError

FORMATS = (".jsonl", ".csv", ".parquet")
PARQUET_ROWS = 10_000
"""Rows per row group: what is kept in memory while a parquet file is written."""


def check_output(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is loaded.

    Raises:
        ConfigError: Not .jsonl, .csv or .parquet.
        StorageError: A folder, or in a folder that cannot be written.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"{path} has no known file type", where="--output", fix=f"a name that ends in {', '.join(FORMATS)}"
        )
    if path.is_dir():
        raise StorageError(f"{path} is a folder", where="--output", fix="the name of a file in it")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.probe")
        probe.touch()
        probe.unlink()


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """What the disk refuses becomes a :class:`StorageError`."""
    try:
        yield
    except OSError as e:
        raise StorageError(f"cannot be written: {e.strerror or e}", where=str(path), fix="another --output") from e


class Part:
    """A file of one rank's lines in the order of their row numbers.

    Args:
        path: The file.
        stretch: Rows come in any order, but the first so many before the next; so many are kept in memory at most.
    """

    def __init__(self, path: Path, stretch: int) -> None:
        self.stretch = stretch
        self._file: IO[str] = path.open("w", encoding="utf-8")
        self._lines: list[tuple[int, str]] = []

    def add(self, row: int, line: str) -> None:
        """Keep a line, and write those of the stretch before."""
        if self._lines and row // self.stretch != self._lines[0][0] // self.stretch:
            self.flush()
        self._lines.append((row, line))

    def flush(self) -> None:
        """Write what is kept."""
        self._file.writelines(line for _, line in sorted(self._lines))
        self._lines.clear()

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()


class PredictionWriter(Callback):
    """Writes what ``predict_step`` returns.

    Each rank appends its rows to a part file; rank zero merges the parts by row number.

    Args:
        path: Ends in ``.jsonl``, ``.csv`` or ``.parquet``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part: Part | None = None
        self.num_rows = 0

    def part(self, rank: int) -> Path:
        """The part file of a rank, beside the output."""
        return self.path.with_name(f".{self.path.name}.part{rank}")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open this rank's part."""
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            sampler = getattr(trainer.predict_dataloaders, "batch_sampler", None)
            self._part = Part(self.part(trainer.global_rank), getattr(sampler, "stretch", 1))

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the batch.

        Raises:
            NumericsError: The model's output is not a finite number.
        """
        assert self._part is not None
        try:
            lines = [(r["row"], json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n") for r in outputs]
        except ValueError as e:
            raise NumericsError(
                f"the model gives NaN or infinity in a batch with row {outputs[0]['row']}",
                where="model",
                fix="check the weights; trainer.precision: 32-true if it is lower",
            ) from e
        with storage_errors(self.path):
            for row, line in lines:
                self._part.add(row, line)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Merge, rename into place, clean up."""
        if self._part is not None:
            with storage_errors(self.path):
                self._part.flush()
                self._part.close()
            self._part = None
        trainer.strategy.barrier("predictions written")
        if trainer.is_global_zero:
            parts = [self.part(rank) for rank in range(trainer.world_size)]
            with storage_errors(self.path):
                self.num_rows = write_records(merge(parts), self.temporary, self.path.suffix)
                self.temporary.replace(self.path)
                for part in parts:
                    part.unlink()
        trainer.strategy.barrier("predictions merged")

    @property
    def temporary(self) -> Path:
        """Where the parts are merged."""
        return self.path.with_name(f".{self.path.name}.tmp")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave no parts behind."""
        if self._part is not None:
            self._part.close()
            self._part = None
        with suppress(OSError):  # the first error is the one to tell
            self.part(trainer.global_rank).unlink(missing_ok=True)
            if trainer.is_global_zero:
                self.temporary.unlink(missing_ok=True)


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

    csv and parquet get one column per class (``probability/<name>``). Lists of text are joined by ``|`` in csv; a list
    of anything else is JSON there, and in parquet a list of JSON texts.
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
            writer.writerow({k: joined(v) if isinstance(v, list) else v for k, v in row.items()})
            count += 1
    return count


def joined(values: list[Any]) -> str:
    """A list in one cell.

    >>> joined(["a", "b"]), joined([{"type": "PER"}]), joined([])
    ('a|b', '[{"type": "PER"}]', '')
    """
    is_text = all(isinstance(v, str) for v in values)
    return "|".join(values) if is_text else json.dumps(values, ensure_ascii=False)


def as_texts(values: list[Any]) -> list[str]:
    """The items of a list as text, those that are none as JSON: one type, however many there are."""
    return [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]


def parquet_schema(row: dict[str, Any]) -> pa.Schema:
    """Types by what a record holds: inferred ones fail where all lists of the first row group are empty."""
    types = {int: pa.int64(), float: pa.float64(), str: pa.string(), list: pa.list_(pa.string())}
    return pa.schema([(name, types[type(value)]) for name, value in row.items()])


def write_parquet(rows: Iterator[dict[str, Any]], path: Path) -> int:
    """Row groups of bounded size."""
    count = 0
    writer: pq.ParquetWriter | None = None
    buffer: list[dict[str, Any]] = []

    def flush() -> None:
        nonlocal writer
        writer = writer or pq.ParquetWriter(path, parquet_schema(buffer[0] if buffer else {}))
        writer.write_table(pa.Table.from_pylist(buffer, schema=writer.schema))
        buffer.clear()

    for row in rows:
        buffer.append({k: as_texts(v) if isinstance(v, list) else v for k, v in row.items()})
        count += 1
        if len(buffer) == PARQUET_ROWS:
            flush()
    if buffer or writer is None:
        flush()
    assert writer is not None
    writer.close()
    return count
