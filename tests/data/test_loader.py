"""Loaders: the same batches on any number of workers, ranks and cuts; streams in windows."""

import os

import datasets
import pytest
import torch
from toy import WORDS

from lit_tune.data.collators import Padding, TextCollator
from lit_tune.data.loader import BatchLoader, StreamBatches, StreamLoader
from lit_tune.data.samplers import FILLER, EvalBatchSampler, TrainBatchSampler
from lit_tune.data.units import WholeRows
from lit_tune.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes")  # of one core
COLLATOR = TextCollator(Padding(0), "class", 3)


@pytest.fixture(autouse=True)
def _environment_is_put_back(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def encoded(count: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"input_ids": [[4 + i] * (1 + i % 5) for i in range(count)], "labels": [i % 3 for i in range(count)]}
    )


def equal(a: dict, b: dict) -> bool:
    same = a.keys() == b.keys() and a["example_ids"] == b["example_ids"] and a["is_filler"] == b["is_filler"]
    return same and all(torch.equal(a[k], b[k]) for k in a if isinstance(a[k], torch.Tensor))


# --- stored rows ---------------------------------------------------------------------------------------------------


def test_a_batch_holds_the_rows_its_ids_name():
    rows = encoded(23)
    sampler = TrainBatchSampler(23, 4, 1, 1, 0, seed=3)
    loader = BatchLoader(WholeRows(rows), sampler, COLLATOR)
    seen = []
    for batch in loader:
        assert batch["input_ids"][:, 0].tolist() == [4 + i for i in batch["example_ids"]]
        assert batch["labels"].tolist() == [i % 3 for i in batch["example_ids"]]
        assert batch["is_filler"] is False
        seen += batch["example_ids"]
    assert sorted(seen) == list(range(23))
    assert seen != list(range(23))
    assert len(loader) == 6


def test_a_rank_without_rows_gets_a_filler_with_real_tensors():
    loader = BatchLoader(WholeRows(encoded(5)), EvalBatchSampler(5, 4, 2, rank=1), COLLATOR)
    batches = list(loader)
    assert [b["example_ids"] for b in batches] == [[3, 4]]
    loader = BatchLoader(WholeRows(encoded(9)), EvalBatchSampler(9, 4, 2, rank=1), COLLATOR)
    last = list(loader)[-1]
    assert (last["example_ids"], last["is_filler"]) == ([FILLER], True)
    assert last["input_ids"].shape[0] == 1


def test_persistent_workers_give_the_same_batches_over_epochs():
    rows = encoded(30)
    plain, sampler = TrainBatchSampler(30, 4, 1, 1, 0, seed=3), TrainBatchSampler(30, 4, 1, 1, 0, seed=3)
    here = BatchLoader(WholeRows(rows), plain, COLLATOR)
    there = BatchLoader(WholeRows(rows), sampler, COLLATOR, num_workers=2, persistent_workers=True)
    orders = []
    for epoch in range(3):
        plain.set_epoch(epoch)
        sampler.set_epoch(epoch)
        pairs = list(zip(here, there, strict=True))
        assert all(equal(a, b) for a, b in pairs)
        orders.append([i for a, _ in pairs for i in a["example_ids"]])
    workers = there._loader._iterator._workers
    assert len({tuple(o) for o in orders}) == 3
    assert all(w.is_alive() for w in workers)
    there._loader._iterator._shutdown_workers()


