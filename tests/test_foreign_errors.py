"""Errors as torch raises them, each produced by torch itself where that is possible here."""

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lit_tune.data.loader import quiet_forks
from lit_tune.errors import HardwareError, OutOfMemory
from lit_tune.foreign_errors import in_our_words


class Fatal(Dataset):
    """Rows of which the first kills its worker.

    Args:
        how: Called in the worker.
    """

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 2

    def __getitem__(self, index):
        self.how()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def bus_error() -> None:
    os.kill(os.getpid(), signal.SIGBUS)


@pytest.mark.parametrize(
    ("how", "said"),
    [(die, "was killed by signal Killed"), (bus_error, "was killed by signal Bus error"), (leave, "exited")],
)
def test_a_worker_that_died_is_exit_5_with_the_size_of_shared_memory(how, said):
    quiet_forks(num_workers=1)  # as our loaders do: after an earlier fit torch would not know what killed it
    with pytest.raises(RuntimeError) as caught:
        next(iter(DataLoader(Fatal(how), num_workers=1)))
    error = in_our_words(caught.value)
    assert isinstance(error, HardwareError)
    assert said in str(error)
    assert "/dev/shm has" in str(error)
    assert "--shm-size=2g" in str(error)
    assert len(str(error).splitlines()) <= 6


@pytest.mark.parametrize(
    "text",
    [
        "unable to write to file </torch_17_42_0>: No space left on device (28)",
        "unable to mmap 4096 bytes from file </torch_17_42_0>: Cannot allocate memory (12)",
        "Caught RuntimeError in DataLoader worker process 0.\nunable to allocate shared memory(shm) for file </t>",
    ],
)
def test_full_shared_memory_is_exit_5(text):
    """The texts of torch/MapAllocator.cpp; a full /dev/shm of the machine is nothing a test should make."""
    error = in_our_words(RuntimeError(text))
    assert isinstance(error, HardwareError)
    assert "shared memory is full" in str(error)


def test_the_cause_behind_an_error_counts():
    error = ValueError("cannot go on")
    error.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    assert isinstance(in_our_words(error), OutOfMemory)


@pytest.mark.parametrize(
    "error", [ValueError("x"), RuntimeError("shape mismatch"), RuntimeError("Connection closed by peer")]
)
def test_other_errors_are_bugs(error):
    """Also a lost connection where there is no process group: it is not one of ours."""
    assert in_our_words(error) is None
