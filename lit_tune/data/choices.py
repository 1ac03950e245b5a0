"""Choices of a question as they stand in files, and which of them the label means.

A row's choices are a list of texts, or ``{text: [...], label: [...]}`` where each has a name of its own (ARC,
CommonsenseQA). Another question may have another number of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_tune.data.places import NUM_PLACES, Locate, places
from lit_tune.errors import DataError, LitTuneError, raise_problems

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Choices:
    """The choices of one question.

    Args:
        texts: What they say, two or more.
        names: What they are called, where the file says so: ``A``, ``B`` ...
    """

    texts: list[str]
    names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def position(self, label: Any) -> int | None:
        """Which one a label means; None where it means none of them.

        It is looked for among the names, then read as a position from 0, then as a letter (``A`` is the first), then as
        the text of one choice.

        >>> three = Choices(["mud", "fog", "sun"])
        >>> three.position(1), three.position("1"), three.position("B"), three.position("fog"), three.position(3)
        (1, 1, 1, 1, None)
        >>> Choices(["mud", "fog"], ["1", "2"]).position("1")
        0
        """
        if isinstance(label, bool) or not isinstance(label, int | float | str):
            return None
        text = str(int(label)) if isinstance(label, float) and label.is_integer() else str(label).strip()
        if self.names is not None and text in self.names:
            return self.names.index(text)
        if text.isdecimal() and (self.names is None or not isinstance(label, str)):
            return int(text) if int(text) < len(self) else None
        if self.names is None and len(text) == 1 and text in LETTERS[: len(self)]:
            return LETTERS.index(text)
        return self.texts.index(text) if self.texts.count(text) == 1 else None


def read_choices(value: Any) -> Choices:
    """The choices of one row.

    Raises:
        ValueError: What is wrong with them; its second argument shows it in this row.

    >>> read_choices({"text": ["mud", "fog"], "label": ["A", "B"]})
    Choices(texts=['mud', 'fog'], names=['A', 'B'])
    """
    names = None
    if isinstance(value, dict) and "text" in value:
        names = value.get("label")
        value = value["text"]
    if value is None:
        raise ValueError("choices are null", "")
    if not isinstance(value, list):
        raise ValueError("choices are no list of texts", f": {str(value)[:40]!r}, a {type(value).__name__}")
    if len(value) < 2:
        raise ValueError("a question has fewer than two choices", f": {len(value)}")
    if None in value:
        raise ValueError("a choice is null", f": the {_nth(value.index(None))}")
    other = next((i for i, choice in enumerate(value) if not isinstance(choice, str)), None)
    if other is not None:
        raise ValueError("a choice is no text", f": {value[other]!r}, a {type(value[other]).__name__}")
    if names is not None:
        if not isinstance(names, list) or len(names) != len(value):
            raise ValueError("there is not one name for each choice", f": {names!r:.40}")
        names = [str(name) for name in names]
    return Choices(value, names)


def of_columns(cells: Sequence[Any]) -> list[Any]:
    """Choices that stand in a column each; empty cells at the end are choices that the row does not have.

    >>> of_columns(["mud", "fog", "", None]), of_columns(["mud", None, "fog"])
    (['mud', 'fog'], ['mud', None, 'fog'])
    """
    end = max((i + 1 for i, cell in enumerate(cells) if cell is not None and cell != ""), default=0)
    return list(cells[:end])


def require_choices(values: Sequence[Any], locate: Locate, fix: str) -> list[Choices]:
    """The choices of all rows.

    Args:
        values: What stands in the rows.
        locate: Row number -> ``file:row``.
        fix: What to do where they are no lists.

    Raises:
        DataError: Rows that cannot be used, each kind of fault with its places.
    """
    found: list[Choices] = []
    faults: dict[str, tuple[str, list[int]]] = {}
    for row, value in enumerate(values):
        try:
            found.append(read_choices(value))
        except ValueError as error:
            what, shown = error.args
            faults.setdefault(what, (shown, []))[1].append(row)
    raise_problems([_fault(what + shown, rows, locate, fix) for what, (shown, rows) in faults.items()])
    return found


def require_positions(labels: Sequence[Any], choices: Sequence[Choices], locate: Locate, column: str) -> np.ndarray:
    """(N,) which choice is right.

    Args:
        labels: As they stand in the rows.
        choices: Of the same rows.
        locate: Row number -> ``file:row``.
        column: Name of the column, for messages.

    Raises:
        DataError: A label is missing, or means none of the row's choices.
    """
    found = np.full(len(labels), -1, dtype=np.int64)
    missing: list[int] = []
    unknown: list[int] = []
    for row, (label, those) in enumerate(zip(labels, choices, strict=True)):
        position = those.position(label)
        if position is not None:
            found[row] = position
        else:
            (missing if _is_missing(label) else unknown).append(row)
    problems: list[LitTuneError] = []
    if missing:
        problems.append(_fault(f"{column!r} is missing", missing, locate, "fill in or drop these rows"))
    if unknown:
        row = unknown[0]
        among = choices[row].names or [f"0 to {len(choices[row]) - 1}"]
        what = f"{column!r} is {str(labels[row])[:40]!r}, none of its {len(choices[row])} choices"
        fix = f"one of {', '.join(among)}; or the text of a choice" + _counts_from_one(labels, choices)
        problems.append(_fault(what, unknown, locate, fix))
    raise_problems(problems)
    return found


def _counts_from_one(labels: Sequence[Any], choices: Sequence[Choices]) -> str:
    """A hint where the labels may begin with 1."""
    pairs = list(zip(labels, choices, strict=True))
    is_one_based = all(str(label).isdecimal() and 1 <= int(label) <= len(those) for label, those in pairs)
    return " (they seem to count from 1; subtract 1)" if is_one_based else ""


def _is_missing(label: Any) -> bool:
    return label is None or (isinstance(label, float) and math.isnan(label)) or str(label).strip() == ""


def _nth(index: int) -> str:
    return {0: "first", 1: "second", 2: "third"}.get(index, f"{index + 1}th")


def _fault(what: str, rows: list[int], locate: Locate, fix: str) -> DataError:
    total = f"; {len(rows)} in all" if len(rows) > NUM_PLACES else ""
    return DataError(f"{what} ({places(rows[:NUM_PLACES], locate)}{total})", fix=fix)
