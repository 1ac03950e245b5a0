"""The ``logger`` and ``wandb`` sections."""

from pathlib import Path
from typing import Literal

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lit_tune.callbacks.jsonl_metrics import JsonlLogger
from lit_tune.errors import ConfigError

LoggerName = Literal["tensorboard", "csv", "wandb", "none"]


def build_loggers(
    run_dir: Path,
    names: list[LoggerName],
    project: str | None = None,
    entity: str | None = None,
    name: str | None = None,
    tags: list[str] | None = None,
    notes: str | None = None,
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

    Raises:
        ConfigError: ``none`` beside others, or wandb is not installed.
    """
    if "none" in names and len(names) > 1:
        raise ConfigError("'none' stands alone", where="logger", fix="logger: none, or leave it out of the list")
    loggers: list[Logger] = [JsonlLogger(run_dir / "metrics.jsonl")]
    if "tensorboard" in names:
        loggers.append(TensorBoardLogger(run_dir, name="tensorboard", version="", default_hp_metric=False))
    if "csv" in names:
        loggers.append(CSVLogger(run_dir, name="csv", version=""))
    if "wandb" in names:
        loggers.append(build_wandb(run_dir, project, entity, name, tags, notes))
    return loggers


def build_wandb(
    run_dir: Path, project: str | None, entity: str | None, name: str | None, tags: list[str] | None, notes: str | None
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
    )
