"""Advice: a verdict and the settings in use -> the config keys and values to change, most promising first.

Every rule looks at what is set now, so that no key is advised that already has the value. A setting that is not known
is advised without its present value.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from lit_tune.stats.settings_in_use import SettingsInUse
from lit_tune.stats.verdict import State, Verdict, number

MAX_ADVICE = 3  # more is a tutorial, and nobody changes more at once

PATIENCE = 2
WEIGHT_DECAYS = (0.05, 0.1)
DROPOUTS = (0.2, 0.3)
LABEL_SMOOTHING = 0.1
FEW_ROWS = 1000  # below this a frozen backbone with a trained head is worth a try
FEW_STEPS = 100  # below this a fine-tuned model has barely moved
LOW_LR, USUAL_LR, HIGH_LR = 1e-5, 2e-5, 1e-4  # fine-tuning works between; Devlin et al. 2019 tried 2e-5 to 5e-5
SCRATCH_LR = 5e-4  # a small encoder from random weights
HEAD_LR = 1e-3  # a linear head alone over frozen features
NOISE = 2.0  # standard errors that a gap must have to be more than chance
LEARNED = 0.5  # skill under which a plateau is a poor one
CHECK = "check"


@dataclass(frozen=True)
class Advice:
    """One change of the config.

    Args:
        key: Dotted config key.
        value: The value to set, as written in YAML; ``check`` where a person must look.
        now: The value in use, None where unknown.
        why: The reason, with its number.
    """

    key: str
    value: str
    now: str | None
    why: str

    def __str__(self) -> str:
        now = "" if self.now is None else f" (now {self.now})"
        return f"{self.key}{now}: {self.why}" if self.value == CHECK else f"{self.key}: {self.value}{now}: {self.why}"


@dataclass(frozen=True)
class Case:
    """What a rule looks at: the numbers of the verdict, the settings in use, and the monitored metric (``val/f1``)."""

    numbers: Mapping[str, Any]
    settings: SettingsInUse
    monitor: str


Rule = Callable[[Case], Advice | None]
"""None where there is nothing to change."""


def _yaml(value: Any) -> str:
    """A value as a line of YAML shows it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_yaml(v) for v in value) + "]"
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*", value) else json.dumps(value)


