"""Labels as they stand in files -> classes with ids, sets of classes, or numbers.

Pure functions on columns: a list, an array, or already :class:`Distinct`. A label is a string, an int, a bool or an
integral float (a class), a list of them (several classes at once) or any other number (a regression target). Nothing is
guessed silently: missing, mixed and unknown labels are errors that name the rows.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from lit_tune.data.distinct import Distinct, distinct
from lit_tune.data.places import NUM_PLACES, Locate, places
from lit_tune.errors import DataError, nearest

Column = Sequence[Any] | np.ndarray | Distinct
LabelKind = Literal["class", "multi", "number"]
NUM_NAMES_SHOWN = 10


def label_kind(values: Column, locate: Locate) -> LabelKind:
    """Say what kind of problem a label column poses.

    Args:
        values: The labels of the train split, one per row; at least one.
        locate: Row number -> ``file:row`` for messages.

    Returns:
        ``class`` for strings, ints, bools and integral floats, ``multi`` for lists of them, ``number`` otherwise.

    Raises:
        DataError: Missing labels (None, NaN, blank), labels of several types, or of a type that is no label.

    >>> label_kind(["pos", "neg"], str), label_kind([[0, 2], []], str), label_kind([1.0, 2.5], str)
    ('class', 'multi', 'number')
    """
    column = distinct(values)
    _refuse_missing(column, locate)
    types = [_type_of(v) for v in column.values]
    kinds = sorted(set(types))
    if len(kinds) > 1:
        _refuse_mixed(kinds, types, column, locate)
    if kinds == ["list"]:
        _refuse_bad_lists(column, locate)
        return "multi"
    if kinds not in (["text"], ["number"], ["true/false"]):
        shown = _shorten(column.values[0])
        raise DataError(
            f"a label is a {kinds[0]} such as {shown}; it may be text, a number, true/false or a list",
            where=locate(0),
            fix="give task.init_args.label_column a column of that kind",
        )
    if kinds == ["text"]:
        _refuse_numbers_with_words(column, locate)
    return "class" if kinds != ["number"] or all(float(v).is_integer() for v in column.values) else "number"


def canonical_name(value: Any) -> str:
    """The name of a class label: int 3, float 3.0 and csv text "3" are all "3".

    >>> canonical_name(3), canonical_name(3.0), canonical_name("3"), canonical_name(True)
    ('3', '3', '3', 'True')
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def class_names(values: Column, class_label_names: list[str] | None) -> list[str]:
    """Names of the classes in the order of their ids.

    Args:
        values: The labels of the train split; scalars or lists of them.
        class_label_names: The names of a ``datasets.ClassLabel`` column, whose order stands; else None.

    Returns:
        ClassLabel's own order; numbers by value; strings sorted; False before True.

    >>> class_names([10, 9, 10], None), class_names([["b"], ["a", "b"]], None), class_names([True], None)
    (['9', '10'], ['a', 'b'], ['False', 'True'])
    """
    if class_label_names is not None:
        return list(class_label_names)
    found = {label for value in distinct(values).values for label in (value if isinstance(value, list) else [value])}
    if any(isinstance(label, bool) for label in found):
        return ["False", "True"]
    return [canonical_name(label) for label in sorted(found)]


def encode_class_labels(
    values: Column,
    names: list[str],
    locate: Locate,
    known_from: str = "train",
    class_label_names: list[str] | None = None,
) -> np.ndarray:
    """Labels -> ids.

    Ints are looked up by name first. Where no name is an integer ("neg", "pos"), ints are ids into ``names``.

    Args:
        values: One label per row.
        names: Class names in the order of their ids, from :func:`class_names` or the config.
        locate: Row number -> ``file:row`` for messages.
        known_from: Where ``names`` come from, for messages.
        class_label_names: If this split's column is a ``datasets.ClassLabel``: its names; the values are ids into
            them. They are mapped by name, because two splits may order them differently.

    Returns:
        int64 ids, one per row.

    Raises:
        DataError: A missing label, one that is not in ``names``, or an id out of range.

    >>> encode_class_labels(["b", "a"], ["a", "b"], str).tolist()
    [1, 0]
    """
    column = distinct(values)
    _refuse_missing(column, locate)
    ids = _lookup(column.values, names, column.rows_where, locate, known_from, class_label_names)
    return np.array(ids, dtype=np.int64)[column.codes]


