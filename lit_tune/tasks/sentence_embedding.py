"""Text embedding by pairs: texts that belong together, or are alike in meaning, come to lie close to each other.

Shapes: B rows, K texts per row, H hidden, C candidates of an anchor.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import datasets
import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModel, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_tune import losses, similarity
from lit_tune.data import labels, pairs, splits
from lit_tune.data.collators import EmbeddingCollator, Padding
from lit_tune.data.split import Split
from lit_tune.data.units import Chosen, Units, WholeRows
from lit_tune.errors import ConfigError, LitTuneError, ModelError, collected, raise_problems
from lit_tune.metrics.regression import similarity_metrics
from lit_tune.metrics.retrieval import Retrieval
from lit_tune.models import sentence_folders
from lit_tune.models.pooling import Pooling, embed_in_parts, pool
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.base import Batch, Collator, Features, Rows, Spec, Task
from lit_tune.tasks.classification_report import report_text
from lit_tune.tasks.text_groups import Embeddings, by_column, compared, groups_of
from lit_tune.tasks.text_pairs import encode_alone

PROBLEM = "sentence_similarity"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
POOLING = "sentence_pooling"
"""Field of the model's config that says how it pools."""
ARGS = "task.init_args"


class SentenceEmbedding(Task):
    """One vector for a text, trained on pairs, for search, clustering and comparison by cosine.

    With ``loss: contrastive`` a row is an anchor and its positive, and the positives of other rows are negatives: those
    of its group, which is drawn anew in each epoch. With ``cosine`` or ``cosent`` a row is two texts and a score.

    Args:
        loss: ``contrastive``: find the positive among the texts of the group (InfoNCE, sentence-transformers'
            MultipleNegativesRankingLoss). ``cosine``: squared error of the cosine. ``cosent``: the cosines should be
            ordered as the scores are, within a group.
        text_columns: Default: ``[anchor, positive]``, with scores ``[sentence1, sentence2]``; further columns of
            ``contrastive`` are hard negatives. One column is enough for ``predict``, which then writes embeddings.
        score_column: Column with the score.
        score_range: Scores that mean a cosine of 0 and of 1. Default: least and greatest of train, rounded outwards to
            whole numbers.
        pooling: How the vectors of the tokens become one; ``auto``: as the model did before
            (``1_Pooling/config.json``), mean where that is not known.
        normalize: Give embeddings length 1.
        scale: What cosines are multiplied with, the inverse of a temperature.
        symmetric: Also find the anchor of each positive (``contrastive``).
        group_size: Rows that are compared with each other. Default: ``data.train_batch_size``, which must be a multiple
            of it. The result depends on this number, and not on how a step is cut into batches and ranks.
        texts_at_once: Encode so many texts at a time, and again in the backward pass (gradient caching): a large group
            in little memory, in about a third more time, with the same result.
    """

    auto_class = AutoModel
    pipeline, has_pipeline, library = "sentence-similarity", False, "sentence-transformers"
    usage = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("PATH_OR_ID")
