"""Exact match and F1 of answers, as the official scripts of SQuAD 1.1 and 2.0 count them, on a scale of 0 to 1.

Source: https://rajpurkar.github.io/SQuAD-explorer/ (``evaluate-v1.1.py`` and ``evaluate-v2.0.py``, which count to 100).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_tune.metrics.streaming import StreamingMetric, ratio

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and extra white space.

    >>> normalize("The  Lake, an' all")
    'lake all'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def token_f1(prediction: str, gold: str, with_no_answer: bool) -> float:
    """Overlap of the words of two answers.

    Args:
        prediction: Any text; empty for no answer.
        gold: Likewise.
        with_no_answer: Two texts of which nothing is left agree (2.0); else nothing is right where no word is (1.1).
    """
    given, wanted = normalize(prediction).split(), normalize(gold).split()
    if with_no_answer and not (given and wanted):
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted)) if shared else 0.0


def answer_scores(prediction: str, golds: Sequence[str], with_no_answer: bool) -> tuple[float, float]:
    """Exact match and F1 of a question: the best over its gold answers.

    Args:
        prediction: The answer; empty for none.
        golds: Right answers; empty where there is none.
        with_no_answer: Count as SQuAD 2.0 does.

    >>> answer_scores("the Lake", ["a lake", "mud lake"], False), answer_scores("", [], True)
    ((1.0, 1.0), (1.0, 1.0))
    """
    if with_no_answer:
        golds = [gold for gold in golds if normalize(gold)] or [""]
    given = normalize(prediction)
    exact = max(float(given == normalize(gold)) for gold in golds)
    return exact, max(token_f1(prediction, gold, with_no_answer) for gold in golds)


def answer_metric_names(with_no_answer: bool) -> list[str]:
    """Names of what :class:`AnswerScores` computes."""
    split = ["exact_match/answerable", "f1/answerable", "accuracy/unanswerable"]
    return ["exact_match", "f1", *(split if with_no_answer else [])]


class AnswerScores(StreamingMetric):
    """Means over questions, from six sums; equal over any batches and ranks.

    Args:
        with_no_answer: Questions may have no answer: count as SQuAD 2.0 does.
    """

    sums: Tensor

    def __init__(self, with_no_answer: bool) -> None:
        super().__init__()
        self.with_no_answer = with_no_answer
        self.add_state("sums", torch.zeros(2, 3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> None:
        """Add questions.

        Args:
            predictions: An answer for each, empty for none.
            golds: The right answers of each.
        """
        added = torch.zeros(2, 3, dtype=torch.float64)
        for prediction, right in zip(predictions, golds, strict=True):
            scores = answer_scores(prediction, right, self.with_no_answer)
            added[0 if right else 1] += torch.tensor([1.0, *scores], dtype=torch.float64)
        self.writable("sums").add_(added.to(self.sums.device))

    def compute(self) -> dict[str, Tensor]:
        """The means, those of each kind where questions may have no answer; NaN where nothing was counted.

        ``question_counts`` (2,) int64 beside them: with an answer, without.
        """
        sums = self.sums.cpu()
        total = sums.sum(0)
        scores = {"exact_match": ratio(total[1], total[0], torch.nan), "f1": ratio(total[2], total[0], torch.nan)}
        if self.with_no_answer:
            means = ratio(sums[:, 1:], sums[:, :1].expand(2, 2), torch.nan)
            split = {"exact_match/answerable": means[0, 0], "f1/answerable": means[0, 1]}
            scores |= split | {"accuracy/unanswerable": means[1, 0]}
        return {**scores, "question_counts": sums[:, 0].long()}
