"""The numbers a key may take. One table, used by the check of a config, the JSON schema and the messages."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """An interval of numbers, and single values that are allowed beside it.

    Args:
        low: Smallest value.
        high: Largest value.
        low_open: ``low`` itself is not allowed.
        high_open: ``high`` itself is not allowed.
        also: Values that mean something special, e.g. -1 for "no limit".
    """

    low: float
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    also: tuple[float, ...] = ()

    def __contains__(self, value: float) -> bool:
        """Whether the number is allowed; not-a-number never is."""
        if value in self.also:
            return True
        above = value > self.low if self.low_open else value >= self.low
        below = self.high is None or (value < self.high if self.high_open else value <= self.high)
        return above and below and value != float("inf")

    def __str__(self) -> str:
        """In words, to follow "a number".

        >>> str(Range(0, low_open=True)), str(Range(0, 1, high_open=True)), str(Range(1, also=(-1,)))
        ('above 0', 'from 0 to below 1', 'of at least 1 (or -1)')
        """
        if self.high is None:
            text = f"above {self.low:g}" if self.low_open else f"of at least {self.low:g}"
        else:
            start, end = "above" if self.low_open else "from", "below " if self.high_open else ""
            text = f"{start} {self.low:g} to {end}{self.high:g}"
        return text + (f" (or {', '.join(f'{v:g}' for v in self.also)})" if self.also else "")

    def json_schema(self) -> dict[str, Any]:
        """The same as keywords of JSON schema."""
        schema: dict[str, Any] = {"exclusiveMinimum" if self.low_open else "minimum": self.low}
        if self.high is not None:
            schema["exclusiveMaximum" if self.high_open else "maximum"] = self.high
        return {"anyOf": [schema, {"enum": list(self.also)}]} if self.also else schema


_POSITIVE = Range(0, low_open=True)
_NOT_NEGATIVE = Range(0)
_COUNT = Range(1)

RANGES: dict[str, Range] = {
    "seed_everything": Range(0, 2**32 - 1),  # numpy's legacy generator takes no more
    "eval_every_steps": _COUNT,
    "hang_timeout_seconds": _NOT_NEGATIVE,
    "task.init_args.threshold": Range(0, 1, low_open=True, high_open=True),
    "task.init_args.label_smoothing": Range(0, 1, high_open=True),
    "task.init_args.focal_gamma": _NOT_NEGATIVE,
    "data.val_fraction": Range(0, 1, high_open=True),
    "data.limit_train": _COUNT,
    "data.limit_val": _COUNT,
    "data.limit_test": _COUNT,
    "data.max_length": Range(2),  # [CLS] and [SEP] alone are two tokens
    "data.train_batch_size": _COUNT,
    "data.eval_batch_size": _COUNT,
    "data.seed": Range(0, 2**32 - 1),
    "data.num_workers": _NOT_NEGATIVE,
    "data.pad_to_multiple_of": _COUNT,
    "optimizer.lr": _POSITIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.skip_nonfinite": _NOT_NEGATIVE,
    "lr_schedule.warmup": _NOT_NEGATIVE,
    "distillation.temperature": _POSITIVE,
    "distillation.alpha": Range(0, 1),
    "checkpoint.keep_best": Range(0, also=(-1,)),
    "checkpoint.keep_last": Range(0, also=(-1,)),
    "checkpoint.every_n_steps": _COUNT,
    "early_stopping.patience": _COUNT,
    "early_stopping.min_delta": _NOT_NEGATIVE,
    "overfit.gap": _POSITIVE,
    "overfit.min_delta": _NOT_NEGATIVE,
    "overfit.window": Range(2),
    "overfit.probe_size": _NOT_NEGATIVE,
    "trainer.max_epochs": Range(1, also=(-1,)),
    "trainer.max_steps": Range(1, also=(-1,)),
    "trainer.accumulate_grad_batches": _COUNT,
    "trainer.gradient_clip_val": _NOT_NEGATIVE,
    "trainer.num_nodes": _COUNT,
    "trainer.log_every_n_steps": _COUNT,
    "trainer.limit_train_batches": _POSITIVE,
    "trainer.limit_val_batches": _NOT_NEGATIVE,
    "trainer.limit_test_batches": _NOT_NEGATIVE,
    "trainer.limit_predict_batches": _NOT_NEGATIVE,
}
"""Key -> numbers allowed; checked after parsing, null passes where the type allows it."""

ADAPTER_RANGES: dict[str, Range] = {
    "r": _COUNT,
    "alpha": _POSITIVE,
    "dropout": Range(0, 1, high_open=True),
    "num_virtual_tokens": _COUNT,
}
"""The same for the keys of ``model.adapter``, which reads them itself."""

UNFREEZE_RANGES: dict[str, Range] = {
    "at_epoch": _COUNT,
    "at_step": _COUNT,
    "every_epochs": _COUNT,
    "every_steps": _COUNT,
    "lr": _POSITIVE,
    "warmup_steps": _NOT_NEGATIVE,
}
"""The same for the keys of ``model.unfreeze``."""
