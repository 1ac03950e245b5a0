"""Metrics against scikit-learn and scipy on the concatenated predictions, for any cut into batches and ranks."""

import math
import socket
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk
from sklearn.dummy import DummyClassifier, DummyRegressor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_tune.metrics import (
    MAX_MATRIX_CLASSES,
    RatioMetric,
    baseline_scores,
    metric_directions,
    multi_label_metrics,
    regression_metrics,
    scalars,
    single_label_metrics,
)
from lit_tune.metrics.stored_rows import BLOCK_ELEMENTS, WAITING_ELEMENTS, gather_values
from lit_tune.metrics.streaming import state_device

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
AVERAGES = ("macro", "micro", "weighted")


def names(num_classes):
    return [f"class {i}" for i in range(num_classes)]


def single_label_rows(num_rows, num_classes, seed=0):
    """Rounded logits, so that scores tie, and targets that leave classes out."""
    g = torch.Generator().manual_seed(1000 * num_rows + 10 * num_classes + seed)
    logits = (torch.randn(num_rows, num_classes, generator=g) * 2).round(decimals=1)
    used = torch.randperm(num_classes, generator=g)[: 1 + (num_rows + seed) % num_classes]
    target = used[torch.randint(len(used), (num_rows,), generator=g)]
    right = torch.rand(num_rows, generator=g) < 0.4
    logits[right, target[right]] += 3.0
    return logits, target


def multi_label_rows(num_rows, num_classes, seed=0):
    g = torch.Generator().manual_seed(1000 * num_rows + 10 * num_classes + seed)
    logits = torch.randn(num_rows, num_classes, generator=g).round(decimals=1)
    target = (torch.rand(num_rows, num_classes, generator=g) < 0.4).float()
    target[:, (num_rows + seed) % num_classes] = float(seed % 2)  # one label on every row, or on none
    return logits, target


def regression_rows(num_rows, num_classes=1, seed=0):
    g = torch.Generator().manual_seed(num_rows + 100 * seed)
    target = (torch.randn(num_rows, generator=g) * 2).round() + 3.0
    return target + torch.randn(num_rows, generator=g).round(decimals=1), target


COLLECTIONS = {
    SINGLE: (lambda c: single_label_metrics(names(c)), single_label_rows),
    MULTI: (lambda c: multi_label_metrics(names(c), 0.5), multi_label_rows),
    REGRESSION: (lambda c: regression_metrics(), regression_rows),
}


def updated(collection, preds, target, sizes=None):
    for p, t in zip(preds.split(sizes or len(preds)), target.split(sizes or len(target)), strict=True):
        collection.update(p, t)
    return collection


