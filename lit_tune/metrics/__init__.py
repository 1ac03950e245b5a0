"""Streaming metrics that give scikit-learn's answer however the examples are cut into batches and ranks.

State does not grow with the number of examples, but for the rank statistics (AUROC, Spearman), which keep their scores
on the CPU. An update does not wait for the device, but for one copy per 262,144 scores. Undefined values are NaN in
``compute()`` and None in :func:`scalars`.
"""

from lit_tune.metrics.baselines import baseline_scores, metric_directions
from lit_tune.metrics.classification import MAX_MATRIX_CLASSES, multi_label_metrics, single_label_metrics
from lit_tune.metrics.regression import regression_metrics
from lit_tune.metrics.streaming import RatioMetric, StreamingMetric, scalars

__all__ = [
    "MAX_MATRIX_CLASSES",
    "RatioMetric",
    "StreamingMetric",
    "baseline_scores",
    "metric_directions",
    "multi_label_metrics",
    "regression_metrics",
    "scalars",
    "single_label_metrics",
]
