"""A parsed config, the verb that reads it and the machine it runs on: what the rules look at."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from lit_tune.errors import LitTuneError


@dataclass(frozen=True)
class Situation:
    """What the rules look at.

    Args:
        config: The parsed config as nested plain dicts.
        verb: ``fit``, ``validate``, ``test``, ``predict`` or ``prepare``.
        accelerators: What this machine has besides a CPU: ``cuda``, ``mps``.
        num_devices: How many of them.
    """

    config: dict[str, Any]
    verb: str = "fit"
    accelerators: Collection[str] = ()
    num_devices: int = 0

    def __getitem__(self, key: str) -> Any:
        """The value at a dotted key; None where a part of the way is missing."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    @property
    def trains(self) -> bool:
        """Whether the verb reads the train split."""
        return self.verb in ("fit", "prepare")

    @property
    def num_ranks(self) -> int:
        """Processes that work together."""
        devices = self["trainer.devices"]
        text = "auto" if devices is None else str(devices)
        if isinstance(devices, list | tuple):
            count = len(devices)
        elif text == "auto" or text == "-1":
            count = self.num_devices if self.device == "cuda" else 1
        elif "," in text:  # "0,2": numbers of devices
            count = len([part for part in text.split(",") if part.strip()])
        else:
            count = int(text) if text.isdecimal() and len(text) < 7 else 1
        return max(1, count) * (self["trainer.num_nodes"] or 1)

    @property
    def why_without_val(self) -> str | None:
        """Why there surely is no validation; None where there may be one."""
        if self["trainer.limit_val_batches"] == 0:
            return "trainer.limit_val_batches is 0"
        if self["data.val"] is None and self["data.dataset"] is None and self["data.val_fraction"] == 0:
            return "data.val_fraction is 0"
        return None

    @property
    def device(self) -> str:
        """``cpu``, ``cuda`` or ``mps``: what ``trainer.accelerator`` comes to here."""
        name = self["trainer.accelerator"] or "auto"
        if name in ("auto", "gpu"):
            return next((a for a in ("cuda", "mps") if a in self.accelerators), "cpu")
        return str(name)


Rule = Callable[[Situation], Iterator[LitTuneError]]
"""One subject: a pure function that gives the problems it finds."""
