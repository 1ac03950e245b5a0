"""Answers that do not stand where they say, whatever columns hold them."""

import datasets
import pytest

from lit_tune.data.answer_checks import answer_problems, look_at_answers, placed
from lit_tune.data.answers import Answer, AnswerColumns, BadAnswersError, answer_of_cells, answers_of_value
from lit_tune.data.split import Split

COLUMNS = AnswerColumns("answers", None, "answer_start")


def split(*rows: tuple) -> Split:
    table = [{"id": f"q{i}", "context": c, "answers": a} for i, (c, a) in enumerate(rows)]
    return Split(
        datasets.Dataset.from_list(table, on_mixed_types="use_json"), "train", [("train.json", len(rows))], "f"
    )


def at(text: str, start: int) -> dict:
    return {"text": [text], "answer_start": [start]}


NONE = {"text": [], "answer_start": []}


def test_every_answer_that_stands_elsewhere_is_found_and_three_are_shown():
    rows = split(
        ("a lake", at("lake", 2)),
        ("a lake", at("lake", 1)),
        ("a lake", at(" lake", 2)),  # white space counts
        ("a lake", at("Lake", 2)),
        ("a lake", {"text": ["a", "fog"], "answer_start": [0, 3]}),
        ("a lake", at("lake", -4)),
    )
    seen = look_at_answers(rows, COLUMNS, "context")
    assert (seen.num_answers, seen.num_misaligned) == (7, 5)
    assert list(seen.misaligned) == [1, 2, 3, 4, 5]
    assert seen.unusable == [3], "of the fifth the other answer is left"
    (problem,) = answer_problems(seen, rows, False, "error")
    assert problem.what.splitlines() == [
        "5 of 7 answers do not stand where answer_start says",
        "  train.json:2 (id q1): 'lake' at 1 stands at 2",
        "  train.json:3 (id q2): ' lake' at 2 stands at 1",
        "  train.json:4 (id q3): 'Lake' at 2 is nowhere",
    ]
    assert "on_misaligned: fix" in problem.fix
    assert "1 rows hold it nowhere" in problem.fix
    assert answer_problems(seen, rows, False, "fix") == []


def test_the_nearest_place_is_taken():
    context = "fog, lake, fog, lake"
    for start, expected in ((0, 5), (5, 5), (9, 5), (11, 16), (19, 16), (900, 16), (-1, 5)):
        assert Answer("lake", start).nearest(context) == Answer("lake", expected), start
    assert placed([Answer("sun", 0), Answer("fog", 9)], context) == Answer("fog", 11)
    assert placed([Answer("fog", 0), Answer("lake", 5)], context) == Answer("fog", 0)
    assert placed([Answer("sun", 0)], context) is None


def test_questions_without_an_answer_are_refused_where_each_must_have_one():
    rows = split(("a lake", at("lake", 2)), ("a lake", NONE))
    seen = look_at_answers(rows, COLUMNS, "context")
    assert seen.is_answerable.tolist() == [True, False]
    assert answer_problems(seen, rows, True, "error") == []
    (problem,) = answer_problems(seen, rows, False, "error")
    assert problem.what == "1 of 2 questions have no answer (train.json:2)"


BAD_CELLS = [
    *("lake", None, {"text": ["a"]}, {"text": ["a"], "answer_start": []}, {"text": "a", "answer_start": 0}),
    *(at("a", "x"), at("a", None), at("a", 0.5), at("", 0), at(" ", 0), at(None, 0), [{"text": "a"}]),
]


@pytest.mark.parametrize("value", BAD_CELLS)
def test_cells_that_hold_no_answers_are_named(value):
    with pytest.raises(BadAnswersError):
        answers_of_value(value)
    rows = split(("a", at("a", 0)), ("a", value))
    (problem,) = answer_problems(look_at_answers(rows, COLUMNS, "context"), rows, True, "error")
    assert "train.json:2" in problem.what


def test_flat_columns_hold_one_answer_or_none():
    for text, start, expected in (
        ("a", 0, [Answer("a", 0)]),
        ("a", "3", [Answer("a", 3)]),
        ("a", 3.0, [Answer("a", 3)]),
    ):
        assert answer_of_cells(text, start) == expected
    assert answer_of_cells("", "") == answer_of_cells(None, None) == answer_of_cells(" ", 0) == []
    for text, start in (("a", ""), ("a", None), (3, 0), ("a", "x"), ("a", 1.5)):
        with pytest.raises(BadAnswersError):
            answer_of_cells(text, start)
