"""The ``overfit`` section: after each validation a verdict, on the console and in the loggers, and advice."""

import inspect
import logging
import math
from typing import Any, Literal, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn

from lit_tune.callbacks.metric_log import epochs_done
from lit_tune.callbacks.monitor import resolve_monitor
from lit_tune.errors import ConfigError
from lit_tune.stats import overfitting
from lit_tune.stats.advice import advise
from lit_tune.stats.settings_in_use import SettingsInUse
from lit_tune.stats.verdict import Facts, Observation, State, Summary, Verdict

log = logging.getLogger("lit_tune")

STOPS = (State.SEVERE, State.DIVERGING)
"""States in which ``action: stop`` ends training, unless this validation is the best so far: a small data set often has
a large gap while val still improves, and stopping there would cost the better model."""


class OverfitCallback(Callback):
    """Compares train (a fixed probe, in eval mode) with val after each validation, and says what to change.

    Logs ``overfit/gap``, ``overfit/code`` (0 healthy, above it overfitting, below it underfitting) and, where a logger
    takes text, ``overfit/state``. On the console one line per validation; advice when it is new and at the end.

    Args:
        gap: Train metric minus val metric (of a loss: share of the baseline loss) above which a run overfits; twice
            this is severe.
        window: Validations over which trends are judged.
        min_delta: Smallest change that counts as one: metric points, or share of the baseline loss.
        probe_size: Train rows to measure on, at most as many as val has; 0 measures none, and nothing can be said.
        action: ``warn`` says it; ``stop`` also ends training when overfitting is severe or val loss diverges, at the
            first validation that is not the best so far.
        enabled: Whether to look at all.
    """

    monitor: str | None = None
    """Metric to judge by, e.g. ``val/f1``; set from ``checkpoint.monitor``. None: the task's primary metric."""

    def __init__(
        self,
        gap: float = 0.05,
        window: int = 3,
        min_delta: float = 0.01,
        probe_size: int = 1000,
        action: Literal["warn", "stop"] = "warn",
        enabled: bool = True,
    ) -> None:
        if action not in ("warn", "stop"):
            raise ConfigError(f"{action!r} is not known", where="overfit.action", fix="warn or stop")
        if probe_size < 0:
            raise ConfigError(f"{probe_size} rows", where="overfit.probe_size", fix="0 or more, e.g. 1000")
        self.settings = overfitting.OverfitSettings(gap, window, min_delta)
        self.probe_size, self.action, self.enabled = probe_size, action, enabled
        self._start()

    def _start(self) -> None:
        """Nothing is known yet."""
        self.last_verdict: Verdict | None = None
        self._detector: overfitting.OverfitDetector | None = None
        self._saved: dict[str, Any] | None = None
        self._advice: list[str] = []
        self._said: set[str] = set()

    # ---- Lightning's hooks -------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start afresh; a checkpoint's state is loaded after this."""
        if stage == TrainerFn.FITTING:
            self._start()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge, log, say, and stop if that is wanted."""
        if not self.enabled or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        detector = self._current(trainer)
        before, verdict = detector.last, detector.observe(observation(trainer))
        self.last_verdict = verdict
        if trainer.is_global_zero:
            write(trainer, verdict)
            self._say(trainer, pl_module, verdict, before)
        # the metrics are equal on all ranks, so all ranks decide the same
        if self._stops():
            trainer.should_stop = True
            if trainer.is_global_zero:
                log.warning("overfit.action stop: training ends here, at step %d", trainer.global_step)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that had stopped already does not go on."""
        if self._saved is not None:
            self._current(trainer)
            trainer.should_stop = trainer.should_stop or self._stops()

    def _stops(self) -> bool:
        """Whether the newest verdict ends the run."""
        verdict = self.last_verdict
        is_bad = verdict is not None and verdict.state in STOPS and verdict.numbers["since_best"] > 0
        return self.action == "stop" and is_bad

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say the verdict over the whole run."""
        if not self.enabled:
            return
        summary = self._current(trainer).summary()
        self._advice = self._advise(trainer, pl_module, summary.final)
        if trainer.is_global_zero:
            log.log(logging.WARNING if summary.final.state.alarm else logging.INFO, "verdict: %s", summary.message)
            say_advice(self._advice)

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        if self._detector is None:
            return self._saved or {}
        # the end of training asks for a verdict also where nothing was measured: there is nothing to keep then
        return self._detector.state_dict() if self._detector.last is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written; used once the metric is known."""
        self._saved = state_dict or None

    # ---- for the manifest and the model card -------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """The verdict over the run so far, plain JSON types.

        ``state``, ``code``, ``message``, ``numbers``, ``best`` (see ``Summary``; None if nothing was measured),
        ``monitor`` and ``advice`` (lines, from the end of training).
        """
        if self._detector is not None:
            summary, monitor = self._detector.summary(), f"val/{self._detector.metric}"
        else:
            why = "no validation was run" if self.enabled else "overfit.enabled is false"
            verdict = Verdict(State.NOT_MEASURED, Facts(0, None).numbers(), f"{State.NOT_MEASURED}: {why}")
            summary, monitor = Summary(verdict, None, verdict.message), str(self.monitor)
        return {**summary.to_dict(), "monitor": monitor, "advice": list(self._advice)}

    # ---- in between --------------------------------------------------------------------------------------------------

    def _current(self, trainer: L.Trainer) -> overfitting.OverfitDetector:
        """The detector; made when first needed, because labels and baseline are known only then."""
        if self._detector is None:
            monitor, higher = resolve_monitor(trainer, self.monitor, "checkpoint.monitor")
            metric = monitor.removeprefix("val/")
            data = trainer.datamodule  # type: ignore[attr-defined]
            overlap = getattr(data, "text_overlap", None)
            detector = overfitting.OverfitDetector(metric, higher, data.spec.baseline, self.settings, overlap)
            if self._saved is not None and self._saved["metric"] == metric:
                detector.load_state_dict(self._saved)
            elif self._saved is not None and trainer.is_global_zero:
                log.warning(
                    "earlier verdicts were about val/%s; they start anew with %s", self._saved["metric"], monitor
                )
            self._detector, self.last_verdict = detector, detector.last
        return self._detector

    def _say(self, trainer: L.Trainer, module: L.LightningModule, verdict: Verdict, before: Verdict | None) -> None:
        """One line; advice not given before, for a new state that calls for it now (an underfit run's is to go on)."""
        worse = verdict.state.alarm > (before.state.alarm if before else 0)
        log.log(logging.WARNING if worse else logging.INFO, verdict.message)
        if verdict.state.alarm and (before is None or before.state != verdict.state):
            advice = [line for line in self._advise(trainer, module, verdict) if line not in self._said]
            self._said.update(advice)
            say_advice(advice)

    def _advise(self, trainer: L.Trainer, module: L.LightningModule, verdict: Verdict) -> list[str]:
        """Lines of advice that fit the config in use; what the module does not say is asked of the trainer."""
        asked = getattr(module, "advice_settings", None)
        settings: dict[str, Any] = dict(asked()) if asked is not None else {}
        stopping = trainer.early_stopping_callback
        settings.setdefault("early_stopping.patience", stopping.patience if stopping is not None else None)
        settings.setdefault("trainer.max_steps", trainer.max_steps)
        settings.setdefault("trainer.max_epochs", trainer.max_epochs)
        settings.setdefault("overfit.probe_size", self.probe_size)
        if trainer.datamodule.spec.problem_type == "regression":  # type: ignore[attr-defined]
            settings["task.init_args.label_smoothing"] = None  # refused there
        monitor = f"val/{self._current(trainer).metric}"
        return [str(a) for a in advise(verdict, cast(SettingsInUse, settings), monitor)]


def observation(trainer: L.Trainer) -> Observation:
    """What this validation measured: ``probe/*`` and ``val/*`` of the callback metrics."""
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    val = {name.removeprefix("val/"): value for name, value in logged.items() if name.startswith("val/")}
    probe = {name.removeprefix("probe/"): value for name, value in logged.items() if name.startswith("probe/")}
    is_length_known = math.isfinite(trainer.num_training_batches)
    return Observation(trainer.global_step, epochs_done(trainer) if is_length_known else None, probe, val)


def write(trainer: L.Trainer, verdict: Verdict) -> None:
    """Gap and code to every logger, the state to those that take text."""
    scalars = {"epoch": epochs_done(trainer), "overfit/code": float(verdict.state.code)}
    if verdict.numbers["gap"] is not None:
        scalars["overfit/gap"] = verdict.numbers["gap"]
    for logger in trainer.loggers:
        logger.log_metrics(scalars, step=trainer.global_step)
        if takes_text(logger):
            logger.log_text(name="overfit/state", text=str(verdict.state), step=trainer.global_step)  # type: ignore[attr-defined]


def takes_text(logger: Logger) -> bool:
    """Whether the logger has our ``log_text(name, text, step)``; Weights & Biases' of that name logs tables."""
    method = getattr(logger, "log_text", None)
    return method is not None and {"name", "text", "step"} <= set(inspect.signature(method).parameters)


def say_advice(advice: list[str]) -> None:
    """One line per change."""
    for line in advice:
        log.info("  try %s", line)
