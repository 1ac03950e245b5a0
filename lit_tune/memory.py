"""Memory: how much was used, and what is said where it was not enough."""

import resource
import sys
from collections.abc import Mapping
from typing import Any

import torch

from lit_tune.errors import OutOfMemory


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU allocator's peak, or the process's resident peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def batch_shape(batch: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of the largest tensor of a batch, rows first."""
    return max((tuple(v.shape) for v in batch.values() if isinstance(v, torch.Tensor)), key=_size, default=())


def explain(batch: Mapping[str, Any], device: torch.device, doing: str, settings: Mapping[str, Any]) -> OutOfMemory:
    """With which batch memory was exhausted, and what to change.

    Args:
        batch: The batch.
        device: Where it is.
        doing: ``training``, or the stage that was evaluated.
        settings: Values in use by config key, for the changes that are proposed.
    """
    key, shape = ("data.train_batch_size" if doing == "training" else "data.eval_batch_size"), batch_shape(batch)
    return OutOfMemory(
        f"out of memory in {doing}: a batch of {' x '.join(f'{n:,}' for n in shape)}, peak {used(device)}",
        where=key,
        fix=", or ".join(remedies(key, shape, settings, rows_together(batch))[:3])
        or "a smaller model, or a device with more memory",
    )


def used(device: torch.device) -> str:
    """``77.9 of 79.1 GB``; without a GPU the peak alone."""
    peak = f"{peak_memory(device) / 1e9:.1f}"
    if device.type != "cuda":
        return f"{peak} GB of this process"
    return f"{peak} of {torch.cuda.get_device_properties(device).total_memory / 1e9:.1f} GB"


def rows_together(batch: Mapping[str, Any]) -> int:
    """Rows of a batch that are scored with each other, so that fewer in a batch would be another problem."""
    return int(batch.get("aside", {}).get("group_rows", 1))


def remedies(key: str, shape: tuple[int, ...], settings: Mapping[str, Any], together: int = 1) -> list[str]:
    """Settings that need less memory than those in use, the harmless ones first.

    Args:
        key: ``data.train_batch_size`` or ``data.eval_batch_size``.
        shape: Of the batch.
        settings: Values in use by config key.
        together: Rows that stay in one batch.

    >>> remedies("data.eval_batch_size", (64, 512), {"data.eval_batch_size": 64, "trainer.precision": "bf16-mixed"})
    ['data.eval_batch_size: 32 (the same result)', 'data.max_length: 256']
    """
    found = []
    size = int(settings.get(key) or (shape[0] if shape else 1))
    training = key == "data.train_batch_size"
    cut = halved(size, int(settings.get("trainer.accumulate_grad_batches") or 1), together)
    at_once = int(settings.get("task.init_args.texts_at_once") or 2 * together)
    if together > 1 and at_once > 1:
        found.append(f"task.init_args.texts_at_once: {at_once // 2} (the same result, a third slower)")
    if training and cut is not None:
        same = "the same result; data.auto_batch: true finds it"
        found.append(f"{key}: {cut[0]} with trainer.accumulate_grad_batches: {cut[1]} ({same})")
    elif size > together:
        found.append(f"{key}: {size // 2} (the same result)")
    if training and not settings.get("model.gradient_checkpointing"):
        found.append("model.gradient_checkpointing: true (20-30 % slower)")
    if str(settings.get("trainer.precision")).startswith("32"):
        found.append("trainer.precision: bf16-mixed")
    if len(shape) > 1 and shape[1] > 32:
        found.append(f"data.max_length: {shape[1] // 2}")
    if training and not settings.get("model.freeze"):
        found.append("model.freeze: backbone")
    return found


def halved(batch_size: int, accumulate: int, together: int = 1) -> tuple[int, int] | None:
    """At most half the micro-batch and as many more of them, so that the effective batch is exactly the same.

    Args:
        batch_size: Rows per micro-batch.
        accumulate: Micro-batches per optimizer step.
        together: Rows that stay in one micro-batch; ``batch_size`` is a multiple of it.

    Returns:
        Batch size and accumulation; None where the micro-batch is a single row, or a single group of rows.

    >>> halved(16, 1), halved(6, 1), halved(5, 2), halved(5, 1), halved(1, 8)
    ((8, 2), (3, 2), (2, 5), (1, 5), None)
    >>> halved(48, 1, together=16), halved(16, 1, together=16)
    ((16, 3), None)
    """
    rows = batch_size * accumulate
    smaller = next((n for n in range(batch_size // 2, 0, -1) if rows % n == 0 and n % together == 0), None)
    return None if smaller is None else (smaller, rows // smaller)


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
