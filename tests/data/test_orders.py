"""The order of training: every row once, random as it should be, alike in length, and the same from any beginning."""

import tracemalloc
from collections import Counter
from itertools import islice
from math import factorial

import datasets
import numpy as np
import pytest
from scipy import stats
from toy import toy_rows

from lit_tune.data.lengths import StoredLengths
from lit_tune.data.orders import STRETCH, Permutation, steps
from lit_tune.data.samplers import TrainBatchSampler

LENGTHS = np.random.default_rng(1).integers(2, 80, 5_000)


def by_length(rows: np.ndarray) -> np.ndarray:
    return LENGTHS[rows]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_an_order_has_every_number_once_and_any_part_of_it_is_the_same(size):
    order = Permutation(size, 3, 4)(np.arange(size))
    assert sorted(order.tolist()) == list(range(size))
    places = np.random.default_rng(0).integers(0, size, 20)
    assert Permutation(size, 3, 4)(places).tolist() == order[places].tolist()


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {tuple(Permutation(40, seed, epoch)(np.arange(40)).tolist()) for seed in range(9) for epoch in range(9)}
    assert len(orders) == 81


def test_all_orders_of_four_are_equally_probable():
    found = Counter(tuple(Permutation(4, seed)(np.arange(4)).tolist()) for seed in range(2_400))
    assert len(found) == factorial(4)
    assert stats.chisquare(list(found.values())).pvalue > 1e-3


def test_all_places_and_all_neighbours_are_equally_probable():
    orders = np.stack([Permutation(50, 1, epoch)(np.arange(50)) for epoch in range(1_000)])
    places = np.stack([np.bincount(orders[:, place], minlength=50) for place in range(50)])
    assert stats.chisquare(places.ravel()).pvalue > 1e-3
    apart = np.bincount(((orders[:, 1:] - orders[:, :-1]) % 50).ravel(), minlength=50)[1:]
    assert stats.chisquare(apart).pvalue > 1e-3


@pytest.mark.parametrize("num_rows", [1, 16, 17, 200, 1_003, 5_000])
@pytest.mark.parametrize("lengths", [None, by_length])
def test_an_epoch_has_every_row_once_and_only_the_last_step_is_short(num_rows, lengths):
    epoch = list(steps(num_rows, 16, seed=1, epoch=2, lengths=lengths))
    assert sorted(np.concatenate(epoch).tolist()) == list(range(num_rows))
    assert {len(step) for step in epoch[:-1]} <= {16}
    for first in (0, 1, 3, len(epoch) - 1, len(epoch)):
        rest = steps(num_rows, 16, seed=1, epoch=2, lengths=lengths, first=first)
        assert [step.tolist() for step in rest] == [step.tolist() for step in epoch[first:]]


def test_rows_of_like_length_stand_in_a_step_and_steps_are_not_sorted():
    def padding(lengths) -> float:
        padded = sum(LENGTHS[step].max() * len(step) for step in steps(5_000, 16, 1, 0, lengths))
        return 1 - LENGTHS.sum() / padded

    assert padding(None) > 0.4
    assert padding(by_length) < 0.03
    longest = [LENGTHS[step].max() for step in steps(5_000, 16, 1, 0, by_length)]
    assert abs(stats.spearmanr(longest, np.arange(len(longest))).statistic) < 0.15


def test_which_rows_meet_changes_from_epoch_to_epoch():
    def pairs(epoch: int) -> set[tuple[int, int]]:
        found = (sorted(step.tolist()) for step in steps(640, 16, 1, epoch, by_length))
        return {(a, b) for step in found for i, a in enumerate(step) for b in step[i + 1 :]}

    first, second = pairs(0), pairs(1)
    assert len(first & second) < 0.25 * len(first)


def test_the_short_step_at_the_end_has_rows_of_any_length():
    means = [LENGTHS[list(steps(4 * 16 + 5, 16, seed, 0, by_length))[-1]].mean() for seed in range(150)]
    assert abs(np.mean(means) - LENGTHS[: 4 * 16 + 5].mean()) < 4 * np.std(means) / np.sqrt(150)


def test_a_billion_rows_on_one_of_a_hundred_ranks_begin_at_once_in_little_memory():
    """And go on in the middle of an epoch as well."""

    def computed(rows: np.ndarray) -> np.ndarray:  # no table has a billion rows here
        assert len(rows) <= STRETCH * 100 * 32 * 2
        return rows * 2_654_435_761 % 97

    tracemalloc.start()
    sampler = TrainBatchSampler(1_000_000_000, 32, 2, 100, 57, seed=1, lengths=computed)
    assert all(len(batch) == 32 for batch in islice(sampler, 20))
    sampler.start = len(sampler) // 2
    assert all(len(batch) == 32 for batch in islice(sampler, 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6


def test_lengths_are_those_of_the_lists_in_any_selection_and_table():
    rows = toy_rows(30)
    ids = [list(range(len(row["text"]))) for row in rows]
    table = datasets.Dataset.from_dict({"input_ids": ids, "text": [r["text"] for r in rows], "label": [0] * 30})
    table = datasets.concatenate_datasets([table, table.select(range(7)), table])
    expected = [len(x) for x in [*ids, *ids[:7], *ids]]
    numbers = np.random.default_rng(0).permutation(67)
    assert StoredLengths(table)(numbers).tolist() == [expected[n] for n in numbers]
    chosen = table.select([50, 3, 40, 36, 9])
    assert StoredLengths(chosen)(np.arange(5)).tolist() == [expected[n] for n in (50, 3, 40, 36, 9)]
    assert StoredLengths(table.select_columns(["label"]))(numbers).tolist() == [0] * 67
