"""Some rows through the tokenizer: how long texts are, and batches to try the model on."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_tune.data.loader import collate
from lit_tune.data.split import Split
from lit_tune.data.splits import subset
from lit_tune.data.texts import longest_rows
from lit_tune.data.truncation import COUNT, TokenCounts, count_columns, counts_of
from lit_tune.datamodule import TokenizedDataModule
from lit_tune.tasks.base import Batch, Features
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

    def rows(self, start: int, count: int) -> list[dict[str, Any]]:
        """Some of them, one by one."""
        names = [name for name in self.features if not name.startswith(COUNT)]
        columns = [self.features[name][start : start + count] for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


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
    return Sample(features, counts_of(counts, reader.max_length))


def trial_batches(datamodule: TokenizedDataModule, train: Split, drawn: Sample, count: int) -> list[Batch]:
    """The batch of the longest rows first, then usual ones."""
    size, columns = datamodule.train_batch_size, datamodule.task.input_columns()
    longest = train.select(longest_rows(train, columns, size))
    widest = encoded(datamodule, train, {name: longest.rows[name][:] for name in longest.column_names})  # type: ignore[index]
    collator = datamodule.collator()
    groups = [widest.rows(0, size)]
    groups += [drawn.rows(start, size) for start in range(0, count * size, size)]
    return [collate(group, list(range(len(group))), collator) for group in groups if group]
