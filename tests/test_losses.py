"""Losses against torch's own means, scikit-learn and plainly written references."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from lit_tune import losses
from lit_tune.errors import ConfigError


def class_batch(num_rows=13, num_classes=5, dtype=torch.float64):
    g = torch.Generator().manual_seed(num_rows)
    logits = torch.randn(num_rows, num_classes, generator=g, dtype=dtype) * 3
    return logits, torch.randint(num_classes, (num_rows,), generator=g)


def label_batch(num_rows=13, num_classes=5, dtype=torch.float64):
    g = torch.Generator().manual_seed(num_rows)
    logits = torch.randn(num_rows, num_classes, generator=g, dtype=dtype) * 3
    return logits, (torch.rand(num_rows, num_classes, generator=g) < 0.3).to(dtype)


WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5, 7.0])
CLASS_LOSSES = {
    "plain": lambda x, y: losses.cross_entropy(x, y),
    "weighted": lambda x, y: losses.cross_entropy(x, y, class_weights=WEIGHTS),
    "smoothed": lambda x, y: losses.cross_entropy(x, y, label_smoothing=0.1),
    "both": lambda x, y: losses.cross_entropy(x, y, class_weights=WEIGHTS, label_smoothing=0.1),
    "focal": lambda x, y: losses.focal(x, y, gamma=2.0),
    "focal weighted": lambda x, y: losses.focal(x, y, gamma=0.5, class_weights=WEIGHTS),
}
LABEL_LOSSES = {
    "plain": lambda x, y: losses.binary_cross_entropy(x, y),
    "weighted": lambda x, y: losses.binary_cross_entropy(x, y, pos_weight=WEIGHTS),
    "smoothed": lambda x, y: losses.binary_cross_entropy(x, y, label_smoothing=0.2),
    "focal": lambda x, y: losses.binary_focal(x, y, gamma=2.0),
    "focal weighted": lambda x, y: losses.binary_focal(x, y, gamma=0.5, pos_weight=WEIGHTS),
}
NUMBER_LOSSES = {
    "mse": losses.mean_squared_error,
    "mae": losses.mean_absolute_error,
    "huber": lambda x, y: losses.huber(x, y, delta=0.7),
}


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_divided_is_torchs_mean(weights, smoothing):
    logits, labels = class_batch()
    labels[3] = -100
    loss_sum, denominator = losses.cross_entropy(logits, labels, class_weights=weights, label_smoothing=smoothing)
    weight = None if weights is None else weights.double()
    expected = functional.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing, reduction="mean")
    torch.testing.assert_close(loss_sum / denominator, expected, rtol=1e-14, atol=0)


def test_cross_entropy_is_sklearns_log_loss():
    logits, labels = class_batch()
    loss_sum, denominator = losses.cross_entropy(logits, labels)
    assert float(loss_sum / denominator) == pytest.approx(
        log_loss(labels, logits.softmax(-1), labels=range(5)), rel=1e-12
    )


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_divided_is_torchs_mean(weights, smoothing):
    logits, labels = label_batch()
    loss_sum, denominator = losses.binary_cross_entropy(logits, labels, pos_weight=weights, label_smoothing=smoothing)
    high, low = 1 - smoothing / 2, smoothing / 2
    targets = torch.tensor([[high if y else low for y in row] for row in labels.tolist()], dtype=torch.float64)
    weight = None if weights is None else weights.double()
    expected = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="mean")
    torch.testing.assert_close(loss_sum / denominator, expected, rtol=1e-14, atol=0)
    assert denominator == labels.numel()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_is_the_papers_formula(gamma):
    logits, labels = class_batch()
    weights = WEIGHTS.double()
    total = weight_sum = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        p = math.exp(row[label]) / sum(math.exp(v) for v in row)
        total += -float(weights[label]) * (1 - p) ** gamma * math.log(p)
        weight_sum += float(weights[label])
    loss_sum, denominator = losses.focal(logits, labels, gamma=gamma, class_weights=WEIGHTS)
    assert float(loss_sum / denominator) == pytest.approx(total / weight_sum, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_binary_focal_loss_is_the_papers_formula(gamma):
    logits, labels = label_batch()
    total = 0.0
    for z, y, w in zip(logits.flatten().tolist(), labels.flatten().tolist(), WEIGHTS.tolist() * 13, strict=True):
        p = 1 / (1 + math.exp(-z))
        total += -w * (1 - p) ** gamma * math.log(p) if y == 1 else -(p**gamma) * math.log(1 - p)
    loss_sum, denominator = losses.binary_focal(logits, labels, gamma=gamma, pos_weight=WEIGHTS)
    assert float(loss_sum / denominator) == pytest.approx(total / labels.numel(), rel=1e-7)  # weights are float32


def test_focal_loss_without_gamma_is_cross_entropy_and_skips_ignored_rows():
    logits, labels = class_batch()
    labels[2] = -100
    torch.testing.assert_close(losses.focal(logits, labels, gamma=0.0), losses.cross_entropy(logits, labels))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradients_stay_finite_where_the_model_is_certain(gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    targets = torch.tensor([[1, 0], [1, 0]])
    both = losses.focal(logits, labels, gamma=gamma)[0] + losses.binary_focal(logits, targets, gamma=gamma)[0]
    both.backward()
    assert both.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", NUMBER_LOSSES)
@pytest.mark.parametrize("shape", [(9,), (9, 1)])
def test_regression_losses_divided_are_torchs_means(name, shape):
    preds, labels = torch.randn(shape, dtype=torch.float64), torch.randn(9)
    loss_sum, denominator = NUMBER_LOSSES[name](preds, labels)
    expected = {
        "mse": functional.mse_loss(preds.flatten(), labels.double()),
        "mae": functional.l1_loss(preds.flatten(), labels.double()),
        "huber": functional.huber_loss(preds.flatten(), labels.double(), delta=0.7),
    }[name]
    torch.testing.assert_close(loss_sum / denominator, expected, rtol=1e-14, atol=0)


def test_a_regression_head_with_several_outputs_is_refused():
    with pytest.raises(ConfigError, match="one output per example"):
        losses.mean_squared_error(torch.zeros(4, 3), torch.zeros(4))


@pytest.mark.parametrize(
    ("loss", "batch"),
    [(f, class_batch) for f in CLASS_LOSSES.values()] + [(f, label_batch) for f in LABEL_LOSSES.values()],
    ids=[f"class {n}" for n in CLASS_LOSSES] + [f"label {n}" for n in LABEL_LOSSES],
)
def test_any_cut_into_pieces_gives_the_same_loss_and_gradient(loss, batch):
    logits, labels = batch()
    logits.requires_grad_()
    whole_sum, whole_denominator = loss(logits, labels)
    (whole_grad,) = torch.autograd.grad(whole_sum / whole_denominator, logits)
    for sizes in ([1] * 13, [4, 4, 4, 1], [6, 7]):
        pieces = [loss(x, y) for x, y in zip(logits.split(sizes), labels.split(sizes), strict=True)]
        cut = sum(p[0] for p in pieces) / sum(p[1] for p in pieces)
        (cut_grad,) = torch.autograd.grad(cut, logits)
        torch.testing.assert_close(cut, whole_sum / whole_denominator, rtol=1e-12, atol=0)
        torch.testing.assert_close(cut_grad, whole_grad, rtol=1e-12, atol=1e-15)


def own_loss(logits, labels):
    return (logits[:, 0] - labels) ** 2 * 9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "mean_squared_error", "own"])
def test_half_precision_logits_do_not_overflow_the_sum(dtype, name):
    logits, labels = class_batch(8192, 5)
    logits = (logits * 10).to(dtype)  # sums beyond 65504, where fp16 ends
    loss = {
        "cross_entropy": losses.cross_entropy,
        "binary_cross_entropy": lambda x, y: losses.binary_cross_entropy(x, functional.one_hot(y, 5)),
        "mean_squared_error": lambda x, y: losses.mean_squared_error(x[:, 0], y),
        "own": lambda x, y: losses.per_target(own_loss, x, y),
    }[name]
    half_sum, half_denominator = loss(logits, labels)
    full_sum, full_denominator = loss(logits.double(), labels)
    assert half_sum.dtype == half_denominator.dtype == torch.float32
    assert half_sum.ndim == half_denominator.ndim == 0
    assert float(full_sum) > 65504
    assert half_denominator == full_denominator
    torch.testing.assert_close(half_sum.double(), full_sum, rtol=1e-5, atol=0)


@pytest.mark.parametrize("reduced", ["sum", "mean"])
def test_an_own_loss_that_reduces_is_refused(reduced):
    logits, labels = class_batch()
    with pytest.raises(ConfigError, match="hides how many targets"):
        losses.per_target(lambda x, y: functional.cross_entropy(x, y, reduction=reduced), logits, labels)
    with pytest.raises(ConfigError, match="hides how many targets"):
        losses.per_target(lambda x, y: functional.cross_entropy(x, y, reduction=reduced)[None], logits, labels)
    with pytest.raises(ConfigError, match="float, not a tensor"):
        losses.per_target(lambda x, y: 1.0, logits, labels)


def test_an_own_loss_may_have_any_shape():
    logits, labels = label_batch()
    loss_sum, denominator = losses.per_target(
        lambda x, y: functional.binary_cross_entropy_with_logits(x, y, reduction="none"), logits, labels
    )
    expected = functional.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(loss_sum / denominator, expected, rtol=1e-14, atol=0)


def test_balanced_class_weights_are_sklearns():
    labels = np.repeat([0, 1, 2], [5, 50, 17])
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 2]), y=labels)
    np.testing.assert_allclose(losses.balanced_class_weights([5, 50, 17]), expected, rtol=1e-15)


def test_balanced_pos_weight_gives_both_sides_the_same_total():
    for count, weight in zip([10, 90], losses.balanced_pos_weight([10, 90], num_rows=100), strict=True):
        assert weight * count == pytest.approx(100 - count)


@pytest.mark.parametrize("counts", [[], [3, 0]])
def test_balance_without_rows_to_balance_is_refused(counts):
    with pytest.raises(ConfigError, match="class_weights"):
        losses.balanced_class_weights(counts)
    with pytest.raises(ConfigError, match="pos_weight"):
        losses.balanced_pos_weight(counts, num_rows=3)