def _lr(value: float) -> str:
    """A learning rate as YAML reads it: ``2.0e-5``, because ``2e-5`` without a dot is a string there."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa)}e{int(exponent)}"


def advise(verdict: Verdict, settings: SettingsInUse | None = None, monitor: str = "val/loss") -> list[Advice]:
    """What to change, at most three things.

    Args:
        verdict: The verdict; its numbers say where the best validation was.
        settings: The config in use.
        monitor: The monitored metric as the config writes it, e.g. ``val/f1``.
    """
    case = Case(verdict.numbers, settings or {}, monitor)
    found = (rule(case) for rule in RULES[verdict.state])
    by_key: dict[str, Advice] = {}
    for advice in found:
        if advice is not None:
            by_key.setdefault(advice.key, advice)
    return list(by_key.values())[:MAX_ADVICE]


# ---- stop in time ----------------------------------------------------------------------------------------------------


def stop_early(case: Case) -> Advice | None:
    """Early stopping, or less patience."""
    now = case.settings.get("early_stopping.patience")
    if now is not None and now <= PATIENCE:
        return None
    shown = None if "early_stopping.patience" not in case.settings else "off" if now is None else str(now)
    return Advice("early_stopping.patience", str(PATIENCE), shown, f"stop when {case.monitor} stops improving")


def stop_at_best(case: Case) -> Advice | None:
    """No more training than the best validation had."""
    if not case.numbers.get("since_best"):
        return None
    steps = case.settings.get("trainer.max_steps") or 0
    if steps > 0 or case.numbers.get("best_epoch") is None:
        best = case.numbers["best_step"]
        why = f"{case.monitor} was best at step {best}"
        return Advice("trainer.max_steps", str(best), str(steps) if steps > 0 else None, why) if best != steps else None
    best, now = math.ceil(case.numbers["best_epoch"] - 1e-6), case.settings.get("trainer.max_epochs")
    if now is not None and 0 < now <= best:  # -1 is no limit
        return None
    shown = None if now is None else str(now)
    return Advice("trainer.max_epochs", str(best), shown, f"{case.monitor} was best in epoch {best}")


# ---- hold back -------------------------------------------------------------------------------------------------------


def more_dropout(case: Case) -> Advice | None:
    """The next higher dropout."""
    field, now = case.settings.get("dropout_field"), case.settings.get("dropout")
    higher = next((d for d in DROPOUTS if now is not None and d > now + 1e-9), None)
    if not field or higher is None:
        return None
    overrides = {**case.settings.get("model.config_overrides", {}), field: higher}
    return Advice("model.config_overrides", _yaml(overrides), f"{now:g}", "dropout makes train harder to memorise")


def more_weight_decay(case: Case) -> Advice | None:
    """The next higher weight decay."""
    now = case.settings.get("optimizer.weight_decay")
    higher = next((w for w in WEIGHT_DECAYS if now is None or w > now + 1e-9), None)
    if higher is None:
        return None
    shown = None if now is None else f"{now:g}"
    return Advice("optimizer.weight_decay", f"{higher:g}", shown, "keeps the weights small")


def more_smoothing(case: Case) -> Advice | None:
    """Label smoothing, which keeps a model from growing ever more certain."""
    now = case.settings.get("task.init_args.label_smoothing")
    if now is None or now > 0:
        return None
    why = "val loss grows where wrong answers are too certain"
    return Advice("task.init_args.label_smoothing", f"{LABEL_SMOOTHING:g}", f"{now:g}", why)


def freeze_backbone(case: Case) -> Advice | None:
    """Train only the head where there are few rows."""
    rows = case.settings.get("num_train_rows")
    other_choice = any(case.settings.get(key) for key in ("model.freeze", "model.from_scratch", "model.adapter"))
    if not rows or rows >= FEW_ROWS or other_choice:
        return None
    shown = "null" if "model.freeze" in case.settings else None
    return Advice("model.freeze", "backbone", shown, f"{rows} train rows are few for all weights")


def lower_lr(case: Case) -> Advice | None:
    """Half the learning rate."""
    now = case.settings.get("optimizer.lr")
    if now is None or now <= LOW_LR:
        return None
    return Advice("optimizer.lr", _lr(now / 2), _lr(now), "smaller steps overshoot less")


def mend_val(case: Case) -> Advice | None:
    """More val rows, where the gap is no more than chance would make it."""
    rows, gap, val = case.settings.get("num_val_rows"), case.numbers.get("gap"), case.numbers.get("val")
    if not rows or gap is None or val is None or not 0 < val < 1 or not case.numbers.get("higher_is_better"):
        return None
    probe = min(rows, case.settings.get("overfit.probe_size") or rows)
    chance = NOISE * math.sqrt(val * (1 - val) * (1 / rows + 1 / probe))  # of a share; F1 and the like are near it
    if gap >= chance:
        return None
    why = f"{rows} val rows leave the gap uncertain by {number(chance)}"
    fraction = case.settings.get("data.val_fraction")
    if not fraction:
        return Advice("data.val", "more rows", f"{rows} rows", why)
    return Advice("data.val_fraction", "0.2", f"{fraction:g}", why) if fraction < 0.2 else None


# ---- learn more ------------------------------------------------------------------------------------------------------


def thaw(case: Case) -> Advice | None:
    """Train the frozen weights."""
    frozen = case.settings.get("model.freeze")
    shown = _yaml(frozen[0] if frozen and len(frozen) == 1 else frozen)
    return Advice("model.freeze", "null", shown, "frozen weights cannot learn") if frozen else None


def only_head(case: Case) -> bool:
    """Whether the backbone is frozen to the end."""
    return "backbone" in (case.settings.get("model.freeze") or []) and not case.settings.get("model.unfreeze")


def faster_head(case: Case) -> Advice | None:
    """A head over a frozen backbone needs a larger learning rate than fine-tuning."""
    if not only_head(case):
        return None
    now = case.settings.get("optimizer.head_lr") or case.settings.get("optimizer.lr")
    if now is not None and now >= HEAD_LR:
        return None
    return Advice("optimizer.head_lr", _lr(HEAD_LR), None if now is None else _lr(now), "only the head is trained")


def usual_lr(case: Case) -> Advice | None:
    """A learning rate that is known to work, where the present one is unusual or made the run collapse."""
    now, scratch = case.settings.get("optimizer.lr"), bool(case.settings.get("model.from_scratch"))
    if only_head(case):
        return None  # a head alone has another usual value
    if now is None:
        return Advice("optimizer.lr", _lr(SCRATCH_LR if scratch else USUAL_LR), None, "the usual value")
    if case.numbers.get("collapsed"):
        return lower_lr(case)
    low, high, usual = (HIGH_LR, 1e-2, SCRATCH_LR) if scratch else (LOW_LR, HIGH_LR, USUAL_LR)
    if low <= now <= high:
        return None
    side = "too small for random weights" if scratch and now < low else "too small" if now < low else "too large"
    return Advice("optimizer.lr", _lr(usual), _lr(now), f"{side}: the model did not move away from the baseline")


def raise_lr(case: Case) -> Advice | None:
    """Twice the learning rate, within what fine-tuning bears."""
    now, top = case.settings.get("optimizer.lr"), SCRATCH_LR if case.settings.get("model.from_scratch") else HIGH_LR
    if now is None or now >= top:
        return None
    return Advice("optimizer.lr", _lr(min(2 * now, top)), _lr(now), "train is not learned either")


def raise_lr_if_poor(case: Case) -> Advice | None:
    """A plateau far from perfect even on train may be one of too small steps."""
    skill = case.numbers.get("train_skill")
    return raise_lr(case) if skill is not None and skill < LEARNED else None


def warm_up(case: Case) -> Advice | None:
    """Warm-up, without which Adam's first steps can wreck a pretrained model."""
    if case.settings.get("lr_schedule.warmup", 1) > 0:
        return None
    return Advice("lr_schedule.warmup", "0.1", "0", "the first steps are too large without it")


