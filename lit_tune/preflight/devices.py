"""The devices of this machine against those the config asks for: a GPU that is not used is a day lost."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lit_tune.errors import ConfigError, HardwareError
from lit_tune.preflight.advice_rules import HIGH_LR
from lit_tune.preflight.findings import Finding, warning
from lit_tune.preflight.situation import Situation

BF16_CAPABILITY = (8, 0)
"""Ampere; below it CUDA computes bfloat16 in float32 with conversions, slower than float32 itself."""


@dataclass(frozen=True)
class Machine:
    """What there is.

    Args:
        cuda_build: CUDA version that torch was built with; None: a build for CPUs.
        num_cuda: GPUs that torch sees.
        capabilities: Compute capability of each.
        nvidia_devices: NVIDIA GPUs that the operating system shows, whether torch can use them or not.
        visible: ``CUDA_VISIBLE_DEVICES``, where it is set.
        has_mps: Apple's GPU can be used.
        is_apple: The machine has Apple's processor.
        num_cpus: Processors that this process may use.
        has_compiler: A C++ compiler is there.
    """

    cuda_build: str | None = None
    num_cuda: int = 0
    capabilities: tuple[tuple[int, int], ...] = ()
    nvidia_devices: int = 0
    visible: str | None = None
    has_mps: bool = False
    is_apple: bool = False
    num_cpus: int = 1
    has_compiler: bool = True


def this_machine() -> Machine:
    """Look around; no CUDA context is made."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [*Path("/dev").glob("nvidia[0-9]*")] or [*Path("/proc/driver/nvidia/gpus").glob("*")]
    return Machine(
        cuda_build=torch.version.cuda,
        num_cuda=count,
        capabilities=tuple(torch.cuda.get_device_capability(i) for i in range(count)),
        nvidia_devices=len(devices),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        has_mps=torch.backends.mps.is_available(),
        is_apple=platform.system() == "Darwin" and platform.machine() == "arm64",
        num_cpus=num_cpus(),
        has_compiler=any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")),
    )


def num_cpus() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_findings(s: Situation, machine: Machine) -> list[Finding]:
    """Everything about devices; what cannot work at all is in ``trainer_rules``."""
    return [*unused(s, machine), *bfloat16(s, machine), *standstill(s), *workers(s, machine), *compiler(s, machine)]


def unused(s: Situation, machine: Machine) -> Iterator[Finding]:
    """A GPU that is there and does not work for this run."""
    if s.device != "cpu":
        return
    key, count = "trainer.accelerator", machine.nvidia_devices
    asked_for_cpu = str(s[key]) == "cpu"
    if machine.num_cuda or machine.has_mps:
        kind = "a CUDA GPU" if machine.num_cuda else "Apple's GPU"
        yield warning(f"cpu was asked for, and this machine has {kind}", where=key, fix=f"{key}: auto")
    elif asked_for_cpu:
        return
    elif count and machine.visible is not None and machine.visible.strip() in ("", "-1"):
        yield warning(
            f"CUDA_VISIBLE_DEVICES={machine.visible!r} hides {count} GPU(s): the run is on the CPU",
            where=key,
            fix=f"unset CUDA_VISIBLE_DEVICES; {key}: cpu if that is meant",
        )
    elif count and machine.cuda_build is None:
        yield warning(
            f"this machine has {count} NVIDIA GPU(s), and torch {torch.__version__} is a build for CPUs",
            where="installed torch",
            fix="pip install torch --index-url https://download.pytorch.org/whl/cu128 (or another CUDA version)",
        )
    elif count:
        yield warning(
            f"this machine has {count} NVIDIA GPU(s), and torch cannot use them with CUDA {machine.cuda_build}",
            where="installed torch",
            fix="run nvidia-smi: a driver that is too old or broken, or a torch build for its CUDA version",
        )
    elif machine.is_apple:
        yield warning("torch cannot use Apple's GPU", where="installed torch", fix="macOS 14 and a current torch")


def bfloat16(s: Situation, machine: Machine) -> Iterator[Finding]:
    """A number format that this GPU only imitates."""
    is_asked_for = s.device == "cuda" and str(s["trainer.precision"]).startswith("bf16")
    if is_asked_for and any(c < BF16_CAPABILITY for c in machine.capabilities):
        which = ".".join(map(str, min(machine.capabilities)))
        what = f"this GPU (compute capability {which}) has no bfloat16, only an imitation"
        yield Finding("error", HardwareError(what, where="trainer.precision", fix="trainer.precision: 16-mixed"))


def standstill(s: Situation) -> Iterator[Finding]:
    """Weights kept in 16 bits round most updates away."""
    value, rate = str(s["trainer.precision"] or "32-true"), s["optimizer.lr"]
    kept = {"bf16-true": "bfloat16", "16-true": "float16"}.get(value, s["model.dtype"])
    steps = {"bfloat16": 256, "float16": 2048}.get(kept)
    if s.verb == "fit" and steps and isinstance(rate, float) and rate < HIGH_LR:
        yield warning(
            f"weights kept in {kept} change by 1/{steps} of their size or not at all: most steps of {rate:g} are lost",
            where="trainer.precision" if value in ("bf16-true", "16-true") else "model.dtype",
            fix="model.dtype: float32 with trainer.precision: bf16-mixed",
        )


def workers(s: Situation, machine: Machine) -> Iterator[Finding]:
    """More loading processes than processors."""
    count = s["data.num_workers"] or 0
    if count > machine.num_cpus:
        yield warning(
            f"{count} workers share {machine.num_cpus} processor(s)",
            where="data.num_workers",
            fix=f"data.num_workers: {max(1, machine.num_cpus - 1)}",
        )


def compiler(s: Situation, machine: Machine) -> Iterator[Finding]:
    """``torch.compile`` for CPUs writes C++ and needs somebody to translate it."""
    if s["model.compile"] and s.device == "cpu" and not machine.has_compiler:
        what = "needs a C++ compiler on the CPU, and there is none (c++, g++, clang++)"
        yield Finding("error", ConfigError(what, where="model.compile", fix="false, or apt-get install g++"))
