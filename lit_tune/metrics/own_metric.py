"""A metric of the user's own beside ours."""

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from lit_tune.errors import ConfigError
from lit_tune.metrics.streaming import StreamingMetric, state_device


class OwnMetric(StreamingMetric):
    """Feeds a metric that the user wrote; its states follow the model's device, and keep their type.

    Args:
        name: Under which it is logged.
        metric: The user's, or one of torchmetrics.
        answer: Makes of logits what it is given.
    """

    def __init__(self, name: str, metric: Metric, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.answer = name, answer
        # not a submodule: with bf16-true the module's `.to(torch.bfloat16)` would round its sums to 8 bits
        self.held = [metric]

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add one batch.

        Args:
            preds: Logits, (B, C) or (B,).
            target: (B,) or (B, C).
        """
        device = state_device(preds.device)
        self.held[0].to(device).update(self.answer(preds.float()).to(device), target.to(device))

    def compute(self) -> Tensor:
        """The number; the metric itself has gathered what the ranks have.

        Raises:
            ConfigError: It is not one number.
        """
        with warnings.catch_warnings():
            # of a rank without a batch; it takes part in the sum all the same
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric .* was called before")
            found: Any = self.held[0].compute()
        if not isinstance(found, Tensor) or found.numel() != 1:
            shape = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"{self.name} computed {shape}, not one number", where="task.init_args.metrics", fix="return a scalar"
            )
        return found.reshape(()).cpu()

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self.held[0].reset()
