"""Rows of questions with answers, looked at before anything is tokenized."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lit_tune.data.answers import Answer, AnswerColumns, BadAnswersError
from lit_tune.data.places import NUM_PLACES, places
from lit_tune.data.split import Split
from lit_tune.data.squad_files import ID
from lit_tune.errors import DataError, LitTuneError

NUM_SAMPLES = 3
SAMPLE_CHARS = 40


@dataclass
class AnswersSeen:
    """What the answers of a split are like; numbers of rows.

    Args:
        is_answerable: (N,) bool: the question has an answer.
        bad: Row -> what is wrong with its cells.
        misaligned: Row -> the first answer that does not stand where it says, and the nearest place where it does.
        unusable: Rows of ``misaligned`` in which no answer can be placed.
        num_answers: Answers.
        num_misaligned: Answers that do not stand where they say.
    """

    is_answerable: np.ndarray
    bad: dict[int, str] = field(default_factory=dict)
    misaligned: dict[int, tuple[Answer, Answer | None]] = field(default_factory=dict)
    unusable: list[int] = field(default_factory=list)
    num_answers: int = 0
    num_misaligned: int = 0


def look_at_answers(split: Split, columns: AnswerColumns, context_column: str) -> AnswersSeen:
    """Read every answer, once; contexts are read a thousand at a time."""
    key = f"{columns} in {context_column}"
    if key not in split.list_columns:
        split.list_columns[key] = _look(split, columns, context_column)
    found: AnswersSeen = split.list_columns[key]
    return found


def _look(split: Split, columns: AnswerColumns, context_column: str) -> AnswersSeen:
    seen = AnswersSeen(np.zeros(len(split), dtype=bool))
    for number, row in enumerate(_rows(split, (*columns.names, context_column))):
        try:
            answers = columns.of(row)
        except BadAnswersError as error:
            seen.bad[number] = str(error)
            continue
        seen.is_answerable[number] = bool(answers)
        seen.num_answers += len(answers)
        context = row[context_column]
        if not isinstance(context, str):
            continue  # told by whoever looks at texts
        wrong = [answer for answer in answers if not answer.stands_in(context)]
        if wrong:
            seen.num_misaligned += len(wrong)
            seen.misaligned[number] = (wrong[0], wrong[0].nearest(context))
            if not any(answer.nearest(context) for answer in answers):
                seen.unusable.append(number)
    return seen


def placed(answers: list[Answer], context: str) -> Answer | None:
    """The first answer that the context has, at its place or the nearest one; None where it has none of them."""
    found = (answer if answer.stands_in(context) else answer.nearest(context) for answer in answers)
    return next((answer for answer in found if answer is not None), None)


def answer_problems(seen: AnswersSeen, split: Split, allow_none: bool, on_misaligned: str) -> list[LitTuneError]:
    """What makes rows unusable.

    Args:
        seen: The answers.
        split: Names the place of a row.
        allow_none: A question may have no answer.
        on_misaligned: ``error`` refuses answers that do not stand where they say.
    """
    problems: list[LitTuneError] = []
    if seen.bad:
        rows = list(seen.bad)
        what = f"{seen.bad[rows[0]]} ({_places(rows, split)})"
        problems.append(DataError(what, fix="task.init_args.answers_column: a column of such answers, or correct them"))
    without = np.flatnonzero(~seen.is_answerable).tolist()
    without = [row for row in without if row not in seen.bad]
    if without and not allow_none:
        what = f"{len(without):,} of {len(split):,} questions have no answer ({_places(without, split)})"
        fix = "task.init_args.allow_no_answer: true, if they are meant to have none; or drop these rows"
        problems.append(DataError(what, where=split.title, fix=fix))
    if seen.misaligned and on_misaligned == "error":
        problems.append(_misaligned(seen, split))
    return problems


def _misaligned(seen: AnswersSeen, split: Split) -> DataError:
    head = f"{seen.num_misaligned:,} of {seen.num_answers:,} answers do not stand where answer_start says"
    lines = [_shown(row, *seen.misaligned[row], split) for row in list(seen.misaligned)[:NUM_SAMPLES]]
    lost = f"; {len(seen.unusable):,} rows hold it nowhere and are dropped" if seen.unusable else ""
    fix = f"task.init_args.on_misaligned: fix (the nearest place of the same text{lost}), or drop"
    return DataError("\n  ".join([head, *lines]), where=split.title, fix=fix)


def _shown(row: int, answer: Answer, nearest: Answer | None, split: Split) -> str:
    """``train.json:12 (id 262): 'main cause' at 371, there is 'ain cause ', found at 370``."""
    values: Any = split.rows[row]  # type: ignore[index]
    name = f" (id {values[ID]})" if isinstance(values.get(ID), str | int) else ""
    found = "is nowhere" if nearest is None else f"stands at {nearest.start}"
    text = answer.text if len(answer.text) <= SAMPLE_CHARS else answer.text[: SAMPLE_CHARS - 3] + "..."
    return f"{split.locate(row)}{name}: {text!r} at {answer.start} {found}"


def _places(rows: list[int], split: Split) -> str:
    total = f"; {len(rows):,} in all" if len(rows) > NUM_PLACES else ""
    return f"{places(rows[:NUM_PLACES], split.locate)}{total}"


def _rows(split: Split, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    table: Any = split.rows.select_columns(list(names))
    for batch in table.iter(batch_size=1000):
        for values in zip(*(batch[name] for name in names), strict=True):
            yield dict(zip(names, values, strict=True))
