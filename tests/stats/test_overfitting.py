import json
import math

import numpy as np
import pytest
from scipy.stats import theilslopes

from lit_tune.errors import ConfigError
from lit_tune.stats.overfitting import OverfitDetector, OverfitSettings, trend
from lit_tune.stats.verdict import Observation, State, Verdict

BASELINE = {"f1": 0.5, "loss": 0.693}


def scripted(points, metric="f1", higher_is_better=True, baseline=BASELINE, overlap=None, epochs=None, **settings):
    """Verdicts on a script of (train metric, val metric, train loss, val loss), one per epoch."""
    detector = OverfitDetector(metric, higher_is_better, baseline, OverfitSettings(**settings), overlap)
    return detector, [detector.observe(o) for o in observations(points, metric, epochs)]


def observations(points, metric="f1", epochs=None):
    return [
        Observation(
            step=10 * (i + 1),
            epoch=epochs[i] if epochs else i + 1.0,
            train={metric: train, "loss": train_loss},
            val={metric: val, "loss": val_loss},
        )
        for i, (train, val, train_loss, val_loss) in enumerate(points)
    ]


def last(points, **rest):
    return scripted(points, **rest)[1][-1]


SCRIPTS = {
    State.NOT_MEASURED: [(0.8, None, 0.4, 0.4)],
    State.NOT_LEARNING: [(0.50, 0.51, 0.69, 0.70)],
    State.UNDERFITTING: [(0.55, 0.54, 0.67, 0.68), (0.62, 0.60, 0.65, 0.66)],
    State.SEVERE: [(0.98, 0.87, 0.1, 0.4)],
    State.MODERATE: [(0.962, 0.874, 0.1, 0.3)],
    State.LEAKAGE: [(0.998, 0.997, 0.01, 0.01)],
    State.SUSPICIOUS: [(0.998, 0.997, 0.01, 0.01)],
    State.DIVERGING: [(0.85, 0.84, 0.40, 0.40), (0.88, 0.86, 0.35, 0.43), (0.90, 0.88, 0.30, 0.46)],
    State.SATURATED: [(0.995, 0.96, 0.05, 0.15)],
    State.PLATEAU: [(0.85, 0.840, 0.40, 0.40), (0.86, 0.845, 0.39, 0.40), (0.86, 0.847, 0.39, 0.40)],
    State.HEALTHY: [(0.85, 0.84, 0.40, 0.41), (0.88, 0.86, 0.35, 0.38), (0.91, 0.89, 0.30, 0.34)],
}


@pytest.mark.parametrize("state", list(State))
def test_every_state_has_a_script_that_reaches_it(state):
    verdict = last(SCRIPTS[state], overlap=0.3 if state == State.LEAKAGE else None)
    assert verdict.state == state
    assert verdict.message.startswith(f"{state}: ")


# The same stories told by mse, where lower is better; the baseline (variance of the targets) is 4.
LOWER = {
    State.NOT_LEARNING: [(3.95, 4.1)],
    State.UNDERFITTING: [(3.6, 3.7), (2.9, 3.1)],
    State.SEVERE: [(0.5, 1.0)],
    State.MODERATE: [(0.5, 0.8)],
    State.SUSPICIOUS: [(0.02, 0.03)],
    State.DIVERGING: [(1.00, 1.0), (0.95, 1.03), (0.90, 1.06)],
    State.SATURATED: [(0.02, 0.1)],
    State.PLATEAU: [(1.0, 1.05), (1.0, 1.03), (1.0, 1.02)],
    State.HEALTHY: [(1.0, 1.1), (0.8, 0.95), (0.7, 0.85)],
}


@pytest.mark.parametrize("state", list(LOWER))
@pytest.mark.parametrize("metric", ["mse", "loss"])
def test_a_metric_where_lower_is_better_tells_the_same_stories(state, metric):
    points = [(train, val, train, val) for train, val in LOWER[state]]
    verdict = last(points, metric=metric, higher_is_better=False, baseline={"mse": 4.0, "loss": 4.0})
    assert verdict.state == state


