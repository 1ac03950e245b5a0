"""Pairs of texts as they stand in files: what cannot be trained on is named with its place."""

import math
from collections.abc import Sequence

import numpy as np

from lit_tune.data import checks
from lit_tune.data.places import Locate, places
from lit_tune.data.split import Split
from lit_tune.data.texts import read_texts, text_hashes
from lit_tune.errors import DataError, raise_problems

COLUMNS_KEY, SCORE_KEY = "task.init_args.text_columns", "task.init_args.score_column"


def require(split: Split, columns: Sequence[str], score_column: str | None, loss: str) -> None:
    """Demand the columns.

    Args:
        split: The rows.
        columns: With texts.
        score_column: With the score, where there must be one.
        loss: As it is called in the config.

    Raises:
        DataError: One is missing.
    """
    keys = dict.fromkeys(columns, COLUMNS_KEY) | ({score_column: SCORE_KEY} if score_column else {})
    has = set(split.column_names)
    if loss == "contrastive" and not has & set(columns) and {"sentence1", "sentence2", "score"} <= has:
        raise DataError(
            "the rows are two sentences and a score, not an anchor and its positive",
            where=split.title,
            fix="task.init_args.loss: cosine",
        )
    checks.require_columns(split.column_names, list(keys), where=split.title, keys=keys)


def check_texts(split: Split, column: str, empty_allowed: bool) -> None:
    """Look at a column of texts.

    Raises:
        DataError: Nulls, what is no text, and texts without a character.
    """
    blank = np.flatnonzero(read_texts(split, column, COLUMNS_KEY).is_blank)
    if len(blank) and not empty_allowed:
        raise DataError(
            f"text in column {column!r} is empty in {len(blank)} row(s) ({places(blank, split.locate)})",
            fix="fill in or drop these rows",
        )


def check_negatives(split: Split, columns: Sequence[str]) -> None:
    """A hard negative is another text than anchor and positive, or no model could tell them apart.

    Raises:
        DataError: It is the same.
    """
    problems = []
    for negative in columns[2:]:
        for other in columns[:2]:
            same = np.flatnonzero(text_hashes(split, [negative]) == text_hashes(split, [other]))
            if len(same):
                what = f"{negative!r} is the same text as {other!r} in {len(same)} row(s)"
                problems.append(DataError(f"{what} ({places(same, split.locate)})", fix="correct or drop these rows"))
    raise_problems(list(problems))


def range_of(scores: np.ndarray, column: str) -> tuple[float, float]:
    """Least and greatest score, rounded outwards to whole numbers.

    Raises:
        DataError: All are the same.

    >>> range_of(np.array([0.2, 4.8]), "score"), range_of(np.array([1.0, 5.0]), "score")
    ((0.0, 5.0), (1.0, 5.0))
    """
    low, high = float(scores.min()), float(scores.max())
    if low == high:
        raise DataError(
            f"every row has the score {low:g}: there is nothing to learn", where=f"column {column}", fix="other data"
        )
    return float(math.floor(low)), float(math.ceil(high))


def check_range(scores: np.ndarray, limits: tuple[float, float], locate: Locate, column: str) -> None:
    """Scores of other splits, too, are on the scale of train.

    Raises:
        DataError: They are not.
    """
    outside = np.flatnonzero((scores < limits[0]) | (scores > limits[1]))
    if len(outside):
        low, high = min(limits[0], float(scores.min())), max(limits[1], float(scores.max()))
        raise DataError(
            f"{column!r} is {scores[outside[0]]:g}, outside {limits[0]:g} to {limits[1]:g} ({places(outside, locate)})",
            fix=f"correct these rows, or task.init_args.score_range: [{low:g}, {high:g}]",
        )
