"""OverfitDetector: a verdict on a run after each validation, from numbers alone.

Train metrics are those of a fixed probe of the train split, measured in eval mode like val: the running training loss
has dropout and older weights in it. "The metric" is the one the run monitors. The first line that holds wins:

====================  ====  ========================================================================================
state                 code  condition
====================  ====  ========================================================================================
not measured            -3  a value (metric or loss, train or val) is missing or not finite, or no validation was run
not learning            -2  after the first epoch, metric and loss of train and val are all within 5 % of the baseline
underfitting            -1  train and val are both less than half way to perfect, and improving together
severe overfitting       5  gap > 2 x ``gap``
moderate overfitting     4  gap > ``gap``
leakage                  7  train and val are both over 0.99, and over 5 % of the val texts were found in train
suspiciously easy        6  train and val are both over 0.99
diverging                3  over ``window`` validations val loss rose and train loss fell, both by over ``min_delta``
saturated                2  train is over 0.99
plateau                  1  in the last ``window`` validations val did not improve by more than ``min_delta``
underfitting            -1  train and val are both less than half way to perfect: that is not called healthy
healthy                  0  none of these
====================  ====  ========================================================================================

The code is what TensorBoard draws: above 0 the model knows train too well, below 0 too little. The two doubts about the
data stand below the gaps, because a gap shows that val is no copy of train, and above the trends, because whether val
can be believed comes before how it moves.

Units: gap and changes of a metric where higher is better are plain differences (train - val); where lower is better
(losses, mse) they are shares of the baseline: (val - train) / baseline. The way from baseline to perfect ("skill") is
(value - baseline) / (1 - baseline), or 1 - value / baseline; "over 0.99" is the value, or the skill where lower is
better. Windows count measured validations. A condition that needs an unknown baseline does not hold; the scale of a
loss whose baseline is unknown is its first val value.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any

from lit_tune.errors import ConfigError
from lit_tune.stats.verdict import (
    Facts,
    Observation,
    Point,
    State,
    Summary,
    Verdict,
    describe,
    is_finite,
    moment,
    number,
)

SEVERE_FACTOR = 2.0
SATURATION = 0.99  # fewer than 10 errors in 1000 probe rows: what is left is mostly label noise
LEARNING_MARGIN = 0.05  # 0.025 accuracy at baseline 0.5: 1.6 standard deviations of 1000 rows of guesses
POOR_SKILL = 0.5  # accuracy 0.75 for two equal classes, R2 0.5
TOGETHER = 0.5  # val gains at least half of what train gains; less is memorising, and then the gap decides
LEAKAGE_OVERLAP = 0.05  # with fewer copies val would be over 0.94 without them: they do not explain 0.99
EPSILON = 1e-6  # Lightning keeps metrics in float32: there 0.75 - 0.70 is 0.05 + 1.2e-8, which is not over 0.05


@dataclass(frozen=True)
class OverfitSettings:
    """Thresholds (units: see the module).

    Args:
        gap: Train minus val above which a run overfits; twice this is severe.
        window: Validations over which trends are judged: the default run of three epochs has three.
        min_delta: Smallest change that counts: 0.01 accuracy, or 1 % of the baseline loss (0.007 for two equal classes,
            more than the val loss of a converged run wobbles between two epochs).

    Raises:
        ConfigError: A threshold out of its range.
    """

    gap: float = 0.05
    window: int = 3
    min_delta: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.gap < 1:
            raise ConfigError(f"{self.gap} is not between 0 and 1", where="overfit.gap", fix="0.05")
        if self.window < 2:
            raise ConfigError(f"{self.window} validations show no trend", where="overfit.window", fix="2 or more")
        if not 0 <= self.min_delta < 1:
            raise ConfigError(f"{self.min_delta} is not in [0, 1)", where="overfit.min_delta", fix="0.01")


def trend(values: list[float]) -> float:
    """Change from the first to the last value along the Theil-Sen line (Sen 1968, doi:10.1080/01621459.1968.10480934).

    The median of all pairwise slopes: one outlier decides nothing. For two or three values it is last - first.

    >>> trend([0.3, 0.35, 0.4]), trend([1.0])
    (0.1, 0.0)
    """
    if len(values) < 2:
        return 0.0
    slopes = [(b - a) / (j - i) for (i, a), (j, b) in combinations(enumerate(values), 2)]
    return round(median(slopes) * (len(values) - 1), 12)  # 0.4 - 0.3 is 0.1, not 0.10000000000000003


def classify(facts: Facts, settings: OverfitSettings, near_perfect: tuple[bool, bool]) -> State:
    """The state that holds: the table of this module, line by line.

    Args:
        facts: The numbers of a measured validation.
        settings: Thresholds.
        near_perfect: Whether train, and val, are over ``SATURATION``.
    """
    gap, delta = facts.gap or 0.0, settings.min_delta + EPSILON
    poor = all(s is not None and s < POOR_SKILL for s in (facts.train_skill, facts.val_skill))
    improving = facts.train_change > delta and facts.val_change > delta
    if facts.epoch_over and facts.best_skill is not None and facts.best_skill < LEARNING_MARGIN:
        return State.NOT_LEARNING
    if poor and improving and facts.val_change >= TOGETHER * facts.train_change - EPSILON:
        return State.UNDERFITTING
    if gap > SEVERE_FACTOR * settings.gap + EPSILON:
        return State.SEVERE
    if gap > settings.gap + EPSILON:
        return State.MODERATE
    if all(near_perfect):
        return State.LEAKAGE if (facts.text_overlap or 0.0) > LEAKAGE_OVERLAP else State.SUSPICIOUS
    if facts.window_full and facts.val_loss_change > delta and facts.train_loss_change < -delta:
        return State.DIVERGING
    if near_perfect[0]:
        return State.SATURATED
    if facts.window_full and facts.stale >= facts.window - 1:
        return State.PLATEAU
    return State.UNDERFITTING if poor else State.HEALTHY


class OverfitDetector:
    """Judges a run from what its validations measured.

    Args:
        metric: Name of the monitored metric, a key of ``Observation.train`` and ``.val``; may be ``loss``.
        higher_is_better: Its direction. A metric where higher is better has 1 as its best value.
        baseline: What a model that ignores its input scores, by metric name, ``loss`` (of the loss in use) among them.
        settings: Thresholds.
        text_overlap: Share of val texts found in train, where it was measured.
    """

    def __init__(
        self,
        metric: str,
        higher_is_better: bool,
        baseline: Mapping[str, float] | None = None,
        settings: OverfitSettings | None = None,
        text_overlap: float | None = None,
    ) -> None:
        self.metric, self.higher_is_better = metric, higher_is_better
        self.baseline = {k: float(v) for k, v in (baseline or {}).items() if is_finite(v)}
        self.settings = settings or OverfitSettings()
        self.text_overlap = text_overlap
        self.points: list[Point] = []
        self.last: Verdict | None = None

    def observe(self, observation: Observation) -> Verdict:
        """Judge one validation, in the light of those before it."""
        names = (self.metric, "loss")
        values = [split.get(name) for name in names for split in (observation.train, observation.val)]
        if not all(is_finite(v) for v in values):
            self.last = self._not_measured(observation, values)
            return self.last
        train, val, train_loss, val_loss = (float(v) for v in values if v is not None)
        self.points.append(Point(observation.step, observation.epoch, train, val, train_loss, val_loss))
        self.last = self._judge()
        self.points[-1] = replace(self.points[-1], state=str(self.last.state))
        return self.last

    def summary(self) -> Summary:
        """The verdict over all validations so far; now a run shorter than an epoch counts as well."""
        if self.last is None:
            facts = Facts(step=0, epoch=None, text_overlap=self.text_overlap)
            final = Verdict(State.NOT_MEASURED, facts.numbers(), f"{State.NOT_MEASURED}: no validation was run")
            return Summary(final, None, final.message)
        final = self.last
        if final.state != State.NOT_MEASURED:
            final = self._judge(ended=True)
        if not self.points:
            return Summary(final, None, final.message)
        best = self.points[at := self._best()]
        record = {name: getattr(best, name) for name in ("step", "epoch", "train", "val", "state")}
        record["gap"] = self._gap(best.train, best.val, self.metric)
        overlap = self.text_overlap or 0.0
        known = overlap >= 0.005 and final.state != State.LEAKAGE  # which says it already
        copies = f". {overlap:.0%} of the val texts stand in train" if known else ""
        return Summary(final, record, f"{final.message}. {self._outlook(at)}{copies}")

    def state_dict(self) -> dict[str, Any]:
        """Plain types: enough to go on as if nothing had happened."""
        return {
            "metric": self.metric,
            "points": [asdict(p) for p in self.points],
            "last": self.last.to_dict() if self.last else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; thresholds and baseline stay as they are configured now.

        Raises:
            ValueError: The state is of another metric.
        """
        if state["metric"] != self.metric:
            raise ValueError(f"the saved verdicts are about {state['metric']}, not {self.metric}")
        self.points = [Point(**p) for p in state["points"]]
        self.last = Verdict.from_dict(state["last"]) if state["last"] else None

    # ---- numbers -----------------------------------------------------------------------------------------------------

    def _is_higher_better(self, name: str) -> bool:
        return self.higher_is_better and name == self.metric

    def _scale(self, name: str) -> float:
        """What 1 means for gaps and changes: the metric's own unit, or the baseline where lower is better."""
        if self._is_higher_better(name):
            return 1.0
        first = 0.0
        if self.points:
            first = self.points[0].val_loss if name == "loss" else self.points[0].val
        return next((s for s in (self.baseline.get(name, 0.0), first) if s > 0), 1.0)

    def _gap(self, train: float, val: float, name: str) -> float:
        sign = 1 if self._is_higher_better(name) else -1
        return sign * (train - val) / self._scale(name)

    def _skill(self, value: float, name: str) -> float | None:
        """Way from the baseline (0) to perfect (1), None without a baseline."""
        base = self.baseline.get(name)
        if base is None:
            return None
        if self._is_higher_better(name):
            return (value - base) / (1 - base) if base < 1 else None
        return 1 - value / base if base > 0 else None

    def _near_perfect(self, value: float) -> bool:
        reached = value if self.higher_is_better else self._skill(value, self.metric)
        return reached is not None and reached > SATURATION + EPSILON

    def _best(self) -> int:
        """Index of the first best val metric."""
        sign = 1 if self.higher_is_better else -1
        return max(range(len(self.points)), key=lambda i: sign * self.points[i].val)

    def _stale(self) -> int:
        """Validations since val last beat its best by more than ``min_delta``."""
        sign = 1 if self.higher_is_better else -1
        needed = self.settings.min_delta * self._scale(self.metric) + EPSILON
        best, stale = sign * self.points[0].val, 0
        for point in self.points[1:]:
            stale = 0 if sign * point.val > best + needed else stale + 1
            best = max(best, sign * point.val) if stale == 0 else best
        return stale

    def _change(self, values: list[float], name: str) -> float:
        """Trend of a metric over the window, positive is better; of a single validation: since the baseline."""
        if len(values) == 1:
            values = [self.baseline.get(name, values[0]), *values]
        sign = 1 if self._is_higher_better(name) else -1
        return sign * trend(values) / self._scale(name)

    def _facts(self, ended: bool) -> Facts:
        now, best = self.points[-1], self.points[self._best()]
        recent = self.points[-self.settings.window :]
        full = len(recent) == self.settings.window
        metric, scale = self.metric, self._scale("loss")
        skills = [self._skill(v, metric) for v in (now.train, now.val)]
        skills += [self._skill(v, "loss") for v in (now.train_loss, now.val_loss)]
        best_skill = max((s for s in skills if s is not None), default=None)
        had_learned = (self._skill(best.val, metric) or 0.0) >= LEARNING_MARGIN
        return Facts(
            step=now.step,
            epoch=now.epoch,
            train=now.train,
            val=now.val,
            train_loss=now.train_loss,
            val_loss=now.val_loss,
            higher_is_better=self.higher_is_better,
            gap=self._gap(now.train, now.val, metric),
            loss_gap=self._gap(now.train_loss, now.val_loss, "loss"),
            gap_limit=self.settings.gap,
            severe_limit=SEVERE_FACTOR * self.settings.gap,
            baseline=self.baseline.get(metric),
            baseline_loss=self.baseline.get("loss"),
            train_skill=skills[0],
            val_skill=skills[1],
            best_skill=best_skill,
            collapsed=had_learned and best_skill is not None and best_skill < LEARNING_MARGIN,
            train_change=self._change([p.train for p in recent], metric),
            val_change=self._change([p.val for p in recent], metric),
            train_loss_change=trend([p.train_loss for p in recent]) / scale,
            val_loss_change=trend([p.val_loss for p in recent]) / scale,
            train_loss_before=recent[0].train_loss,
            val_loss_before=recent[0].val_loss,
            window=len(recent),
            window_full=full,
            stale=self._stale(),
            since_best=len(self.points) - 1 - self._best(),
            best_val=best.val,
            best_epoch=best.epoch,
            best_step=best.step,
            best_gap=self._gap(best.train, best.val, metric),
            epoch_over=ended or (full if now.epoch is None else now.epoch >= 1 - EPSILON),
            text_overlap=self.text_overlap,
        )

    # ---- verdicts ----------------------------------------------------------------------------------------------------

    def _judge(self, ended: bool = False) -> Verdict:
        facts, now = self._facts(ended), self.points[-1]
        near_perfect = (self._near_perfect(now.train), self._near_perfect(now.val))
        state = classify(facts, self.settings, near_perfect)
        return Verdict(state, facts.numbers(), describe(state, facts, self.metric))

    def _not_measured(self, observation: Observation, values: list[float | None]) -> Verdict:
        """Say which values are missing; ``values`` are metric of train and val, loss of train and val."""
        labels = [f"{split} {name}" for name in (self.metric, "loss") for split in ("train", "val")]
        absent = list(dict.fromkeys(n for n, v in zip(labels, values, strict=True) if v is None))
        odd = {n: v for n, v in zip(labels, values, strict=True) if v is not None and not is_finite(v)}
        reasons = [f"{n} is {v}" for n, v in odd.items()]
        if values[0] is None and values[2] is None:
            reasons.append("the probe of the train split was not measured")
            absent = [n for n in absent if not n.startswith("train ")]
        reasons += [f"{n} is undefined" for n in absent]
        fields = ("train", "val", "train_loss", "val_loss")
        known: dict[str, Any] = {n: v for n, v in zip(fields, values, strict=True) if is_finite(v)}
        overlap = self.text_overlap
        facts = Facts(observation.step, observation.epoch, text_overlap=overlap, nonfinite=bool(odd), **known)
        return Verdict(State.NOT_MEASURED, facts.numbers(), f"{State.NOT_MEASURED}: {'; '.join(reasons)}")

    def _outlook(self, at: int) -> str:
        """Where the best validation was, and what came after it."""
        best, later = self.points[at], self.points[at + 1 :]
        when = f"Best at {moment(best.step, best.epoch)}"
        if not later and self.last is not None and self.last.state != State.NOT_MEASURED:
            return f"{when}, the last validation"  # whose numbers the verdict has just given
        gap = self._gap(best.train, best.val, self.metric)
        text = f"{when} (val {self.metric} {number(best.val)}, gap {number(gap)})"
        overfit = [p for p in later if State(p.state).is_overfit]
        if State(best.state).is_overfit:
            return f"{text}, where it was already: {best.state}"
        if not overfit:
            return text
        worst = max(self._gap(p.train, p.val, self.metric) for p in overfit)
        if worst > self.settings.gap + EPSILON:
            return f"{text}; later epochs overfit (gap {number(worst)})"
        last = overfit[-1]
        return f"{text}; later epochs overfit (val loss {number(best.val_loss)} -> {number(last.val_loss)})"
