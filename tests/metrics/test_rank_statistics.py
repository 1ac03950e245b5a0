"""AUROC and Spearman against scikit-learn and scipy; tests/test_metrics.py has the small counts of rows."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from lit_tune.metrics.rank_statistics import PIECE_ROWS, auroc, spearman

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("decimals", [1, 2, 7])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.98])
def test_auroc_of_many_rows_is_scikit_learns(share, decimals):
    g = np.random.default_rng(round(1000 * share) + decimals)
    positive = g.random(5 * PIECE_ROWS + 3) < share
    scores = (g.normal(size=len(positive)) + positive).round(decimals).astype(np.float32)
    expected = sk.roc_auc_score(positive, scores)
    assert auroc(scores[positive], scores[~positive]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        ([1], [0], 1),
        ([0], [1], 0),
        ([0], [0], 0.5),
        ([-0.0], [0.0], 0.5),
        ([INF, 0], [-INF, INF], 0.625),
        ([1], [], NAN),
        ([], [1], NAN),
        ([], [], NAN),
        ([1, NAN, 3], [0], NAN),
        ([1], [0, NAN], NAN),
    ],
)
def test_auroc_of_few_rows_is_what_pairs_say(positives, negatives, expected):
    assert auroc(np.float32(positives), np.float32(negatives)) == pytest.approx(expected, nan_ok=True, abs=0)


@pytest.mark.parametrize("decimals", [0, 2, 7])
def test_spearman_of_many_rows_is_scipys_however_they_are_cut(decimals):
    g = np.random.default_rng(decimals)
    x = g.normal(size=3 * PIECE_ROWS + 7).round(decimals).astype(np.float32)
    y = (x / 2 + g.normal(size=len(x)).round(decimals)).astype(np.float32)
    expected = stats.spearmanr(x, y).statistic
    for cuts in ([], [1, 5, PIECE_ROWS + 6], [2 * PIECE_ROWS]):
        assert spearman(np.split(x, cuts), np.split(y, cuts)) == pytest.approx(expected, rel=1e-12)
    assert spearman([x], [x]) == 1
    assert spearman([x], [-x]) == -1


@pytest.mark.parametrize(
    ("x", "y"),
    [([], []), ([1], [2]), ([1, 1], [1, 2]), ([1, 2], [3, 3]), ([1, 2, NAN], [1, 2, 3]), ([1, 2, 3], [NAN, 1, 2])],
)
def test_spearman_is_undefined_where_ranks_are(x, y):
    assert math.isnan(spearman([np.float32(x)], [np.float32(y)]))
    assert math.isnan(spearman(np.split(np.float32(x), [1]), np.split(np.float32(y), [1])))
