"""Json files in the layout of SQuAD: articles of paragraphs of questions, versions 1.1 and 2.0.

Source: https://rajpurkar.github.io/SQuAD-explorer/; XQuAD, COVID-QA, GermanQuAD and others have taken its layout.
"""

from collections.abc import Iterator
from typing import Any

import datasets

from lit_tune.errors import DataError

QUESTION, CONTEXT, ANSWERS, ID, TITLE = "question", "context", "answers", "id", "title"
"""Columns, named as in the Hub's ``squad``."""
TEXT, START = "text", "answer_start"
"""What ``answers`` holds: two lists, one item per answer."""

_TEXTS = datasets.Value("string")
FEATURES = {
    ID: _TEXTS,
    TITLE: _TEXTS,
    CONTEXT: _TEXTS,
    QUESTION: _TEXTS,
    ANSWERS: {TEXT: datasets.List(_TEXTS), START: datasets.List(datasets.Value("int64"))},
}


def is_squad(content: Any) -> bool:
    """Whether parsed json has the layout: an object whose ``data`` is a list of articles with ``paragraphs``.

    >>> is_squad({"version": "1.1", "data": [{"paragraphs": []}]}), is_squad({"data": [{"text": "a"}]})
    (True, False)
    """
    articles = content.get("data") if isinstance(content, dict) else None
    return isinstance(articles, list) and bool(articles) and all(_has_paragraphs(a) for a in articles)


def squad_table(content: Any, path: str) -> datasets.Dataset:
    """One row per question, in the order of the file, with the columns of the Hub's ``squad``.

    A file in which no question has the key ``answers``, as a hidden test set, has no such column. In version 2.0 what
    has no answer is a row with empty lists.

    Args:
        content: Parsed json that :func:`is_squad`.
        path: The file, for messages.

    Raises:
        DataError: A part that is missing or of another type, with its place in the file; no question at all.
    """
    rows = list(_rows(content["data"], path))
    if not rows:
        raise DataError("file has no questions", where=path, fix="export it again")
    answered = [ANSWERS in row for row in rows]
    if any(answered) and not all(answered):
        number = answered.index(False) + 1
        raise DataError("this question lacks 'answers', others have them", where=f"{path}:{number}", fix="add them")
    names = [name for name in FEATURES if name in rows[0]]
    columns = {name: [row[name] for row in rows] for name in names}
    return datasets.Dataset.from_dict(columns, features=datasets.Features({n: FEATURES[n] for n in names}))


def _rows(articles: list[dict[str, Any]], path: str) -> Iterator[dict[str, Any]]:
    number = 0
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(article["paragraphs"]):
            at = f"data[{a}].paragraphs[{p}]"
            if not (isinstance(paragraph, dict) and isinstance(paragraph.get("qas"), list)):
                raise _bad(path, f"{at} has no list 'qas'")
            context = paragraph.get(CONTEXT)
            if not isinstance(context, str):
                raise _bad(path, f"{at} has no text 'context'")
            for q, asked in enumerate(paragraph["qas"]):
                number += 1
                yield _row(asked, context, str(article.get(TITLE) or ""), f"{path}:{number}", f"{at}.qas[{q}]")


def _row(asked: Any, context: str, title: str, where: str, at: str) -> dict[str, Any]:
    if not (isinstance(asked, dict) and isinstance(asked.get(QUESTION), str)):
        raise _bad(where, f"{at} has no text 'question'")
    row = {ID: str(asked.get(ID, "")), TITLE: title, CONTEXT: context, QUESTION: asked[QUESTION]}
    if ANSWERS not in asked:
        return row
    answers = asked[ANSWERS]
    if not (isinstance(answers, list) and all(_is_answer(answer) for answer in answers)):
        raise _bad(where, f"{at}.answers is no list of {{text, answer_start}}")
    if asked.get("is_impossible") and answers:
        raise _bad(where, f"{at} is_impossible and has an answer")
    return {**row, ANSWERS: {TEXT: [x[TEXT] for x in answers], START: [x[START] for x in answers]}}


def _has_paragraphs(article: Any) -> bool:
    return isinstance(article, dict) and isinstance(article.get("paragraphs"), list)


def _is_answer(answer: Any) -> bool:
    return isinstance(answer, dict) and isinstance(answer.get(TEXT), str) and type(answer.get(START)) is int


def _bad(where: str, what: str) -> DataError:
    return DataError(what, where=where, fix="correct it; the layout is that of rajpurkar.github.io/SQuAD-explorer")
