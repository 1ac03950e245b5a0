"""Texts that are null, empty, repeated or shared by splits: compared with plain Python."""

import tracemalloc

import datasets
import numpy as np
import pyarrow as pa
import pytest

from lit_tune.data.quality import overlap, text_quality
from lit_tune.data.split import Split
from lit_tune.data.texts import hash_of, read_texts, text_hashes
from lit_tune.errors import DataError

WORDS = ["Good", "good", "BAD ", " bad", "fi\tlm", "straße", "STRASSE", "日本", "", "x\x1fy", "\n"]


def split_of(name="train", on_mixed_types=None, **columns) -> Split:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    table = datasets.Dataset.from_list(rows, on_mixed_types=on_mixed_types)
    return Split(table, name, [(f"{name}.csv", len(rows))], "f")


def tidy(text: str) -> str:
    return " ".join(text.casefold().split())


def random_texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 4))) for _ in range(count)]


def test_hashes_agree_exactly_where_tidied_texts_do():
    texts = random_texts(600, 0)
    hashes = text_hashes(split_of(text=texts), ["text"])
    assert len(set(hashes.tolist())) == len({tidy(t) for t in texts})
    assert len({(h, tidy(t)) for h, t in zip(hashes.tolist(), texts, strict=True)}) == len(set(hashes.tolist()))
    for large in (pa.string(), pa.large_string()):  # Arrow's own kinds of text, in several pieces
        rows = datasets.Dataset(pa.table({"text": pa.chunked_array([texts[:7], texts[7:]], large)}))
        assert (text_hashes(Split(rows, "train", [], "f"), ["text"]) == hashes).all()
    assert hash_of("\ud800") != hash_of("")


def test_overlap_equals_a_plain_set_of_tidied_texts():
    train, other = random_texts(200, 1), [*random_texts(100, 2), "new one"]
    seen = {}
    for i, text in enumerate(train):
        seen.setdefault(tidy(text), i)
    found = [(i, seen[tidy(t)]) for i, t in enumerate(other) if tidy(t) in seen]
    report = overlap(split_of(text=train), split_of("val", text=other), ["text"])
    assert 0 < len(found) < 101
    assert (report.count, report.total, report.fraction) == (len(found), 101, len(found) / 101)
    shown = [f"val.csv:{i + 1} (as train.csv:{j + 1}): {' '.join(other[i].split())}" for i, j in found[:3]]
    assert report.samples == shown


def test_parts_of_one_split_overlap_by_what_each_holds():
    texts = random_texts(300, 3)
    whole = split_of(text=texts)
    rng = np.random.default_rng(4)
    order = rng.permutation(300)
    part, rest = whole.select(np.sort(order[:200])), whole.select(np.sort(order[200:])).renamed("val")
    kept = {tidy(texts[i]) for i in order[:200]}
    assert overlap(part, rest, ["text"]).count == sum(tidy(texts[i]) in kept for i in order[200:])


def test_pairs_overlap_only_as_pairs():
    train = split_of(a=["a b", "x"], b=["c", "y"])
    other = split_of("val", a=["A  B", "a", "y", "x"], b=["c ", "b c", "x", "z"])
    report = overlap(train, other, ["a", "b"])
    assert (report.count, report.samples) == (1, ["val.csv:1 (as train.csv:1): A B | c"])


def test_empty_repeated_and_longest_rows_are_counted_and_placed():
    texts = ["a", "", "B b", " \n", "b  B", "c" * 90, "\u3000", "a", "a"]
    quality = text_quality(split_of(text=texts), ["text"])
    assert (quality.num_rows, quality.num_empty, quality.empty_cells) == (9, 3, {"text": 3})
    assert quality.empty_places == "train.csv:2, 4, 7"
    assert quality.num_duplicates == 3
    assert quality.duplicate_samples == [
        "train.csv:5 (as train.csv:3): b B",
        "train.csv:8 (as train.csv:1): a",
        "train.csv:9 (as train.csv:1): a",
    ]
    assert (quality.longest_chars, quality.longest_place) == (90, "train.csv:6")
    pair = text_quality(split_of(a=["", "", "x"], b=["y", "", "z"]), ["a", "b"])
    assert (pair.num_empty, pair.empty_cells) == (1, {"a": 2, "b": 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", *[None] * 6], r"'text' is null in 6 row\(s\) \(train.csv:2, 3, 4, 5, 6, ...\)"),
        ([None, None], r"is null in 2 row\(s\)"),
        ([3, 4], r"is a int in 2 row\(s\) \(train.csv:1, 2\)"),
        ([["a"], ["b"]], r"is a list in 2 row\(s\)"),
        (["a", 3], r"is a int in 1 row\(s\) \(train.csv:2\)"),
    ],
)
def test_what_is_no_text_is_refused_with_its_rows(values, message):
    with pytest.raises(DataError, match=message) as caught:
        read_texts(split_of(text=values, on_mixed_types="use_json"), "text")
    assert caught.value.fix


def test_hashing_keeps_a_few_numbers_per_row_and_no_text():
    texts = pa.chunked_array(
        [[f"text number {i} " + "x" * 1000 for i in range(k, k + 1000)] for k in range(0, 20_000, 1000)]
    )
    split = Split(datasets.Dataset(pa.table({"text": texts})), "train", [], "f")
    tracemalloc.start()
    text_hashes(split, ["text"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000 * 8 * 6