def encode_multi_labels(
    values: Column,
    names: list[str],
    locate: Locate,
    known_from: str = "train",
    class_label_names: list[str] | None = None,
) -> list[list[int]]:
    """Lists of labels -> sorted lists of ids; an empty list is a row without any label. Arguments: see above.

    Raises:
        DataError: A missing label, a row that is no list, a label twice in a row, an unknown label or id.

    >>> encode_multi_labels([["b", "a"], []], ["a", "b"], str)
    [[0, 1], []]
    """
    column = distinct(values)
    _refuse_missing(column, locate)
    scalars = column.rows_where([not isinstance(value, list) for value in column.values])
    if scalars:
        first = column.values[column.codes[scalars[0]]]
        raise DataError(
            f"a label is {_shorten(first)}, not a list of labels{_places(scalars, locate)}",
            fix="give every row a list, or set task.init_args.problem_type: single_label_classification",
        )
    _refuse_bad_lists(column, locate)
    labels = [label for value in column.values for label in value]
    owner = [i for i, value in enumerate(column.values) for _ in value]

    def rows_where(flags: Sequence[bool]) -> list[int]:
        flagged = {i for i, flag in zip(owner, flags, strict=True) if flag}
        return column.rows_where([i in flagged for i in range(len(column.values))])

    ids = iter(_lookup(labels, names, rows_where, locate, known_from, class_label_names))
    encoded = [sorted(next(ids) for _ in value) for value in column.values]
    return [encoded[code] for code in column.codes.tolist()]


def encode_numbers(values: Column, locate: Locate) -> np.ndarray:
    """Regression targets -> float64, one per row. Text that reads as a number (a streamed csv) counts as one.

    Raises:
        DataError: A missing target, one that is no number, NaN or infinity.

    >>> encode_numbers([1, 2.5, "3"], str).tolist()
    [1.0, 2.5, 3.0]
    """
    column = distinct(values)
    _refuse_missing(column, locate)
    numbers = [_number(v) for v in column.values]
    bad = [number is None or not math.isfinite(number) for number in numbers]
    if any(bad):
        first = column.values[bad.index(True)]
        raise DataError(
            f"target {_shorten(first)} is not a finite number{_places(column.rows_where(bad), locate)}",
            fix="correct or drop these rows, or set task.init_args.problem_type: single_label_classification",
        )
    return np.array(numbers, dtype=np.float64)[column.codes]


def is_unlabelled(values: Column) -> bool:
    """True if no row has a label: all -1 (as in GLUE's test splits) or all missing. Some missing is an error elsewhere.

    >>> is_unlabelled([-1, -1]), is_unlabelled([None, ""]), is_unlabelled([-1, 1]), is_unlabelled([[], []])
    (True, True, False, False)
    """
    found = distinct(values).values
    if not found:
        return False
    return all(map(_is_missing, found)) or all(not isinstance(v, list) and canonical_name(v) == "-1" for v in found)


