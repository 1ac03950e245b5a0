"""A progress bar with the loss, the monitored metric and the time left; plain lines where nobody watches."""

import logging
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from lit_tune.callbacks.checkpoints import BestCheckpoint
from lit_tune.callbacks.metric_log import MetricLog, epochs_done
from lit_tune.console import console

log = logging.getLogger("lit_tune")


class RunProgress(ProgressBar):
    """One bar for the whole fit or evaluation on a terminal; elsewhere a line per logged step of a fit.

    Args:
        metric_log: Holds the latest numbers.
    """

    def __init__(self, metric_log: MetricLog) -> None:
        super().__init__()
        self.metric_log = metric_log
        self.enabled = True
        self.bar: Progress | None = None
        self.bar_task: Any = None
        self.started, self.first_step = 0.0, 0

    def disable(self) -> None:
        """Called by Lightning on ranks above zero."""
        self.enabled = False

    def enable(self) -> None:
        """The reverse."""
        self.enabled = True

    def open(self, label: str, total: int | None) -> None:
        """Show a bar, on a terminal."""
        if not self.enabled or not console.is_terminal or self.bar is not None:
            return
        fixed = Column(no_wrap=True)
        of = "?" if total is None else f"{total:,}"
        columns = (
            TextColumn("{task.description}", table_column=fixed),
            BarColumn(bar_width=16, table_column=Column(min_width=16)),
            TextColumn(f"{{task.completed:>{len(of)},.0f}}/{of}", table_column=fixed),
            TextColumn("{task.fields[left]:>9}", table_column=fixed),
            # takes the width that is left, and gives its end away where that is too little
            TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        )
        self.started, self.first_step = time.perf_counter(), 0
        self.bar = Progress(*columns, console=console, transient=True, expand=True)
        self.bar_task = self.bar.add_task(label, total=total, numbers="", left="")
        self.bar.start()

    def close(self) -> None:
        """Take the bar away; the lines above it stay."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def advance(self, completed: int, **fields: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            total = self.bar.tasks[0].total
            left = self.time_left(completed, None if total is None else int(total))
            self.bar.update(self.bar_task, completed=completed, left=left, **fields)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Total steps are known here."""
        self.total = trainer.datamodule.total_steps()  # type: ignore[attr-defined]
        self.open("step", self.total)
        self.started, self.first_step = time.perf_counter(), trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Bar or line."""
        step, latest = trainer.global_step, self.metric_log.latest
        if not latest:
            return
        if self.bar is not None:
            self.advance(step, numbers="  ".join(self.numbers(trainer, latest)))
        elif self.enabled and self.metric_log.fresh:
            done = f"step {step}/{self.total}" if self.total else f"step {step}"
            parts = (done, f"epoch {epochs_done(trainer):.2f}", self.time_left(step, self.total))
            numbers = (*self.numbers(trainer, latest), f"lr {latest['optim/lr']:.2e}")
            log.info("  ".join(p for p in (*parts, *numbers) if p))
        self.metric_log.fresh = False

    def numbers(self, trainer: L.Trainer, latest: dict[str, float]) -> list[str]:
        """The few numbers worth watching, the most important first."""
        parts = [f"loss {latest['train/loss']:.4f}"]
        monitor = monitored(trainer)
        if monitor and monitor in trainer.callback_metrics:
            parts.append(f"{monitor} {float(trainer.callback_metrics[monitor]):.4f}")
        return [*parts, f"{latest['perf/examples_per_second']:,.0f} rows/s"]

    def time_left(self, done: int, total: int | None) -> str:
        """Estimate from the steps since the start, validation included."""
        taken = done - self.first_step
        if not total or taken <= 0:
            return ""
        return f"{clock((time.perf_counter() - self.started) / taken * (total - done))} left"

    def on_evaluation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A bar over the batches; within fit the bar that is there stands still, and says why."""
        num_batches = {
            TrainerFn.VALIDATING: trainer.num_val_batches,
            TrainerFn.TESTING: trainer.num_test_batches,
            TrainerFn.PREDICTING: trainer.num_predict_batches,
        }
        verb = trainer.state.fn
        if verb in num_batches:
            self.open(verb.value, sum(int(n) for n in num_batches[verb]))
        elif self.bar is not None:
            self.bar.update(self.bar_task, description="eval")

    def on_evaluation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """One batch more."""
        if trainer.state.fn != TrainerFn.FITTING:
            self.advance(batch_idx + 1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Within fit one line per validation; the verdict below it compares train and val."""
        if trainer.state.fn != TrainerFn.FITTING:
            self.close()
            return
        if self.bar is not None:
            self.bar.update(self.bar_task, description="step")
        if trainer.sanity_checking or not self.enabled:
            return
        metrics = trainer.callback_metrics
        names = dict.fromkeys(("val/loss", monitored(trainer), "probe/loss"))
        shown = "  ".join(f"{n} {float(metrics[n]):.4f}" for n in names if n in metrics)
        if shown:
            log.info("validation at step %d (epoch %.2f)  %s", trainer.global_step, epochs_done(trainer), shown)

    def on_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """It is over."""
        self.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the terminal whole."""
        self.close()

    # Lightning's names for them
    on_validation_start = on_test_start = on_predict_start = on_evaluation_start
    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = on_evaluation_batch_end
    on_train_end = on_test_end = on_predict_end = on_end


def monitored(trainer: L.Trainer) -> str | None:
    """The metric that decides which checkpoint is best."""
    found = (c.monitor for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint))
    return next(found, None)


def clock(seconds: float) -> str:
    """Hours, minutes, seconds.

    >>> clock(3725), clock(8)
    ('1:02:05', '0:08')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
