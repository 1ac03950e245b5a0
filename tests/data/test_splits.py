import numpy as np
import pytest
from scipy.stats import chi2
from sklearn.model_selection import StratifiedShuffleSplit

from lit_tune.data.splits import holdout, quantile_bins, subset
from lit_tune.errors import ConfigError, DataError


def counts(strata, rows):
    return np.bincount(strata[rows], minlength=strata.max() + 1)


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_held_out_as_sklearn_does_within_one_row(seed):
    rng = np.random.default_rng(seed)
    strata = np.repeat(np.arange(6), rng.integers(2, 200, 6))
    rng.shuffle(strata)
    _, held = holdout(len(strata), 0.13, seed, strata)
    theirs = next(StratifiedShuffleSplit(1, test_size=0.13, random_state=seed).split(strata, strata))[1]
    assert len(held) == len(theirs)
    assert np.abs(counts(strata, held) - counts(strata, theirs)).max() <= 1
    assert np.abs(counts(strata, held) - 0.13 * np.bincount(strata)).max() <= 1 + 1 / len(strata)


@pytest.mark.parametrize("strata", [None, "random"])
def test_every_row_is_in_exactly_one_part_for_every_size(strata):
    for num_rows in range(2, 40):
        classes = None if strata is None else np.random.default_rng(num_rows).integers(0, 5, num_rows)
        for fraction in (0.001, 0.1, 0.5, 0.999):
            train, held = holdout(num_rows, fraction, 3, classes)
            assert sorted([*train, *held]) == list(range(num_rows))
            assert len(held) == min(num_rows - 1, int(np.ceil(round(fraction * num_rows, 6))))
            assert (np.diff(train) > 0).all()
            assert (np.diff(held) > 0).all()


def test_a_class_with_two_rows_or_more_keeps_one_in_train():
    strata = np.array([0] * 50 + [1] * 2 + [2] * 3 + [3])
    for seed in range(20):
        train, held = holdout(len(strata), 0.5, seed, strata)
        assert (counts(strata, train) >= 1).all()
        assert counts(strata, held)[3] == 0
        assert len(held) == 28


def test_rows_of_their_own_class_each_can_still_be_split():
    train, held = holdout(5, 0.2, 0, np.arange(5))
    assert (len(train), len(held)) == (4, 1)


def test_a_seed_always_names_the_same_rows_and_another_seed_others():
    # literal rows: a run that is resumed with another numpy must find its validation split again
    assert holdout(10, 0.3, 0, None)[1].tolist() == [4, 5, 7]
    assert subset(10, 3, 0).tolist() == [0, 4, 6]
    strata = np.arange(1000) % 3
    one, same, other = (holdout(1000, 0.1, seed, strata)[1].tolist() for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_a_subset_is_sorted_and_grows_with_its_limit():
    small, large = subset(100, 10, 7), subset(100, 30, 7)
    assert len(small) == 10
    assert set(small) < set(large)
    assert (np.diff(large) > 0).all()
    assert subset(100, 100, 7).tolist() == subset(100, 10**9, 7).tolist() == list(range(100))
    assert subset(100, 10, 8).tolist() != small.tolist()


def test_every_row_has_the_same_chance():
    drawn = sum(np.bincount(subset(20, 5, seed), minlength=20) for seed in range(2000))
    statistic = ((drawn - 500) ** 2 / 500).sum()
    assert statistic < chi2.ppf(1 - 1e-6, df=19)
    held = sum(np.bincount(holdout(20, 0.25, seed, np.arange(20) % 2)[1], minlength=20) for seed in range(2000))
    assert ((held - 500) ** 2 / 500).sum() < chi2.ppf(1 - 1e-6, df=19)


def test_quantile_bins_hold_equally_many_rows_and_survive_ties():
    values = np.random.default_rng(0).lognormal(size=1000)
    assert np.bincount(quantile_bins(values)).tolist() == [100] * 10
    assert set(quantile_bins(np.array([1.0, 1.0, 1.0, 5.0]))) == {1, 2} or len(set(quantile_bins(np.ones(9)))) == 1
    _, held = holdout(1000, 0.1, 0, quantile_bins(values))
    assert abs(np.median(values[held]) - np.median(values)) < 0.15


def test_impossible_cuts_are_refused():
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(ConfigError, match=r"data.val_fraction: must lie between 0 and 1"):
            holdout(10, fraction, 0, None)
    with pytest.raises(DataError, match="1 row"):
        holdout(1, 0.5, 0, None)
    with pytest.raises(ConfigError, match="at least 1 row, got 0"):
        subset(10, 0, 0)


def test_groups_stay_whole_and_as_many_are_held_out_as_are_needed():
    rng = np.random.default_rng(0)
    for seed in range(30):
        groups = rng.integers(0, 9, 60)
        train, held = holdout(60, 0.2, seed, None, groups)
        assert sorted([*train, *held]) == list(range(60))
        assert not set(groups[train]) & set(groups[held])
        assert 12 <= len(held) < 12 + np.bincount(groups).max()
    assert len({tuple(holdout(60, 0.2, seed, None, groups)[1]) for seed in range(9)}) > 3


def test_a_group_stays_in_train_and_one_alone_is_cut_by_rows():
    train, held = holdout(10, 0.9, 0, None, np.array([7] * 9 + [3]))
    assert {len(train), len(held)} == {1, 9}
    train, held = holdout(10, 0.2, 0, None, np.zeros(10))
    assert len(held) == 2
