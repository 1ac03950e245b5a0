"""Some rows through the tokenizer: how long texts are, and batches to try the model on."""

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from lit_tune.data.loader import collate
from lit_tune.data.split import Split
from lit_tune.data.splits import subset
from lit_tune.data.texts import longest_rows
from lit_tune.data.truncation import COUNT, TokenCounts, count_columns, counts_of
from lit_tune.data.units import Units
from lit_tune.datamodule import TokenizedDataModule
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.base import Batch, Features, Task
from lit_tune.tasks.encoding import class_labels, encode_batch

SAMPLE_ROWS = 2000
SAMPLE_CHARS = 4_000_000
"""Fewer rows of long texts: about two seconds of tokenizing."""


@dataclass(frozen=True)
class Sample:
    """Encoded rows of a split.

    Args:
        features: Column -> values.
        counts: Their lengths.
    """

    features: Features
    counts: TokenCounts

    def units(self, task: Task, reader: TextReader) -> Units:
        """What training draws from these rows."""
        stored = {name: values for name, values in self.features.items() if not name.startswith(COUNT)}
        return task.units(datasets.Dataset.from_dict(stored), True, reader)

    def batches(self, task: Task, reader: TextReader, size: int, count: int) -> list[list[dict[str, Any]]]:
        """The first batches that training would make of these rows, in their order."""
        units = self.units(task, reader)
        starts = range(0, min(len(units), size * count), size)
        return [units.read(range(start, min(start + size, len(units)))) for start in starts]


def sample(datamodule: TokenizedDataModule, split: Split) -> Sample:
    """A seeded draw from a split, encoded."""
    chosen = subset(len(split), SAMPLE_ROWS, datamodule.seed)
    total, kept = 0, []
    texts = split.select(chosen).rows
    for batch in texts.iter(batch_size=100):
        kept.append(batch)
        total += sum(len(str(v)) for c in datamodule.task.input_columns() for v in batch[c])
        if total > SAMPLE_CHARS:
            break
    rows = {name: [v for batch in kept for v in batch[name]] for name in kept[0]}
    return encoded(datamodule, split, rows)


def encoded(datamodule: TokenizedDataModule, split: Split, rows: dict[str, list[Any]]) -> Sample:
    """Raw rows through ``Task.encode``."""
    spec, reader = datamodule.spec, datamodule.reader
    assert spec is not None
    features = encode_batch(rows, datamodule.task, reader.tokenizer, spec, reader.max_length, class_labels(split))
    counts = {name: np.asarray(features[name]) for name in count_columns(list(features))}
    return Sample(features, counts_of(counts, datamodule.task.cut_at(reader.max_length)))


def trial_batches(datamodule: TokenizedDataModule, train: Split, drawn: Sample, count: int) -> list[Batch]:
    """The batch of the longest rows first, then usual ones."""
    size, columns = datamodule.train_batch_size, datamodule.task.input_columns()
    longest = train.select(longest_rows(train, columns, size))
    widest = encoded(datamodule, train, {name: longest.rows[name][:] for name in longest.column_names})  # type: ignore[index]
    collator, of = datamodule.collator(), (datamodule.task, datamodule.reader)
    groups = widest.batches(*of, size, 1) + drawn.batches(*of, size, count)
    return [collate(group, list(range(len(group))), collator) for group in groups]
