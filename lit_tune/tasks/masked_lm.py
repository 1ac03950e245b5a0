"""Masked language modelling: an encoder learns the language of its texts by guessing hidden words.

Shapes: B rows, T tokens, M masked tokens of a batch, V the vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow.compute as pc
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import MaskedLMOutput

from lit_tune import losses
from lit_tune.data import checks
from lit_tune.data.collators import Padding
from lit_tune.data.masking import BEGINS_WORD, IDS, TO_FILL, MaskingCollator
from lit_tune.data.split import Split
from lit_tune.data.texts import read_texts
from lit_tune.data.token_blocks import MarkedRows, TextRows, TokenBlocks
from lit_tune.data.units import Units
from lit_tune.data.vocabulary import Vocabulary
from lit_tune.errors import ConfigError, DataError, ModelError
from lit_tune.metrics.guessed_tokens import GuessedTokens
from lit_tune.models.masked_head import logits_at
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.base import BOOKKEEPING, Batch, Collator, Features, Rows, Spec, Task
from lit_tune.tasks.classification_report import report_text

PROBLEM = "masked_language_modeling"
KEY = "task.init_args.text_column"
USUAL_TOKENS = 128.0
"""Of a row or block; only the scale of fp16 losses depends on it."""


class MaskedLM(Task):
    """Guess hidden tokens, to adapt an encoder to the language of a field before it is trained on little labelled data.

    Texts are joined, with the separator between them, and cut into blocks of ``data.max_length``, of which the last one
    has what is left. In training the hidden tokens are drawn anew in each epoch; in evaluation they are always the
    same, so that losses can be compared over epochs and runs. Each row has one of them at least.

    Args:
        text_column: Column with the text; txt files have ``text``.
        line_by_line: Each text is a row of its own, cut at ``data.max_length``; for texts that have nothing to do with
            each other, and needed for streams. Short texts waste time.
        mask_probability: Share of the tokens that are to be guessed. Of these 80 % are hidden, 10 % become another one
            and 10 % stay.
        whole_word: Hide all tokens of a word together, which is harder to guess.
        top_k: How many guesses ``predict`` writes for each mask token of a text.
    """

    auto_class = AutoModelForMaskedLM
    pipeline = "fill-mask"
    input_key = label_key = "text_column"
    skips_empty = True

    def __init__(
        self,
        text_column: str = "text",
        line_by_line: bool = False,
        mask_probability: float = 0.15,
        whole_word: bool = False,
        top_k: int = 5,
    ) -> None:
        if not 0 < mask_probability < 1:
            raise ConfigError(
                f"{mask_probability} is not a share above 0 and below 1",
                where="task.init_args.mask_probability",
                fix="0.15",
            )
        if top_k < 1:
            raise ConfigError(f"{top_k} guesses are none", where="task.init_args.top_k", fix="5")
        self.text_column, self.line_by_line = text_column, line_by_line
        self.mask_probability, self.whole_word, self.top_k = mask_probability, whole_word, top_k
        self.needs_offsets = whole_word  # type: ignore[misc]  # by them a token's word is found

    def settings(self) -> dict[str, Any]:
        names = ("text_column", "line_by_line", "mask_probability", "whole_word")
        return {name: getattr(self, name) for name in names}

    def input_columns(self) -> tuple[str, ...]:
        return (self.text_column,)

    # ---- reading texts -----------------------------------------------------------------------------------------------

    def inspect(self, train: Split, model_config: PretrainedConfig | None, new_head: bool) -> Spec:
        self.require(train)
        if train.is_streamed and not self.line_by_line:
            raise ConfigError(
                "blocks are cut from all texts of a split, a stream gives them one by one",
                where="task.init_args.line_by_line",
                fix="true, or data.streaming: false",
            )
        return Spec(PROBLEM, unit="token")

    def spec_of_model(self, model_config: PretrainedConfig) -> Spec:
        return Spec(PROBLEM, unit="token")

    def prepare_model(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        if model.config.is_encoder_decoder:
            raise ModelError(
                f"{type(model).__name__} has a decoder, which would see what is hidden",
                where="model.model_name_or_path",
                fix="an encoder, e.g. bert-base-uncased",
            )

    def require(self, split: Split) -> None:
        """Demand the column."""
        columns = [self.text_column]
        checks.require_columns(split.column_names, columns, where=split.title, keys={self.text_column: KEY})

    def check(self, split: Split, spec: Spec, labelled: bool = True) -> None:
        self.require(split)
        if read_texts(split, self.text_column, KEY).is_blank.all():
            raise DataError("there is no text in any row", where=split.title, fix=f"another column as {KEY}")

    def is_unlabelled(self, split: Split, spec: Spec) -> bool:
        return False

    def without_labels(self, split: Split) -> Split:
        return split

    def strata(self, split: Split, spec: Spec) -> np.ndarray | None:
        return None

    def summarize(self, train: Split, spec: Spec) -> Spec:
        return replace(spec, num_rows=len(train))

    def measure(self, train: datasets.Dataset, spec: Spec) -> Spec:
        """The baseline knows how frequent each token is, and nothing of its neighbours."""
        counts = np.zeros(0, dtype=np.int64)
        for chunk in train.data.column(IDS).chunks:
            found = np.bincount(pc.list_flatten(chunk).to_numpy(zero_copy_only=False))
            counts = np.pad(counts, (0, max(0, len(found) - len(counts))))
            counts[: len(found)] += found
        total = int(counts.sum())
        shares = counts[counts > 0] / max(1, total)
        loss = float(-(shares * np.log(shares)).sum())
        baseline = {"loss": loss, "perplexity": math.exp(loss), "accuracy": float(shares.max(initial=0.0))}
        return replace(spec, baseline=baseline, num_units=total)

    # ---- texts to tensors --------------------------------------------------------------------------------------------

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: Spec, max_length: int) -> Features:
        texts = rows[self.text_column]
        found: Any = tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        room = max_length - tokenizer.num_special_tokens_to_add() if self.line_by_line else None
        features: Features = {IDS: [ids[:room] for ids in found[IDS]]}
        around = max_length - room if room is not None else 0
        features["num_tokens"] = [len(ids) + around for ids in found[IDS]]
        if self.whole_word:
            features[BEGINS_WORD] = [word_beginnings(found.word_ids(i))[:room] for i in range(len(texts))]
        return features

    def cut_at(self, max_length: int) -> int | None:
        return max_length if self.line_by_line else None

    def units(self, rows: datasets.Dataset, training: bool, reader: TextReader) -> Units:
        if self.line_by_line:
            return TextRows(rows, IDS)
        vocabulary = Vocabulary(reader.tokenizer)
        length = reader.max_length - sum(map(len, vocabulary.around))
        columns = {IDS: vocabulary.separator}
        if self.whole_word:
            columns[BEGINS_WORD] = None if vocabulary.separator is None else 1
        return TokenBlocks(rows, columns, length)

    def predict_units(self, rows: datasets.Dataset, reader: TextReader) -> Units:
        return MarkedRows(rows, TO_FILL)

    def padding_side(
        self, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig
    ) -> Literal["left", "right"]:
        return "right"  # positions are counted from the first column: padding there would change what is predicted

    def collator(self, padding: Padding, spec: Spec) -> Collator:
        if padding.vocabulary is None or padding.vocabulary.mask_id is None:
            raise ModelError(
                "the tokenizer has no mask token",
                where="model.model_name_or_path",
                fix="bert-base-uncased, or another encoder",
            )
        return MaskingCollator(padding, self.mask_probability)

    # ---- loss, metrics, predictions ----------------------------------------------------------------------------------

    def forward(self, model: PreTrainedModel, batch: Batch) -> Any:
        """Logits of the masked tokens, (M, V)."""
        inputs = {name: value for name, value in batch.items() if name not in BOOKKEEPING}
        if "aside" not in batch:
            return model(**inputs)
        return MaskedLMOutput(logits=logits_at(model, inputs, batch["aside"]["masked"]))  # type: ignore[arg-type]

    def loss(self, outputs: Any, batch: Batch, spec: Spec) -> tuple[Tensor, Tensor]:
        return losses.cross_entropy(outputs.logits, self.hidden(batch))

    def imitated(self, outputs: Any, batch: Batch) -> Tensor | None:
        return outputs.logits

    def hidden(self, batch: Batch) -> Tensor:
        """(M,) the tokens that are to be guessed."""
        return batch["labels"].flatten()[batch["aside"]["masked"]]

    def targets_per_row(self, spec: Spec) -> float:
        return self.mask_probability * USUAL_TOKENS

    def metric_names(self, spec: Spec) -> dict[str, bool]:
        return {"loss": False, "perplexity": False, "accuracy": True}

    def primary_metric(self, spec: Spec) -> str:
        return "loss"

    def build_metrics(self, spec: Spec) -> MetricCollection:
        return MetricCollection({"tokens": GuessedTokens()}, compute_groups=False)

    def update_metrics(self, metrics: MetricCollection, outputs: Any, batch: Batch) -> None:
        hidden = self.hidden(batch)
        loss_sum, num_tokens = losses.cross_entropy(outputs.logits, hidden)
        metrics.update(loss_sum, (outputs.logits.argmax(-1) == hidden).sum(), num_tokens)

    def decode(self, outputs: Any, batch: Batch, spec: Spec) -> list[dict[str, Any]]:
        """The best guesses for each mask token of a text, and how many mask tokens were cut off with its end."""
        aside = batch["aside"]
        size = min(self.top_k, outputs.logits.shape[-1])
        best = outputs.logits.float().softmax(-1).topk(size)
        guesses = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        text = aside["vocabulary"].text
        fills = ([{"token": text(i), "score": p} for p, i in zip(*one, strict=True)] for one in guesses)
        counts = aside["mask_counts"]
        return [{"fills": [next(fills) for _ in range(read)], "unread_masks": cut} for read, cut in counts]

    def report(self, metrics: dict[str, Any], spec: Spec) -> str:
        return report_text(metrics, spec)


def word_beginnings(words: Sequence[int | None]) -> list[int]:
    """1 for each token that begins a word.

    Args:
        words: The word of every token.

    >>> word_beginnings([0, 0, 1, 2, 2])
    [1, 0, 1, 1, 0]
    """
    return [int(i == 0 or word != words[i - 1]) for i, word in enumerate(words)]
