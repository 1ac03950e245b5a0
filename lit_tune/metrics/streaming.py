"""What all metrics here share: where their states live, how they are written to, and how results become numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric


def state_device(device: torch.device) -> torch.device:
    """Where states live: with the model, but on the CPU for Apple's MPS, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


class StreamingMetric(Metric):
    """A metric whose states keep their dtype, and which may be computed on a rank that saw no batch.

    torchmetrics keeps the dtype under ``.half()``, but not under ``.to(torch.bfloat16)``, which is what Lightning's
    ``bf16-true`` calls: a float64 sum would become one with 8 bits.
    """

    is_differentiable = False
    full_state_update = False

    @property
    def update_called(self) -> bool:
        """Always: a rank without a batch takes part in the sync, and of no examples everything is NaN."""
        return True

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> Module:
        self._computed = None
        super()._apply(fn, exclude_state=tuple(self._defaults))
        device = state_device(self.device)
        for name, default in self._defaults.items():
            if isinstance(default, Tensor):
                self._defaults[name] = default.to(device)
                setattr(self, name, getattr(self, name).to(device))
        return self

    def place(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Values where the states are; moved before they are cast, since MPS cannot hold float64."""
        return values.to(state_device(self.device)).to(dtype)

    def writable(self, name: str) -> Tensor:
        """A state to add to in place; a copy where inference mode (Lightning's validation) made it and is over.

        Args:
            name: Name of the state.
        """
        state: Tensor = getattr(self, name)
        if state.is_inference() and not torch.is_inference_mode_enabled():
            state = state.clone()
            setattr(self, name, state)
        return state


class RatioMetric(StreamingMetric):
    """Sum of numerators over sum of denominators in float64: the exact loss of a split. NaN where nothing was counted.

    >>> loss = RatioMetric()
    >>> loss.update(torch.tensor(3.0), torch.tensor(4))
    >>> loss.update(torch.tensor(1.0), torch.tensor(1))
    >>> loss.compute()
    tensor(0.8000, dtype=torch.float64)
    """

    numerator: Tensor
    denominator: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("numerator", "denominator"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.counted = 0.0
        """What the last result was divided by, over all ranks."""

    def update(self, numerator: Tensor, denominator: Tensor) -> None:
        """Add one batch.

        Args:
            numerator: 0-dim, e.g. the sum of losses.
            denominator: 0-dim, e.g. the number of targets.
        """
        self.numerator = self.numerator + self.place(numerator.detach(), torch.float64)
        self.denominator = self.denominator + self.place(denominator.detach(), torch.float64)

    def compute(self) -> Tensor:
        """The ratio, 0-dim float64 on the CPU."""
        self.counted = float(self.denominator)
        return ratio(self.numerator.cpu(), self.denominator.cpu(), otherwise=math.nan)


def ratio(numerator: Tensor, denominator: Tensor, otherwise: float) -> Tensor:
    """Elementwise quotient, and ``otherwise`` where the denominator is 0."""
    safe = torch.where(denominator == 0, 1, denominator)
    return torch.where(denominator == 0, otherwise, numerator / safe)


def scalars(computed: Mapping[str, Any]) -> dict[str, float | None]:
    """What ``compute()`` of a collection gave, as plain numbers to log.

    Args:
        computed: Name -> tensor or number.

    Returns:
        Name -> float, None where it is not a finite number (undefined, so never best). Matrices are left out.

    >>> scalars({"f1": torch.tensor(0.5), "auroc": torch.tensor(torch.nan), "confusion_matrix": torch.eye(2)})
    {'f1': 0.5, 'auroc': None}
    """
    numbers = {k: float(v) for k, v in computed.items() if not isinstance(v, Tensor) or v.ndim == 0}
    return {k: v if math.isfinite(v) else None for k, v in numbers.items()}
