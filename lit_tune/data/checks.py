"""What can be known about raw rows before they are looked at: the columns."""

from collections.abc import Mapping, Sequence

from lit_tune.errors import DataError, nearest, raise_problems


def require_columns(available: Sequence[str], wanted: Sequence[str], where: str, keys: Mapping[str, str]) -> None:
    """Check that a split has the columns the task reads.

    Args:
        available: Columns of the split.
        wanted: Columns that must be there.
        where: File or data set, for messages.
        keys: Wanted column -> config key that names it, e.g. ``{"text": "task.init_args.text_columns"}``.

    Raises:
        DataError: A column is missing (several: all of them together).
    """
    problems = []
    for column in wanted:
        if column in available:
            continue
        similar = nearest(column, available)
        fix = f"set {keys[column]} to " + (f"{similar!r}, if that is meant" if similar else "one of these columns")
        has = ", ".join(repr(c) for c in available)
        problems.append(DataError(f"there is no column {column!r}; there are {has}", where=where, fix=fix))
    raise_problems(list(problems))
