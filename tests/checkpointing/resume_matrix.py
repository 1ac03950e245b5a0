"""One run without interruption, and runs that go on from each of its checkpoints; shared by the resume tests."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from lit_tune.callbacks.checkpoints import LastCheckpoint, is_validation_next, step_of
from lit_tune.callbacks.run_record import RunRecord
from lit_tune.cli import parse
from lit_tune.preflight.start import checkpoint_path, goes_on, plan_start
from lit_tune.run_dir import RunDir

EVERY_STEP = {
    "data.train_batch_size": 4,
    "trainer.accelerator": "cpu",
    "trainer.log_every_n_steps": 1,
    "trainer.enable_progress_bar": "false",
    "logger": "none",
    "checkpoint.every_n_steps": 1,
    "checkpoint.keep_last": -1,
    "checkpoint.keep_best": -1,
}
"""Settings of a run that can be gone on from after each of its steps."""


class SeenRows(Callback):
    """Which rows each rank trained on, step by step, written at the end of training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[list[int]] = []
        self.window: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.window += batch["example_ids"]
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.steps.append(self.window)
            self.window = []

    def on_train_end(self, trainer, pl_module):
        (self.folder / f"rows.rank{trainer.global_rank}.json").write_text(json.dumps(self.steps))


class SaveBeforeValidation(Callback):
    """Saves where a validation is still due, as a run does that is told to end there."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if is_validation_next(trainer):
            next(c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)).save(trainer)


def fit(options: list[str], *callbacks: Callback, allow_changed: bool = False) -> RunDir:
    """What ``lit-tune fit`` does, with callbacks of the test."""
    cli = parse(options, "fit")
    start = plan_start(cli.run_dir, cli.to_yaml(), cli.config.resume, allow_changed=allow_changed)
    assert not start.is_complete
    trainer, module, datamodule = cli.build(start)
    trainer.callbacks += [*callbacks, SeenRows(cli.run_dir.path)]
    record = next(c for c in trainer.callbacks if isinstance(c, RunRecord))
    record.claim(goes_on(cli.run_dir, start))
    datamodule.prepare("fit")
    trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint_path(start), weights_only=True)
    record.close()
    return cli.run_dir


def stopped_at(full: RunDir, step: int, target: Path) -> RunDir:
    """A copy of a run as it was after the checkpoint of one step; the logs are longer, as after a kill -9."""
    shutil.copytree(full.path, target)
    run = RunDir(target)
    manifest = run.read()
    manifest["checkpoints"] = [c for c in manifest["checkpoints"] if c["step"] <= step]
    for file in run.checkpoints.glob("*.ckpt"):
        if step_of(file) > step:
            file.unlink()
    shutil.rmtree(run.best, ignore_errors=True)
    run.write({**manifest, "status": "running"})
    return run


def rows_seen(run: RunDir) -> list[list[list[int]]]:
    """Rows by rank and optimizer step."""
    return [json.loads(p.read_text()) for p in sorted(run.path.glob("rows.rank*.json"))]


def logged(run: RunDir) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


def final_state(run: RunDir) -> Any:
    """The newest checkpoint: weights, optimizer, schedule, loops, callbacks; no paths, no clock."""
    newest = max(run.checkpoints.glob("last-*.ckpt"), key=step_of)
    content = torch.load(newest, weights_only=True)
    content["callbacks"] = {k: plain(v) for k, v in content["callbacks"].items()}
    content["lit_tune"].pop("metrics_bytes")
    return content


def plain(state: Any) -> Any:
    """A callback's state with names instead of paths, without seconds."""
    if isinstance(state, dict):
        return {plain(k): plain(v) for k, v in state.items() if k not in ("seconds", "dirpath")}
    return Path(state).name if isinstance(state, str) and "/" in state and state.endswith(".ckpt") else state


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two trees of plain types and tensors differ, bit by bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        odd = [f"{path}.{k} is only in one" for k in a.keys() ^ b.keys()]
        return odd + [d for k in a.keys() & b.keys() for d in differences(a[k], b[k], f"{path}.{k}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}[{i}]")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return [] if same else [f"{path}: tensors differ"]
    same = a == b or (a != a and b != b)
    return [] if same else [f"{path}: {str(a)[:80]} and {str(b)[:80]}"]


def check(full: RunDir, step: int, target: Path, options: list[str], *callbacks: Callback) -> list[str]:
    """Go on from the checkpoint of one step and compare with the run that was never interrupted."""
    run = fit([*options, "--run_dir", str(stopped_at(full, step, target).path)], *callbacks)
    found = differences(final_state(full), final_state(run))
    tails = [rank[step:] for rank in rows_seen(full)]
    if step < max(c["step"] for c in full.read()["checkpoints"]) and tails != rows_seen(run):
        found.append(f"rows: {tails} and {rows_seen(run)}")
    found += differences(logged(full), logged(run), "metrics.jsonl")
    best = [max(r.checkpoints.glob("best-*"), key=step_of, default=None) for r in (full, run)]
    if best == [None, None]:  # without validation nothing is best
        return found
    return found + differences(*(torch.load(b, weights_only=True)["state_dict"] for b in best))
