"""The ``checkpoint`` section: which Lightning checkpoints are kept, and which one is best."""

from lightning.pytorch.callbacks import Callback


def build_checkpoint_callbacks(
    monitor: str | None = None,
    keep_best: int = 1,
    keep_last: int = 1,
    every_n_steps: int | None = None,
) -> list[Callback]:
    """Callbacks that keep the best and the last checkpoints.

    Args:
        monitor: Metric that decides which checkpoint is best, e.g. ``val/f1``; default: the task's primary metric. Its
            direction is known.
        keep_best: How many of the best checkpoints to keep; 0 keeps none.
        keep_last: How many of the newest checkpoints to keep; 0 keeps none.
        every_n_steps: Write the newest checkpoint every n optimizer steps; default: at the end of each epoch.
    """
    return []