def _is_missing(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _type_of(value: Any) -> str:
    # bool first: it is an int to Python
    for kind, name in ((bool, "true/false"), (str, "text"), (int | float, "number"), (list, "list")):
        if isinstance(value, kind):
            return name
    return type(value).__name__


def _shorten(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _places(rows: list[int], locate: Locate) -> str:
    """`` (train.csv:3, 9; 12 rows in all)``."""
    total = f"; {len(rows)} rows in all" if len(rows) > NUM_PLACES else ""
    return f" ({places(rows[:NUM_PLACES], locate)}{total})"


def _refuse_missing(column: Distinct, locate: Locate) -> None:
    is_missing = [_is_missing(v) or (isinstance(v, list) and any(map(_is_missing, v))) for v in column.values]
    if any(is_missing):
        missing = column.rows_where(is_missing)
        raise DataError(
            f"{len(missing)} of {len(column)} labels are missing{_places(missing, locate)}",
            fix="label these rows or drop them; rows without any label are given to `lit-tune predict`",
        )


def _refuse_mixed(kinds: list[str], types: list[str], column: Distinct, locate: Locate) -> None:
    found = []
    for kind in kinds:
        of_kind = column.rows_where([t == kind for t in types])
        first = column.values[types.index(kind)]
        found.append(f"{kind} such as {_shorten(first)} in {len(of_kind)} rows{_places(of_kind, locate)}")
    raise DataError(f"labels are of several types: {'; '.join(found)}", fix="write all labels in one way")


def _refuse_bad_lists(column: Distinct, locate: Locate) -> None:
    types = [_type_of(label) for value in column.values for label in value]
    kinds = sorted(set(types))
    if len(kinds) > 1:
        rows = column.rows()
        owner = [i for i, row in enumerate(rows) for _ in row]
        labels = distinct(label for row in rows for label in row)
        _refuse_mixed(kinds, [_type_of(v) for v in labels.values], labels, lambda i: locate(owner[i]))
    if kinds not in ([], ["text"], ["number"], ["true/false"]):
        raise DataError(
            f"a label list holds a {kinds[0]}; it may hold text or ints",
            where=locate(column.rows_where([bool(value) for value in column.values])[0]),
            fix="flatten the lists",
        )
    if kinds == ["number"]:
        broken = [not all(float(v).is_integer() for v in value) for value in column.values]
        if any(broken):
            raise DataError(
                f"a label list holds {_shorten(column.values[broken.index(True)])}: several numbers per row are not "
                f"supported{_places(column.rows_where(broken), locate)}",
                fix="give one number per row (regression), or lists of class names (multi-label)",
            )
    twice = [len({canonical_name(v) for v in value}) < len(value) for value in column.values]
    if any(twice):
        raise DataError(
            f"a label stands twice in {_shorten(column.values[twice.index(True)])}"
            f"{_places(column.rows_where(twice), locate)}",
            fix="list each label of a row once; a 0/1 vector must become the list of the labels that are 1",
        )


def _refuse_numbers_with_words(column: Distinct, locate: Locate) -> None:
    """Decimals with a few words between (``1.5, 2.5, NA``) are a regression column with holes, not classes."""
    numbers = [_number(v) for v in column.values]
    is_word = [n is None or not math.isfinite(n) for n in numbers]
    if not any(is_word) or all(word or float(n or 0).is_integer() for n, word in zip(numbers, is_word, strict=True)):
        return
    words = column.rows_where(is_word)
    if 2 * len(words) < len(column):
        first = column.values[is_word.index(True)]
        raise DataError(
            f"labels are decimal numbers except {_shorten(first)}{_places(words, locate)}",
            fix="correct or drop these rows",
        )


def _lookup(
    labels: list[Any],
    names: list[str],
    rows_where: Callable[[Sequence[bool]], list[int]],
    locate: Locate,
    known_from: str,
    class_label_names: list[str] | None,
) -> list[int]:
    """Ids of distinct labels. Raises DataError for an id out of range and for a label without a name in ``names``."""
    id_of = {name: i for i, name in enumerate(names)}
    ids_into = class_label_names
    if ids_into is None and not any(_is_integer(name) for name in names):
        ids_into = names
    found = [canonical_name(label) for label in labels]
    if ids_into is not None:
        is_id = [_is_integer(name) and (class_label_names is not None or name not in id_of) for name in found]
        outside = [is_id[i] and not 0 <= int(name) < len(ids_into) for i, name in enumerate(found)]
        if any(outside):
            raise DataError(
                f"label id {found[outside.index(True)]} is out of range: ids go from 0 ({ids_into[0]!r}) to "
                f"{len(ids_into) - 1} ({ids_into[-1]!r}){_places(rows_where(outside), locate)}",
                fix="correct or drop these rows",
            )
        found = [ids_into[int(name)] if is_id[i] else name for i, name in enumerate(found)]
    unknown = [name for name in found if name not in id_of]
    if unknown:
        rows = rows_where([name == unknown[0] for name in found])
        raise _unknown_label(unknown, rows, names, locate, known_from)
    return [id_of[name] for name in found]


def _is_integer(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _unknown_label(unknown: list[str], rows: list[int], names: list[str], locate: Locate, known_from: str) -> DataError:
    label, num_others = unknown[0], len(set(unknown)) - 1
    others = f", nor do {num_others} other labels" if num_others else ""
    shown = ", ".join(repr(n) for n in names[:NUM_NAMES_SHOWN])
    more = f", ... ({len(names)} in all)" if len(names) > NUM_NAMES_SHOWN else ""
    similar = nearest(label, names)
    guess = f"is {similar!r} meant? Else " if similar else ""
    return DataError(
        f"label {label!r} never occurs in {known_from}{_places(rows, locate)}{others}; known: {shown}{more}",
        fix=f"{guess}correct these rows, or add rows with this label to train",
    )
