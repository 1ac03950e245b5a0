"""Errors of torch, its workers and its process groups, in our words."""

import re
import shutil
import sys
from pathlib import Path

from lit_tune.errors import HardwareError, LitTuneError, OutOfMemory, StorageError, is_out_of_memory
from lit_tune.ranks import CONNECTION_LOST

SHARED_MEMORY = Path("/dev/shm")
LOST_CONNECTION = re.compile(
    r"connection closed by peer|connection reset by peer|connection refused|broken pipe|timed out waiting"
    r"|wait timeout|\bgloo\b|\bnccl\b",
    re.IGNORECASE,
)
"""What gloo (a plain RuntimeError) and NCCL say where another rank is gone."""
LOST_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (is killed by signal: [\w ]+|exited unexpectedly)"
)
FULL_SHARED_MEMORY = re.compile(
    r"unable to (?:allocate|write|open|mmap|resize).*(?:shared memory|shm|torch_)|Bus error"
)

MISFIT = re.compile(r"Error\(s\) in loading state_dict for|loaded state dict (?:has a different|contains a parameter)")
"""What torch says of a checkpoint whose tensors are not those of the model, or of its optimizer."""


def in_our_words(error: BaseException) -> LitTuneError | None:
    """What an error means for the person, where it is one of the known; None for a bug.

    Args:
        error: As caught; its causes are looked at too.
    """
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for each in reversed(chain):  # the first one knows most: which signal has killed a worker
        found = _out_of_memory(each) or _lost_worker(each) or _misfit(each) or _lost_rank(each)
        if found is not None:
            return found
    return None


def _out_of_memory(error: BaseException) -> LitTuneError | None:
    if not is_out_of_memory(error):
        return None
    on_machine = isinstance(error, MemoryError) or "CPU" in str(error)
    kind = "the memory of this machine" if on_machine else "the memory of the GPU"
    return OutOfMemory(
        f"{kind} is exhausted",
        where="data.train_batch_size",
        fix="halve it and double trainer.accumulate_grad_batches: the result is the same. Or data.max_length, "
        "model.gradient_checkpointing: true, trainer.precision: bf16-mixed; in evaluation data.eval_batch_size",
    )


def _lost_worker(error: BaseException) -> LitTuneError | None:
    text = str(error)
    worker = LOST_WORKER.search(text)
    if not isinstance(error, RuntimeError) or not (worker or FULL_SHARED_MEMORY.search(text)):
        return None
    what = "shared memory is full"
    if worker:
        how = worker[2].replace("is killed by signal: ", "was killed by signal ").strip()
        what = f"a data worker (process {worker[1].strip()}) {how}"
    return HardwareError(
        f"{what}{_shared_memory()}",
        where="data.num_workers",
        fix="in a container more shared memory (docker run --shm-size=2g), else fewer workers: killed ones often mean "
        "that the machine's memory is used up; data.num_workers: 0 works without either",
    )


def _shared_memory() -> str:
    """Size and use of ``/dev/shm``, where batches pass from the workers to the run."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return ""
    return f"; {SHARED_MEMORY} has {usage.total / 2**20:,.0f} MB, {usage.free / 2**20:,.0f} MB free"


def _misfit(error: BaseException) -> LitTuneError | None:
    if not isinstance(error, RuntimeError | ValueError) or not MISFIT.search(str(error)):
        return None
    lines = [" ".join(line.split()) for line in str(error).splitlines()[1:]] or [str(error)]
    more = f"; and {len(lines) - 1} more" if len(lines) > 1 else ""
    return StorageError(
        f"the checkpoint is not of this model and optimizer: {lines[0][:160]}{more}",
        where="resume",
        fix="the config the checkpoint was trained with, or another run_dir and resume: auto",
    )


def _lost_rank(error: BaseException) -> LitTuneError | None:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return None
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    is_theirs = isinstance(error, distributed.DistError) or LOST_CONNECTION.search(str(error))
    if not is_theirs:
        return None
    reason = " ".join(str(error).split())[:160]
    return HardwareError(
        f"{CONNECTION_LOST}: {reason}",
        where=f"rank {distributed.get_rank()}",
        fix="see what the other ranks say; the same command continues the run",
    )
