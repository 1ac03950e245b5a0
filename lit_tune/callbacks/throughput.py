"""How fast and how full: examples and tokens per second, padding, peak memory, GPU utilisation."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch

from lit_tune.memory import peak_memory

log = logging.getLogger("lit_tune")


class Throughput:
    """Counts what one rank has processed since the last reading.

    | key | meaning |
    |---|---|
    | ``perf/examples_per_second`` | rows trained on, all ranks |
    | ``perf/tokens_per_second`` | tokens that are not padding, all ranks |
    | ``perf/padding_fraction`` | share of the positions computed that were padding |
    | ``perf/peak_memory_gb`` | highest memory so far: of the GPU, else of the process, in 1e9 bytes |
    | ``perf/gpu_utilization`` | percent, where NVML answers |
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start counting."""
        self.examples = self.positions = 0
        self.tokens: Any = 0
        self.started = time.perf_counter()

    def pause(self) -> None:
        """Validation is not training: stop the clock."""
        self.paused = time.perf_counter()

    def resume(self) -> None:
        """Let the clock run again."""
        self.started += time.perf_counter() - self.paused

    def add(self, batch: Mapping[str, Any]) -> None:
        """Count a batch; the token count stays on the device, so that no step waits for it."""
        if batch["is_filler"]:
            return
        mask = batch.get("attention_mask")
        positions = batch["position_ids"] if mask is None else mask  # packed documents are told apart by these alone
        self.examples += len(batch["example_ids"])
        self.positions += positions.numel()
        self.tokens = self.tokens + (batch["aside"]["num_tokens"] if mask is None else mask).sum()

    def counts(self, device: torch.device) -> torch.Tensor:
        """(3,) int64 since the last reading: examples, tokens, positions; to be summed over the ranks."""
        known = torch.tensor([self.examples, 0, self.positions], dtype=torch.int64, device=device)
        known[1] += self.tokens
        return known

    def read(self, counts: torch.Tensor, device: torch.device) -> dict[str, float]:
        """Rates since the last reading, and start again.

        Args:
            counts: Of all ranks, see :meth:`counts`.
            device: Whose memory and utilisation are read.
        """
        seconds = max(time.perf_counter() - self.started, 1e-9)
        examples, tokens, positions = counts.tolist()
        rates = {
            "perf/examples_per_second": examples / seconds,
            "perf/tokens_per_second": tokens / seconds,
            "perf/padding_fraction": 1 - tokens / positions if positions else 0.0,
            "perf/peak_memory_gb": peak_memory(device) / 1e9,
        }
        if (percent := gpu_utilization(device)) is not None:
            rates["perf/gpu_utilization"] = percent
        self.reset()
        return rates


def gpu_utilization(device: torch.device) -> float | None:
    """Percent of the last sample period in which the GPU was busy, or None where nothing tells."""
    if device.type != "cuda":
        return None
    try:
        return float(torch.cuda.utilization(device))
    except Exception as e:  # no nvidia-ml-py, no driver, MIG: NVML's own errors share no other class
        log.debug("GPU utilisation is not logged: %s", e)
        return None
