import numpy as np
import pytest
from sklearn.preprocessing import LabelEncoder, MultiLabelBinarizer

from lit_tune.data.labels import (
    canonical_name,
    class_names,
    encode_class_labels,
    encode_multi_labels,
    encode_numbers,
    is_unlabelled,
    label_kind,
)
from lit_tune.errors import DataError


def at(i):
    return f"a.csv:{i + 1}"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["pos", "neg"], "class"),
        (["None", "NA", "nan"], "class"),
        (["1", "2"], "class"),
        ([3, 1], "class"),
        ([0.0, 1.0], "class"),
        ([1, 2.0], "class"),
        ([True, False], "class"),
        (np.array([1, 2]), "class"),
        ([np.int64(1), np.int32(2)], "class"),
        ([0.5, 1.0], "number"),
        ([1, 2.5], "number"),
        ([float("inf"), 1.0], "number"),
        (np.array([0.5, 1.0], dtype=np.float32), "number"),
        ([["a"], []], "multi"),
        ([(1, 2), [3]], "multi"),
        ([np.array([1, 2])], "multi"),
        ([[], []], "multi"),
    ],
)
def test_the_kind_of_a_label_column_is_read_off_its_values(values, kind):
    assert label_kind(values, at) == kind


@pytest.mark.parametrize("blank", [None, float("nan"), "", "  "])
def test_missing_labels_are_refused_with_their_first_five_rows_and_the_count(blank):
    values = ["x", *[blank] * 7, "y"]
    with pytest.raises(DataError, match=r"7 of 9 labels are missing \(a.csv:2, 3, 4, 5, 6; 7 rows in all\)"):
        label_kind(values, at)
    for encode in (encode_class_labels, encode_multi_labels):
        with pytest.raises(DataError, match="7 of 9"):
            encode(values, ["x", "y"], at)
    with pytest.raises(DataError, match="7 of 9"):
        encode_numbers(values, at)


def test_missing_labels_inside_lists_are_refused():
    with pytest.raises(DataError, match=r"1 of 2 labels are missing \(a.csv:2\)"):
        label_kind([["a"], ["b", None]], at)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (["a", 1, 2], ["text such as 'a' in 1 rows (a.csv:1)", "number such as 1 in 2 rows (a.csv:2, 3)"]),
        ([True, 1], ["true/false such as True"]),
        ([["a"], "a"], ["list such as ['a']", "text such as 'a'"]),
        ([["a"], ["b", 1]], ["number such as 1 in 1 rows (a.csv:2)"]),
        ([{"x": 1}], ["a label is a dict"]),
        ([[0.5], [1.0]], ["several numbers per row", "a.csv:1"]),
        ([[["a"]]], ["a label list holds a list"]),
        ([[0, 1, 1]], ["stands twice", "0/1 vector"]),
        (["1.5", "2.5", "3", "NA"], ["decimal numbers except 'NA' (a.csv:4)"]),
    ],
)
def test_labels_that_make_no_sense_are_refused(values, parts):
    with pytest.raises(DataError) as caught:
        label_kind(values, at)
    for part in parts:
        assert part in str(caught.value)


def test_names_follow_class_label_then_value_then_alphabet():
    assert class_names([1, 0], ["pos", "neg"]) == ["pos", "neg"]
    assert class_names([10, 9, -1, 9], None) == ["-1", "9", "10"]
    assert class_names([2.0, 1, 10.0], None) == ["1", "2", "10"]
    assert class_names(["b", "a", "B"], None) == ["B", "a", "b"]
    assert class_names([True], None) == ["False", "True"]
    assert class_names([[10], [9, 10], []], None) == ["9", "10"]


def test_one_label_written_as_int_float_or_text_has_one_name():
    assert {canonical_name(v) for v in (3, 3.0, "3", np.int64(3), np.float32(3))} == {"3"}
    assert encode_class_labels(["3", "1"], ["1", "3"], at).tolist() == [1, 0]
    assert encode_class_labels([3, 1.0], ["1", "3"], at).tolist() == [1, 0]
    assert encode_class_labels([True, "False"], ["False", "True"], at).tolist() == [1, 0]


