"""Metrics of a regression head, in float64."""

import functools
import math

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from lit_tune.metrics.rank_statistics import Spearman
from lit_tune.metrics.streaming import StreamingMetric


def regression_metrics() -> MetricCollection:
    """``mse rmse mae r2 pearson spearman``; update with predictions and targets, each (B,) or (B, 1)."""
    return MetricCollection({"moments": RegressionMoments(), "spearman": Spearman()}, compute_groups=False)


def similarity_metrics() -> MetricCollection:
    """``spearman pearson``; update with cosines and scores, each (B,)."""
    return MetricCollection({"spearman": Spearman(), "moments": Pearson()}, compute_groups=False)


def merge_moments(a: Tensor, b: Tensor) -> Tensor:
    """Moments of two sets of pairs together (Chan, Golub, LeVeque 1979), exact where sums of squares would cancel.

    Args:
        a: (6,): count, mean x, mean y, and the sums of squares and products about the means: xx, yy, xy.
        b: The same of the other set.
    """
    count = a[0] + b[0]
    safe = count.clamp(min=1)
    delta = b[1:3] - a[1:3]
    spread = torch.stack([delta[0] ** 2, delta[1] ** 2, delta[0] * delta[1]]) * (a[0] * b[0] / safe)
    return torch.cat([count[None], a[1:3] + delta * (b[0] / safe), a[3:] + b[3:] + spread])


def merge_all(stacked: Tensor) -> Tensor:
    """:func:`merge_moments` over ranks, (ranks, 6) -> (6,)."""
    return functools.reduce(merge_moments, stacked.unbind(0))


class RegressionMoments(StreamingMetric):
    """MSE, RMSE, MAE, R2 and Pearson's r, in constant memory.

    Undefined, so NaN: R2 and r of fewer than 2 examples or of equal targets (scikit-learn says 0 or 1 there), r of
    equal predictions, and everything of no examples.
    """

    errors: Tensor
    moments: Tensor
    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        # sums of squared and of absolute errors
        self.add_state("errors", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("moments", torch.zeros(6, dtype=torch.float64), dist_reduce_fx=merge_all)
        # least and greatest prediction and target: they tell a constant exactly, which rounded moments do not
        self.add_state("low", torch.full((2,), math.inf, dtype=torch.float64), dist_reduce_fx="min")
        self.add_state("high", torch.full((2,), -math.inf, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add one batch, (B,) or (B, 1) each."""
        if preds.numel() == 0:
            return
        pairs = torch.stack([self.place(side.detach().reshape(-1), torch.float64) for side in (preds, target)])
        error = pairs[0] - pairs[1]
        self.errors = self.errors + torch.stack([error.square().sum(), error.abs().sum()])
        means = pairs.mean(1)
        centred = pairs - means[:, None]
        products = torch.stack([*centred.square().sum(1), (centred[0] * centred[1]).sum()])
        count = torch.full((1,), error.numel(), dtype=torch.float64, device=error.device)
        self.moments = merge_moments(self.moments, torch.cat([count, means, products]))
        self.low = torch.minimum(self.low, pairs.amin(1))
        self.high = torch.maximum(self.high, pairs.amax(1))

    def compute(self) -> dict[str, Tensor]:
        """Name -> 0-dim float64 on the CPU."""
        (squared, absolute), moments = self.errors.cpu(), self.moments.cpu()
        count, spread_x, spread_y, product = moments[0], moments[3], moments[4], moments[5]
        preds_vary, target_varies = (self.low != self.high).cpu()
        mse = squared / count if count else torch.tensor(math.nan, dtype=torch.float64)
        nan = torch.full_like(mse, math.nan)
        enough = bool(count >= 2) and bool(target_varies)
        correlation = (product / (spread_x.sqrt() * spread_y.sqrt())).clamp(-1, 1)
        return {
            "mse": mse,
            "rmse": mse.sqrt(),
            "mae": absolute / count if count else nan,
            "r2": 1 - squared / spread_y if enough else nan,
            "pearson": correlation if enough and bool(preds_vary) else nan,
        }


class Pearson(RegressionMoments):
    """Pearson's r alone, of predictions that are on another scale than the targets."""

    def compute(self) -> dict[str, Tensor]:
        """``pearson``."""
        return {"pearson": super().compute()["pearson"]}
