"""Windows of rows are drawn one by one, and what is random in a unit depends on it and the epoch alone."""

from dataclasses import dataclass
from typing import ClassVar

import datasets
import numpy as np
import pytest

from lit_tune.data.loader import BatchLoader
from lit_tune.data.samplers import EvalBatchSampler, TrainBatchSampler
from lit_tune.data.units import Chosen, WholeRows, Windows, list_lengths

COUNTS = [2, 0, 3, 1, 0, 4]


@pytest.fixture
def rows() -> datasets.Dataset:
    windows = [[[10 * row + k] * (1 + k) for k in range(count)] for row, count in enumerate(COUNTS)]
    return datasets.Dataset.from_dict({"input_ids": windows, "text": [f"row {i}" for i in range(len(COUNTS))]})


def expected(order: list[int]) -> list[tuple[list[int], str]]:
    """What a plain loop finds, window after window."""
    return [([10 * row + k] * (1 + k), f"row {row}") for row in order for k in range(COUNTS[row])]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 2, 1], [4, 1], [0]])
def test_each_window_is_a_unit_also_of_a_subset_of_rows(rows, order):
    chosen = rows if order == list(range(6)) else rows.select(np.array(order))
    windows = Windows(chosen, ["input_ids"])
    wanted = expected(order)
    assert len(windows) == len(wanted)
    read = windows.read(list(range(len(wanted)))) if wanted else []
    assert [(row["input_ids"], row["text"]) for row in read] == [([ids], text) for ids, text in wanted]
    backwards = windows.read(list(range(len(wanted)))[::-1]) if wanted else []
    assert backwards == read[::-1]


def test_lengths_are_read_of_files_as_of_memory(rows, tmp_path):
    rows.save_to_disk(tmp_path / "set")
    assert list_lengths(datasets.load_from_disk(str(tmp_path / "set")), "input_ids").tolist() == COUNTS
    halves = datasets.concatenate_datasets([rows.select(range(3)), rows.select(range(3, 6))])
    assert list_lengths(halves, "input_ids").tolist() == COUNTS


@dataclass(frozen=True)
class Draws:
    is_random: ClassVar[bool] = True

    def __call__(self, features):
        return {"draws": [feature["draw"] for feature in features]}


def drawn(cut: tuple[int, int, int], epoch: int, num_workers: int = 0) -> dict[int, tuple[int, int]]:
    """Unit -> its draw, over all ranks."""
    batch_size, accumulate, ranks = cut
    units = WholeRows(datasets.Dataset.from_dict({"a": list(range(12))}))
    found = {}
    for rank in range(ranks):
        sampler = TrainBatchSampler(12, batch_size, accumulate, ranks, rank, seed=3)
        loader = BatchLoader(units, sampler, Draws(), num_workers, persistent_workers=True)
        sampler.set_epoch(epoch)
        for batch in loader:
            found |= dict(zip(batch["example_ids"], batch["draws"], strict=True))
    return found


def test_a_draw_depends_on_unit_and_epoch_and_not_on_cuts_and_workers():
    first = drawn((4, 1, 1), 0)
    assert len(set(first.values())) == 12
    assert drawn((1, 2, 2), 0) == first
    assert drawn((2, 2, 1), 0, num_workers=2) == first
    second = drawn((4, 1, 1), 1)
    assert not set(second.values()) & set(first.values())
    assert drawn((4, 1, 1), 1, num_workers=2) == second


def test_evaluation_draws_the_same_each_time_and_never_what_training_draws():
    loader = BatchLoader(WholeRows(datasets.Dataset.from_dict({"a": [0, 1]})), EvalBatchSampler(2, 2, 1, 0), Draws())
    once, again = (next(iter(loader))["draws"] for _ in range(2))
    assert once == again
    assert not set(once) & set(drawn((4, 1, 1), 0).values())


def test_chosen_units_are_read_in_their_order(rows):
    some = Chosen(Windows(rows, ["input_ids"]), np.array([7, 2, 0]))
    every = Windows(rows, ["input_ids"]).read(range(10))
    assert len(some) == 3
    assert some.read([2, 0]) == [every[0], every[7]]
