"""BLEU and chrF as sacrebleu counts them, ROUGE as Google's rouge_score does; all on a scale of 0 to 1.

Both packages are imported where they are used: rouge_score brings nltk, whose import takes seconds.

Sources: Post 2018, https://aclanthology.org/W18-6319; https://github.com/google-research/google-research/tree/master/rouge.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lit_tune.errors import ConfigError
from lit_tune.metrics.streaming import StreamingMetric, ratio

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SCORES: dict[str, tuple[str, ...]] = {"rouge": ROUGE, "bleu": ("bleu",), "chrf": ("chrf",)}
"""What may be asked for -> the scores it gives."""
_PACKAGES = {"rouge": "rouge_score", "bleu": "sacrebleu", "chrf": "sacrebleu"}


def require_packages(names: Sequence[str], where: str) -> None:
    """Demand what the scores are computed with.

    Args:
        names: Keys of :data:`SCORES`.
        where: The config key.

    Raises:
        ConfigError: A package is not installed.
    """
    missing = dict.fromkeys(_PACKAGES[name] for name in names if find_spec(_PACKAGES[name]) is None)
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed",
            where=where,
            fix=f"pip install 'lit-tune[text]', or {where}: []",
        )


class CorpusScore(StreamingMetric):
    """BLEU or chrF of all texts together: sacrebleu's counts of each text, summed over batches and ranks.

    A text may have several references, and another number of them than the next.

    Args:
        name: ``bleu`` or ``chrf``.
        tokenizer: How sacrebleu finds words, for BLEU.
    """

    counts: Tensor
    num_texts: Tensor

    def __init__(self, name: str, tokenizer: str = "13a") -> None:
        super().__init__()
        self.score, self.tokenizer = name, tokenizer
        # of BLEU two lengths, matches and n-grams for 1 to 4 words; of chrF three counts for 1 to 6 characters
        self.add_state("counts", torch.zeros(10 if name == "bleu" else 18, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_texts", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @cached_property
    def scorer(self) -> Any:
        """Of sacrebleu."""
        require_packages([self.score], "task.init_args.metrics")
        from sacrebleu.metrics import BLEU, CHRF

        # force: else it remarks on texts that end in " ."
        return BLEU(tokenize=self.tokenizer, force=True) if self.score == "bleu" else CHRF()

    def update(self, written: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add some texts.

        Args:
            written: What the model wrote.
            references: For each what it might have written, one or more.
        """
        for text, right in zip(written, references, strict=True):
            (counts,) = self.scorer._extract_corpus_statistics([text], [[reference] for reference in right])
            self.counts = self.counts + torch.tensor(counts, dtype=torch.float64).to(self.counts.device)
            self.num_texts = self.num_texts + 1

    def compute(self) -> dict[str, Tensor]:
        """The score, 0-dim float64; NaN of nothing."""
        if not self.num_texts:
            return {self.score: torch.tensor(math.nan, dtype=torch.float64)}
        found = self.scorer._compute_score_from_stats([int(count) for count in self.counts.tolist()])
        return {self.score: torch.tensor(found.score / 100, dtype=torch.float64)}


class RougeScores(StreamingMetric):
    """Means of ROUGE-1, -2, -L and -Lsum (F-measure, words stemmed); of several references the best for each.

    Made for English: words are ``[a-z0-9]+``. Lsum takes lines for sentences.
    """

    sums: Tensor
    num_texts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(ROUGE), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_texts", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @cached_property
    def scorer(self) -> Any:
        """Of rouge_score."""
        require_packages(["rouge"], "task.init_args.metrics")
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer(list(ROUGE), use_stemmer=True)

    def update(self, written: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add some texts.

        Args:
            written: What the model wrote.
            references: For each what it might have written, one or more.
        """
        for text, right in zip(written, references, strict=True):
            found = self.scorer.score_multi(list(right), text)
            added = torch.tensor([float(found[name].fmeasure) for name in ROUGE], dtype=torch.float64)
            self.sums = self.sums + added.to(self.sums.device)
            self.num_texts = self.num_texts + 1

    def compute(self) -> dict[str, Tensor]:
        """The means, 0-dim float64; NaN of nothing."""
        return dict(zip(ROUGE, ratio(self.sums.cpu(), self.num_texts.cpu(), otherwise=math.nan), strict=True))
