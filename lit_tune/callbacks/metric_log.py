"""What goes to the loggers: training every ``log_every_n_steps``, validation whenever there is one.

It hands numbers to the loggers itself, with the number of optimizer steps taken: Lightning's own count is one less, and
differs between training and validation lines.
"""

import math
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from lit_tune.callbacks.throughput import Throughput
from lit_tune.optim.window import sums_dtype


class MetricLog(Callback):
    """Logs training, learning rates, gradient norm, speed and evaluations.

    | key | meaning |
    |---|---|
    | ``train/loss`` | exact mean over the steps since the last line: sum of losses / sum of denominators, all ranks |
    | ``optim/lr``, ``optim/lr/<group>`` | learning rate after this step, highest and by group where they differ |
    | ``optim/grad_norm`` | norm of the whole gradient before clipping |
    | ``val/*``, ``probe/*``, ``baseline/*`` | evaluation, the same on fixed rows of train, the majority class or mean |
    """

    def __init__(self) -> None:
        self.throughput = Throughput()
        self.sums: Any = None
        """(2,) loss sum and denominator of the steps since the last line; a list when it comes from a checkpoint."""
        self.latest: dict[str, float] = {}
        self.fresh = False
        """Whether ``latest`` was measured at this step; cleared by who has shown it."""
        self.seen_step = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Start afresh; a checkpoint's state is loaded after this."""
        self.sums = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The baseline stands beside the result from the start."""
        if self.sums is not None:
            self.sums = torch.tensor(self.sums, dtype=sums_dtype(pl_module.device), device=pl_module.device)
        self.seen_step = trainer.global_step
        self.total_steps = trainer.datamodule.total_steps()
        self.throughput.reset()
        baseline = {f"baseline/{k}": v for k, v in pl_module.spec.baseline.items()}
        if baseline and trainer.global_step == 0:
            self.write(trainer, baseline)

    def state_dict(self) -> dict[str, Any]:
        """What the next line averages over."""
        return {"sums": None if self.sums is None else self.sums.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The next line covers the steps before the interruption too."""
        self.sums = state_dict["sums"]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count every batch; log where a step was taken and a line is due."""
        self.throughput.add(batch)
        step = trainer.global_step
        if step == self.seen_step:
            return
        self.seen_step = step
        last = pl_module.last_step
        pair = torch.stack([last["loss_sum"], last["denominator"]])
        self.sums = pair if self.sums is None else self.sums + pair
        if step % trainer.log_every_n_steps == 0 or step in (1, self.total_steps):
            loss_sum, denominator = self.sums.tolist()
            self.sums = None
            self.latest = {
                "train/loss": loss_sum / denominator if denominator else math.nan,
                "optim/grad_norm": float(last["grad_norm"]),
                **learning_rates(trainer.optimizers[0]),
                **self.throughput.read(self.counts(trainer, pl_module.device), pl_module.device),
            }
            if pl_module.num_skipped_steps:
                self.latest["optim/skipped_steps"] = float(pl_module.num_skipped_steps)
            norms = {f"grad_norm/{n}": float(v) for n, v in last.get("parameter_norms", {}).items()}
            self.fresh = True
            self.write(trainer, {**self.latest, **norms})

    def counts(self, trainer: Any, device: torch.device) -> torch.Tensor:
        """What all ranks have processed."""
        counts = self.throughput.counts(device)
        return counts if trainer.world_size == 1 else trainer.strategy.reduce(counts, reduce_op="sum")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Validation does not count as training time."""
        self.throughput.pause()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """All scalars of val and probe on one line."""
        self.throughput.resume()
        if trainer.sanity_checking:
            return
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("val/", "probe/"))}
        if values and trainer.state.fn == "fit":
            self.write(trainer, values)

    def write(self, trainer: Any, values: dict[str, float]) -> None:
        """One line in every logger."""
        line = {"epoch": epochs_done(trainer), **values}
        for logger in trainer.loggers:
            logger.log_metrics(line, step=trainer.global_step)


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The highest rate, and each group's where they differ."""
    groups = optimizer.param_groups
    rates = {str(g.get("name", i)): float(g["lr"]) for i, g in enumerate(groups)}
    # by the rates the schedule started from: at its end all may be 0, and a curve should not lose its last point
    differ = len({float(g.get("initial_lr", g["lr"])) for g in groups}) > 1
    named = {f"optim/lr/{name}": rate for name, rate in rates.items()} if differ else {}
    return {"optim/lr": max(rates.values()), **named}


def epochs_done(trainer: Any) -> float:
    """Passes over train so far, as a fraction; for streams the number of full passes."""
    batches = trainer.num_training_batches
    progress = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    if not batches or not math.isfinite(batches):
        return float(trainer.current_epoch)
    return round(trainer.current_epoch + min(progress, batches) / batches, 4)
