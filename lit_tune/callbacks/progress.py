"""A progress bar with the loss, the monitored metric and the time left; plain lines where nobody watches."""

import logging
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lit_tune.callbacks.metric_log import MetricLog, epochs_done
from lit_tune.console import console

log = logging.getLogger("lit_tune")


class RunProgress(ProgressBar):
    """One bar for the whole run on a terminal, a line per logged step elsewhere.

    Args:
        metric_log: Holds the latest numbers.
    """

    def __init__(self, metric_log: MetricLog) -> None:
        super().__init__()
        self.metric_log = metric_log
        self.enabled = True
        self.bar: Progress | None = None
        self.bar_task: Any = None
        self.best: float | None = None
        self.started = 0.0

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
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.fields[of]}"),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self.bar = Progress(*columns, console=console, transient=True)
        self.bar_task = self.bar.add_task(label, total=total, numbers="", of="?" if total is None else total)
        self.bar.start()

    def close(self) -> None:
        """Take the bar away; the lines above it stay."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def advance(self, completed: float, **fields: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(self.bar_task, completed=completed, **fields)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Total steps are known here."""
        self.started = time.perf_counter()
        self.total = trainer.datamodule.total_steps()  # type: ignore[attr-defined]
        self.open("step", self.total)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Bar or line."""
        step, latest = trainer.global_step, self.metric_log.latest
        if not latest:
            return
        if self.bar is not None:
            self.advance(step, numbers=self.numbers(trainer, latest))
        elif self.enabled and self.metric_log.fresh:
            done = f"{step}/{self.total}" if self.total else str(step)
            log.info("step %s  %s%s", done, self.numbers(trainer, latest), self.time_left(step))
        self.metric_log.fresh = False

    def numbers(self, trainer: L.Trainer, latest: dict[str, float]) -> str:
        """The few numbers worth watching."""
        parts = [f"epoch {epochs_done(trainer):.2f}", f"loss {latest['train/loss']:.4f}"]
        parts.append(f"lr {latest['optim/lr']:.2e}")
        parts.append(f"{latest['perf/examples_per_second']:.0f} examples/s")
        checkpoint = trainer.checkpoint_callback
        monitor = getattr(checkpoint, "monitor", None)
        if monitor and monitor in trainer.callback_metrics:
            parts.append(f"{monitor} {float(trainer.callback_metrics[monitor]):.4f}")
        return "  ".join(parts)

    def time_left(self, step: int) -> str:
        """Estimate from the steps so far, validation included."""
        if not self.total or step <= 0:
            return ""
        seconds = (time.perf_counter() - self.started) / step * (self.total - step)
        return f"  {clock(seconds)} left"

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The run is over."""
        self.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the terminal whole."""
        self.close()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One line per validation."""
        if trainer.sanity_checking or not self.enabled:
            return
        metrics = trainer.callback_metrics
        monitor = getattr(trainer.checkpoint_callback, "monitor", None)
        names = ["val/loss"] + ([monitor] if monitor and monitor != "val/loss" else [])
        names += [n.replace("val/", "probe/") for n in names]
        shown = "  ".join(f"{n} {float(metrics[n]):.4f}" for n in names if n in metrics)
        if shown:
            log.info("validation at step %d (epoch %.2f)  %s", trainer.global_step, epochs_done(trainer), shown)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A bar over the batches."""
        self.open("test", int(sum(trainer.num_test_batches)))

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """One batch more."""
        self.advance(batch_idx + 1)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take it away."""
        self.close()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A bar over the batches."""
        self.open("predict", int(sum(trainer.num_predict_batches)))

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """One batch more."""
        self.advance(batch_idx + 1)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take it away."""
        self.close()


def clock(seconds: float) -> str:
    """Hours, minutes, seconds.

    >>> clock(3725), clock(8)
    ('1:02:05', '0:08')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