def test_the_gap_of_a_loss_is_a_share_of_the_baseline_loss():
    numbers = last([(0.9, 0.9, 0.3, 0.5)], baseline={"f1": 0.5, "loss": 0.8}).numbers
    assert numbers["loss_gap"] == pytest.approx((0.5 - 0.3) / 0.8)
    verdict = last([(0.3, 0.5, 0.3, 0.5)], metric="loss", higher_is_better=False, baseline={"loss": 0.8})
    assert verdict.numbers["gap"] == pytest.approx(0.25)
    assert verdict.state == State.SEVERE


def test_without_a_baseline_the_first_val_loss_is_the_scale_and_nothing_is_called_poor():
    points = [(0.2, 0.2, 0.6, 0.8), (0.2, 0.2, 0.4, 0.8)]
    verdict = last(points, baseline={})
    assert verdict.numbers["loss_gap"] == pytest.approx((0.8 - 0.4) / 0.8)
    assert verdict.state == State.HEALTHY
    assert last([(0.0, 0.0, 0.0, 0.0)], metric="loss", higher_is_better=False, baseline={}).numbers["gap"] == 0


# ---- the numbers in a message ----------------------------------------------------------------------------------------


def test_a_verdict_carries_its_numbers():
    verdict = last(SCRIPTS[State.MODERATE])
    assert verdict.message == "moderate overfitting: train f1 0.962, val f1 0.874, gap 0.088 > 0.050"
    assert verdict.numbers["gap"] == pytest.approx(0.088)
    assert last(SCRIPTS[State.SEVERE]).message.endswith("gap 0.110 > 0.100")
    assert "val loss rose from 0.400 to 0.460" in last(SCRIPTS[State.DIVERGING]).message
    assert "30% of the val texts stand in train" in last(SCRIPTS[State.LEAKAGE], overlap=0.3).message
    assert "baseline 0.500" in last(SCRIPTS[State.NOT_LEARNING]).message


@pytest.mark.parametrize("state", list(State))
def test_a_verdict_is_strict_json_and_comes_back_from_it(state):
    verdict = last(SCRIPTS[state], overlap=0.3)
    text = json.dumps(verdict.to_dict(), allow_nan=False)
    assert Verdict.from_dict(json.loads(text)) == verdict


def test_codes_are_distinct_and_zero_is_healthy():
    assert len({state.code for state in State}) == len(State)
    assert State.HEALTHY.code == 0
    assert all(s.code > 0 and s.alarm >= 2 for s in State if s.is_overfit)


# ---- precedence: in each script both neighbours' conditions hold -----------------------------------------------------


def test_not_measured_comes_before_all():
    assert last([(0.5, math.nan, 0.69, 0.69)]).state == State.NOT_MEASURED


def test_not_learning_comes_before_underfitting():
    points = [(0.460, 0.460, 0.72, 0.72), (0.49, 0.49, 0.70, 0.70), (0.510, 0.510, 0.69, 0.69)]
    assert last(points, epochs=[0.2, 0.4, 0.6]).state == State.UNDERFITTING  # poor and improving, in the first epoch
    assert last(points, epochs=[0.6, 0.8, 1.0]).state == State.NOT_LEARNING


def test_underfitting_comes_before_the_gaps():
    points = [(0.60, 0.50, 0.6, 0.6), (0.72, 0.58, 0.5, 0.6)]  # gap 0.14, but both poor and val gains 0.08 of 0.12
    assert last(points).numbers["gap"] > 0.1
    assert last(points).state == State.UNDERFITTING


def test_memorising_is_not_improving_together():
    points = [(0.55, 0.54, 0.6, 0.6), (0.72, 0.56, 0.5, 0.6)]  # val gains 0.02 of 0.17
    assert last(points).state == State.SEVERE


def test_severe_comes_before_moderate_and_both_before_diverging_and_saturated():
    rising = [(0.90, 0.90, 0.4, 0.30), (0.95, 0.90, 0.2, 0.40)]
    assert last([*rising, (0.995, 0.89, 0.1, 0.50)]).state == State.SEVERE
    assert last([*rising, (0.995, 0.93, 0.1, 0.50)]).state == State.MODERATE
    assert last([*rising, (0.995, 0.96, 0.1, 0.50)]).state == State.DIVERGING