embeddings = model.encode(["It rains.", "The weather is wet.", "He plays chess."])
similarities = model.similarity(embeddings, embeddings)"""
    unused_modules = ("pooler",)

    def __init__(
        self,
        loss: Literal["contrastive", "cosine", "cosent"] = "contrastive",
        text_columns: list[str] | None = None,
        score_column: str = "score",
        score_range: list[float] | None = None,
        pooling: Literal["auto", "mean", "cls", "last", "max"] = "auto",
        normalize: bool = True,
        scale: float = 20.0,
        symmetric: bool = False,
        group_size: int | None = None,
        texts_at_once: int | None = None,
    ) -> None:
        usual = ["anchor", "positive"] if loss == "contrastive" else ["sentence1", "sentence2"]
        self.text_columns = list(usual if text_columns is None else text_columns)
        self.loss_name, self.score_column, self.score_range = loss, score_column, score_range
        self.pooling, self.normalize, self.scale, self.symmetric = pooling, normalize, scale, symmetric
        self.group_size, self.texts_at_once = group_size, texts_at_once
        self.label_key = "score_column" if self.has_scores else "text_columns"  # type: ignore[misc]
        raise_problems(list(self.wrong_settings()))

    def wrong_settings(self) -> Iterator[LitTuneError]:
        """Settings that contradict each other."""
        if not self.text_columns or (self.has_scores and len(self.text_columns) > 2):
            yield ConfigError("needs two columns", where=f"{ARGS}.text_columns", fix="[sentence1, sentence2]")
        for name, value, fix in (("scale", self.scale, 20.0), ("texts_at_once", self.texts_at_once, 32)):
            if value is not None and value <= 0:
                yield ConfigError(f"{value} is not above 0", where=f"{ARGS}.{name}", fix=str(fix))
        found = self.score_range
        if found is not None and (len(found) != 2 or not found[0] < found[1]):
            yield ConfigError(f"{found} are not two rising numbers", where=f"{ARGS}.score_range", fix="[0, 5]")
        if self.symmetric and self.has_scores:
            yield ConfigError("has no effect without negatives", where=f"{ARGS}.symmetric", fix="loss: contrastive")
        if self.group_size is not None and self.loss_name == "cosine":
            yield ConfigError("has no effect: each pair stands by itself", where=f"{ARGS}.group_size", fix="remove it")

    def settings(self) -> dict[str, Any]:
        names = ("text_columns", "score_column", "score_range", "has_scores", "loss_name")
        return {name: getattr(self, name) for name in names}

    @property
    def has_scores(self) -> bool:
        """Whether rows have a score, or are pairs that belong together."""
        return self.loss_name != "contrastive"

    def input_columns(self) -> tuple[str, ...]:
        return tuple(self.text_columns)

    # ---- reading pairs -----------------------------------------------------------------------------------------------

    def inspect(self, train: Split, model_config: PretrainedConfig | None, new_head: bool) -> Spec:
        self.require(train, labelled=True)
        if not self.has_scores:
            return Spec(PROBLEM)
        if self.score_range is None and train.is_streamed:
            raise ConfigError(
                "the range of a stream's scores cannot be read off it", where=f"{ARGS}.score_range", fix="[0, 5]"
            )
        found = self.score_range or pairs.range_of(self.scores_of(train), self.score_column)
        return Spec(PROBLEM, score_range=[float(v) for v in found])

    def spec_of_model(self, model_config: PretrainedConfig) -> Spec:
        return Spec(PROBLEM, score_range=[float(v) for v in self.score_range or []])

    def require(self, split: Split, labelled: bool) -> None:
        """Demand the columns; to predict, the first two."""
        if labelled and len(self.text_columns) < 2:
            raise ConfigError("needs two columns", where=f"{ARGS}.text_columns", fix="[anchor, positive]")
        wanted = self.text_columns if labelled else self.text_columns[:2]
        score = self.score_column if labelled and self.has_scores else None
        pairs.require(split, wanted, score, self.loss_name)

    def check(self, split: Split, spec: Spec, labelled: bool = True) -> None:
        self.require(split, labelled)
        problems: list[LitTuneError] = []
        for column in self.text_columns:
            if column in split.column_names:
                with collected(problems):
                    pairs.check_texts(split, column, empty_allowed=not labelled)
        if labelled and self.has_scores:
            with collected(problems):
                pairs.check_range(self.scores_of(split), self.limits(spec), split.locate, self.score_column)
        elif labelled and not problems:
            with collected(problems):
                pairs.check_negatives(split, self.text_columns)
        raise_problems(problems)

    def scores_of(self, split: Split) -> np.ndarray:
        """(N,) as they stand in the rows."""
        return labels.encode_numbers(split.distinct(self.score_column), split.locate)

    def limits(self, spec: Spec) -> tuple[float, float]:
        """Least and greatest score.

        Raises:
            ConfigError: Nothing says them, as for a model without a run.
        """
        found = self.score_range or spec.score_range
        if not found:
            raise ConfigError(
                "the model does not know the range of the scores", where=f"{ARGS}.score_range", fix="[0, 5]"
            )
        return float(found[0]), float(found[1])

    def is_unlabelled(self, split: Split, spec: Spec) -> bool:
        if not self.has_scores:
            return False
        return self.score_column not in split.column_names or labels.is_unlabelled(split.distinct(self.score_column))

    def without_labels(self, split: Split) -> Split:
        if not self.has_scores or self.score_column not in split.column_names:
            return split
        return replace(split, rows=split.rows.remove_columns(self.score_column))

    def strata(self, split: Split, spec: Spec) -> np.ndarray | None:
        return splits.quantile_bins(self.scores_of(split)) if self.has_scores else None

    def groups(self, split: Split) -> np.ndarray | None:
        """Rows with the same anchor: what is validated asks about anchors that were not trained on."""
        return None if self.has_scores else split.distinct(self.text_columns[0]).codes

    def summarize(self, train: Split, spec: Spec) -> Spec:
        """With scores the baseline gives every pair the mean cosine."""
        baseline = {}
        if self.loss_name == "cosine":
            low, high = self.limits(spec)
            baseline["loss"] = float((self.scores_of(train) / (high - low)).var())
        return replace(spec, num_rows=len(train), baseline=baseline)

    # ---- rows to tensors ---------------------------------------------------------------------------------------------

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: Spec, max_length: int) -> Features:
        columns = [rows[name] for name in self.text_columns if name in rows]
        found = [encode_alone(texts, tokenizer, max_length) for texts in columns]
        names = list(found[0][0])
        features: Features = {
            name: [list(texts) for texts in zip(*(tokens[name] for tokens, _ in found), strict=True)] for name in names
        }
        features["num_tokens"] = [max(counts) for counts in zip(*(counts for _, counts in found), strict=True)]
        if self.has_scores and self.score_column in rows:
            low, high = self.limits(spec)
            scores = labels.encode_numbers(rows[self.score_column], lambda i: f"row {i + 1} of the batch")
            features["labels"] = ((scores - low) / (high - low)).tolist()
        return features

    def rows_together(self, train_batch_size: int) -> int:
        if self.loss_name == "cosine":
            return 1
        size = train_batch_size if self.group_size is None else self.group_size
        if size < 2:
            where = "data.train_batch_size" if self.group_size is None else f"{ARGS}.group_size"
            raise ConfigError(f"{size} row has no other to be compared with", where=where, fix="16, or 64")
        if train_batch_size % size:
            raise ConfigError(
                f"{size} rows are compared with each other, and a batch has {train_batch_size}",
                where=f"{ARGS}.group_size",
                fix=f"a data.train_batch_size that is a multiple of {size}",
            )
        return size

    def units(self, rows: datasets.Dataset, training: bool, reader: TextReader) -> Units:
        """Evaluated in an order that is always the same and not the file's, where neighbours are often alike."""
        whole = WholeRows(rows)
        if training or self.loss_name == "cosine":
            return whole
        return Chosen(whole, np.random.default_rng(0).permutation(len(rows)))

    def predict_units(self, rows: datasets.Dataset, reader: TextReader) -> Units:
        return WholeRows(rows)

    def padding_side(
        self, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig
    ) -> Literal["left", "right"]:
        return "right"  # positions are counted from the first column: padding there would change the embedding

    def collator(self, padding: Padding, spec: Spec) -> Collator:
        return EmbeddingCollator(padding)

    # ---- the model ---------------------------------------------------------------------------------------------------

    def configure(self, model_config: PretrainedConfig, spec: Spec) -> None:
        how = sentence_folders.pooling_of_model(model_config) if self.pooling == "auto" else self.pooling
        setattr(model_config, POOLING, how)

    def check_model(self, model: PreTrainedModel) -> None:
        if model.config.is_encoder_decoder:
            raise ModelError(
                f"{type(model).__name__} has a decoder, which would want texts of its own",
                where="model.model_name_or_path",
                fix="an encoder, e.g. bert-base-uncased",
            )

    def files(self, model_config: PretrainedConfig, max_length: int) -> dict[str, str]:
        how: Pooling = getattr(model_config, POOLING)
        return sentence_folders.files(model_config.hidden_size, how, self.normalize, max_length)

    def forward(self, model: PreTrainedModel, batch: Batch) -> Embeddings:
        """The embedding of each text."""
        how: Pooling = getattr(model.config, POOLING)

        def embed(part: dict[str, Tensor]) -> Tensor:
            mask = part["attention_mask"]
            hidden = model(**part).last_hidden_state[:, -mask.shape[1] :]  # virtual tokens of an adapter come first
            pooled = pool(hidden, mask, how)
            return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled

        inputs = {name: batch[name] for name in INPUTS if name in batch}
        return Embeddings(embed_in_parts(embed, inputs, self.texts_at_once))

    def scores(self, outputs: Any) -> Tensor:
        return outputs.vectors

    # ---- loss, metrics, predictions ----------------------------------------------------------------------------------

    def loss(self, outputs: Any, batch: Batch, spec: Spec) -> tuple[Tensor, Tensor]:
        texts = by_column(outputs, batch)
        if self.loss_name == "cosine":
            return losses.mean_squared_error(similarity.cosines(texts[0], texts[1]), batch["labels"])
        if self.loss_name == "cosent":
            cosine, scores = similarity.cosines(texts[0], texts[1]), batch["labels"]
            parts = [similarity.cosent(cosine[g], scores[g], self.scale) for g in groups_of(batch)]
        else:
            parts = [
                similarity.in_batch_negatives(cosine, known, self.scale, self.symmetric)
                for cosine, known in compared(texts, batch)
            ]
        sums, denominators = zip(*parts, strict=True)
        return torch.stack(sums).sum(), torch.stack(denominators).sum()

    def metric_names(self, spec: Spec) -> dict[str, bool]:
        names = ("spearman", "pearson") if self.has_scores else ("mrr", "accuracy")
        return {"loss": False, **dict.fromkeys(names, True)}

    def primary_metric(self, spec: Spec) -> str:
        return "spearman" if self.has_scores else "mrr"

    def build_metrics(self, spec: Spec) -> MetricCollection:
        return similarity_metrics() if self.has_scores else MetricCollection({"retrieval": Retrieval()})

    def update_metrics(self, metrics: MetricCollection, outputs: Any, batch: Batch) -> None:
        texts = by_column(outputs, batch)
        if self.has_scores:
            metrics.update(similarity.cosines(texts[0], texts[1]), batch["labels"])
            return
        for cosine, known in compared(texts, batch):
            metrics.update(similarity.places_of_positives(cosine, known))

    def decode(self, outputs: Any, batch: Batch, spec: Spec) -> list[dict[str, Any]]:
        """The cosine of the first two texts; of rows with one text its embedding."""
        texts = by_column(outputs, batch).float()
        if len(texts) == 1:
            return [{"embedding": vector} for vector in texts[0].tolist()]
        return [{"similarity": cosine} for cosine in similarity.cosines(texts[0], texts[1]).tolist()]

    def report(self, metrics: dict[str, Any], spec: Spec) -> str:
        return report_text(metrics, spec)
