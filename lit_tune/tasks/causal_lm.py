"""Causal language modelling: the next token of raw text.

Shapes: B blocks, T tokens, V the vocabulary.
"""

from dataclasses import replace
from typing import Any

import datasets
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lit_tune.data import checks
from lit_tune.data.collators import BlockCollator, Padding
from lit_tune.data.documents import IDS, TEXT_BYTES, Blocks, StoredDocuments
from lit_tune.data.split import Split
from lit_tune.data.texts import read_texts
from lit_tune.data.units import Units, WholeRows
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.base import Batch, Collator, Features, Rows, Spec
from lit_tune.tasks.language_modeling import NextToken, document_records
from lit_tune.tasks.token_scores import TokenScores

PROBLEM = "causal_language_modeling"
KEY = "task.init_args.text_column"
LONG_LINE, LONG_WORD = 1000, 100
"""Characters: a single text is cut between lines, else between words."""


class CausalLM(NextToken):
    """The next token of raw text: a row is a document, which ends with the tokenizer's end-of-sequence token.

    Documents longer than ``data.max_length`` are cut, and nothing is lost: each token but a document's first is
    predicted once. A txt file is one document, see ``data.txt_rows``.

    Args:
        text_column: Column with the text.
        packing: Put several documents, or pieces of them, into one row of ``data.max_length`` tokens, in which none
            sees another: loss and gradient are those of the documents alone. Off for architectures that cannot do it,
            and for streams.
    """

    input_key = label_key = "text_column"
    txt_rows = "file"

    def __init__(self, text_column: str = "text", packing: bool = True) -> None:
        super().__init__(packing)
        self.text_column = text_column

    def settings(self) -> dict[str, Any]:
        return {"text_column": self.text_column}

    def input_columns(self) -> tuple[str, ...]:
        return (self.text_column,)

    # ---- texts -------------------------------------------------------------------------------------------------------

    def inspect(self, train: Split, model_config: PretrainedConfig | None, new_head: bool) -> Spec:
        self.require(train)
        return Spec(PROBLEM, unit="token")

    def spec_of_model(self, model_config: PretrainedConfig) -> Spec:
        return Spec(PROBLEM, unit="token")

    def require(self, split: Split) -> None:
        """Demand the column."""
        checks.require_columns(split.column_names, [self.text_column], split.title, {self.text_column: KEY})

    def check(self, split: Split, spec: Spec, labelled: bool = True) -> None:
        self.require(split)
        read_texts(split, self.text_column, KEY)

    def is_unlabelled(self, split: Split, spec: Spec) -> bool:
        return False  # a text is its own label

    def without_labels(self, split: Split) -> Split:
        return split

    def hold_out(self, train: Split, fraction: float, seed: int, spec: Spec) -> tuple[Split, Split]:
        """Documents; of a single one its end."""
        if len(train) != 1 or train.is_streamed:
            return super().hold_out(train, fraction, seed, spec)
        (text,) = train.column(self.text_column)
        middle = int(len(text) * (1 - fraction))
        line, word = (text.rfind(end, max(0, middle - n), middle) for end, n in (("\n", LONG_LINE), (" ", LONG_WORD)))
        place = (line if line >= 0 else word) + 1
        if not (text[:place].strip() and text[place:].strip()):
            return super().hold_out(train, fraction, seed, spec)
        first, second = (
            datasets.Dataset.from_dict({self.text_column: [part]}) for part in (text[:place], text[place:])
        )
        return replace(train, rows=first), replace(train, rows=second)

    # ---- documents and blocks ----------------------------------------------------------------------------------------

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: Spec, max_length: int) -> Features:
        texts, end = rows[self.text_column], tokenizer.eos_token_id
        ids: Any = tokenizer(texts, truncation=False, return_attention_mask=False, verbose=False)[IDS]
        if end is not None:
            ids = [row if row[-1:] == [end] else [*row, end] for row in ids]
        return {
            IDS: ids,
            TEXT_BYTES: [len(text.encode("utf-8", "surrogatepass")) for text in texts],
            "num_tokens": [len(row) for row in ids],
        }

    def cut_at(self, max_length: int) -> int | None:
        return None  # the rest is another block

    def units(self, rows: datasets.Dataset, training: bool, reader: TextReader) -> Units:
        return Blocks(StoredDocuments(rows), reader.max_length, self.packs(reader))

    def predict_units(self, rows: datasets.Dataset, reader: TextReader) -> Units:
        return WholeRows(rows)

    def collator(self, padding: Padding, spec: Spec) -> Collator:
        return BlockCollator(padding)

    def decode(self, outputs: TokenScores, batch: Batch, spec: Spec) -> list[dict[str, Any]]:
        """Loss, perplexity and bits per byte of each text."""
        return document_records(outputs, batch)
