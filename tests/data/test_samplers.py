"""The rows of a step do not depend on how it is cut."""

import itertools

import numpy as np
import pytest
import torch

from lit_tune.data.orders import Permutation, steps
from lit_tune.data.samplers import FILLER, EvalBatchSampler, TrainBatchSampler, cut, num_cuts

LENGTHS = np.random.default_rng(0).integers(1, 90, 10_000)
CUTS = [(16, 1, 1), (4, 4, 1), (1, 16, 1), (2, 8, 1), (8, 1, 2), (2, 4, 2), (1, 8, 2), (4, 1, 4)]


def lengths_of(rows: np.ndarray) -> np.ndarray:
    return LENGTHS[rows]


def windows(num_rows: int, batch: int, accumulate: int, ranks: int, epoch: int, lengths) -> list[list[int]]:
    """Row sets of each optimizer step, gathered from all ranks."""
    per_rank = []
    for rank in range(ranks):
        sampler = TrainBatchSampler(num_rows, batch, accumulate, ranks, rank, seed=7, lengths=lengths)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        per_rank.append([batches[i : i + accumulate] for i in range(0, len(batches), accumulate)])
    assert len({len(w) for w in per_rank}) == 1, "ranks must step together"
    return [
        sorted(r for rank in per_rank for batch_rows in rank[step] for r in batch_rows if r != FILLER)
        for step in range(len(per_rank[0]))
    ]


@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 33, 50, 200])
@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("lengths", [None, lengths_of])
def test_every_cut_of_the_same_effective_batch_steps_on_the_same_rows(num_rows, epoch, lengths):
    expected = [sorted(w.tolist()) for w in steps(num_rows, 16, 7, epoch, lengths)]
    assert [len(w) for w in expected[:-1]] == [16] * (len(expected) - 1)
    for batch, accumulate, ranks in CUTS:
        assert windows(num_rows, batch, accumulate, ranks, epoch, lengths) == expected, (batch, accumulate, ranks)


def test_the_order_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(TrainBatchSampler(10, 2, 1, 1, 0, 0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("ranks", "batch"), list(itertools.product([1, 2, 3], [1, 4, 64])))
def test_evaluation_counts_every_row_once_in_order_for_every_size(ranks, batch):
    for num_rows in range(1, 21):
        per_rank = [list(EvalBatchSampler(num_rows, batch, ranks, r)) for r in range(ranks)]
        assert {len(b) for b in per_rank} == {len(EvalBatchSampler(num_rows, batch, ranks, 0))}
        rows = [[r for b in batches for r in b if r != FILLER] for batches in per_rank]
        assert all(r == sorted(r) for r in rows)
        assert sorted(itertools.chain(*rows)) == list(range(num_rows))
        assert all(b == [FILLER] or FILLER not in b for batches in per_rank for b in batches)


@pytest.mark.parametrize("ranks", [1, 2])
def test_evaluation_by_length_counts_every_row_once_and_stretch_after_stretch(ranks):
    samplers = [EvalBatchSampler(1001, 4, ranks, rank, lengths=lengths_of) for rank in range(ranks)]
    per_rank = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in per_rank} == {len(samplers[0])}
    rows = [[row for b in batches for row in b if row != FILLER] for batches in per_rank]
    assert sorted(itertools.chain(*rows)) == list(range(1001))
    for some in rows:
        stretches = [row // samplers[0].stretch for row in some]
        assert stretches == sorted(stretches)
        assert stretches[0] < stretches[-1]
    padded = sum(max(LENGTHS[b]) * len(b) for batches in per_rank for b in batches if b != [FILLER])
    assert padded < 1.03 * LENGTHS[:1001].sum()


def test_the_number_of_cuts_is_what_the_sampler_yields():
    for num_rows, batch, ranks, accumulate in itertools.product([1, 5, 32, 37], [1, 2], [1, 2], [1, 3]):
        sampler = TrainBatchSampler(num_rows, batch, accumulate, ranks, 0, 0)
        assert num_cuts(num_rows, batch, ranks, accumulate) == len(list(sampler))


def test_micro_batches_never_exceed_the_batch_size():
    for size in range(1, 40):
        for rank in range(3):
            assert all(len(b) <= 4 for b in cut(range(size), 4, 3, rank))


@pytest.mark.parametrize("num_rows", [1, 15, 16, 33, 50])
def test_groups_are_the_same_in_every_cut_and_are_never_torn_apart(num_rows):
    def groups(batches: list[list[int]]) -> list[tuple[int, ...]]:
        return [tuple(b[i : i + 4]) for b in batches for i in range(0, len(b), 4) if b != [FILLER]]

    order = Permutation(num_rows, 7, 0)(np.arange(num_rows)).tolist()
    expected = sorted(tuple(order[i : i + 4]) for i in range(0, num_rows, 4))
    for batch, accumulate, ranks in [(16, 1, 1), (4, 4, 1), (4, 2, 2), (8, 1, 2), (4, 1, 4), (4, 1, 3)]:
        samplers = [TrainBatchSampler(num_rows, batch, accumulate, ranks, r, 7, together=4) for r in range(ranks)]
        assert sorted(g for sampler in samplers for g in groups(list(sampler))) == expected
        assert len({len(list(sampler)) for sampler in samplers} | {len(samplers[0])}) == 1
    for batch, ranks in itertools.product([1, 4, 6, 64], [1, 2, 3]):
        evaluated = [EvalBatchSampler(num_rows, batch, ranks, r, together=4) for r in range(ranks)]
        found = sorted(g for sampler in evaluated for g in groups(list(sampler)))
        assert found == [tuple(range(i, min(i + 4, num_rows))) for i in range(0, num_rows, 4)]
        assert {len(list(sampler)) for sampler in evaluated} == {len(evaluated[0])}


def test_an_evaluation_sampler_holds_no_list_of_all_rows():
    import tracemalloc

    tracemalloc.start()
    list(itertools.islice(EvalBatchSampler(10_000_000, 64, 2, 1), 10))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("lengths", [None, lengths_of])
def test_a_start_gives_the_rest_of_the_epoch_and_the_next_one_whole(ranks, accumulate, lengths):
    for rank in range(ranks):
        sampler = TrainBatchSampler(57, 2, accumulate, ranks, rank, seed=7, lengths=lengths)
        sampler.set_epoch(1)
        whole = list(sampler)
        for start in range(len(whole) + 1):
            sampler.epoch, sampler.start = 1, start
            sampler.set_epoch(1)  # Lightning says the epoch again when a run goes on
            assert list(sampler) == whole[start:]
            assert len(sampler) == len(whole)  # Lightning counts from the position
        sampler.set_epoch(2)
        assert len(list(sampler)) == len(whole)


def test_a_start_cuts_only_the_steps_that_are_left(monkeypatch):
    """The time to the first batch does not depend on how far inside it is."""
    windows = []

    def counted(window, *sizes):
        windows.append(list(window))
        return cut(window, *sizes)

    monkeypatch.setattr("lit_tune.data.samplers.cut", counted)
    sampler = TrainBatchSampler(1000, 2, 4, 1, 0, seed=7)
    sampler.start = 4 * 100 + 3
    first = next(iter(sampler))
    assert len(windows) == 1
    assert first == windows[0][6:8] == Permutation(1000, 7, 0)(np.arange(100 * 8 + 6, 100 * 8 + 8)).tolist()
