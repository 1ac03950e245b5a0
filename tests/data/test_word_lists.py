"""Columns of lists: the same from Arrow, from Python values and of a part of the rows."""

import datasets
import numpy as np
import pytest

from lit_tune.data.quality import overlap, text_quality
from lit_tune.data.split import Split
from lit_tune.data.texts import longest_rows, text_hashes
from lit_tune.data.word_lists import read_lists

ROWS = [["a", "b"], [], ["c", "a", "c"], ["b"]]


def split_of(values: list, features=None) -> Split:
    mixed = None if features else "use_json"
    rows = datasets.Dataset.from_list([{"x": v} for v in values], features=features, on_mixed_types=mixed)
    return Split(rows, "train", [("a.jsonl", len(values))], "f")


def test_lists_are_read_alike_from_arrow_and_python_and_a_part():
    large = datasets.Features({"x": datasets.LargeList(datasets.Value("string"))})
    shuffled = split_of(ROWS)
    shuffled.rows = shuffled.rows.select([0, 1, 2, 3][::-1]).select([3, 2, 1, 0])  # by indices: read as values
    for split in (split_of(ROWS), split_of(ROWS, large), shuffled):
        found = read_lists(split, "x")
        assert found.lengths.tolist() == [2, 0, 3, 1]
        assert found.items.rows() == [item for row in ROWS for item in row]
        assert found.row_of_item.tolist() == [0, 0, 2, 2, 2, 3]
        assert [found.locate_item(split.locate)(i) for i in (1, 2, 5)] == [
            "a.jsonl:1 word 2",
            "a.jsonl:3 word 1",
            "a.jsonl:4 word 1",
        ]
    part = read_lists(split_of(ROWS).select(np.array([3, 1, 2])), "x")
    assert (part.lengths.tolist(), part.items.rows()) == ([1, 0, 3], ["b", "c", "a", "c"])


def test_what_is_no_list_is_told_apart():
    found = read_lists(split_of([["a"], None, "b c", 3]), "x")
    assert found.is_null.tolist() == [False, True, False, False]
    assert found.is_other.tolist() == [False, False, True, True]
    assert found.lengths.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("mixed", [False, True], ids=["arrow", "values"])
def test_words_count_as_the_text_they_make(mixed):
    words = [["Mud", "lake"], ["mud", "LAKE"], ["x"] * 9, [" "], ["mud lake"]]
    split = split_of([*words, 3] if mixed else words)
    quality = text_quality(split, ["x"])
    assert (quality.num_duplicates, quality.num_empty, quality.longest_chars) == (2, 1, 17)
    assert quality.duplicate_samples[0] == "a.jsonl:2 (as a.jsonl:1): mud LAKE"
    assert longest_rows(split, ["x"], 1).tolist() == [2]
    assert text_hashes(split, ["x"])[:5].tolist() == text_hashes(split_of([" ".join(w) for w in words]), ["x"]).tolist()
    assert overlap(split, split_of([["mud", "lake"], ["new"]]), ["x"]).count == 1
