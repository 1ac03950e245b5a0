"""The place in an epoch, for another cut of the same steps."""

import itertools

from lit_tune.checkpointing.position import Cut, Position
from lit_tune.data.samplers import TrainBatchSampler

CUTS = [Cut(16, 1, 1), Cut(4, 1, 4), Cut(1, 1, 16), Cut(2, 2, 4), Cut(8, 2, 1), Cut(1, 4, 4)]


def rows_left(cut: Cut, batch: int) -> list[int]:
    """Rows that all ranks together still train on in an epoch of 50 rows."""
    rows = []
    for rank in range(cut.num_ranks):
        sampler = TrainBatchSampler(50, cut.batch_size, cut.accumulate, cut.num_ranks, rank, seed=3)
        sampler.start = batch
        rows += [r for picks in sampler for r in picks if r >= 0]
    return sorted(rows)


def test_with_the_same_effective_batch_no_row_is_repeated_or_skipped():
    for old, new in itertools.product(CUTS, CUTS):
        for step in range(4):
            was = Position(1, step * old.accumulate, 4 + step)
            now = old.recut(was, new)
            assert (now.epoch, now.step) == (was.epoch, was.step)
            assert rows_left(new, now.batch) == rows_left(old, was.batch)


def test_with_another_effective_batch_a_begun_window_is_done_again_and_none_is_skipped():
    assert Cut(4, 1, 1).recut(Position(0, 3, 3), Cut(8, 1, 1)) == Position(0, 1, 3)
    assert Cut(8, 1, 1).recut(Position(0, 3, 3), Cut(4, 1, 1)) == Position(0, 6, 3)
    for old, new in itertools.product([Cut(6, 1, 1), Cut(3, 2, 2)], [Cut(4, 1, 2), Cut(5, 1, 1)]):
        for batch in range(0, 8, old.accumulate):
            left = rows_left(new, old.recut(Position(0, batch, batch), new).batch)
            assert set(rows_left(old, batch)) <= set(left)


def test_a_validation_that_is_due_stays_due():
    was = Position(2, 6, 9, is_validation_due=True)
    assert Cut(8, 1, 2).recut(was, Cut(4, 1, 4)) == Position(2, 12, 9, is_validation_due=True)
    assert Position.from_dict(was.to_dict()) == was
