"""Start and end logits -> the best answers of a question, over all windows of its context.

Shapes: W windows, T tokens, K best spans of a window.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

WINDOWS_AT_ONCE = 64
"""All spans of 64 windows of 512 tokens and up to 30 tokens are 4 MB of float32."""
NUM_SHOWN = 5
"""Alternatives in a prediction."""


@dataclass(frozen=True)
class SpanLogits:
    """What a model says of a batch: two (W, T), for the first and the last token of an answer."""

    start: Tensor
    end: Tensor


class Span(NamedTuple):
    """A piece of the context, and the sum of the logits of its first and its last token."""

    score: float
    start: int
    end: int


@dataclass(frozen=True)
class Found:
    """What was found for a question.

    Args:
        spans: The best ones, the best first, no two alike.
        null_score: The sum of logits that says that there is no answer: of the window that says it least.
    """

    spans: list[Span]
    null_score: float

    def record(self, context: str, threshold: float | None) -> dict[str, Any]:
        """What is predicted.

        Args:
            context: The text that was searched.
            threshold: "No answer" is predicted where its score is by more than this above the best span's; None where
                there always is an answer.

        Returns:
            ``answer``, its characters ``start`` and ``end`` (-1 for no answer), ``score`` (softmax over the spans, and
            over the null score where that is an answer), ``no_answer_score`` there, and the best ``alternatives``. NaN
            stays NaN.
        """
        with_none = threshold is not None
        logits = [span.score for span in self.spans] + ([self.null_score] if with_none else [])
        shares = torch.tensor(logits, dtype=torch.float64).softmax(0).tolist()
        pieces = [
            {"answer": context[span.start : span.end], "start": span.start, "end": span.end, "score": share}
            for span, share in zip(self.spans, shares, strict=False)
        ]
        none = {"answer": "", "start": -1, "end": -1, "score": shares[-1] if with_none else 0.0}
        is_none = not pieces or (threshold is not None and self.null_score - self.spans[0].score > threshold)
        more = {"no_answer_score": none["score"]} if with_none else {}
        return {**(none if is_none else pieces[0]), **more, "alternatives": pieces[:NUM_SHOWN]}


def best_spans(
    logits: SpanLogits, begins: Tensor, ends: Tensor, n_best: int, max_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best spans of each window.

    All spans of at most ``max_tokens`` tokens of the context are compared; transformers' example compares those of the
    20 best first and the 20 best last tokens.

    Args:
        logits: Of all windows.
        begins: (W,) the first token of the context.
        ends: (W,) the token after its last.
        n_best: K at most.
        max_tokens: Tokens of an answer at most.

    Returns:
        (W, K) sums of logits, -inf where there are fewer spans; (W, K) first and last token.
    """
    found = [
        _best_of(start, end, b, e, n_best, max_tokens)
        for start, end, b, e in zip(
            *(part.split(WINDOWS_AT_ONCE) for part in (logits.start, logits.end, begins, ends)), strict=True
        )
    ]
    scores, first, last = (torch.cat(parts) for parts in zip(*found, strict=True))
    return scores, first, last


def _best_of(
    start: Tensor, end: Tensor, begins: Tensor, ends: Tensor, n_best: int, max_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    places = torch.arange(start.shape[1], device=start.device)
    outside = (places < begins[:, None]) | (places >= ends[:, None])
    first = start.masked_fill(outside, -torch.inf)
    last = functional.pad(end.masked_fill(outside, -torch.inf), (0, max_tokens - 1), value=-torch.inf)
    sums = (first[:, :, None] + last.unfold(1, max_tokens, 1)).flatten(1)
    top = sums.topk(min(n_best, sums.shape[1]))
    begin = top.indices // max_tokens
    return top.values, begin, begin + top.indices % max_tokens


def find_answers(logits: SpanLogits, aside: dict[str, Any], n_best: int, max_tokens: int) -> list[Found]:
    """The best answers of each question of a batch.

    Args:
        logits: Of all windows of all questions.
        aside: What ``WindowCollator`` puts there.
        n_best: Spans at most.
        max_tokens: Tokens of a span at most.
    """
    full = SpanLogits(*(t if t.dtype == torch.float64 else t.float() for t in (logits.start, logits.end)))
    best = best_spans(full, aside["context_begins"], aside["context_ends"], n_best, max_tokens)
    null = aside["null_places"][:, None]
    null_scores = (full.start.gather(1, null) + full.end.gather(1, null)).squeeze(1).tolist()
    scores, first, last = (part.cpu().tolist() for part in best)
    begins = aside["context_begins"].tolist()
    found = []
    window = 0
    for count, context in zip(aside["window_counts"], aside["contexts"], strict=True):
        own = range(window, window + count)
        window += count
        candidates: list[Span] = []
        for w in own:
            starts, ends = aside["char_starts"][w], aside["char_ends"][w]
            for score, i, j in zip(scores[w], first[w], last[w], strict=True):
                if score != -math.inf:
                    j = min(j - begins[w], len(ends) - 1)  # beyond only where the model is broken
                    candidates.append(_trimmed(Span(score, int(starts[i - begins[w]]), int(ends[j])), context))
        found.append(Found(_merged(candidates, n_best), min(null_scores[w] for w in own)))
    return found


def _trimmed(span: Span, context: str) -> Span:
    """Without white space at its ends, which some tokenizers count to the token after it."""
    text = context[span.start : span.end]
    return Span(span.score, span.start + len(text) - len(text.lstrip()), span.end - len(text) + len(text.rstrip()))


def _merged(candidates: Sequence[Span], n_best: int) -> list[Span]:
    """The best ones; a span of two windows is one. A score that is no number comes first, for all to see."""
    kept: dict[tuple[int, int], Span] = {}
    order = sorted(candidates, key=lambda span: (not math.isnan(span.score), -span.score))
    for span in order:
        if span.start < span.end or math.isnan(span.score):
            kept.setdefault((span.start, span.end), span)
    return list(kept.values())[:n_best]
