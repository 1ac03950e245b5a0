"""Documents become blocks without a token lost, and blocks are as full as best fit makes them."""

import pickle

import datasets
import numpy as np
import pytest

from lit_tune.data.documents import Blocks, ListedDocuments, StoredDocuments, target_counts
from lit_tune.data.packing import best_fit_decreasing, cut_documents, plan_blocks


def placed_one_by_one(lengths: np.ndarray, capacity: int) -> list[int]:
    """Tokens in each block: the longest first, into the fullest block with room."""
    left: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [(room, block) for block, room in enumerate(left) if room >= length]
        if not fitting:
            left.append(capacity)
        left[min(fitting)[1] if fitting else -1] -= length
    return sorted(capacity - room for room in left)


def test_blocks_are_those_of_placing_one_piece_after_another():
    rng = np.random.default_rng(0)
    for _ in range(100):
        capacity = int(rng.integers(2, 40))
        lengths = rng.integers(1, capacity + 1, rng.integers(0, 70))
        loads = np.bincount(best_fit_decreasing(lengths, capacity), weights=lengths)
        assert sorted(loads.tolist()) == placed_one_by_one(lengths, capacity)


def test_a_hundred_thousand_short_documents_fill_their_blocks():
    lengths = np.minimum(512, np.random.default_rng(0).geometric(1 / 60, 100_000) + 1)
    blocks = best_fit_decreasing(lengths, 512)
    assert np.bincount(blocks, weights=lengths).max() == 512
    assert blocks.max() + 1 <= 1.001 * lengths.sum() / 512


@pytest.mark.parametrize("max_length", [2, 3, 7, 50])
def test_each_token_but_the_first_of_a_document_is_predicted_once(max_length):
    lengths = np.random.default_rng(1).integers(0, 40, 60)
    pieces = cut_documents(lengths, max_length)
    assert pieces.lengths.max() <= max_length
    predicted = [
        (d, s + i) for d, s, n in zip(pieces.documents, pieces.starts, pieces.lengths, strict=True) for i in range(1, n)
    ]
    assert sorted(predicted) == [(d, i) for d, n in enumerate(lengths) for i in range(1, n)]


def features(count: int = 40, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 30, count).tolist()
    return [
        {
            "input_ids": (100 * number + np.arange(length)).tolist(),
            "text_bytes": int(rng.integers(0, 200)) * (length > 1),
            "is_target": rng.integers(0, 2, length).tolist(),
        }
        for number, length in enumerate(lengths)
    ]


def pairs(blocks: Blocks) -> list[tuple[int, int]]:
    """(token, the one that is to be predicted after it) of all blocks."""
    read = blocks.read(range(len(blocks)))
    return sorted((int(a), int(b)) for f in read for a, b in zip(f["input_ids"], f["labels"], strict=True) if b >= 0)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("max_length", [4, 11, 64])
def test_blocks_hold_what_the_documents_hold(packing, max_length):
    rows = features()
    table = datasets.Dataset.from_list(rows)
    blocks = Blocks(StoredDocuments(table), max_length, packing)
    expected = [
        (100 * d + i, 100 * d + i + 1)
        for d, row in enumerate(rows)
        for i in range(len(row["input_ids"]) - 1)
        if row["is_target"][i + 1]
    ]
    assert pairs(blocks) == expected
    assert pairs(Blocks(ListedDocuments(rows), max_length, packing)) == expected
    read = blocks.read(range(len(blocks)))
    assert sum(f["text_bytes"] for f in read) == sum(row["text_bytes"] for row in rows)
    assert max(len(f["input_ids"]) for f in read) <= max_length
    assert [set(f) for f in read] == [
        {"input_ids", "labels", "text_bytes"} | ({"position_ids"} if packing else set())
    ] * len(read)
    for f in read if packing else []:
        begins = f["position_ids"] == 0
        inside = np.flatnonzero(~begins)
        assert begins[0]
        assert (np.diff(f["input_ids"])[inside - 1] == 1).all()
        assert (f["labels"][np.flatnonzero(begins)[1:] - 1] == -100).all()


def test_a_selection_of_rows_and_a_copy_in_another_process_are_read_alike():
    rows = features()
    table = datasets.concatenate_datasets(
        [datasets.Dataset.from_list(rows[:15]), datasets.Dataset.from_list(rows[15:])]
    )
    order = np.array([20, 3, 17, 3, 39, 0, 14, 15])
    chosen = Blocks(StoredDocuments(table.select(order)), 11, True)
    listed = Blocks(ListedDocuments([rows[i] for i in order]), 11, True)
    for found in (chosen, pickle.loads(pickle.dumps(chosen))):
        for a, b in zip(found.read(range(len(found))), listed.read(range(len(listed))), strict=True):
            assert {k: np.asarray(v).tolist() for k, v in a.items()} == {
                k: np.asarray(v).tolist() for k, v in b.items()
            }


def test_a_plan_is_a_function_of_the_lengths():
    lengths = np.random.default_rng(3).integers(1, 90, 200)
    one, other = plan_blocks(lengths, 32, True), plan_blocks(lengths.astype(np.int32), 32, True)
    assert one is other  # made once
    assert len(plan_blocks(lengths[:0], 32, True).ends) == 0
    assert len(plan_blocks(lengths, 32, False).ends) == len(cut_documents(lengths, 32))


def test_targets_are_counted_without_the_first_tokens():
    rows = [{"input_ids": [5, 1, 1]}, {"input_ids": []}, {"input_ids": [1, 2]}]
    table = datasets.concatenate_datasets(
        [datasets.Dataset.from_list(rows), datasets.Dataset.from_list([{"input_ids": [9, 5]}])]
    )
    assert np.trim_zeros(target_counts(StoredDocuments(table)), "b").tolist() == [0, 2, 1, 0, 0, 1]
    some = datasets.Dataset.from_list(
        [{"input_ids": [5, 1, 1], "is_target": [1, 0, 1]}, {"input_ids": [2], "is_target": [1]}]
    )
    assert np.trim_zeros(target_counts(StoredDocuments(some)), "b").tolist() == [0, 1]
