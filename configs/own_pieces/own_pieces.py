"""One of each piece that a config may name by class path. ``own_pieces.yaml`` uses them all; copy what you need.

The module must be importable (installed, or in a folder of PYTHONPATH), and allowed: ``--allow-import own_pieces``.
"""

from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from lit_tune.data.collators import Padding
from lit_tune.tasks.base import Batch, Collator, Spec
from lit_tune.tasks.sequence_classification import SequenceClassification

# A loss: maps (logits, labels) to one loss per target; lit-tune divides, exactly, however the step is cut


class PolyLoss:
    """Poly-1 cross-entropy (Leng et al. 2022, https://arxiv.org/abs/2204.12511).

    Args:
        epsilon: Weight of the added term; 0 is plain cross-entropy.
    """

    def __init__(self, epsilon: float = 1.0) -> None:
        self.epsilon = epsilon

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B,) losses of logits (B, C) and class ids (B,)."""
        cross_entropy = nn.functional.cross_entropy(logits, labels, reduction="none")
        return cross_entropy + self.epsilon * (1 - (-cross_entropy).exp())


# A metric: torchmetrics' Metric; its sums are added up over batches and ranks; logged as val/top_k_accuracy


class TopKAccuracy(Metric):
    """Share of the rows whose class is among the k likeliest.

    Args:
        k: How many guesses there are.
    """

    higher_is_better = True  # the direction, for checkpoint.monitor and early_stopping.monitor
    hits: Tensor
    rows: Tensor

    def __init__(self, k: int = 2) -> None:
        super().__init__()
        self.k = k
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch: probabilities (B, C) and class ids (B,)."""
        guesses = preds.topk(self.k).indices
        self.hits += (guesses == target[:, None]).sum()
        self.rows += len(target)

    def compute(self) -> Tensor:
        """One number."""
        return self.hits / self.rows


# A collator: features -> batch. What is random in it follows from seed, epoch and row, and from nothing else


class WordDropout:
    """Leaves tokens out in training, others in each epoch (Iyyer et al. 2015, https://aclanthology.org/P15-1162).

    Args:
        collate: Pads what is left.
        fraction: Of the tokens.
        seed: Of the run.
    """

    is_random = True  # lit-tune puts a `draw` into each feature: (0, row) in evaluation, (epoch + 1, row) in training

    def __init__(self, collate: Collator, fraction: float, seed: int) -> None:
        self.collate, self.fraction, self.seed = collate, fraction, seed

    def __call__(self, features: list[dict[str, Any]]) -> Batch:
        """Tensors of B features."""
        return self.collate([self.thinned(feature) for feature in features])

    def thinned(self, feature: dict[str, Any]) -> dict[str, Any]:
        """The feature without some of its tokens; the first and the last, [CLS] and [SEP], stay."""
        epoch, row = feature["draw"]
        kept = np.random.default_rng([self.seed, epoch, row]).random(len(feature["input_ids"])) >= self.fraction
        kept[[0, -1]] = True
        per_token = {name: feature[name] for name in ("input_ids", "token_type_ids") if name in feature}
        thin = {name: [x for x, keep in zip(xs, kept, strict=True) if keep] for name, xs in per_token.items()}
        return {**feature, **thin} if epoch else feature


# A task: what differs from one of ours. CONTRIBUTING.md has the methods of a new one, hop by hop


class ThinnedTexts(SequenceClassification):
    """Classification of texts that lose some of their words in training.

    Args:
        dropped_fraction: Share of the tokens that are left out.
        label_column: Column with the label.
        loss: As that of SequenceClassification.
        metrics: As those of SequenceClassification.
    """

    def __init__(
        self,
        dropped_fraction: float = 0.1,
        label_column: str = "label",
        loss: str | dict[str, Any] | None = None,
        metrics: list[str | dict[str, Any]] = [],  # noqa: B006 - never mutated; a plain default shows in --help
    ) -> None:
        super().__init__(label_column=label_column, loss=loss, metrics=metrics)
        self.dropped_fraction = dropped_fraction

    def collator(self, padding: Padding, spec: Spec) -> Collator:
        """The collator of SequenceClassification, of fewer tokens."""
        return WordDropout(super().collator(padding, spec), self.dropped_fraction, padding.seed)


# A model: a PreTrainedModel with a config class, registered, so that `import own_pieces` lets anyone load best/


class MeanOfWordsConfig(PretrainedConfig):
    """Sizes of the model, under ``model.config_overrides``."""

    model_type = "mean_of_words"

    def __init__(self, vocab_size: int = 1000, hidden_size: int = 64, pad_token_id: int = 0, **kwargs: Any) -> None:
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        super().__init__(pad_token_id=pad_token_id, **kwargs)


class MeanOfWordsForSequenceClassification(PreTrainedModel):
    """A linear layer on the mean of a text's word vectors, which is all it knows of their order."""

    config_class = MeanOfWordsConfig
    base_model_prefix = "embeddings"  # the rest is the head: for model.new_head, and model.freeze: backbone

    def __init__(self, config: MeanOfWordsConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word vectors."""
        return self.embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SequenceClassifierOutput:
        """``logits`` (B, C) of tokens (B, T)."""
        mask = attention_mask[..., None].to(self.dtype)
        mean = (self.embeddings(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1)
        return SequenceClassifierOutput(logits=self.classifier(mean))  # type: ignore[arg-type]


AutoConfig.register("mean_of_words", MeanOfWordsConfig, exist_ok=True)
AutoModelForSequenceClassification.register(MeanOfWordsConfig, MeanOfWordsForSequenceClassification, exist_ok=True)


# A callback: any of Lightning's hooks; under trainer.callbacks


class WeightNorm(Callback):
    """Logs the norm of all weights after each epoch, as ``weights/norm``."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """One line in metrics.jsonl, and a point in TensorBoard."""
        norm = torch.stack([p.detach().norm() for p in pl_module.parameters()]).norm()
        for logger in trainer.loggers:
            logger.log_metrics({"weights/norm": float(norm)}, step=trainer.global_step)
