"""The words of the overfit detector: what it is told, its states, the facts they rest on, and a line that says both.

When a state holds stands in :mod:`lit_tune.stats.overfitting`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """What a verdict can say; the value is the text that is logged."""

    NOT_MEASURED = "not measured"
    NOT_LEARNING = "not learning"
    UNDERFITTING = "underfitting"
    SEVERE = "severe overfitting"
    MODERATE = "moderate overfitting"
    LEAKAGE = "leakage"
    SUSPICIOUS = "suspiciously easy"
    DIVERGING = "diverging"
    SATURATED = "saturated"
    PLATEAU = "plateau"
    HEALTHY = "healthy"

    @property
    def code(self) -> int:
        """Number for plots: 0 healthy; above it the model knows train too well, below it too little."""
        return _CODES[self]

    @property
    def alarm(self) -> int:
        """0 no cause for worry, 1 worth a look, 2 the model gets worse, 3 the result cannot be used as it is."""
        return _ALARMS.get(self, 0)

    @property
    def is_overfit(self) -> bool:
        """Whether the model fits train at the expense of val."""
        return self in (State.SEVERE, State.MODERATE, State.DIVERGING)


_CODES = {
    State.NOT_MEASURED: -3,
    State.NOT_LEARNING: -2,
    State.UNDERFITTING: -1,
    State.HEALTHY: 0,
    State.PLATEAU: 1,
    State.SATURATED: 2,
    State.DIVERGING: 3,
    State.MODERATE: 4,
    State.SEVERE: 5,
    State.SUSPICIOUS: 6,
    State.LEAKAGE: 7,
}
_ALARMS = {
    State.NOT_MEASURED: 1,
    State.SATURATED: 1,
    State.SUSPICIOUS: 1,
    State.DIVERGING: 2,
    State.MODERATE: 2,
    State.SEVERE: 3,
    State.LEAKAGE: 3,
    State.NOT_LEARNING: 3,
}


@dataclass(frozen=True)
class Observation:
    """What one validation measured.

    Args:
        step: Optimizer steps so far.
        epoch: Epochs of train seen so far: 1.0 at the end of the first; None where its length is unknown (streams).
        train: Metrics of the train probe in eval mode by name, ``loss`` among them; empty where it was not measured.
        val: The same of the val split.
    """

    step: int
    epoch: float | None
    train: Mapping[str, float | None]
    val: Mapping[str, float | None]


@dataclass(frozen=True)
class Point:
    """A measured validation: metric and loss of probe and val, and the state it was judged to be in."""

    step: int
    epoch: float | None
    train: float
    val: float
    train_loss: float
    val_loss: float
    state: str = ""


@dataclass(frozen=True)
class Facts:
    """All that the states are decided on; None where unknown.

    Args:
        step: Optimizer steps so far.
        epoch: Epochs of train seen so far.
        train: The monitored metric on the train probe; ``val`` the same on val.
        train_loss: Loss on the train probe; ``val_loss`` the same on val.
        higher_is_better: Direction of the monitored metric.
        gap: How much worse val is than train (units: see ``overfitting``); ``loss_gap`` the same for the loss.
        gap_limit: ``overfit.gap``; ``severe_limit`` the gap from which overfitting is severe.
        baseline: The metric of a model that ignores its input; ``baseline_loss`` its loss.
        train_skill: Way from the baseline to perfect that train has gone; ``val_skill`` the same for val.
        best_skill: The largest of the metric's and the loss's skills, train and val.
        train_change: Change of the train metric over the window, positive is better; ``val_change`` the same for val.
        train_loss_change: Change of the train loss over the window, as a share of the baseline loss, positive is worse.
        val_loss_change: The same for val.
        train_loss_before: Train loss at the start of the window; ``val_loss_before`` the same for val.
        window: Validations in the window, at most ``overfit.window``; ``window_full`` whether there are that many.
        stale: Validations since val last beat its best by more than ``overfit.min_delta``.
        since_best: Validations since the best val metric.
        best_val: Best val metric so far; ``best_epoch``, ``best_step``, ``best_gap`` where it was and the gap there.
        epoch_over: Whether the first epoch is over.
        collapsed: Whether a model that had been better than the baseline is no longer.
        text_overlap: Share of val texts that stand in train.
        nonfinite: Whether a value was NaN or infinite.
    """

    step: int
    epoch: float | None
    train: float | None = None
    val: float | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    higher_is_better: bool = True
    gap: float | None = None
    loss_gap: float | None = None
    gap_limit: float | None = None
    severe_limit: float | None = None
    baseline: float | None = None
    baseline_loss: float | None = None
    train_skill: float | None = None
    val_skill: float | None = None
    best_skill: float | None = None
    train_change: float = 0.0
    val_change: float = 0.0
    train_loss_change: float = 0.0
    val_loss_change: float = 0.0
    train_loss_before: float | None = None
    val_loss_before: float | None = None
    window: int = 0
    window_full: bool = False
    stale: int = 0
    since_best: int = 0
    best_val: float | None = None
    best_epoch: float | None = None
    best_step: int | None = None
    best_gap: float | None = None
    epoch_over: bool = False
    collapsed: bool = False
    text_overlap: float | None = None
    nonfinite: bool = False

    def numbers(self) -> dict[str, Any]:
        """Field -> value, plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """The state of a run at one validation.

    Args:
        state: The state.
        numbers: The fields of :class:`Facts`, plain types.
        message: One line with state and numbers.
    """

    state: State
    numbers: dict[str, Any]
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_dict` is the way back."""
        return {
            "state": str(self.state),
            "code": self.state.code,
            "message": self.message,
            "numbers": dict(self.numbers),
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Verdict":
        """A verdict from what :meth:`to_dict` gave."""
        return cls(State(saved["state"]), dict(saved["numbers"]), saved["message"])


@dataclass(frozen=True)
class Summary:
    """The verdict over a whole run.

    Args:
        final: Verdict of the last validation.
        best: ``step``, ``epoch``, ``train``, ``val``, ``gap`` and ``state`` of the validation with the best val metric,
            the one whose weights are exported; None if nothing was measured.
        message: The final verdict, where the best was, and whether the run overfitted after it.
    """

    final: Verdict
    best: dict[str, Any] | None
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the manifest."""
        return {**self.final.to_dict(), "message": self.message, "best": self.best}


def number(value: float | None) -> str:
    """A number as a person reads it.

    >>> number(0.8741), number(0.00012), number(1234.5), number(None)
    ('0.874', '0.00012', '1.23e+03', 'unknown')
    """
    if value is None:
        return "unknown"
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 100 else f"{value:.3g}"


def moment(step: int, epoch: float | None) -> str:
    """When a validation was.

    >>> moment(120, 3.0), moment(130, 3.25), moment(130, None)
    ('epoch 3', 'epoch 3.25', 'step 130')
    """
    return f"step {step}" if epoch is None else f"epoch {round(epoch, 2):g}"


def describe(state: State, facts: Facts, metric: str) -> str:
    """State and numbers in one line; not for ``NOT_MEASURED``, which has no numbers."""
    pair = f"train {metric} {number(facts.train)}, val {metric} {number(facts.val)}"
    return f"{state}: {_because(state, facts, metric, pair)}"


def _because(state: State, facts: Facts, metric: str, pair: str) -> str:
    """The numbers that decided on the state."""
    over = f"over {facts.window} validations"
    gap = f"gap {number(facts.gap)}"
    best = f"{number(facts.best_val)} at {moment(facts.best_step or 0, facts.best_epoch)}"
    match state:
        case State.NOT_LEARNING:
            fallen = f"; best val {metric} was {best}" if facts.collapsed else ""
            return f"{pair}, no better than the baseline {number(facts.baseline)}; {_losses(facts)}{fallen}"
        case State.UNDERFITTING:
            far = f"{pair}, baseline {number(facts.baseline)}"
            if facts.train_change > 0 and facts.val_change > 0:
                since = over if facts.window > 1 else "since the baseline"
                return f"{far}; improving by {number(facts.train_change)} and {number(facts.val_change)} {since}"
            return f"{far}: less than half way to perfect"
        case State.SEVERE:
            return f"{pair}, {gap} > {number(facts.severe_limit)}"
        case State.MODERATE:
            return f"{pair}, {gap} > {number(facts.gap_limit)}"
        case State.LEAKAGE:
            return f"{pair}, and {facts.text_overlap or 0:.0%} of the val texts stand in train"
        case State.SUSPICIOUS:
            measured = "not compared" if facts.text_overlap is None else f"{facts.text_overlap:.1%} in common"
            return f"{pair}, both near perfect (train and val texts: {measured})"
        case State.DIVERGING:
            rise = f"{number(facts.val_loss_before)} to {number(facts.val_loss)}"
            fall = f"{number(facts.train_loss_before)} to {number(facts.train_loss)}"
            return f"val loss rose from {rise} while train loss fell from {fall} {over}; {pair}, {gap}"
        case State.SATURATED:
            return f"{pair}, {gap}: train has little left to teach"
        case State.PLATEAU:
            return f"{pair}, {gap}; val {metric} stands still {over} (best {best})"
        case _:
            return f"{pair}, {gap}"


def _losses(facts: Facts) -> str:
    split = f"train loss {number(facts.train_loss)}, val loss {number(facts.val_loss)}"
    return f"{split}, baseline {number(facts.baseline_loss)}"


def is_finite(value: float | None) -> bool:
    """Whether there is a value and it is neither NaN nor infinite."""
    return value is not None and math.isfinite(value)
