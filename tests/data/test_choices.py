"""Choices and the labels that mean them, as files hold them."""

import pytest

from lit_tune.data.choices import Choices, of_columns, read_choices, require_choices, require_positions
from lit_tune.errors import DataError

FOUR = Choices(["mud", "fog", "sun", "fog"])
NAMED = Choices(["mud", "fog", "sun"], ["A", "B", "C"])
NUMBERED = Choices(["mud", "fog", "sun"], ["1", "2", "3"])


@pytest.mark.parametrize(
    ("choices", "label", "position"),
    [
        (FOUR, 0, 0),
        (FOUR, 3.0, 3),
        (FOUR, " 2 ", 2),
        (FOUR, "C", 2),
        (FOUR, "sun", 2),
        (FOUR, "fog", None),  # two choices say so
        (FOUR, 4, None),
        (FOUR, -1, None),
        (FOUR, 1.5, None),
        (FOUR, "E", None),
        (FOUR, True, None),
        (FOUR, None, None),
        (NAMED, "B", 1),
        (NAMED, 1, 1),
        (NAMED, "1", None),  # text names, and this is none of them
        (NAMED, "fog", 1),
        (NUMBERED, "1", 0),
        (NUMBERED, 1, 0),
        (NUMBERED, 0, 0),
        (Choices(["7", "3", "1"]), "1", 1),  # a position before a text
        (Choices(["B", "A"]), "A", 0),  # and so is a letter
    ],
)
def test_a_label_is_a_name_a_position_a_letter_or_a_text(choices, label, position):
    assert choices.position(label) == position


def test_columns_that_are_empty_at_the_end_hold_no_choices():
    assert of_columns(["a", "b", None, ""]) == ["a", "b"]
    assert of_columns([None, "", ""]) == []
    assert of_columns(["a", "", "c"]) == ["a", "", "c"]


FAULTS = {
    "null": (None, "choices are null"),
    "text": ("a, b", "no list of texts: 'a, b', a str"),
    "one": (["a"], "fewer than two choices: 1"),
    "none": ([], "fewer than two choices: 0"),
    "null choice": (["a", "b", None], "a choice is null: the third"),
    "number": (["a", 2], "a choice is no text: 2, a int"),
    "names": ({"text": ["a", "b"], "label": ["A"]}, "not one name for each choice"),
    "mapping": ({"a": "b"}, "no list of texts"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_choices_that_cannot_be_used_are_told_with_their_rows(case):
    value, what = FAULTS[case]
    with pytest.raises(DataError) as caught:
        require_choices([["a", "b"], value, ["a", "b"], value], lambda i: f"x.jsonl:{i + 1}", "mend it")
    assert what in caught.value.what
    assert "(x.jsonl:2, 4)" in caught.value.what
    assert caught.value.fix == "mend it"


def test_faults_of_several_kinds_are_told_together():
    with pytest.raises(DataError.__base__) as caught:
        require_choices([["a"], None, ["a", None]], str, "mend it")
    assert len(caught.value.problems) == 3


def test_labels_that_mean_no_choice_are_told_with_their_rows():
    rows = [read_choices(["a", "b"])] * 4
    assert require_positions([1, "0", "B", "a"], rows, str, "label").tolist() == [1, 0, 1, 0]
    with pytest.raises(DataError.__base__) as caught:
        require_positions([1, None, 2, float("nan")], rows, lambda i: f"x.jsonl:{i + 1}", "label")
    missing, unknown = caught.value.problems
    assert missing.what == "'label' is missing (x.jsonl:2, 4)"
    assert unknown.what == "'label' is '2', none of its 2 choices (x.jsonl:3)"
    assert "count from 1" not in unknown.fix
    with pytest.raises(DataError) as caught:
        require_positions([1, 2, 2, 1], rows, str, "label")
    assert "count from 1" in caught.value.fix
