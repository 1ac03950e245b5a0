"""Exact match and F1 against the rules of the official scripts, written down once more, slowly."""

import random
import string

import pytest
import torch

from lit_tune.metrics import scalars
from lit_tune.metrics.answers import AnswerScores, answer_metric_names, normalize

WORDS = ["the", "Lake", "a", "mud", "An", "lake's", "fog", "42", "naïve", "theme", "—", "!", "e.g."]


def words_of(text: str) -> list[str]:
    """Lower case; punctuation out, character by character; articles out; split at white space."""
    letters = [c for c in text.lower() if c not in string.punctuation]
    words, word = [], ""
    for c in [*letters, " "]:
        if c.isalnum() or c == "_":
            word += c
        else:  # an article is one between two characters that belong to no word
            words += ["" if word in ("a", "an", "the") else word, c]
            word = ""
    return "".join(w or " " for w in words).split()


def slow_f1(given: list[str], gold: list[str]) -> float:
    left, shared = list(gold), 0
    for word in given:
        if word in left:
            left.remove(word)
            shared += 1
    if not shared:
        return 0.0
    precision, recall = shared / len(given), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def slow_scores(prediction: str, golds: list[str], version: int) -> tuple[float, float]:
    """evaluate-v1.1.py, or evaluate-v2.0.py, of one question."""
    if version == 2:
        golds = [g for g in golds if words_of(g)] or [""]
    exact, f1 = 0.0, 0.0
    for gold in golds:
        a, b = words_of(prediction), words_of(gold)
        exact = max(exact, float(" ".join(a) == " ".join(b)))
        f1 = max(f1, float(a == b) if version == 2 and (not a or not b) else slow_f1(a, b))
    return exact, f1


def questions(count: int, version: int) -> list[tuple[str, list[str]]]:
    rng = random.Random(version)

    def text() -> str:
        return rng.choice([" ", "  "]).join(rng.choice(WORDS) for _ in range(rng.randint(0, 4)))

    found = []
    for _ in range(count):
        golds = [text() for _ in range(rng.randint(1, 3))] if version == 1 or rng.random() < 0.7 else []
        found.append((rng.choice([text(), "", *golds]), golds))
    return found


@pytest.mark.parametrize("version", [1, 2])
def test_scores_are_those_of_the_official_scripts(version):
    asked = questions(600, version)
    slow = [slow_scores(prediction, golds, version) for prediction, golds in asked]
    metric = AnswerScores(with_no_answer=version == 2)
    for batch in (asked[:1], asked[1:400], asked[400:]):
        metric.update([p for p, _ in batch], [g for _, g in batch])
    found = scalars(metric.compute())
    assert set(found) == set(answer_metric_names(version == 2))
    mean = [sum(column) / len(asked) for column in zip(*slow, strict=True)]
    assert [found["exact_match"], found["f1"]] == pytest.approx(mean, abs=1e-12)
    assert all(0.2 < value < 0.8 for value in mean)
    if version == 2:
        has = [s for s, (_, golds) in zip(slow, asked, strict=True) if golds]
        none = [s for s, (_, golds) in zip(slow, asked, strict=True) if not golds]
        split = [*(sum(column) / len(has) for column in zip(*has, strict=True)), sum(e for e, _ in none) / len(none)]
        names = ("exact_match/answerable", "f1/answerable", "accuracy/unanswerable")
        assert [found[name] for name in names] == pytest.approx(split, abs=1e-12)
        assert metric.compute()["question_counts"].tolist() == [len(has), len(none)]


def test_known_cases_of_the_scripts():
    """By hand: what is easily got wrong."""
    for prediction, golds, version, expected in (
        ("The Lake!", ["lake"], 1, (1.0, 1.0)),
        ("mud lake", ["lake", "mud lake fog"], 1, (0.0, 0.8)),
        ("the", ["a"], 1, (1.0, 0.0)),  # 1.1: nothing is left, no word is shared
        ("the", ["a"], 2, (1.0, 1.0)),
        ("", [], 2, (1.0, 1.0)),
        ("lake", [], 2, (0.0, 0.0)),
        ("", ["lake"], 2, (0.0, 0.0)),
        ("lake lake", ["lake"], 1, (0.0, 2 / 3)),
    ):
        metric = AnswerScores(version == 2)
        metric.update([prediction], [golds])
        found = metric.compute()
        assert (float(found["exact_match"]), float(found["f1"])) == pytest.approx(expected), (prediction, golds)
    assert normalize("An e.g.\u00a0the-theme") == "eg thetheme"


def test_of_nothing_everything_is_undefined_and_ranks_add_up():
    metric = AnswerScores(True)
    assert all(v is None for v in scalars(metric.compute()).values())
    whole, parts = AnswerScores(True), [AnswerScores(True) for _ in range(2)]
    for prediction, golds in questions(40, 2):
        whole.update([prediction], [golds])
        parts[len(prediction) % 2].update([prediction], [golds])
    added = AnswerScores(True)
    added.sums = sum((p.sums for p in parts), torch.zeros(2, 3, dtype=torch.float64))
    assert scalars(added.compute()) == pytest.approx(scalars(whole.compute()))
