"""The ``logger`` and ``wandb`` sections."""

import csv
import inspect
import logging
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from lit_tune.callbacks.jsonl_metrics import JsonlLogger
from lit_tune.errors import ConfigError

log = logging.getLogger("lit_tune")

LoggerName = Literal["tensorboard", "csv", "wandb", "none"]


def build_loggers(
    run_dir: Path,
    names: list[LoggerName],
    project: str | None = None,
    entity: str | None = None,
    name: str | None = None,
    tags: list[str] | None = None,
    notes: str | None = None,
    resume_step: int | None = None,
    wandb_id: str | None = None,
) -> list[Logger]:
    """Loggers that write into the run directory; metrics.jsonl is always one of them.

    Args:
        run_dir: The run directory.
        names: ``tensorboard``, ``csv``, ``wandb``, several of them, or ``none``.
        project: Weights & Biases project.
        entity: Weights & Biases user or team.
        name: Name of the W&B run; default: the run directory's name.
        tags: W&B tags.
        notes: W&B notes.
        resume_step: Optimizer step that the run goes on from: what was logged after it does not count.
        wandb_id: W&B's id of the run that goes on.

    Raises:
        ConfigError: ``none`` beside others, or wandb is not installed.
    """
    if "none" in names and len(names) > 1:
        raise ConfigError("'none' stands alone", where="logger", fix="logger: none, or leave it out of the list")
    loggers: list[Logger] = [JsonlLogger(run_dir / "metrics.jsonl")]
    others: list[Logger] = []
    if "tensorboard" in names:
        # TensorBoard leaves out what an interrupted run has logged from this step on
        purge: dict[str, Any] = {} if resume_step is None else {"purge_step": resume_step + 1}
        others.append(TensorBoardLogger(run_dir, name="tensorboard", version="", default_hp_metric=False, **purge))
    if "csv" in names:
        others.append(CsvLog(run_dir, resume_step))
    if "wandb" in names:
        others.append(build_wandb(run_dir, project, entity, name, tags, notes, wandb_id))
    return loggers + [patient(logger) for logger in others]


GUARDED = ("log_metrics", "log_hyperparams", "log_text", "log_graph", "save", "finalize", "after_save_checkpoint")
"""What a trainer, its callbacks and this package call of a logger while they train."""


class PatientCall:
    """A method of a logger whose failures are told once and end nothing.

    Args:
        logger: The logger.
        name: The method.
    """

    def __init__(self, logger: Logger, name: str) -> None:
        self.logger, self.name = logger, name
        self.__signature__ = inspect.signature(getattr(logger, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(type(self.logger), self.name)(self.logger, *args, **kwargs)
        except Exception as error:  # a network, a server, a full disk: each library has errors of its own
            if not getattr(self.logger, "has_failed", False):
                vars(self.logger)["has_failed"] = True
                reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
                log.warning(
                    "%s has failed (%s); training goes on, metrics.jsonl has every number",
                    *(type(self.logger).__name__, reason),
                )
            return None


def patient(logger: Logger) -> Logger:
    """The same logger, which may lose its server or its disk without taking the run with it.

    Args:
        logger: Any but metrics.jsonl's, from which numbers would be lost.
    """
    for name in GUARDED:
        if callable(getattr(logger, name, None)):
            setattr(logger, name, PatientCall(logger, name))
    return logger


class CsvLog(CSVLogger):
    """Lightning's csv logger, which deletes the file it finds: the rows that still count are written again.

    Args:
        run_dir: The run directory.
        resume_step: Optimizer step that the run goes on from; None: it begins.
    """

    def __init__(self, run_dir: Path, resume_step: int | None) -> None:
        super().__init__(run_dir, name="csv", version="")
        self.file = run_dir / "csv" / "metrics.csv"
        self.resume_step = resume_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's; opened when the run directory is ours, and not before."""
        if self._experiment is None:
            rows = rows_until(self.file, self.resume_step)
            for leftover in (self.file, self.file.with_name("hparams.yaml")):
                leftover.unlink(missing_ok=True)  # Lightning warns of what it finds
            writer = CSVLogger.experiment.fget(self)  # type: ignore[attr-defined]
            for step, values in rows:
                writer.log_metrics(values, step)
            writer.save()
        return self._experiment


def rows_until(path: Path, last_step: int | None) -> list[tuple[int, dict[str, float]]]:
    """Step and values of the rows of a csv log up to a step; none without one."""
    if last_step is None or not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        whole = [row for row in csv.DictReader(file) if None not in row.values()]  # the last one may be cut off
    rows = [(int(row["step"]), {k: float(v) for k, v in row.items() if v and k != "step"}) for row in whole]
    return [(step, values) for step, values in rows if step <= last_step]


def build_wandb(
    run_dir: Path,
    project: str | None,
    entity: str | None,
    name: str | None,
    tags: list[str] | None,
    notes: str | None,
    run_id: str | None = None,
) -> Logger:
    """The W&B logger; the key comes from the environment or ``wandb login``, never from a config."""
    try:
        import wandb  # noqa: F401
    except ImportError as e:
        raise ConfigError(
            "the wandb package is not installed", where="logger", fix="pip install 'lit-tune[wandb]'"
        ) from e
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(
        save_dir=run_dir,
        project=project or "lit-tune",
        entity=entity,
        name=name or run_dir.name,
        tags=tags,
        notes=notes,
        id=run_id,
        resume="allow",
    )