def train_longer(case: Case) -> Advice | None:
    """Twice the epochs or steps."""
    epochs, steps = case.settings.get("trainer.max_epochs"), case.settings.get("trainer.max_steps") or 0
    patience = case.settings.get("early_stopping.patience")
    cut_short = epochs and case.numbers.get("epoch") is not None and case.numbers["epoch"] < epochs - 1e-6
    if patience is not None and cut_short:
        return Advice("early_stopping.patience", str(patience + 2), str(patience), "it stopped the run before the end")
    why = "it was still improving" if case.numbers.get("val_change", 0) > 0 else "train is not learned yet"
    if steps > 0:
        return Advice("trainer.max_steps", str(2 * steps), str(steps), why)
    if not epochs or epochs < 0:
        return None
    return Advice("trainer.max_epochs", str(2 * epochs), str(epochs), why)


def more_steps(case: Case) -> Advice | None:
    """More optimizer steps, where the whole run has hardly any."""
    now, seen = case.settings.get("trainer.max_epochs") or 0, case.numbers.get("epoch")
    if now <= 0 or not seen or (case.settings.get("trainer.max_steps") or 0) > 0 or case.numbers.get("collapsed"):
        return None
    steps = round(case.numbers["step"] * max(1.0, now / seen))
    if not 0 < steps < FEW_STEPS:
        return None
    enough = math.ceil(now * FEW_STEPS / steps)
    return Advice("trainer.max_epochs", str(enough), str(now), f"{steps} optimizer steps are few")


# ---- look at the data ------------------------------------------------------------------------------------------------


def check_labels(case: Case) -> Advice | None:
    """Labels that do not belong to their texts cannot be learned."""
    key = case.settings.get("label_key", "task.init_args.label_column")
    if case.numbers.get("collapsed") or key == case.settings.get("input_key"):  # a text that is its own label
        return None
    column = cast("str | None", case.settings.get(key))
    return Advice(key, CHECK, column, "are these the labels of the texts?")


def check_texts(case: Case) -> Advice | None:
    """A text that contains its label is easy."""
    key = case.settings.get("input_key", "task.init_args.text_columns")
    if key == case.settings.get("label_key"):
        return None
    columns = case.settings.get(key)
    shown = _yaml(columns) if columns else None
    return Advice(key, CHECK, shown, "does a text give its label away?")


def unseen_val(case: Case) -> Advice | None:
    """Val rows that are not in train."""
    shown = f"{case.numbers.get('text_overlap') or 0:.0%} of its texts stand in train"
    if case.settings.get("data.val_fraction"):
        return Advice("data.train", CHECK, None, f"remove repeated texts, val is cut from it and {shown}")
    return Advice("data.val", CHECK, None, f"{shown}: use rows that train does not have")


def measure_val(case: Case) -> Advice | None:
    """A val split, where the run had none."""
    if "num_val_rows" not in case.settings or case.settings["num_val_rows"]:
        return None
    why = "without val rows nothing can be said"
    if case.settings.get("num_train_rows", 1) is None:  # a stream
        return Advice("data.val", CHECK, None, why)
    return Advice("data.val_fraction", "0.1", "0", why)


def measure_probe(case: Case) -> Advice | None:
    """A train probe, where the run had none."""
    if case.settings.get("overfit.probe_size") != 0:
        return None
    return Advice("overfit.probe_size", "1000", "0", "without train metrics there is no gap")


def tame(case: Case) -> Advice | None:
    """Smaller steps, where numbers were not finite."""
    return lower_lr(case) if case.numbers.get("nonfinite") else None


HOLD_BACK: tuple[Rule, ...] = (more_dropout, more_weight_decay, more_smoothing)
RULES: dict[State, tuple[Rule, ...]] = {
    State.NOT_MEASURED: (measure_val, measure_probe, tame),
    State.NOT_LEARNING: (faster_head, thaw, usual_lr, more_steps, warm_up, check_labels),
    State.UNDERFITTING: (train_longer, faster_head, thaw, raise_lr),
    State.SEVERE: (mend_val, stop_early, stop_at_best, freeze_backbone, *HOLD_BACK, lower_lr),
    State.MODERATE: (mend_val, stop_early, stop_at_best, *HOLD_BACK, lower_lr),
    State.LEAKAGE: (unseen_val,),
    State.SUSPICIOUS: (check_texts, stop_at_best),
    State.DIVERGING: (stop_early, stop_at_best, more_smoothing, lower_lr, *HOLD_BACK),
    State.SATURATED: (stop_early, stop_at_best, *HOLD_BACK),
    State.PLATEAU: (faster_head, thaw, raise_lr_if_poor, stop_early, stop_at_best),
    State.HEALTHY: (),
}
"""What helps in which state, most promising first."""
