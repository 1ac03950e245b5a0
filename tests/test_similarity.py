"""Losses of embeddings against slow plain loops, and against sentence-transformers' own where it is installed."""

import math
import random

import pytest
import torch
from torch.nn import functional as F

from lit_tune import similarity


def embeddings(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_ranking(anchors, candidates, texts: list[tuple[str, ...]], scale: float) -> float:
    """The sum of -log p over anchors, one number at a time."""
    size, total = len(texts), 0.0
    columns = [row[k] for k in range(1, len(texts[0])) for row in texts]
    for i, row in enumerate(texts):
        own = {other[1] for other in texts if other[0] == row[0]} | {row[0]}
        kept = [j for j in range(len(columns)) if j == i or columns[j] not in own]
        logits = [scale * float(F.cosine_similarity(anchors[i], candidates[j], dim=0)) for j in kept]
        total += math.log(sum(math.exp(x - logits[kept.index(i)]) for x in logits))
    assert len(columns) % size == 0
    return total


def keys_of(texts: list[tuple[str, ...]]) -> torch.Tensor:
    numbers: dict[str, int] = {}
    return torch.tensor([[numbers.setdefault(row[k], len(numbers)) for row in texts] for k in range(len(texts[0]))])


@pytest.mark.parametrize("num_texts", [2, 3])
@pytest.mark.parametrize("kinds", [4, 40])
def test_the_contrastive_loss_is_that_of_a_plain_loop_with_and_without_repeated_texts(num_texts, kinds):
    rng = random.Random(kinds)
    texts = [tuple(f"{rng.randrange(kinds)}" for _ in range(num_texts)) for _ in range(12)]
    anchors, candidates = embeddings(12), embeddings(12 * (num_texts - 1), seed=1)
    cosine, known = similarity.cosine_matrix(anchors, candidates), similarity.known_positives(keys_of(texts))
    total, count = similarity.in_batch_negatives(cosine, known, 20.0)
    assert float(total) == pytest.approx(plain_ranking(anchors, candidates, texts, 20.0), rel=1e-10)
    assert float(count) == 12


def test_the_symmetric_loss_is_the_mean_of_both_directions():
    anchors, positives = embeddings(5), embeddings(5, seed=1)
    cosine = F.cosine_similarity(anchors[:, None], positives[None], dim=-1)
    right = torch.arange(5)
    expected = (F.cross_entropy(20 * cosine, right) + F.cross_entropy(20 * cosine.T, right)) / 2
    total, count = similarity.in_batch_negatives(cosine, torch.eye(5).bool(), 20.0, symmetric=True)
    assert float(total / count) == pytest.approx(float(expected), rel=1e-10)


def test_a_repeated_text_moves_nothing_that_is_right():
    """Two equal rows: neither positive is a negative of the other, and no gradient pulls them apart."""
    vectors = embeddings(4).requires_grad_()
    texts = [("a", "b"), ("a", "b")]
    cosine = similarity.cosine_matrix(vectors[:2], vectors[2:])
    total, _ = similarity.in_batch_negatives(cosine, similarity.known_positives(keys_of(texts)), 20.0)
    total.backward()
    assert float(total.detach()) == 0.0
    assert float(vectors.grad.abs().max()) == 0.0


def test_cosent_is_that_of_a_plain_loop():
    cosine, scores = embeddings(1)[0].tanh(), torch.tensor([0.1, 0.5, 0.5, 0.9, 0.0, 1.0, 0.3, 0.5])
    pairs = [(i, j) for i in range(8) for j in range(8) if float(scores[i]) > float(scores[j])]
    terms = [math.exp(20 * float(cosine[j] - cosine[i])) for i, j in pairs]
    loss, count = similarity.cosent(cosine, scores, 20.0)
    assert (float(loss), float(count)) == (pytest.approx(math.log(1 + sum(terms))), 1.0)
    assert float(similarity.cosent(cosine[:1], scores[:1], 20.0)[0]) == 0.0


def test_places_count_ties_and_known_texts():
    cosine = torch.tensor([[0.5, 0.9, 0.1], [0.2, 0.2, 0.2], [0.9, 0.9, 0.8]])
    known = torch.eye(3).bool()
    assert similarity.places_of_positives(cosine, known).tolist() == [2, 3, 3]
    known[0, 1] = True
    assert similarity.places_of_positives(cosine, known).tolist() == [1, 3, 3]


def test_cosines_are_in_full_precision_under_autocast():
    first, second = torch.randn(6, 64), torch.randn(6, 64)
    with torch.autocast("cpu", torch.bfloat16):
        matrix, pairs = similarity.cosine_matrix(first, second), similarity.cosines(first, second)
    expected = F.cosine_similarity(first.double(), second.double())
    assert matrix.dtype == pairs.dtype == torch.float32
    assert torch.allclose(pairs.double(), expected, atol=1e-6)
    assert torch.allclose(matrix.diagonal().double(), expected, atol=1e-6)


@pytest.mark.slow
def test_the_losses_are_those_of_sentence_transformers():
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    losses = pytest.importorskip("sentence_transformers.losses")
    module = library.SentenceTransformer(modules=[torch.nn.Identity()], device="cpu")
    anchors, positives, negatives = (embeddings(6, seed) for seed in range(3))
    ranking = losses.MultipleNegativesRankingLoss(module)
    expected = ranking.compute_loss_from_embeddings([anchors, positives, negatives], None)
    cosine = similarity.cosine_matrix(anchors, torch.cat([positives, negatives]))
    total, count = similarity.in_batch_negatives(cosine, torch.eye(6, 12).bool(), 20.0)
    assert float(total / count) == pytest.approx(float(expected), rel=1e-6)
    scores = torch.linspace(0, 1, 6, dtype=torch.float64)
    cosent = losses.CoSENTLoss(module).compute_loss_from_embeddings([anchors, positives], scores)
    found, _ = similarity.cosent(similarity.cosines(anchors, positives), scores, 20.0)
    assert float(found) == pytest.approx(float(cosent), rel=1e-6)
