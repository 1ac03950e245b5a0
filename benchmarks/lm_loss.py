"""The loss of a language model's head, in chunks of targets and as transformers computes it: peak memory and time.

    python benchmarks/lm_loss.py     # 2,048 tokens, vocabulary 128,000, hidden 512: 4 GB of memory, a few minutes
    python benchmarks/lm_loss.py --hidden 2048 --tokens 16384 --dtype bfloat16 --device cuda

Both sides are given the same last hidden states and compute the loss and all of its gradients, those of the output
layer among them, in turn. `all at once` is what a model does that is given labels: its head, then ForCausalLMLoss. The
peak is that above what was there before, counted from every allocation; times are taken in other rounds, without
counting. Half of the targets are -100 with --targets 0.5, as in instruction tuning. Prints a table, writes JSON.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers.loss.loss_utils import ForCausalLMLoss

from lit_tune.models.output_layer import OutputLayer
from lit_tune.tasks.token_scores import TokenScores

Work = Callable[[], Tensor]


def chunked(head: nn.Linear, states: Tensor, labels: Tensor) -> Tensor:
    """As lit-tune does it: the mean of its sum."""
    places = (labels.flatten() >= 0).nonzero()[:, 0]
    loss_sum, count = TokenScores(labels, states, head=OutputLayer(head, head.out_features), places=places).parts
    return loss_sum / count


def at_once(head: nn.Linear, states: Tensor, labels: Tensor) -> Tensor:
    """As transformers does it; labels are shifted already."""
    return ForCausalLMLoss(head(states), None, head.out_features, shift_labels=labels)


SIDES: dict[str, Callable[[nn.Linear, Tensor, Tensor], Tensor]] = {"all at once": at_once, "in chunks": chunked}


def peak_bytes(work: Callable[[], Any], device: str) -> int:
    """Most bytes that were allocated at a time, above what was there before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    found: Any = profiled.profiler
    events = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def seconds_of(work: Callable[[], Any], device: str) -> float:
    """Of one round."""
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Norm of the difference over norm of the whole."""
    ours, theirs = (torch.cat([part.detach().double().flatten() for part in parts]) for parts in (found, expected))
    return float((ours - theirs).norm() / theirs.norm())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Numbers of both sides, and how far the gradients are apart."""
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    head = nn.Linear(options.hidden, options.vocabulary, bias=False, device=options.device, dtype=dtype)
    states = torch.randn(1, options.tokens, options.hidden, device=options.device, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, options.vocabulary, (1, options.tokens), device=options.device)
    labels[0, : round(options.tokens * (1 - options.targets))] = -100
    wanted = [states, head.weight] if options.train_head else [states]
    head.requires_grad_(options.train_head)

    def work(side: str) -> list[Tensor]:
        loss = SIDES[side](head, states, labels)
        return [loss, *torch.autograd.grad(loss, wanted)]

    apart = difference(work("in chunks"), work("all at once"))
    peaks = {side: peak_bytes(lambda side=side: work(side), options.device) for side in SIDES}  # type: ignore[misc]
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:  # in turn: both meet the same state of the machine
            seconds[side].append(seconds_of(lambda side=side: work(side), options.device))  # type: ignore[misc]
    return {
        **{name: getattr(options, name) for name in ("vocabulary", "hidden", "tokens", "targets", "dtype", "device")},
        "gradient_difference": apart,
        "peak_bytes": peaks,
        "seconds": seconds,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--targets", type=float, default=1.0, help="share of the tokens that are predicted")
    parser.add_argument("--train-head", type=bool, action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("lm_loss.json"))
    options = parser.parse_args()
    found = measure(options)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    shape = f"{options.tokens} tokens, vocabulary {options.vocabulary}, hidden {options.hidden}, {options.dtype}"
    print(f"{shape}: torch {torch.__version__}, {options.device}, {platform.machine()}")
    whole, chunks = (found["peak_bytes"][side] for side in SIDES)
    for side in SIDES:
        middle = statistics.median(found["seconds"][side])
        print(f"  {side:<12} peak {found['peak_bytes'][side] / 2**20:8,.0f} MiB   {middle:7.2f} s (median)")
    print(f"  peak in chunks: {chunks / whole:.1%} of all at once; loss and gradients differ by", end=" ")
    print(f"{found['gradient_difference']:.1e} of their norm")


if __name__ == "__main__":
    main()
