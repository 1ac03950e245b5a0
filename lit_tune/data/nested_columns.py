"""Fields of columns: ``translation.en`` is what stands under ``en`` in a column ``translation`` of mappings."""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

import datasets

from lit_tune.data.split import Split


def with_fields(split: Split, wanted: Collection[str]) -> Split:
    """The split with the fields that are asked for as columns of their own; fields that are not there are left out.

    Args:
        split: Its rows.
        wanted: Names of columns, some of them with dots.
    """
    present = split.rows.column_names or []
    names = [name for name in wanted if "." in name and name not in present]
    if not names:
        return split
    if isinstance(split.rows, datasets.IterableDataset):
        return replace(split, rows=split.rows.map(partial(spread, names=names)))
    flat = split.rows.flatten()
    return replace(split, rows=flat) if any(name in flat.column_names for name in names) else split


def spread(row: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The fields of one row.

    >>> spread({"translation": {"en": "rain"}}, ["translation.en", "translation.de"])
    {'translation.en': 'rain'}
    """
    found = {}
    for name in names:
        value: Any = row
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            found[name] = value
    return found
