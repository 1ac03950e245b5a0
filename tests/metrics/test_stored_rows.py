"""Rows in blocks: nothing is lost or changed, and neither keeping nor computing takes more than the docs say."""

import copy
import tracemalloc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_tune.metrics.rank_statistics import MultiLabelAUROC, SingleLabelAUROC, Spearman
from lit_tune.metrics.stored_rows import BLOCK_ELEMENTS, MIN_BLOCK_ROWS, WAITING_ELEMENTS, StoredRows


class Rows(StoredRows):
    """Keeps what it is given; only what rows have in common is looked at."""

    def update(self, preds, target):
        self.store(preds, target)

    def compute(self):
        return torch.tensor(self.num_stored)


def stored(metric, name):
    return torch.cat([block.cpu() for block in getattr(metric, name)], dim=1).T


def allocated_bytes(metric):
    blocks = {b.untyped_storage().data_ptr(): b.untyped_storage() for b in (*metric.scores, *metric.targets)}
    return sum(storage.nbytes() for storage in blocks.values())


@pytest.mark.parametrize("sizes", [[1, 1, 0, 5, 64] * 40, [64] * 90, [5000, 1, 7], [3000, 3000]])
def test_rows_stay_as_they_came_in_few_blocks(sizes):
    metric = Rows(33, 2, torch.int32)
    scores, targets = torch.randn(sum(sizes), 33), torch.randint(9, (sum(sizes), 2))
    for s, t in zip(scores.split(sizes), targets.split(sizes), strict=True):
        metric.store(s, t)
    assert torch.equal(stored(metric, "scores"), scores)
    assert torch.equal(stored(metric, "targets"), targets.int())
    longest = BLOCK_ELEMENTS // 33
    assert max(b.shape[1] for b in metric.scores) <= longest
    assert len(metric.scores) < 14 + sum(sizes) / longest
    assert allocated_bytes(metric) <= 4 * 35 * (sum(sizes) + min(longest, sum(sizes)))


def test_blocks_of_many_classes_are_not_too_short():
    metric = Rows(900, 1, torch.int32)
    metric.store(torch.zeros(MIN_BLOCK_ROWS + 1, 900), torch.zeros(MIN_BLOCK_ROWS + 1, 1))
    assert [b.shape[1] for b in metric.scores] == [MIN_BLOCK_ROWS, 1]


def test_a_copy_and_its_original_go_on_without_each_other():
    metric = Rows(1, 1, torch.float32)
    metric.store(torch.zeros(5, 1), torch.zeros(5, 1))
    metric.store(torch.ones(1, 1), torch.zeros(1, 1))  # a block with four free rows
    assert metric.free_rows == 4
    other = copy.deepcopy(metric)
    metric.store(torch.full((1, 1), 2.0), torch.zeros(1, 1))
    other.store(torch.full((1, 1), 3.0), torch.zeros(1, 1))
    assert stored(metric, "scores").flatten().tolist() == [0, 0, 0, 0, 0, 1, 2]
    assert stored(other, "scores").flatten().tolist() == [0, 0, 0, 0, 0, 1, 3]


def test_a_block_begun_in_inference_mode_is_filled_outside_of_it():
    metric = Rows(1, 1, torch.float32)
    with torch.inference_mode():
        for num_rows in (5, 1):
            metric.store(torch.zeros(num_rows, 1), torch.zeros(num_rows, 1))
    assert metric.free_rows == 4
    metric.store(torch.ones(1, 1, requires_grad=True), torch.zeros(1, 1))
    assert stored(metric, "scores").flatten().tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert not stored(metric, "scores").requires_grad


def test_after_a_reset_nothing_is_kept():
    metric = Rows(2, 1, torch.int32)
    for _ in range(2):
        metric.store(torch.ones(100, 2), torch.ones(100, 1))
        metric.store(torch.ones(3, 2), torch.ones(3, 1))
        assert len(stored(metric, "scores")) == 103
        metric.reset()
        assert (metric.scores, metric.targets, metric.newest) == ([], [], {})


def test_torchmetrics_sync_copies_no_row_and_rows_are_added_after_it():
    metric = Rows(1, 1, torch.float32)
    metric.store(torch.zeros(5, 1), torch.zeros(5, 1))
    metric.store(torch.ones(1, 1), torch.zeros(1, 1))
    places = [b.data_ptr() for b in metric.scores]
    metric.sync(distributed_available=lambda: True)
    assert [b.data_ptr() for b in metric.scores] == places
    metric.unsync()
    assert [b.data_ptr() for b in metric.scores] == places
    metric.store(torch.ones(1, 1), torch.zeros(1, 1))
    assert stored(metric, "scores").flatten().tolist() == [0, 0, 0, 0, 0, 1, 1]


class LargestResult(TorchDispatchMode):
    """Bytes of the largest tensor that an operation made."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.nbytes = max(self.nbytes, result.numel() * result.element_size())
        return result


NUM_ROWS = 200_000


@pytest.mark.parametrize(
    ("build", "bytes_per_row"),
    [
        (lambda: SingleLabelAUROC(2), 4),
        (lambda: SingleLabelAUROC(6), 4),
        (lambda: MultiLabelAUROC(6), 4),
        (Spearman, 8),
    ],
    ids=["binary", "6 classes", "6 labels", "spearman"],
)
def test_computing_takes_one_column_more_at_a_time(build, bytes_per_row):
    metric, g = build(), torch.Generator().manual_seed(0)
    columns = 2 if getattr(metric, "num_classes", 0) == 2 else metric.shape["scores"][0]
    for _ in range(20):
        preds = torch.randn(NUM_ROWS // 20, columns, generator=g)
        classes = torch.randint(columns, (len(preds),), generator=g)
        metric.update(preds, classes if isinstance(metric, SingleLabelAUROC) else (preds > 0.3).float())
    kept = allocated_bytes(metric)
    with LargestResult() as largest:
        metric.compute()
    metric.update(preds[:0], preds[:0, 0])  # else torchmetrics gives what it computed before
    tracemalloc.start()  # counts what numpy allocates, not torch
    try:
        metric.compute()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest.nbytes <= 4 * BLOCK_ELEMENTS
    few = 5 * BLOCK_ELEMENTS + 2**16  # one side of a block and which rows those are; Python
    assert bytes_per_row * NUM_ROWS <= peak <= bytes_per_row * NUM_ROWS + few
    assert allocated_bytes(metric) == kept


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="rows wait on a CUDA device")
def test_rows_wait_on_the_gpu_until_there_are_many():
    metric = Rows(2, 1, torch.int32).cuda()
    scores, targets = torch.randn(3 * WAITING_ELEMENTS, 2), torch.randint(9, (3 * WAITING_ELEMENTS, 1))
    for s, t in zip(scores.split(1000), targets.split(1000), strict=True):
        metric.store(s.cuda(), t.cuda())
        assert sum(b.numel() for b in metric.scores if b.is_cuda) < WAITING_ELEMENTS
        assert allocated_bytes(metric) <= 4 * 3 * (metric.num_rows + BLOCK_ELEMENTS)
    assert any(b.is_cuda for b in metric.scores)
    assert torch.equal(stored(metric, "scores"), scores)
    assert torch.equal(stored(metric, "targets"), targets.int())
    on_cpu = metric.cpu()
    assert not any(b.is_cuda for b in (*on_cpu.scores, *on_cpu.targets))
    on_cpu.store(scores[:1], targets[:1])
    assert len(stored(on_cpu, "scores")) == len(scores) + 1
