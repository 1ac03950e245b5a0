"""The ``logger`` and ``wandb`` sections."""

from pathlib import Path
from typing import Literal

from lightning.pytorch.loggers import Logger

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
    """
    return []
