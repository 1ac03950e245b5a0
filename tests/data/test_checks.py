import tracemalloc

import numpy as np
import pytest

from lit_tune.data.checks import check_texts, require_columns, text_overlap
from lit_tune.errors import DataError, ProblemList

KEYS = {"text": "task.text_columns", "label": "task.label_column"}


def at(i):
    return f"a.csv:{i + 1}"


def test_a_missing_column_names_the_columns_there_are_and_the_key():
    require_columns(["label", "text"], ["text", "label"], "a.csv", KEYS)
    with pytest.raises(DataError) as caught:
        require_columns(["txt", "label"], ["text", "label"], "a.csv", KEYS)
    message = str(caught.value)
    assert "a.csv: there is no column 'text'; there are 'txt', 'label'" in message
    assert "Fix: set task.text_columns to 'txt'" in message


def test_several_missing_columns_are_reported_together():
    with pytest.raises(ProblemList) as caught:
        require_columns(["a"], ["text", "label"], "a.csv", KEYS)
    assert caught.value.exit_code == 3
    assert "task.text_columns" in str(caught.value)
    assert "task.label_column" in str(caught.value)


def test_empty_texts_are_counted_and_nulls_refused():
    assert check_texts(["a", "", " \n", "b"], "text", at) == 2
    with pytest.raises(DataError, match=r"'text' is null in 6 row\(s\) \(a.csv:2, .*a.csv:6, ...\)"):
        check_texts(["a", *[None] * 6], "text", at)
    with pytest.raises(DataError, match=r"is a int in 1 row\(s\) \(a.csv:1\)"):
        check_texts([3, "a"], "text", at)


def test_overlap_equals_a_plain_set_of_normalised_texts():
    rng = np.random.default_rng(0)
    words = ["Good", "good", "BAD ", " bad", "fi\tlm", "straße", "STRASSE", "\ud800"]
    train = [" ".join(rng.choice(words, 3)) for _ in range(200)]
    other = [" ".join(rng.choice(words, 3)) for _ in range(100)] + ["new one"]
    seen = {" ".join(text.casefold().split()) for text in train}
    found = [(i, text) for i, text in enumerate(other) if " ".join(text.casefold().split()) in seen]
    report = text_overlap(iter(train), iter(other))
    assert 0 < len(found) < 101
    assert (report.count, report.total) == (len(found), 101)
    assert report.examples == found[:3]
    assert report.fraction == len(found) / 101


def test_pairs_overlap_only_as_pairs():
    train = [("a b", "c"), ("x", "y")]
    assert text_overlap(train, [("A  B", "c "), ("a", "b c"), ("y", "x"), ("x", "z")]).examples == [(0, "A  B | c ")]
    assert text_overlap([], ["a"]).count == 0
    assert text_overlap(["a"], []).fraction == 0.0


def test_overlap_keeps_one_hash_per_train_row_and_no_text():
    texts = (f"text number {i} " + "x" * 1000 for i in range(20_000))
    tracemalloc.start()
    text_overlap(texts, ["a"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000 * 8 * 4  # np.fromiter grows by half, so at most 2.5 copies