def quiet(function, *args, **kwargs):
    """Scikit-learn's and scipy's answer without their remarks on undefined values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def sklearn_auroc(scores, positives):
    """Mean over the columns that are present and absent at least once."""
    columns = [(s, p) for s, p in zip(scores.T, positives.T, strict=True) if 0 < p.sum() < len(p)]
    return np.mean([sk.roc_auc_score(p, s) for s, p in columns]) if columns else None


def sklearn_prf(target, predicted, **settings):
    return dict(
        zip(
            ("precision", "recall", "f1"),
            quiet(sk.precision_recall_fscore_support, target, predicted, zero_division=0, **settings),
            strict=False,
        )
    )


def sklearn_single_label(logits, target):
    num_classes = logits.shape[1]
    probabilities, target = logits.softmax(1).numpy(), target.numpy()
    predicted = logits.argmax(1).numpy()
    by_class = {k: sk.f1_score(target == k, predicted == k, zero_division=0) for k in range(num_classes)}
    present = set(target) | set(predicted)
    one_hot = np.eye(num_classes)[target]
    binary = num_classes == 2
    return {
        "accuracy": sk.accuracy_score(target, predicted),
        "balanced_accuracy": quiet(sk.balanced_accuracy_score, target, predicted),
        "mcc": quiet(sk.matthews_corrcoef, target, predicted),
        "auroc": sklearn_auroc(
            probabilities[:, 1:] if binary else probabilities, one_hot[:, 1:] if binary else one_hot
        ),
        **sklearn_prf(target, predicted, average="binary" if binary else "macro"),
        **{f"{k}_{a}": v for a in AVERAGES for k, v in sklearn_prf(target, predicted, average=a).items()},
        **{f"f1/class {k}": v if k in present else None for k, v in by_class.items()},
    }


def sklearn_multi_label(logits, target):
    predicted, target = (logits.sigmoid() > 0.5).numpy(), target.numpy().astype(bool)
    by_label = sklearn_prf(target, predicted, average=None)["f1"]
    return {
        "accuracy": sk.accuracy_score(target, predicted),
        "hamming_accuracy": 1 - sk.hamming_loss(target, predicted),
        "auroc": sklearn_auroc(logits.sigmoid().numpy(), target),
        "f1_samples": sklearn_prf(target, predicted, average="samples")["f1"],
        **sklearn_prf(target, predicted, average="macro"),
        **{f"{k}_{a}": v for a in AVERAGES for k, v in sklearn_prf(target, predicted, average=a).items()},
        **{f"f1/class {k}": v for k, v in enumerate(by_label)},
    }


def scipy_regression(preds, target):
    preds, target = preds.double().numpy(), target.double().numpy()
    enough = len(target) > 1
    correlations = {
        "pearson": quiet(stats.pearsonr, preds, target)[0] if enough else math.nan,
        "spearman": quiet(stats.spearmanr, preds, target)[0] if enough else math.nan,
        "r2": quiet(sk.r2_score, target, preds, force_finite=False),
    }
    return {
        "mse": sk.mean_squared_error(target, preds),
        "rmse": sk.root_mean_squared_error(target, preds),
        "mae": sk.mean_absolute_error(target, preds),
        **{k: float(v) if math.isfinite(v) else None for k, v in correlations.items()},
    }


REFERENCES = {SINGLE: sklearn_single_label, MULTI: sklearn_multi_label, REGRESSION: scipy_regression}


@pytest.mark.parametrize(
    "num_rows", [1, 2, 3, 8, 20, *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 20) if n != 8)]
)
@pytest.mark.parametrize(
    ("problem", "num_classes"),
    [(SINGLE, 2), (SINGLE, 3), (SINGLE, 7), (MULTI, 2), (MULTI, 3), (MULTI, 7), (REGRESSION, 1)],
)
def test_every_score_is_sklearns_or_scipys(problem, num_classes, num_rows):
    build, rows = COLLECTIONS[problem]
    for seed in range(2):
        preds, target = rows(num_rows, num_classes, seed)
        expected = REFERENCES[problem](preds, target)
        values = scalars(updated(build(num_classes), preds, target).compute())
        assert set(values) == set(expected)
        for name, value in expected.items():
            assert values[name] == (None if value is None else pytest.approx(value, rel=1e-12, abs=1e-12)), name


@pytest.mark.parametrize("num_classes", [2, 7])
@pytest.mark.parametrize("problem", COLLECTIONS)
def test_any_cut_into_batches_gives_the_same_scores(problem, num_classes):
    build, rows = COLLECTIONS[problem]
    preds, target = rows(20, num_classes)
    whole = updated(build(num_classes), preds, target).compute()
    for sizes in ([1] * 20, [7, 7, 6], [19, 1], [0, 20, 0]):
        cut = updated(build(num_classes), preds, target, sizes).compute()
        tolerance = 1e-12 if problem == REGRESSION else 0
        for name, value in whole.items():
            torch.testing.assert_close(cut[name], value, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)


def test_the_confusion_matrix_is_sklearns():
    logits, target = single_label_rows(20, 7)
    computed = updated(single_label_metrics(names(7)), logits, target, [6, 6, 6, 2]).compute()
    expected = sk.confusion_matrix(target, logits.argmax(1), labels=range(7))
    np.testing.assert_array_equal(computed["confusion_matrix"], expected)
    assert "confusion_matrix" not in scalars(computed)


def test_balanced_accuracy_leaves_out_a_class_that_is_only_predicted():
    logits = torch.eye(3)[[0, 1, 2, 0]]  # class 2 is predicted but not in the targets
    collection = updated(single_label_metrics(names(3)), logits, torch.tensor([0, 1, 1, 1]))
    values = scalars(collection.compute())
    assert values["balanced_accuracy"] == pytest.approx((1 + 1 / 3) / 2)
    assert values["recall_macro"] == pytest.approx((1 + 1 / 3 + 0) / 3)


@pytest.mark.slow
def test_with_very_many_classes_counts_give_the_scores_without_a_matrix():
    num_classes = MAX_MATRIX_CLASSES + 1
    logits, target = single_label_rows(300, num_classes)
    collection = updated(single_label_metrics(names(num_classes)), logits, target, 64)
    expected = sklearn_single_label(logits, target)
    del expected["auroc"]
    computed = collection.compute()
    assert scalars(computed) == {k: None if v is None else pytest.approx(v, abs=1e-12) for k, v in expected.items()}
    assert "confusion_matrix" not in computed
    assert sum(s.numel() for m in collection.values() for s in m.metric_state.values()) == 3 * num_classes
    assert set(scalars(computed)) | {"loss"} == set(metric_directions(SINGLE, names(num_classes)))
    wide = multi_label_metrics(names(num_classes))
    wide.update(logits, torch.zeros_like(logits))
    assert set(wide.compute()) | {"loss"} == set(metric_directions(MULTI, names(num_classes)))


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_labels_are_predicted_above_the_threshold(threshold):
    logits, target = multi_label_rows(20, 3)
    values = scalars(updated(multi_label_metrics(names(3), threshold), logits, target).compute())
    predicted = (logits.sigmoid() > threshold).numpy()
    assert values["f1_micro"] == pytest.approx(sk.f1_score(target, predicted, average="micro", zero_division=0))


@pytest.mark.parametrize("constant", ["preds", "target", "both"])
def test_a_constant_side_makes_correlations_undefined_however_it_is_cut(constant):
    preds, target = regression_rows(20)
    if constant != "target":
        preds = torch.full_like(preds, 0.1, dtype=torch.float64)  # its mean over 3 or 7 rows is not exactly 0.1
    if constant != "preds":
        target = torch.full_like(target, 0.7)
    for sizes in (20, 7, 3, 1):
        values = scalars(updated(regression_metrics(), preds, target, sizes).compute())
        assert values["pearson"] is None
        assert values["spearman"] is None
        assert (values["r2"] is None) == (constant != "preds")


def test_moments_do_not_cancel_far_from_zero():
    g = torch.Generator().manual_seed(0)
    target = 1e7 + torch.randn(500, generator=g, dtype=torch.float64)
    preds = target + torch.randn(500, generator=g, dtype=torch.float64)
    values = scalars(updated(regression_metrics(), preds, target, 7).compute())
    assert values["pearson"] == pytest.approx(
        stats.pearsonr(preds, target)[0], rel=1e-8
    )  # sums of squares give 0.0-0.9
    assert values["r2"] == pytest.approx(sk.r2_score(target, preds), rel=1e-8)


def test_predictions_with_a_last_axis_of_one_do_not_broadcast():
    preds, target = regression_rows(9)
    flat = updated(regression_metrics(), preds, target).compute()
    assert scalars(updated(regression_metrics(), preds[:, None], target).compute()) == scalars(flat)


@pytest.mark.parametrize("problem", COLLECTIONS)
def test_without_examples_everything_is_undefined(problem):
    values = scalars(COLLECTIONS[problem][0](3).compute())
    assert set(values.values()) == {None}
    assert scalars({"loss": RatioMetric().compute()}) == {"loss": None}


def test_scores_that_are_not_numbers_are_undefined():
    logits, target = single_label_rows(20, 2, seed=1)
    logits[3] = math.nan
    assert scalars(updated(single_label_metrics(names(2)), logits, target).compute())["auroc"] is None
    preds, target = regression_rows(20)
    preds[3] = math.nan
    values = scalars(updated(regression_metrics(), preds, target, 6).compute())
    assert set(values.values()) == {None}


@pytest.mark.parametrize(("problem", "num_classes"), [(SINGLE, 2), (SINGLE, 5), (MULTI, 5), (REGRESSION, 0)])
def test_every_logged_scalar_has_a_direction(problem, num_classes):
    build, rows = COLLECTIONS[problem]
    directions = metric_directions(problem, names(num_classes))
    values = scalars(updated(build(num_classes), *rows(20, num_classes)).compute())
    assert set(directions) == set(values) | {"loss"}
    assert {name for name, higher in directions.items() if not higher} == {"loss", "mse", "rmse", "mae"} & set(
        directions
    )


def test_the_ratio_does_not_drift_over_many_batches():
    loss = RatioMetric()
    for _ in range(20_000):
        loss.update(torch.tensor(0.1), torch.tensor(1.0))
    assert float(loss.compute()) == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)  # float32 sums: off by 1e-4


# ---- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "num_classes", "constant_bytes", "bytes_per_row"),
    [
        (SINGLE, 2, 8 * 2 * 2, 4 + 4),
        (SINGLE, 7, 8 * 7 * 7, 4 * 7 + 4),
        (MULTI, 7, 8 * 3 * 7 + 8 * 3, 5 * 7),
        (REGRESSION, 1, 8 * 12, 4 + 4),
    ],
)
def test_state_is_what_the_docs_say_after_50_000_rows(problem, num_classes, constant_bytes, bytes_per_row):
    build, rows = COLLECTIONS[problem]
    preds, target = rows(50_000, num_classes)
    collection = updated(build(num_classes), preds, target, 500)
    states = [s for m in collection.values() for s in m.metric_state.values()]
    chunks = [c for s in states for c in (s if isinstance(s, list) else [s])]
    assert sum(c.numel() * c.element_size() for c in chunks) == constant_bytes + 50_000 * bytes_per_row
    allocated = {c.untyped_storage().data_ptr(): c.untyped_storage().nbytes() for c in chunks}
    free = 2 * 4 * BLOCK_ELEMENTS  # of the newest blocks of scores and targets
    assert sum(allocated.values()) <= constant_bytes + 50_000 * bytes_per_row + free


@pytest.mark.parametrize("problem", COLLECTIONS)
def test_batch_values_do_not_disturb_the_totals(problem):
    build, rows = COLLECTIONS[problem]
    preds, target = rows(20, 3)
    collection = build(3)
    for p, t in zip(preds.split(6), target.split(6), strict=True):
        of_batch = scalars(collection(p, t))
        assert of_batch == pytest.approx(scalars(updated(build(3), p, t).compute()))
    assert scalars(collection.compute()) == pytest.approx(scalars(updated(build(3), preds, target).compute()))


class NoHostSync(TorchDispatchMode):
    """Refuses the operations that on a GPU wait for its result."""

    waits = {"_local_scalar_dense", "nonzero", "bincount", "_unique2", "equal", "masked_select"}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.__name__.split(".")[0] not in self.waits, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("problem", COLLECTIONS)
def test_an_update_reads_nothing_back_from_the_device(problem):
    build, rows = COLLECTIONS[problem]
    collection, loss = build(7), RatioMetric()
    with NoHostSync():
        collection.update(*rows(8, 7))
        loss.update(torch.tensor(1.0), torch.tensor(2.0))
    with pytest.raises(AssertionError), NoHostSync():
        torch.tensor(1.0).item()


@pytest.mark.parametrize("problem", COLLECTIONS)
def test_states_keep_their_type_when_the_module_is_cast(problem):
    build, rows = COLLECTIONS[problem]
    collection, loss = build(3), RatioMetric()
    before = {
        k: v.dtype for m in (*collection.values(), loss) for k, v in m.metric_state.items() if not isinstance(v, list)
    }
    torch.nn.ModuleList([collection, loss]).to(torch.bfloat16).half().double().to(torch.bfloat16)
    after = {
        k: v.dtype for m in (*collection.values(), loss) for k, v in m.metric_state.items() if not isinstance(v, list)
    }
    assert after == before
    rows_20 = rows(20, 3)
    updated(collection, *rows_20, 6)
    collection.reset()
    assert scalars(updated(collection, *rows_20).compute()) == pytest.approx(
        scalars(updated(build(3), *rows_20).compute())
    )


def test_states_stay_on_the_cpu_for_a_device_without_float64():
    assert state_device(torch.device("mps")) == torch.device("cpu")
    assert state_device(torch.device("cuda", 1)) == torch.device("cuda", 1)


@pytest.mark.parametrize("problem", COLLECTIONS)
def test_states_made_in_inference_mode_can_be_added_to_outside_of_it(problem):
    build, rows = COLLECTIONS[problem]
    preds, target = rows(20, 3)
    collection, loss = build(3), RatioMetric()
    with torch.inference_mode():
        collection.reset()
        loss.reset()
        collection.update(preds[:9], target[:9])
    collection.update(preds[9:], target[9:])
    loss.update(torch.tensor(1.0, requires_grad=True), torch.tensor(2.0))
    expected = scalars(updated(build(3), preds, target).compute())
    assert scalars(collection.compute()) == {k: v if v is None else pytest.approx(v) for k, v in expected.items()}
    assert not loss.compute().requires_grad


# ---- baselines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[30, 70], [5, 1, 14], [10, 10]])
def test_the_class_baseline_is_sklearns_dummy(counts):
    target = np.repeat(np.arange(len(counts)), counts)
    inputs = np.zeros((len(target), 1))
    dummy = DummyClassifier(strategy="prior").fit(inputs, target)
    logits = torch.eye(len(counts))[dummy.predict(inputs)]
    expected = sklearn_single_label(logits, torch.from_numpy(target))
    expected["auroc"] = 0.5
    expected["loss"] = sk.log_loss(target, dummy.predict_proba(inputs))
    scores = baseline_scores(SINGLE, counts, len(target), label_names=names(len(counts)))
    assert scores == {k: pytest.approx(v, abs=1e-12) for k, v in expected.items() if v is not None}
    assert set(baseline_scores(SINGLE, counts, len(target))) == {k for k in scores if "/" not in k}


def test_the_label_baseline_is_sklearns_dummy():
    _, target = multi_label_rows(50, 4)
    target[:, 1] = (torch.arange(50) % 5 > 0).float()
    target[:, 2] = (torch.arange(50) % 2).float()  # on half of the rows: not predicted
    counts = target.sum(0).int().tolist()
    shares = target.mean(0).expand(50, -1)
    expected = sklearn_multi_label(((shares > 0.5).float() - 0.5) * 8, target)
    expected["auroc"] = 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(target.numpy() == 1, np.log(shares.numpy()), np.log(1 - shares.numpy()))
    expected["loss"] = -terms.mean()
    with_targets = baseline_scores(MULTI, counts, 50, target, label_names=names(4))
    assert with_targets == {k: pytest.approx(v, rel=1e-6) for k, v in expected.items()}
    from_counts = baseline_scores(MULTI, counts, 50, label_names=names(4))
    assert from_counts == {k: pytest.approx(v) for k, v in with_targets.items() if k not in ("accuracy", "f1_samples")}


def test_the_regression_baseline_is_sklearns_dummy():
    _, target = regression_rows(20)
    dummy = DummyRegressor(strategy="mean").fit(np.zeros((20, 1)), target)
    expected = scipy_regression(torch.from_numpy(dummy.predict(np.zeros((20, 1)))), target)
    scores = baseline_scores(REGRESSION, [], 20, target.numpy())
    assert scores == {k: pytest.approx(v, abs=1e-7) for k, v in expected.items() if v is not None} | {
        "loss": pytest.approx(expected["mse"])
    }


@pytest.mark.parametrize("problem", COLLECTIONS)
def test_a_stream_of_unknown_length_has_no_baseline(problem):
    assert baseline_scores(problem) == {}


# ---- ranks -----------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def shares_of_ranks(num_rows, rank):
    """Rank 0 gets 13 of 20 rows, rank 1 the others; of 1 row rank 1 gets none."""
    cut = max(1, round(num_rows * 0.65))
    return slice(0, cut) if rank == 0 else slice(cut, num_rows)


def compare_ranks_with_one_process(rank, port, results):
    """Run on each rank: returns the scores, twice to see that going on after a compute works."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    gathered = {}
    for problem, (build, rows) in COLLECTIONS.items():
        for num_rows in (1, 20, 3000):
            collection, loss = build(3), RatioMetric()
            preds, target = (x[shares_of_ranks(num_rows, rank)] for x in rows(num_rows, 3))
            size = max(4, num_rows // 40)
            for half in (0, 1):
                for p, t in list(zip(preds.split(size), target.split(size), strict=True))[half::2]:
                    if len(p):  # a rank without rows sees no update at all
                        collection.update(p, t)
                        loss.update(p.sum(), torch.tensor(p.numel()))
                gathered[problem, num_rows, half] = {**collection.compute(), "loss": loss.compute()}
    values = torch.arange(2 * WAITING_ELEMENTS + 5) if rank == 0 else -torch.arange(WAITING_ELEMENTS + 1)
    gathered["large"] = {"0 then 1": gather_values(values, torch.distributed.group.WORLD, torch.device("cpu"))}
    torch.save(gathered, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.ddp
def test_two_ranks_with_unequal_or_no_rows_give_the_scores_of_one(tmp_path):
    ranks = torch.multiprocessing.start_processes  # forked: a new process imports torch and transformers for 10 s
    ranks(compare_ranks_with_one_process, (free_port(), str(tmp_path)), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for problem, (build, rows) in COLLECTIONS.items():
        for num_rows in (1, 20, 3000):
            preds, target = rows(num_rows, 3)
            expected = updated(build(3), preds, target).compute()
            expected["loss"] = (preds.double().sum() / preds.numel()).double()
            for name, value in expected.items():
                tolerance = 1e-6 if name == "loss" else 1e-12
                for rank in (first, second):
                    got = rank[problem, num_rows, 1][name]
                    torch.testing.assert_close(got, value, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)
            for name in expected:  # in the middle of the rows, too, both ranks say the same
                got = [rank[problem, num_rows, 0][name] for rank in (first, second)]
                torch.testing.assert_close(*got, rtol=0, atol=0, equal_nan=True)
    large = torch.cat([torch.arange(2 * WAITING_ELEMENTS + 5), -torch.arange(WAITING_ELEMENTS + 1)])
    assert all(torch.equal(rank["large"]["0 then 1"], large) for rank in (first, second))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="nccl needs a CUDA device")
def test_rows_on_the_cpu_are_gathered_under_nccl():
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    try:
        for build, rows in COLLECTIONS.values():
            preds, target = rows(20, 3)
            expected = {k: v.clone() for k, v in updated(build(3), preds, target).compute().items()}
            collection = build(3).to(device)
            collection.update(preds[:9].to(device), target[:9].to(device))
            collection.compute()
            collection.update(preds[9:].to(device), target[9:].to(device))
            for name, value in collection.compute().items():
                torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6, equal_nan=True, msg=name)
    finally:
        torch.distributed.destroy_process_group()