def test_the_gaps_come_before_the_doubts_about_the_data():
    assert last([(0.999, 0.991, 0.01, 0.02)], gap=0.005, overlap=0.5).state == State.MODERATE
    assert last([(0.999, 0.991, 0.01, 0.02)], overlap=0.5).state == State.LEAKAGE


def test_leakage_needs_a_measured_overlap_and_then_comes_before_suspiciously_easy():
    points = SCRIPTS[State.SUSPICIOUS]
    assert last(points, overlap=None).state == State.SUSPICIOUS
    assert last(points, overlap=0.0).state == State.SUSPICIOUS
    assert last(points, overlap=0.05).state == State.SUSPICIOUS
    assert last(points, overlap=0.06).state == State.LEAKAGE


def test_overlap_alone_is_no_leakage_and_is_said_once_at_the_end():
    detector, verdicts = scripted([(0.9, 0.88, 0.3, 0.3)], overlap=0.3)
    assert verdicts[-1].state == State.HEALTHY
    assert "val texts" not in verdicts[-1].message
    assert detector.summary().message.endswith(". 30% of the val texts stand in train")
    easy = scripted(SCRIPTS[State.LEAKAGE], overlap=0.3)[0].summary().message
    assert easy.count("30% of the val texts") == 1


def test_suspiciously_easy_comes_before_diverging_and_saturated():
    points = [(0.992, 0.992, 0.05, 0.03), (0.995, 0.992, 0.04, 0.05), (0.998, 0.993, 0.01, 0.07)]
    assert last(points).state == State.SUSPICIOUS
    points[-1] = (0.998, 0.989, 0.01, 0.07)
    assert last(points).state == State.DIVERGING


def test_diverging_comes_before_saturated_and_plateau():
    points = [(0.95, 0.95, 0.20, 0.20), (0.98, 0.95, 0.10, 0.22), (0.995, 0.95, 0.05, 0.24)]
    assert last(points).state == State.DIVERGING
    flat = [(a, b, c, 0.2) for a, b, c, _ in points]
    assert last(flat).state == State.SATURATED
    assert last([(0.97, b, c, d) for _, b, c, d in flat]).state == State.PLATEAU


def test_plateau_comes_before_calling_a_run_poor():
    points = [(0.70, 0.69, 0.6, 0.6)] * 2
    assert last(points).state == State.UNDERFITTING  # two of three validations, and not healthy either
    assert last([*points, points[0]]).state == State.PLATEAU


# ---- thresholds ------------------------------------------------------------------------------------------------------


def test_a_gap_of_exactly_the_limit_is_not_over_it():
    assert 0.75 - 0.70 > 0.05  # in floats
    assert last([(0.75, 0.70, 0.5, 0.5)]).state == State.HEALTHY
    assert last([(0.76, 0.70, 0.5, 0.5)]).state == State.MODERATE
    assert last([(0.80, 0.70, 0.5, 0.5)]).state == State.MODERATE
    assert last([(0.81, 0.70, 0.5, 0.5)]).state == State.SEVERE


def test_not_learning_waits_for_the_first_epoch_and_for_the_window_of_a_stream():
    chance = [(0.5, 0.5, 0.69, 0.69)] * 3
    assert last(chance, epochs=[0.3, 0.6, 0.9]).state != State.NOT_LEARNING
    assert last(chance[:2], epochs=[None, None]).state != State.NOT_LEARNING
    assert last(chance, epochs=[None, None, None]).state == State.NOT_LEARNING


def test_a_run_that_ends_within_the_first_epoch_is_judged_at_its_end():
    detector, verdicts = scripted([(0.5, 0.5, 0.69, 0.69)], epochs=[0.4])
    assert verdicts[-1].state == State.UNDERFITTING
    assert detector.summary().final.state == State.NOT_LEARNING