def test_class_ids_equal_those_of_sklearn():
    rng = np.random.default_rng(0)
    for values in (rng.choice(["x", "y", "Z", "é"], 50), rng.integers(-3, 12, 50)):
        ids = encode_class_labels(values, class_names(values, None), at)
        assert ids.dtype == np.int64
        assert ids.tolist() == LabelEncoder().fit_transform(values).tolist()


def test_multi_label_ids_equal_those_of_sklearn():
    rng = np.random.default_rng(0)
    values = [list(rng.choice(20, rng.integers(0, 5), replace=False)) for _ in range(30)]
    names = class_names(values, None)
    vectors = np.zeros((30, len(names)), dtype=int)
    for row, ids in enumerate(encode_multi_labels(values, names, at)):
        vectors[row, ids] = 1
        assert ids == sorted(ids)
    assert (vectors == MultiLabelBinarizer().fit_transform(values)).all()


def test_an_unknown_label_names_value_rows_known_labels_and_the_nearest():
    with pytest.raises(DataError) as caught:
        encode_class_labels(["pos", "posx", "neg", "posx", "?"], ["neg", "pos"], at)
    message = str(caught.value)
    assert "label 'posx' never occurs in train (a.csv:2, 4), nor do 1 other labels" in message
    assert "known: 'neg', 'pos'" in message
    assert "is 'pos' meant?" in message
    with pytest.raises(DataError, match=r"'c' never occurs in the config \(a.csv:2\)"):
        encode_multi_labels([["a", "b"], ["c"]], ["a", "b"], at, known_from="the config")
    with pytest.raises(DataError, match=r"known: .*'l9', ... \(28 in all\)"):
        encode_class_labels(["m"], [f"l{i}" for i in range(28)], at)
    with pytest.raises(DataError, match="'5' never occurs"):
        encode_class_labels([1, 5], ["1", "2"], at)


def test_ids_of_a_class_label_go_by_name_and_stay_in_range():
    # two splits may order their ClassLabel differently
    assert encode_class_labels([0, 1], ["neg", "pos"], at, class_label_names=["pos", "neg"]).tolist() == [1, 0]
    # names that look like other ids
    assert encode_class_labels([0, 1], ["1", "2"], at, class_label_names=["1", "2"]).tolist() == [0, 1]
    assert encode_multi_labels([[1, 0], []], ["b", "a"], at, class_label_names=["b", "a"]) == [[0, 1], []]
    for bad in (-1, 2):
        with pytest.raises(
            DataError, match=rf"id {bad} is out of range: ids go from 0 \('neg'\) to 1 \('pos'\) \(a.csv:2\)"
        ):
            encode_class_labels([0, bad], ["neg", "pos"], at, class_label_names=["neg", "pos"])
    with pytest.raises(DataError, match="'other' never occurs"):
        encode_class_labels([0, 1], ["neg"], at, class_label_names=["neg", "other"])


def test_ints_are_ids_where_the_names_are_words():
    assert encode_class_labels([1, 0, 1.0, "0"], ["neg", "pos"], at).tolist() == [1, 0, 1, 0]
    with pytest.raises(DataError, match=r"id 2 is out of range"):
        encode_class_labels([2], ["neg", "pos"], at)


def test_targets_are_float64_and_finite():
    encoded = encode_numbers([1, 2.5, True, "0.1"], at)
    assert encoded.dtype == np.float64
    assert encoded.tolist() == [1.0, 2.5, 1.0, 0.1]
    for bad in (float("inf"), "x", "nan", [1.0]):
        with pytest.raises(DataError, match=r"not a finite number \(a.csv:2\)"):
            encode_numbers([1.0, bad], at)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1, -1], True),
        ([-1.0], True),
        (["-1"], True),
        ([None, None], True),
        (["", float("nan")], True),
        ([-1, 1], False),
        ([None, 1], False),
        ([[], []], False),
        ([], False),
    ],
)
def test_only_a_wholly_unlabelled_split_counts_as_such(values, expected):
    assert is_unlabelled(values) is expected


def test_a_list_is_demanded_for_several_labels_per_row():
    with pytest.raises(DataError, match=r"'a', not a list of labels \(a.csv:2\)"):
        encode_multi_labels([["a"], "a"], ["a"], at)
    with pytest.raises(DataError, match="stands twice"):
        encode_multi_labels([[1, 1.0]], ["1"], at)
