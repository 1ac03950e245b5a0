"""Rows through ``Task.encode``: what stored splits and streams have in common."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_tune.data.sources import class_label_names
from lit_tune.data.split import Split
from lit_tune.data.truncation import COUNT
from lit_tune.tasks.base import Features, Rows, Spec, Task


@dataclass(frozen=True)
class StreamEncoder:
    """Encodes rows of a stream; plain parts, so that worker processes can pickle it.

    Args:
        stream: Names the place of a row.
        task: The task.
        tokenizer: With a pad token.
        spec: The labels.
        max_length: Tokens at which a text is cut.
    """

    stream: Split
    task: Task
    tokenizer: Any
    spec: Spec
    max_length: int

    def __call__(self, rows: Rows, positions: list[int]) -> Features:
        """Features of some rows.

        Args:
            rows: Column -> values.
            positions: The number of each row in the stream.

        Raises:
            DataError: A row that cannot be used, with its place. Rows are only looked at one by one when encoding
                fails: a good stream is not checked twice.
        """
        labels = class_labels(self.stream)
        try:
            features = encode_batch(rows, self.task, self.tokenizer, self.spec, self.max_length, labels)
        except Exception:
            singles = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
            self.task.check(self.stream.table(singles, np.array(positions)), self.spec)
            raise
        return {name: values for name, values in features.items() if not name.startswith(COUNT)}


def class_labels(split: Split) -> dict[str, list[str]]:
    """Columns of type ``ClassLabel`` -> their names. Numbered names (``0``, ``1`` ...) are no names."""
    named = {column: class_label_names(split, column) for column in split.rows.features or {}}
    return {column: names for column, names in named.items() if names and names != [str(i) for i in range(len(names))]}


def encode_batch(
    rows: Rows, task: Task, tokenizer: Any, spec: Spec, max_length: int, class_labels: dict[str, list[str]]
) -> Features:
    """A function of its own, so that worker processes can pickle it.

    Ids of a ``ClassLabel`` column become names first: two splits, or a model's head, may order them differently.
    """
    named = {c: [name_of(v, class_labels[c]) for v in rows[c]] for c in class_labels.keys() & rows.keys()}
    return task.encode({**rows, **named}, tokenizer, spec, max_length)


def name_of(value: Any, names: list[str]) -> Any:
    """The name of a class id, or of each id in a list; anything else stays what it is.

    >>> name_of(1, ["bad", "good"]), name_of([0, 1], ["bad", "good"]), name_of(-1, ["bad", "good"])
    ('good', ['bad', 'good'], -1)
    """
    if isinstance(value, list | tuple | np.ndarray):
        return [name_of(v, names) for v in value]
    is_id = isinstance(value, int | np.integer) and 0 <= value < len(names)
    return names[value] if is_id else value