def test_a_model_whose_loss_learns_while_its_rare_class_metric_stands_is_learning():
    rare = {"accuracy": 0.95, "loss": 0.1985}
    assert last([(0.95, 0.95, 0.12, 0.13)], metric="accuracy", baseline=rare).state == State.UNDERFITTING
    assert last([(0.95, 0.95, 0.195, 0.197)], metric="accuracy", baseline=rare).state == State.NOT_LEARNING


def test_a_model_that_falls_back_to_the_baseline_is_not_learning_and_its_best_is_told():
    verdict = last([(0.85, 0.84, 0.4, 0.4), (0.5, 0.5, 0.69, 0.69)])
    assert verdict.state == State.NOT_LEARNING
    assert verdict.numbers["collapsed"]
    assert "best val f1 was 0.840 at epoch 1" in verdict.message
    assert not last([(0.5, 0.5, 0.69, 0.69)] * 3).numbers["collapsed"]


def test_train_at_the_baseline_is_needed_for_not_learning():
    assert last([(0.99, 0.5, 0.05, 2.0)]).state == State.SEVERE


def test_diverging_needs_the_whole_window_and_more_than_min_delta_on_both_sides():
    points = SCRIPTS[State.DIVERGING]
    assert last(points[:2]).state == State.HEALTHY
    assert last(points, window=4).state == State.HEALTHY
    assert last(points, min_delta=0.1).state != State.DIVERGING
    assert last([(a, b, 0.4, d) for a, b, _, d in points]).state == State.HEALTHY
    assert last([(a, b, c, 0.4) for a, b, c, _ in points]).state == State.HEALTHY
    assert last(points[:2], window=2).state == State.DIVERGING


def test_one_odd_validation_in_a_wide_window_is_not_divergence():
    points = [(0.8 + 0.012 * i, 0.8 + 0.012 * i, 0.4 - 0.01 * i, 0.4) for i in range(7)]
    points[-1] = (*points[-1][:3], 0.6)
    assert last(points, window=7).state == State.HEALTHY


def test_a_slow_crawl_that_adds_up_to_min_delta_is_no_plateau():
    crawl = [(0.86, 0.840, 0.4, 0.4), (0.86, 0.846, 0.4, 0.4), (0.86, 0.852, 0.4, 0.4)]
    assert last(crawl).state == State.HEALTHY


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_the_trend_is_scipys_theil_sen_line(n):
    values = np.random.default_rng(n).normal(size=n).tolist()
    assert trend(values) == pytest.approx(theilslopes(values).slope * (n - 1))


@pytest.mark.parametrize(
    ("name", "value"), [("gap", 0.0), ("gap", 1.5), ("gap", math.nan), ("window", 1), ("min_delta", -0.1)]
)
def test_thresholds_out_of_range_are_config_errors_that_name_the_key(name, value):
    with pytest.raises(ConfigError, match=rf"overfit\.{name}"):
        OverfitSettings(**{name: value})


# ---- missing values --------------------------------------------------------------------------------------------------

GOOD = (0.8, 0.79, 0.4, 0.41)


