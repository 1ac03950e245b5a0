"""Answers that are pieces of a text: where they stand in a row, and whether they stand where they say."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lit_tune.data.squad_files import START, TEXT


class Answer(NamedTuple):
    """A text, and the number of the character of the context that it begins with."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """The character after its last."""
        return self.start + len(self.text)

    def stands_in(self, context: str) -> bool:
        """Whether the context has this text at this place, character by character."""
        return self.start >= 0 and context[self.start : self.end] == self.text

    def nearest(self, context: str) -> "Answer | None":
        """The same text at the nearest place where it does stand; None where there is none.

        >>> Answer("lake", 6).nearest("a lake, a fog, a lake"), Answer("sun", 0).nearest("a lake")
        (Answer(text='lake', start=2), None)
        """
        start = max(self.start, 0)
        places = [
            p for p in (context.rfind(self.text, 0, start + len(self.text)), context.find(self.text, start)) if p >= 0
        ]
        return Answer(self.text, min(places, key=lambda p: abs(p - self.start))) if places else None

    def stripped(self) -> "Answer":
        """Without the white space around it, which belongs to no token.

        >>> Answer(" lake ", 1).stripped()
        Answer(text='lake', start=2)
        """
        tidy = self.text.strip()
        return Answer(tidy, self.start + self.text.find(tidy))


class BadAnswersError(ValueError):
    """Cells that hold no answers; says why."""


@dataclass(frozen=True)
class AnswerColumns:
    """The columns with answers: one that holds all of a question's, or two cells of one.

    Args:
        answers: Column of ``{text: [...], answer_start: [...]}``, or of lists of ``{text, answer_start}``; empty lists
            where a question has no answer.
        text: Column with the text of the one answer, blank where there is none; None where ``answers`` is read.
        start: Column with its place.
    """

    answers: str
    text: str | None
    start: str

    @property
    def names(self) -> tuple[str, ...]:
        """Columns that are read."""
        return (self.answers,) if self.text is None else (self.text, self.start)

    def of(self, row: Mapping[str, Any]) -> list[Answer]:
        """The answers of a row; empty where the question has none.

        Raises:
            BadAnswersError: There is something else.
        """
        if self.text is not None:
            return answer_of_cells(row[self.text], row[self.start])
        return answers_of_value(row[self.answers])


def answers_of_value(value: Any) -> list[Answer]:
    """Answers of one cell.

    >>> answers_of_value({"text": ["a", "b"], "answer_start": [2, 7]})
    [Answer(text='a', start=2), Answer(text='b', start=7)]
    >>> answers_of_value([{"text": "a", "answer_start": 2}])
    [Answer(text='a', start=2)]

    Raises:
        BadAnswersError: Another layout, or a text or place of another type.
    """
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        texts, starts = [item.get(TEXT) for item in value], [item.get(START) for item in value]
    elif isinstance(value, Mapping) and isinstance(value.get(TEXT), list) and isinstance(value.get(START), list):
        texts, starts = value[TEXT], value[START]
    else:
        raise BadAnswersError(f"{str(value)[:60]} is not {{text: [...], answer_start: [...]}}")
    if len(texts) != len(starts):
        raise BadAnswersError(f"{len(texts)} texts and {len(starts)} places of answers")
    return [_answer(text, start) for text, start in zip(texts, starts, strict=True)]


def answer_of_cells(text: Any, start: Any) -> list[Answer]:
    """The answer of two cells; in a csv with blank ones the place is text.

    >>> answer_of_cells("lake", "2"), answer_of_cells("", "")
    ([Answer(text='lake', start=2)], [])

    Raises:
        BadAnswersError: A text or place of another type.
    """
    if text is None or (isinstance(text, str) and not text.strip()):
        return []
    return [_answer(text, int(start) if isinstance(start, str) and start.strip().isdecimal() else start)]


def _answer(text: Any, start: Any) -> Answer:
    if not isinstance(text, str):
        raise BadAnswersError(f"an answer is {text!r}, not a text"[:80])
    if isinstance(start, float) and start.is_integer():  # a column of integers with gaps
        start = int(start)
    if isinstance(start, bool) or not isinstance(start, int):
        raise BadAnswersError(f"the place of {text[:30]!r} is {start!r}, not the number of a character"[:120])
    if not text.strip():
        raise BadAnswersError("an answer is blank; a question without one has an empty list")
    return Answer(text, start)
