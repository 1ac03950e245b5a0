"""Four small text problems with a tiny random BERT, made from code: the common ground of the exactness benchmarks."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

WORDS = [
    "trail",
    "rock",
    "river",
    "steep",
    "mud",
    "view",
    "forest",
    "long",
    "short",
    "easy",
    "hard",
    "great",
    "awful",
    "rain",
    "sun",
    "path",
    "climb",
    "lake",
]
Rows = list[dict[str, Any]]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


@dataclass(frozen=True)
class Problem:
    """A kind of label with torch's own mean loss for it.

    Regression targets are numbers that float32 holds exactly: lit-tune rounds them to float32, also in a float64 run,
    which alone moves the gradient by 4e-9 to 3e-8 for targets with four decimals, the same for every cut.
    """

    name: str
    problem_type: ProblemType
    names: tuple[str, ...] = ("bad", "fine", "good")
    class_weights: tuple[float, ...] | None = None

    def rows(self, count: int) -> Rows:
        """Texts of 1 to 12 words; labels as a user's file has them."""
        rng = random.Random(7)
        rows = [{"text": " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))} for _ in range(count)]
        draw: dict[str, Callable[[int], Any]] = {
            "single_label_classification": lambda i: self.names[i] if i < len(self.names) else rng.choice(self.names),
            "multi_label_classification": lambda i: self.some_names(rng, at_least=0 if i else len(self.names)),
            "regression": lambda i: (2 * rng.randint(-150, 150) + 1) / 128,
        }
        return [{**row, "label": draw[self.problem_type](i)} for i, row in enumerate(rows)]

    def some_names(self, rng: random.Random, at_least: int) -> list[str]:
        """A random set of labels."""
        return sorted(rng.sample(self.names, rng.randint(at_least, len(self.names))))

    def targets(self, rows: Rows) -> torch.Tensor:
        """Labels as torch's losses want them."""
        if self.problem_type == "regression":
            return torch.tensor([r["label"] for r in rows], dtype=torch.float64)
        if self.problem_type == "multi_label_classification":
            return torch.tensor([[float(n in r["label"]) for n in self.names] for r in rows], dtype=torch.float64)
        return torch.tensor([self.names.index(r["label"]) for r in rows])

    def mean_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """What anyone would write."""
        if self.problem_type == "regression":
            return F.mse_loss(logits.squeeze(-1), targets)
        if self.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, targets)
        weights = None if self.class_weights is None else torch.tensor(self.class_weights, dtype=logits.dtype)
        return F.cross_entropy(logits, targets, weight=weights)

    def save_model(self, folder: Path) -> Path:
        """A random two-layer BERT with a head, and its word tokenizer, as a folder."""
        tiny_tokenizer().save_pretrained(folder)
        torch.manual_seed(0)
        names = self.names if self.problem_type != "regression" else ("score",)
        config = BertConfig(
            vocab_size=len(WORDS) + 4,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.3,
            problem_type=self.problem_type,
            id2label=dict(enumerate(names)),
            label2id={n: i for i, n in enumerate(names)},
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )
        BertForSequenceClassification(config).save_pretrained(folder)
        return folder


PROBLEMS = (
    Problem("single-label", "single_label_classification"),
    Problem("class-weighted", "single_label_classification", class_weights=(0.25, 1.0, 4.0)),
    Problem("multi-label", "multi_label_classification"),
    Problem("regression", "regression"),
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word."""
    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **names)