@pytest.mark.parametrize("odd", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", range(4))
def test_a_value_that_is_missing_or_not_finite_is_not_measured_and_never_healthy(odd, which):
    point = list(GOOD)
    point[which] = odd
    verdict = last([GOOD, tuple(point)])
    assert verdict.state == State.NOT_MEASURED
    assert verdict.numbers["nonfinite"] == (odd is not None)
    name = ["train f1", "val f1", "train loss", "val loss"][which]
    assert f"{name} is {'undefined' if odd is None else odd}" in verdict.message


def test_a_probe_that_was_not_measured_is_said_so():
    detector = OverfitDetector("f1", True, BASELINE)
    verdict = detector.observe(Observation(10, 1.0, {}, {"f1": 0.8, "loss": 0.4}))
    assert verdict.message == "not measured: the probe of the train split was not measured"


def test_windows_count_measured_validations():
    points = SCRIPTS[State.DIVERGING]
    assert last([points[0], (None, 0.8, 0.4, math.nan), *points[1:]]).state == State.DIVERGING


# ---- the whole run ---------------------------------------------------------------------------------------------------


def test_a_run_that_overfits_after_a_healthy_best_is_told_apart():
    points = [(0.80, 0.79, 0.5, 0.50), (0.86, 0.85, 0.4, 0.42), (0.89, 0.87, 0.3, 0.38), (0.97, 0.86, 0.1, 0.5)]
    summary = scripted(points)[0].summary()
    assert summary.final.state == State.SEVERE
    assert summary.best is not None
    assert (summary.best["epoch"], summary.best["step"], summary.best["state"]) == (3.0, 30, "healthy")
    assert summary.message == (
        "severe overfitting: train f1 0.970, val f1 0.860, gap 0.110 > 0.100. "
        "Best at epoch 3 (val f1 0.870, gap 0.020); later epochs overfit (gap 0.110)"
    )
    json.dumps(summary.to_dict(), allow_nan=False)


def test_a_run_whose_best_is_its_last_validation_is_told_so():
    summary = scripted(SCRIPTS[State.HEALTHY])[0].summary()
    assert summary.message.endswith("val f1 0.890, gap 0.020. Best at epoch 3, the last validation")
    overfit = scripted([(0.95, 0.80, 0.1, 0.5), (0.99, 0.87, 0.1, 0.4)])[0].summary()
    assert overfit.message.endswith("gap 0.120 > 0.100. Best at epoch 2, the last validation")


def test_a_run_whose_best_is_overfit_is_told_so():
    summary = scripted([(0.98, 0.87, 0.1, 0.4), (0.99, 0.86, 0.05, 0.5)])[0].summary()
    assert summary.message.endswith("gap 0.110), where it was already: severe overfitting")


def test_a_run_that_only_diverges_after_its_best_is_told_by_its_losses():
    points = [(0.90, 0.89, 0.40, 0.40), (0.91, 0.88, 0.35, 0.43), (0.92, 0.88, 0.30, 0.46)]
    summary = scripted(points)[0].summary()
    assert summary.message.endswith("later epochs overfit (val loss 0.400 -> 0.460)")


def test_the_best_of_a_metric_where_lower_is_better_is_the_smallest_and_of_equals_the_first():
    points = [(v, v, v, v) for v in (0.5, 0.3, 0.3, 0.4)]
    summary = scripted(points, metric="loss", higher_is_better=False)[0].summary()
    assert summary.best is not None
    assert summary.best["epoch"] == 2.0


def test_a_run_without_validation_is_not_measured():
    summary = OverfitDetector("f1", True, BASELINE).summary()
    assert summary.final.state == State.NOT_MEASURED
    assert summary.message == "not measured: no validation was run"


def test_a_run_that_ends_in_nan_is_not_measured_and_still_knows_its_best():
    summary = scripted([GOOD, (math.nan, math.nan, math.nan, math.nan)])[0].summary()
    assert summary.final.state == State.NOT_MEASURED
    assert "Best at epoch 1 (val f1 0.790" in summary.message


def test_moments_of_a_stream_are_steps():
    summary = scripted([GOOD], epochs=[None])[0].summary()
    assert "Best at step 10, " in summary.message


# ---- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(7))
def test_a_detector_that_is_saved_and_loaded_anywhere_says_what_an_uninterrupted_one_says(cut):
    points = [
        (0.55, 0.54, 0.67, 0.68),
        (0.80, 0.78, 0.50, 0.52),
        (None, 0.78, 0.50, 0.52),
        (0.86, 0.85, 0.40, 0.42),
        (0.90, 0.86, 0.30, 0.44),
        (0.97, 0.85, 0.10, 0.55),
    ]
    whole, verdicts = scripted(points)
    first = OverfitDetector("f1", True, BASELINE)
    stream = observations(points)
    got = [first.observe(o) for o in stream[:cut]]
    second = OverfitDetector("f1", True, BASELINE)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    got += [second.observe(o) for o in stream[cut:]]
    assert got == verdicts
    assert second.summary() == whole.summary()


def test_a_state_about_another_metric_is_refused():
    saved = scripted([GOOD])[0].state_dict()
    with pytest.raises(ValueError, match="about f1, not accuracy"):
        OverfitDetector("accuracy", True).load_state_dict(saved)