def test_loading_draws_nothing_from_the_random_state_of_the_process():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(BatchLoader(WholeRows(encoded(10)), TrainBatchSampler(10, 4, 1, 1, 0, seed=3), COLLATOR, num_workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_keep_tokenizers_from_writing_about_forks(monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    BatchLoader(WholeRows(encoded(3)), EvalBatchSampler(3, 1, 1, 0), COLLATOR)
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    BatchLoader(WholeRows(encoded(3)), EvalBatchSampler(3, 1, 1, 0), COLLATOR, num_workers=1)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


# --- streams -------------------------------------------------------------------------------------------------------

NUM_ROWS = 43


def read() -> list[dict]:
    return iter([{"text": WORDS[i % 20], "n": i} for i in range(NUM_ROWS)])


def encode(rows: dict, positions: list[int]) -> dict:
    assert rows["n"] == positions
    return {"input_ids": [[4 + n] * (1 + n % 5) for n in rows["n"]], "labels": [n % 3 for n in rows["n"]]}


def stream(batch_size: int, accumulate: int, ranks: int = 1, rank: int = 0, seed: int = 1, **options) -> StreamBatches:
    cuts = (batch_size, accumulate, ranks, rank)
    functions = {"read": read, "encode": encode} | {k: options.pop(k) for k in ("read", "encode") if k in options}
    return StreamBatches(functions["read"], functions["encode"], COLLATOR, *cuts, seed, **options)


def windows(batches: list[list[dict]], accumulate: int) -> list[list[int]]:
    """Rows of each optimizer step, in the order of ranks within each micro-batch."""
    steps = []
    for start in range(0, len(batches[0]), accumulate):
        micro = [b for i in range(start, min(start + accumulate, len(batches[0]))) for b in (r[i] for r in batches)]
        steps.append([i for b in micro for i in b["example_ids"] if i != FILLER])
    return steps


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("batch_size", "accumulate", "ranks"), [(8, 1, 1), (2, 4, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2)])
def test_a_step_holds_the_same_rows_however_it_is_cut(batch_size, accumulate, ranks, num_workers):
    if num_workers and (batch_size, accumulate) == (1, 8):
        num_workers = 0  # covered by the others
    reference = windows([list(stream(8, 1, block_size=20))], 1)
    loaded = [
        list(StreamLoader(stream(batch_size, accumulate, ranks, r, block_size=20), num_workers)) for r in range(ranks)
    ]
    assert windows(loaded, accumulate) == reference
    assert sorted(i for step in reference for i in step) == list(range(NUM_ROWS))
    assert [len(step) for step in reference] == [8, 8, 8, 8, 8, 3]
    assert len({len(batches) for batches in loaded}) == 1
    for batch in (b for batches in loaded for b in batches if not b["is_filler"]):
        assert batch["input_ids"][:, 0].tolist() == [4 + i for i in batch["example_ids"]]


def test_blocks_are_shuffled_anew_each_epoch_and_rows_stay_in_their_block():
    batches = stream(8, 1, block_size=20)
    orders = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        orders.append([i for b in batches for i in b["example_ids"]])
        assert sorted(orders[-1][:20]) == list(range(20))
        assert sorted(orders[-1]) == list(range(NUM_ROWS))
    assert orders[0] != orders[1]
    assert orders[0] == [i for b in stream(8, 1, block_size=20) for i in b["example_ids"]]
    assert orders[0] != [i for b in stream(8, 1, seed=2, block_size=20) for i in b["example_ids"]]


def test_workers_see_the_epoch():
    plain, batches = stream(8, 1), stream(8, 1)
    loader = StreamLoader(batches, num_workers=1)
    plain.set_epoch(4)
    loader.sampler.set_epoch(4)
    assert [b["example_ids"] for b in loader] == [b["example_ids"] for b in plain]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_in_the_stream_arrives_as_it_is(num_workers):
    def breaks():
        yield from ({"text": "a", "n": i} for i in range(20))
        raise DataError("line is broken", where="a.jsonl:21", fix="correct it")

    with pytest.raises(DataError) as caught:
        list(StreamLoader(stream(4, 1, read=breaks), num_workers))
    assert str(caught.value) == "a.jsonl:21: line is broken\nFix: correct it"


def test_rows_may_lack_a_column():
    rows = [{"text": "a"}, {"text": "b", "n": 1}, {"n": 2, "text": "c"}]

    def sees(columns, positions):
        seen.update(zip(positions, columns["n"], strict=True))
        return {"input_ids": [[5]] * len(positions)}

    seen: dict = {}
    list(stream(3, 1, read=lambda: iter(rows), encode=sees))
    assert seen == {0: None, 1: 1, 2: 2}
