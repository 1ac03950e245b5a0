"""The ``early_stopping`` section."""

from lightning.pytorch.callbacks import Callback


def build_early_stopping(
    patience: int | None = None, min_delta: float = 0.0, monitor: str | None = None
) -> list[Callback]:
    """Stop when the monitored metric no longer improves.

    Args:
        patience: Validations without improvement after which training stops; None is off.
        min_delta: Smallest change that counts as an improvement.
        monitor: Metric to watch; default: ``checkpoint.monitor``.
    """
    return []
