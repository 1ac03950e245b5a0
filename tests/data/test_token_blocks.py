"""Blocks against texts that are joined and cut in plain Python."""

import pickle
import random

import datasets
import numpy as np
import pytest

from lit_tune.data.token_blocks import MarkedRows, TextRows, TokenBlocks

rng = random.Random(0)
TEXTS = [list(range(100 * i, 100 * i + rng.choice([0, 0, 1, 2, 5, 30]))) for i in range(40)]
FLAGS = [[i % 3 == 0 for i, _ in enumerate(text)] for text in TEXTS]


def table(texts=TEXTS, chunks: int = 1) -> datasets.Dataset:
    size = -(-len(texts) // chunks)
    parts = [slice(i * size, (i + 1) * size) for i in range(chunks)]
    made = [datasets.Dataset.from_dict({"input_ids": texts[p], "flag": FLAGS[p], "other": [1] * size}) for p in parts]
    return datasets.concatenate_datasets(made)


def plain(texts: list[list], length: int, separator) -> list[list]:
    joined: list = []
    for text in filter(None, texts):
        joined += ([separator] if joined and separator is not None else []) + text
    return [joined[i : i + length] for i in range(0, len(joined), length)]


@pytest.mark.parametrize("separator", [-7, None])
@pytest.mark.parametrize("length", [1, 2, 7, 31, 10_000])
def test_blocks_are_the_joined_texts_cut_and_nothing_is_left_over(length, separator):
    blocks = TokenBlocks(table(), {"input_ids": separator}, length)
    expected = plain(TEXTS, length, separator)
    assert len(blocks) == len(expected)
    order = random.Random(1).sample(range(len(blocks)), len(blocks))
    assert [b["input_ids"].tolist() for b in blocks.read(order)] == [expected[i] for i in order]


@pytest.mark.parametrize("chunks", [1, 4])
def test_columns_stay_together_in_a_subset_and_over_chunks_and_processes(chunks):
    chosen = random.Random(2).sample(range(40), 25)
    rows = table(chunks=chunks).select(chosen)
    blocks = TokenBlocks(rows, {"input_ids": -7, "flag": True}, 9)
    blocks.read([0])
    copy = pickle.loads(pickle.dumps(blocks))
    for name, values, separator in (("input_ids", TEXTS, -7), ("flag", FLAGS, True)):
        expected = plain([values[i] for i in chosen], 9, separator)
        assert [b[name].tolist() for b in copy.read(range(len(copy)))] == expected


def test_a_split_without_any_token_has_no_blocks():
    assert len(TokenBlocks(table([[]]), {"input_ids": 0}, 4)) == 0


def test_empty_rows_are_no_units_but_predictions_have_all():
    full = [i for i, text in enumerate(TEXTS) if text]
    rows = TextRows(table(), "input_ids")
    assert len(rows) == len(full)
    assert [row["input_ids"] for row in rows.read([0, len(rows) - 1])] == [TEXTS[full[0]], TEXTS[full[-1]]]
    marked = MarkedRows(table(), "here")
    assert len(marked) == 40
    assert [row["here"] for row in marked.read([3, 4])] == [True, True]
    assert np.array_equal(marked.read([full[1]])[0]["input_ids"], TEXTS[full[1]])
