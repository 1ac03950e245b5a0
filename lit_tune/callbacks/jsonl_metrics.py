"""metrics.jsonl: one JSON object per logged step, with step and epoch, on the disk at once."""

import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger


class JsonlLogger(Logger):
    """A Lightning logger that writes lines; undefined numbers become null.

    Args:
        path: The file; lines are appended.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        """Lightning's name for the logger."""
        return "jsonl"

    @property
    def version(self) -> str:
        """There is one per run."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write one line."""
        line = {"step": step} | {k: finite(v) for k, v in metrics.items()}
        self.write(line)

    @rank_zero_only
    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        """Write a line with a text value."""
        self.write({"step": step, name: text})

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any) -> None:
        """config.yaml holds them."""

    def write(self, line: dict[str, Any]) -> None:
        """Append and close: a run that dies keeps all lines, and nothing stays open after the trainer is done."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """A number JSON can hold, or None.

    >>> finite(float("nan")), finite(3), finite(0.5)
    (None, 3, 0.5)
    """
    if isinstance(value, int | str) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None
