"""What is said where memory is exhausted names the batch, the peak, and settings that differ from those in use."""

import pytest
import torch

from lit_tune.errors import is_out_of_memory
from lit_tune.memory import explain, halved

CPU = torch.device("cpu")
BATCH = {
    "input_ids": torch.zeros(16, 512),
    "labels": torch.zeros(16),
    "example_ids": list(range(16)),
    "is_filler": False,
}


def test_three_settings_are_proposed_the_harmless_ones_first():
    settings = {"data.train_batch_size": 16, "trainer.accumulate_grad_batches": 2, "trainer.precision": "32-true"}
    error = explain(BATCH, CPU, "training", settings)
    assert error.exit_code == 8
    assert error.where == "data.train_batch_size"
    assert error.what.startswith("out of memory in training: a batch of 16 x 512, peak ")
    assert error.fix.split(", or ") == [
        "data.train_batch_size: 8 with trainer.accumulate_grad_batches: 4 "
        "(the same result; data.auto_batch: true finds it)",
        "model.gradient_checkpointing: true (20-30 % slower)",
        "trainer.precision: bf16-mixed",
    ]


def test_what_is_in_use_already_is_not_proposed():
    settings = {
        "data.train_batch_size": 1,
        "model.gradient_checkpointing": True,
        "trainer.precision": "bf16-mixed",
        "model.freeze": ["backbone"],
    }
    assert explain(BATCH, CPU, "training", settings).fix == "data.max_length: 256"


def test_rows_that_are_compared_with_each_other_stay_together():
    batch = {**BATCH, "aside": {"group_rows": 8}}
    few = "task.init_args.texts_at_once: 8 (the same result, a third slower)"
    for size, fewer in ((16, "data.train_batch_size: 8 with"), (8, "model.gradient_checkpointing")):
        first, second, *_ = explain(batch, CPU, "training", {"data.train_batch_size": size}).fix.split(", or ")
        assert first == few
        assert second.startswith(fewer)


def test_in_evaluation_the_batch_of_evaluation_is_named():
    error = explain(BATCH, CPU, "val", {"data.train_batch_size": 4, "data.eval_batch_size": 64})
    assert error.where == "data.eval_batch_size"
    assert error.fix.startswith("data.eval_batch_size: 32 (the same result)")


@pytest.mark.parametrize("batch_size", range(1, 20))
@pytest.mark.parametrize("accumulate", [1, 2, 3, 4])
def test_halving_keeps_the_effective_batch_and_ends_at_one_row(batch_size, accumulate):
    rows, cut = batch_size * accumulate, (batch_size, accumulate)
    while (smaller := halved(*cut)) is not None:
        assert smaller[0] * smaller[1] == rows
        assert smaller[0] <= cut[0] // 2
        cut = smaller
    assert cut == (1, rows)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: 80 bytes"),
    ],
)
def test_exhausted_memory_is_known_in_all_its_forms(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
