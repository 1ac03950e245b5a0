"""What was noticed about the rows of a run: plain data, kept with what is tokenized."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lit_tune.data.quality import Overlap, TextQuality, overlap, text_quality
from lit_tune.data.split import Split
from lit_tune.data.texts import text_column
from lit_tune.tasks.base import Spec, Task


@dataclass(frozen=True)
class Examination:
    """The rows that are used, looked at.

    Args:
        texts: Split -> its texts.
        overlaps: Split -> the rows of it whose text also stands in train.
        label_counts: Split -> rows per class, in the order of the spec; nothing for splits without labels.
        is_sorted: A stream of classes whose first rows are one class after another.
    """

    texts: dict[str, TextQuality] = field(default_factory=dict)
    overlaps: dict[str, Overlap] = field(default_factory=dict)
    label_counts: dict[str, list[int]] = field(default_factory=dict)
    is_sorted: bool = False

    @property
    def val_overlap(self) -> float | None:
        """Share of val rows whose text also stands in train; None where there is no val."""
        return self.overlaps["val"].fraction if "val" in self.overlaps else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Examination":
        """The way back."""
        texts = {name: TextQuality(**found) for name, found in plain["texts"].items()}
        overlaps = {name: Overlap(**found) for name, found in plain["overlaps"].items()}
        return cls(texts, overlaps, plain["label_counts"], plain["is_sorted"])


def examine(task: Task, spec: Spec, used: Mapping[str, Split], train: str = "train") -> Examination:
    """Look at texts and labels; a million rows take seconds.

    Args:
        task: Names the columns.
        spec: The labels.
        used: The rows that are used, checked before.
        train: Which of them is trained on.
    """
    columns = task.input_columns()
    if task.skips_empty:
        used = {name: with_text(split, columns) for name, split in used.items()}
    labelled = {name: split for name, split in used.items() if not is_unlabelled(task, spec, split)}
    return Examination(
        texts={name: text_quality(split, columns, alike_in(task, split)) for name, split in used.items()},
        overlaps={name: overlap(used[train], split, columns) for name, split in used.items() if name != train},
        label_counts={name: task.label_counts(split, spec) for name, split in labelled.items()},
    )


def alike_in(task: Task, split: Split) -> list[str]:
    """The columns in which repetitions are alike: those with texts, as far as the split has them."""
    return [column for column in task.verbatim_columns() if column in split.column_names]


def with_text(split: Split, columns: Sequence[str]) -> Split:
    """The rows with a text in some of these columns."""
    is_blank = np.logical_and.reduce([text_column(split, column).is_blank for column in columns])
    return split.select(np.flatnonzero(~is_blank)) if is_blank.any() else split


def is_unlabelled(task: Task, spec: Spec, split: Split) -> bool:
    """Whether it is the test split of a benchmark, whose labels are secret."""
    return split.name == "test" and task.is_unlabelled(split, spec)


def is_sorted(classes: np.ndarray) -> bool:
    """Whether rows come class after class, where chance would mix them.

    Args:
        classes: (N,) class ids in the order of the rows.

    >>> is_sorted(np.repeat([0, 1], 500)), is_sorted(np.zeros(1000)), is_sorted(np.arange(1000) % 2)
    (True, True, False)
    """
    if len(classes) < 100:
        return False
    _, counts = np.unique(classes, return_counts=True)
    by_chance = len(classes) * (1.0 - float(((counts / len(classes)) ** 2).sum()))
    changes = int((classes[1:] != classes[:-1]).sum())
    return len(counts) == 1 or changes < 0.1 * by_chance
