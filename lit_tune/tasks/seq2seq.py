"""Sequence to sequence: a text is written for each source (summaries, translations, descriptions of data).

Shapes: B sources, N targets of all of them, T and U tokens of a source and of a target.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import datasets
import numpy as np
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_tune.data import checks
from lit_tune.data.collators import Padding, TargetCollator
from lit_tune.data.places import places
from lit_tune.data.split import Split
from lit_tune.data.targets import is_without_targets, key_of, read_targets, references_of, token_counts
from lit_tune.data.texts import read_texts, text_column, text_hashes
from lit_tune.data.units import FirstApart, Merged, Units, WholeRows, Windows
from lit_tune.errors import ConfigError, LitTuneError, collected, raise_problems
from lit_tune.metrics import scalars
from lit_tune.metrics.generated_texts import ROUGE, SCORES, CorpusScore, RougeScores, require_packages
from lit_tune.metrics.guessed_tokens import GuessedTokens
from lit_tune.models.encoder_decoder import check_lengths, decoder_inputs, require_decoder, require_start
from lit_tune.models.generation import generation_settings, set_generation, write_texts
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.base import Batch, Collator, Features, Rows, Spec, Task
from lit_tune.tasks.classification_report import totals
from lit_tune.tasks.evaluation import SAMPLES_KEPT
from lit_tune.tasks.language_modeling import unigram_scores
from lit_tune.tasks.target_tokens import begin_in, encode_sources, encode_targets, end_token, set_languages
from lit_tune.tasks.token_scores import EXPORT_POSITIONS, TokenScores, score_tokens

log = logging.getLogger("lit_tune")
PROBLEM = "sequence_to_sequence"
KEY = "task.init_args."
PROBE_ROWS = 100
"""Sources of the probe for which texts are written: enough to see a gap, and a fraction of the time of val."""
SOURCE_KEY = "source_key"


@dataclass
class Written:
    """What a model says about a batch.

    Args:
        scores: Of the tokens of the targets; None without labels.
        texts: What it has written for the first of the sources.
        sources: The sources of those, as the model reads them.
    """

    scores: TokenScores | None
    texts: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


class Seq2Seq(Task):
    """Write a text for each source, by a model with an encoder and a decoder: T5, BART, Pegasus, Marian, mBART, NLLB.

    A target is a text, or a list of texts of which each would do: all are trained on, and what is written is compared
    with all of them. ``data.max_length`` cuts sources. Texts are written at each validation and in ``test``.

    Args:
        source_column: Column with the sources, such as ``document``; ``translation.en`` is a field of a column.
        target_column: Column with the targets, such as ``summary``.
        prefix: Put before each source; T5 wants ``"summarize: "`` or ``"translate English to German: "``.
        max_target_length: Tokens at which a target is cut, and most tokens that are written.
        src_lang: The tokenizer's code for the language of the sources (mBART, NLLB): ``en_XX``, ``eng_Latn``.
        tgt_lang: That of the targets.
        group_sources: In evaluation all rows with the same source are one example with several references.
        metrics: Scores of what is written: ``rouge`` (for English), ``bleu``, ``chrf``. They want ``lit-tune[text]``.
        bleu_tokenizer: How sacrebleu finds words: ``zh`` for Chinese, ``char`` for Japanese or Korean.
        generation: Settings by transformers' names, such as ``{num_beams: 4}``, over those that the model brings.
        generate_rows: Write texts for so many of the first sources of val only; for ``test`` always for all. 0: nothing
            is written or scored. Without ``metrics`` three are written, for the log.
        label_smoothing: Share of the target mass spread over all tokens, in [0, 1).
    """

    auto_class = AutoModelForSeq2SeqLM
    pipeline, has_pipeline = "text2text-generation", False
    input_key, label_key = "source_column", "target_column"

    def __init__(
        self,
        source_column: str = "source",
        target_column: str = "target",
        prefix: str = "",
        max_target_length: int = 128,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        group_sources: bool = False,
        metrics: list[Literal["rouge", "bleu", "chrf"]] = ["rouge", "bleu", "chrf"],  # noqa: B006
        bleu_tokenizer: Literal["13a", "intl", "zh", "char", "none"] = "13a",
        generation: dict[str, Any] = {},  # noqa: B006
        generate_rows: int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        refuse(max_target_length, generate_rows, label_smoothing, metrics)
        self.source_column, self.target_column, self.prefix = source_column, target_column, prefix
        self.max_target_length, self.src_lang, self.tgt_lang = max_target_length, src_lang, tgt_lang
        self.group_sources, self.bleu_tokenizer = group_sources, bleu_tokenizer
        self.scored = [name for name in SCORES if name in metrics and generate_rows != 0]
        # drawn texts would be others at each validation
        defaults = {"max_new_tokens": max_target_length, "do_sample": False}
        self.generation = generation_settings(generation, f"{KEY}generation", **defaults)
        if self.generation["do_sample"]:
            raise ConfigError(
                "texts that are drawn are others at each validation", where=f"{KEY}generation.do_sample", fix="false"
            )
        self.generate_rows, self.label_smoothing = generate_rows, label_smoothing
        self.usage = USAGE.replace("PREFIX", prefix)  # type: ignore[misc]

    def settings(self) -> dict[str, Any]:
        names = ("source_column", "target_column", "prefix", "max_target_length", "src_lang", "tgt_lang")
        return {**{name: getattr(self, name) for name in names}, "group_sources": self.group_sources}

    def input_columns(self) -> tuple[str, ...]:
        return (self.source_column,)

    def verbatim_columns(self) -> tuple[str, ...]:
        return self.source_column, self.target_column

    # ---- reading sources and targets ---------------------------------------------------------------------------------

    def inspect(self, train: Split, model_config: PretrainedConfig | None, new_head: bool) -> Spec:
        self.require(train, labelled=True)
        spec = Spec(PROBLEM, unit="token")
        self.check_settings(spec)
        return spec

    def check_settings(self, spec: Spec) -> None:
        require_packages(self.scored, f"{KEY}metrics")

    def spec_of_model(self, model_config: PretrainedConfig) -> Spec:
        return Spec(PROBLEM, unit="token")

    def require(self, split: Split, labelled: bool) -> None:
        """Demand the columns."""
        keys = {self.source_column: f"{KEY}source_column"}
        if labelled:
            keys[self.target_column] = f"{KEY}target_column"
        checks.require_columns(split.column_names, list(keys), where=split.title, keys=keys)

    def check(self, split: Split, spec: Spec, labelled: bool = True) -> None:
        self.require(split, labelled)
        problems: list[LitTuneError] = []
        with collected(problems):
            read_texts(split, self.source_column, f"{KEY}source_column")
        if labelled:
            with collected(problems):
                read_targets(split, self.target_column, f"{KEY}target_column")
        raise_problems(problems)

    def usable(self, split: Split, spec: Spec) -> Split:
        is_blank = text_column(split, self.target_column).is_blank
        if not is_blank.any():
            return split
        rows = np.flatnonzero(is_blank)
        log.warning(
            "%-8s%d row(s) with an empty target are left out (%s)", split.name, len(rows), places(rows, split.locate)
        )
        return split.select(np.flatnonzero(~is_blank))

    def is_unlabelled(self, split: Split, spec: Spec) -> bool:
        return is_without_targets(split, self.target_column)

    def without_labels(self, split: Split) -> Split:
        if self.target_column not in split.column_names:
            return split
        return replace(split, rows=split.rows.remove_columns(self.target_column))

    def strata(self, split: Split, spec: Spec) -> np.ndarray | None:
        return None

    def groups(self, split: Split) -> np.ndarray | None:
        return text_hashes(split, self.input_columns())  # data sets with several references have a row for each

    def summarize(self, train: Split, spec: Spec) -> Spec:
        return replace(spec, num_rows=len(train))

    def measure(self, train: datasets.Dataset, spec: Spec) -> Spec:
        counts = token_counts(train.data.column("labels"))
        return replace(spec, baseline=unigram_scores(counts), num_units=int(counts.sum())) if counts.sum() else spec

    # ---- rows to tensors ---------------------------------------------------------------------------------------------

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        end_token(tokenizer)
        set_languages(tokenizer, self.src_lang, self.tgt_lang)

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: Spec, max_length: int) -> Features:
        sources = [f"{self.prefix}{text}" for text in rows[self.source_column]]
        ids, num_tokens = encode_sources(sources, tokenizer, max_length)
        features: Features = {"input_ids": ids, "num_tokens": num_tokens}
        if self.target_column not in rows:
            return features
        references = [references_of(cell) or [""] for cell in rows[self.target_column]]
        targets, lengths = encode_targets([t for some in references for t in some], tokenizer, self.max_target_length)
        ends = np.cumsum([len(some) for some in references]).tolist()
        parts = [slice(end - len(some), end) for end, some in zip(ends, references, strict=True)]
        cut = [n > self.max_target_length for n in lengths]
        return {
            **features,
            "labels": [targets[part] for part in parts],
            "references": references,
            SOURCE_KEY: [key_of(text) for text in sources],
            "num_target_tokens": [sum(lengths[part]) for part in parts],
            "num_cut_targets": [sum(cut[part]) for part in parts],
        }

    def units(self, rows: datasets.Dataset, training: bool, reader: TextReader) -> Units:
        if "labels" not in rows.column_names:
            return WholeRows(rows)
        columns = ["labels", "references"]
        if training:
            return Windows(rows, columns)
        units = Merged(rows, SOURCE_KEY, columns) if self.group_sources else WholeRows(rows)
        return FirstApart(units, SAMPLES_KEPT, PROBE_ROWS, self.generate_rows or 0)

    def padding_side(
        self, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig
    ) -> Literal["left", "right"]:
        return "right"  # encoders with learned positions count them from the first column

    def collator(self, padding: Padding, spec: Spec) -> Collator:
        return TargetCollator(padding, self.max_target_length)

    # ---- the model ---------------------------------------------------------------------------------------------------

    def configure(self, model_config: PretrainedConfig, spec: Spec) -> None:
        require_decoder(model_config)
        check_lengths(model_config, self.max_target_length, f"{KEY}max_target_length")

    def prepare_model(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        ends = [] if tokenizer is None else [end_token(tokenizer)]
        set_generation(model, self.generation, ends)
        if tokenizer is not None and self.tgt_lang is not None:
            begin_in(model, tokenizer, self.tgt_lang)
        require_start(model)

    def forward(self, model: PreTrainedModel, batch: Batch) -> Written:
        shifted = {**batch, "decoder_input_ids": decoder_inputs(model, batch["labels"])}
        return Written(score_tokens(model, shifted, self.label_smoothing))

    def evaluate(self, model: PreTrainedModel, batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Written:
        """Scores of the targets, and texts for as many of the sources as are wanted."""
        outputs = self.forward(model, batch) if "labels" in batch else Written(None)
        rows = batch["aside"]["first_rows"][: self.num_written(batch)]
        if len(rows):
            inputs = {name: batch[name][rows] for name in ("input_ids", "attention_mask")}
            outputs.texts = write_texts(model, inputs, tokenizer)
            shown = inputs["input_ids"][:3]
            outputs.sources = [str(t) for t in tokenizer.batch_decode(shown, skip_special_tokens=True)]
        return outputs

    def num_written(self, batch: Batch) -> int:
        """For how many sources of a batch texts are written: the first ones, see ``units``."""
        stage, rows = batch.get("stage"), batch["example_ids"]
        if "labels" not in batch:
            return len(rows)
        limit = math.inf if self.generate_rows is None else self.generate_rows
        if not self.scored:
            limit = min(limit, SAMPLES_KEPT)
        elif stage in ("test", "probe"):
            limit = math.inf if stage == "test" else min(limit, PROBE_ROWS)
        return len([row for row in rows if row < limit])

    def samples(self, outputs: Written, batch: Batch) -> list[dict[str, str]]:
        rows = zip(outputs.sources, batch["aside"]["references"], outputs.texts, strict=False)
        return [{"source": source, "target": right[0], "written": text} for source, right, text in rows]

    def scores(self, outputs: Written) -> Tensor:
        assert outputs.scores is not None
        return outputs.scores.logits[:, :EXPORT_POSITIONS]

    # ---- loss, metrics, predictions ----------------------------------------------------------------------------------

    def loss(self, outputs: Written, batch: Batch, spec: Spec) -> tuple[Tensor, Tensor]:
        assert outputs.scores is not None
        return outputs.scores.parts

    def targets_per_row(self, spec: Spec) -> float:
        return 32.0

    def metric_names(self, spec: Spec) -> dict[str, bool]:
        written = {score: True for name in self.scored for score in SCORES[name]}
        return {"loss": False, "perplexity": False, "accuracy": True, **written}

    def primary_metric(self, spec: Spec) -> str:
        return "loss"

    def build_metrics(self, spec: Spec) -> MetricCollection:
        found: dict[str, Any] = {"tokens": GuessedTokens()}
        for name in self.scored:
            found[name] = RougeScores() if name == "rouge" else CorpusScore(name, self.bleu_tokenizer)
        return MetricCollection(found, compute_groups=False)

    def update_metrics(self, metrics: MetricCollection, outputs: Written, batch: Batch) -> None:
        scores = outputs.scores
        assert scores is not None
        metrics.update(
            loss_sum=scores.losses.sum(),
            num_right=(scores.is_right & (scores.labels >= 0)).sum(),
            num_tokens=(scores.labels >= 0).sum(),
            written=outputs.texts,
            references=batch["aside"]["references"][: len(outputs.texts)],
        )

    def decode(self, outputs: Written, batch: Batch, spec: Spec) -> list[dict[str, Any]]:
        """What is written for each source."""
        return [{"text": text} for text in outputs.texts]

    def report(self, metrics: dict[str, Any], spec: Spec) -> str:
        values = scalars(metrics)
        shown = [f"{name} {values[name]:.2%}" for name in (*ROUGE, "bleu", "chrf") if values.get(name) is not None]
        lines = [line.replace("%", "") for line in ["", f"to 100: {', '.join(shown)}"]] if shown else []
        return "\n".join([*totals(values, spec), *lines])


def refuse(max_target_length: int, generate_rows: int | None, label_smoothing: float, metrics: Sequence[str]) -> None:
    """Settings that cannot be.

    Raises:
        ConfigError: One of them.
    """
    wrong = [
        (max_target_length < 2, "max_target_length", max_target_length, "128"),
        (generate_rows is not None and generate_rows < 0, "generate_rows", generate_rows, "0 or more"),
        (not 0 <= label_smoothing < 1, "label_smoothing", label_smoothing, "0.1, a share below 1"),
        (not set(metrics) <= set(SCORES), "metrics", list(metrics), f"some of {', '.join(SCORES)}"),
    ]
    for applies, name, value, fix in wrong:
        if applies:
            raise ConfigError(f"{value} cannot be", where=f"{KEY}{name}", fix=fix)


USAGE = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID")
model = AutoModelForSeq2SeqLM.from_pretrained("PATH_OR_ID")
source = "PREFIXyour text"
texts = tokenizer([source], truncation=True, return_tensors="pt")
written = tokenizer.batch_decode(model.generate(**texts), skip_special_tokens=True)[0]"""
