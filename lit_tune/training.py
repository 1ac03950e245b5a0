"""The Trainer of a config: the callbacks and loggers that its sections describe, and where a run goes on."""

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from lit_tune.callbacks.auto_batch import AutoBatch
from lit_tune.callbacks.checkpoints import build_checkpoint_callbacks
from lit_tune.callbacks.divergence import Divergence
from lit_tune.callbacks.early_stopping import build_early_stopping
from lit_tune.callbacks.eval_schedule import EvalSchedule
from lit_tune.callbacks.frozen_features import FrozenFeatures
from lit_tune.callbacks.graceful_stop import GracefulStop
from lit_tune.callbacks.hang_watchdog import HangWatchdog
from lit_tune.callbacks.hf_export import HFExport
from lit_tune.callbacks.loggers import build_loggers, patient
from lit_tune.callbacks.metric_log import MetricLog
from lit_tune.callbacks.overfit_detector import OverfitCallback
from lit_tune.callbacks.progress import RunProgress
from lit_tune.callbacks.run_record import RunRecord
from lit_tune.callbacks.sample_log import SampleLog
from lit_tune.checkpointing.durable_io import DurableCheckpointIO
from lit_tune.checkpointing.exact_resume import ExactResume
from lit_tune.checkpointing.free_space import FreeSpace
from lit_tune.checkpointing.frozen import FrozenWeights
from lit_tune.preflight.start import Start
from lit_tune.run_dir import RunDir


def build_trainer(config: Namespace, verb: str, config_yaml: str, start: Start) -> Trainer:
    """The Trainer of a config: its own options, and the callbacks and loggers that our sections describe.

    Args:
        config: Parsed, with the classes under ``trainer`` instantiated.
        verb: Only fit keeps checkpoints, a verdict and a record, and logs.
        config_yaml: Text of the resolved config, for the record.
        start: How fit starts in the run directory.
    """
    run = RunDir(config.run_dir)
    options = dict(vars(config.trainer))
    users_callbacks, users_loggers = as_list(options.pop("callbacks")), as_list(options.pop("logger"))
    plugins = as_list(options.pop("plugins"))
    if verb == "fit":
        plugins = [*plugins, DurableCheckpointIO(run, start.may_change)]
    metric_log = MetricLog()
    progress = [RunProgress(metric_log)] if options["enable_progress_bar"] is not False else []
    if verb != "fit":
        options["enable_checkpointing"] = False
        watchdog = HangWatchdog(config.hang_timeout_seconds)
        return Trainer(**options, callbacks=[watchdog, *progress, *users_callbacks], logger=False, plugins=plugins)
    early_stopping = {**vars(config.early_stopping)}
    early_stopping["monitor"] = early_stopping["monitor"] or config.checkpoint.monitor
    overfit = OverfitCallback(**vars(config.overfit))
    overfit.monitor = config.checkpoint.monitor
    record = RunRecord(run, config_yaml, start.overwrite, start.may_change)
    loggers = [*_our_loggers(run, config, start), *(patient(logger) for logger in users_loggers)]
    callbacks: list[Callback] = [
        AutoBatch(),
        record,
        HangWatchdog(config.hang_timeout_seconds, record),
        EvalSchedule(config.eval_every_steps),
        ExactResume(run.metrics),
        FrozenWeights(),
        FreeSpace(run.checkpoints),
        metric_log,
        *progress,
        FrozenFeatures(),
        Divergence(),
        overfit,
        SampleLog(run.samples),
        *build_early_stopping(**early_stopping),
        *users_callbacks,
        GracefulStop(),
        HFExport(record),
        # Lightning moves checkpoint callbacks to the end, after everything that logs
        *build_checkpoint_callbacks(run.checkpoints, **vars(config.checkpoint)),
    ]
    return Trainer(**options, callbacks=callbacks, logger=loggers, plugins=plugins)


def _our_loggers(run: RunDir, config: Namespace, start: Start) -> list[Logger]:
    """The ``logger`` section's, going on where the run goes on."""
    choice = start.checkpoint
    wandb_id = run.read().get("wandb_id") if choice is not None else None
    step = None if choice is None else choice.step
    return build_loggers(run.path, as_list(config.logger), **vars(config.wandb), resume_step=step, wandb_id=wandb_id)


def as_list(value: Any) -> list[Any]:
    """One value, several, or none."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
