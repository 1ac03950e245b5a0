"""Extractive question answering: which piece of a context answers a question, if any.

Shapes: B questions, W windows of their contexts, T tokens.
"""

import logging
from dataclasses import replace
from typing import Any, Literal

import datasets
import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModelForQuestionAnswering, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_tune import losses
from lit_tune.data import checks
from lit_tune.data.answer_checks import AnswersSeen, answer_problems, look_at_answers, placed
from lit_tune.data.answers import AnswerColumns
from lit_tune.data.collators import Padding, WindowCollator
from lit_tune.data.split import Split
from lit_tune.data.squad_files import ANSWERS, CONTEXT, ID, QUESTION, START
from lit_tune.data.texts import read_texts, text_hashes
from lit_tune.data.units import Units, WholeRows, Windows
from lit_tune.errors import ConfigError, DataError, LitTuneError, collected, raise_problems
from lit_tune.metrics.answers import AnswerScores, answer_metric_names
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.answer_report import answer_report
from lit_tune.tasks.answer_spans import Found, SpanLogits, find_answers
from lit_tune.tasks.answer_windows import answer_places, tokenize_windows
from lit_tune.tasks.base import BOOKKEEPING, Batch, Collator, Features, Rows, Spec, Task

log = logging.getLogger("lit_tune")
ALWAYS, SOMETIMES = "question_answering", "question_answering_or_none"
"""Problem types: every question has an answer in its context, or some have none."""
TRAINED_ON = ("input_ids", "token_type_ids", "start_positions", "end_positions")
"""Features of windows that a step of training reads; a row's context is not loaded for it."""
CONFIG_FLAG = "handle_impossible_answer"
"""Where a model's config keeps that questions may have no answer."""


class QuestionAnswering(Task):
    """The piece of a context that answers a question (SQuAD).

    Args:
        question_column: Column with the question.
        context_column: Column with the text that is searched.
        answers_column: Column with the answers, ``{text: [...], answer_start: [...]}``; empty lists for no answer.
        answer_text_column: Column with the text of the one answer, blank where there is none; instead of
            ``answers_column``.
        answer_start_column: Beside it: the number of the character of the context that the answer begins with.
        stride: Tokens that neighbouring windows of a long context share; default: 128, or a third of
            ``data.max_length`` where that is less.
        allow_no_answer: Whether questions may have no answer (SQuAD 2.0). ``auto`` reads it off train; needed for
            streams.
        null_score_threshold: "No answer" is predicted where its score is by more than this above that of the best
            answer (sums of two logits).
        on_misaligned: An answer that does not stand where it says is an ``error``; or ``fix`` takes the nearest place
            of the same text, and rows without one are dropped; or ``drop`` drops all such rows.
        n_best: Pieces of a window that are compared.
        max_answer_length: Tokens of a predicted answer at most.
    """

    auto_class = AutoModelForQuestionAnswering
    pipeline = "question-answering"
    has_pipeline = False  # removed from transformers in version 5
    usage = """\
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID")
model = AutoModelForQuestionAnswering.from_pretrained("PATH_OR_ID")
text = tokenizer("Who wrote it?", "It was written by Ada in 1843.", return_tensors="pt")
scores = model(**text)
start, end = int(scores.start_logits.argmax()), int(scores.end_logits.argmax())
answer = tokenizer.decode(text["input_ids"][0, start : end + 1])"""
    input_key, label_key = "context_column", "answers_column"
    usual_max_length = 384
    needs_offsets = True

    def __init__(
        self,
        question_column: str = QUESTION,
        context_column: str = CONTEXT,
        answers_column: str = ANSWERS,
        answer_text_column: str | None = None,
        answer_start_column: str = START,
        stride: int | None = None,
        allow_no_answer: bool | Literal["auto"] = "auto",
        null_score_threshold: float = 0.0,
        on_misaligned: Literal["error", "fix", "drop"] = "error",
        n_best: int = 20,
        max_answer_length: int = 30,
    ) -> None:
        for name, value in (("n_best", n_best), ("max_answer_length", max_answer_length)):
            if value < 1:
                raise ConfigError(f"{value} is less than 1", where=f"task.init_args.{name}", fix="1 or more")
        self.question_column, self.context_column, self.answers_column = question_column, context_column, answers_column
        self.answer_text_column, self.answer_start_column = answer_text_column, answer_start_column
        self.stride, self.allow_no_answer, self.null_score_threshold = stride, allow_no_answer, null_score_threshold
        self.on_misaligned, self.n_best, self.max_answer_length = on_misaligned, n_best, max_answer_length

    def settings(self) -> dict[str, Any]:
        names = ("question_column", "context_column", "answers_column", "answer_text_column", "answer_start_column")
        decided = ("stride", "allow_no_answer", "on_misaligned", "max_answer_length")
        return {name: getattr(self, name) for name in (*names, *decided)}

    def input_columns(self) -> tuple[str, ...]:
        return (self.question_column, self.context_column)

    @property
    def answer_columns(self) -> AnswerColumns:
        """Where the answers are."""
        return AnswerColumns(self.answers_column, self.answer_text_column, self.answer_start_column)

    # ---- reading questions and answers -------------------------------------------------------------------------------

    def inspect(self, train: Split, model_config: PretrainedConfig | None, new_head: bool) -> Spec:
        self.require(train, labelled=True)
        if train.is_streamed:
            if self.allow_no_answer == "auto":
                what = "a stream cannot be read to the end to find out whether each question has an answer"
                raise ConfigError(what, where="task.init_args.allow_no_answer", fix="true or false")
            if self.on_misaligned == "drop":
                what = "rows of a stream cannot be dropped"
                raise ConfigError(what, where="task.init_args.on_misaligned", fix="error or fix, or mend the file")
        allowed = self.allow_no_answer
        if allowed == "auto":
            allowed = not self.is_answerable(train).all()
        spec = Spec(SOMETIMES if allowed else ALWAYS)
        self.check_settings(spec)
        return spec

    def check_settings(self, spec: Spec) -> None:
        if self.null_score_threshold and not may_have_none(spec):
            raise ConfigError(
                "has no effect where every question has an answer",
                where="task.init_args.null_score_threshold",
                fix="leave it out, or task.init_args.allow_no_answer: true",
            )

    def spec_of_model(self, model_config: PretrainedConfig) -> Spec:
        allowed = self.allow_no_answer
        return Spec(
            SOMETIMES if (getattr(model_config, CONFIG_FLAG, False) if allowed == "auto" else allowed) else ALWAYS
        )

    def require(self, split: Split, labelled: bool) -> None:
        """Demand the columns."""
        keys = {name: f"task.init_args.{name}_column" for name in ("question", "context")}
        keys = {self.question_column: keys["question"], self.context_column: keys["context"]}
        if labelled and self.answer_text_column is None:
            keys[self.answers_column] = "task.init_args.answers_column (or answer_text_column)"
        elif labelled:
            keys |= {n: f"task.init_args.{k}" for n, k in zip(self.answer_columns.names, FLAT_KEYS, strict=True)}
        checks.require_columns(split.column_names, list(keys), where=split.title, keys=keys)

    def seen(self, split: Split) -> AnswersSeen:
        """The answers of a split."""
        return look_at_answers(split, self.answer_columns, self.context_column)

    def is_answerable(self, split: Split) -> np.ndarray:
        """(N,) bool: the question has an answer."""
        if split.whole is not None and split.picks is not None:
            return self.is_answerable(split.whole)[split.picks]
        return self.seen(split).is_answerable

    def check(self, split: Split, spec: Spec, labelled: bool = True) -> None:
        self.require(split, labelled)
        problems: list[LitTuneError] = []
        for column in self.input_columns():
            with collected(problems):
                read_texts(split, column)
        if labelled:
            problems += answer_problems(self.seen(split), split, may_have_none(spec), self.on_misaligned)
        raise_problems(problems)

    def usable(self, split: Split, spec: Spec) -> Split:
        if self.on_misaligned == "error":
            return split
        found = self.seen(split)
        if not found.misaligned:
            return split
        dropped = found.unusable if self.on_misaligned == "fix" else list(found.misaligned)
        what = f"{split.name}: {len(found.misaligned):,} rows with misaligned answers, {len(dropped):,} of them dropped"
        log.warning("%s%s", what, "; the others take the nearest place" if self.on_misaligned == "fix" else "")
        kept = np.setdiff1d(np.arange(len(split)), dropped)
        if not len(kept):
            raise DataError("no row is left", where=split.title, fix="answers that stand in their contexts")
        return split.select(kept) if dropped else split

    def is_unlabelled(self, split: Split, spec: Spec) -> bool:
        if not set(self.answer_columns.names) <= set(split.column_names):
            return True
        found = self.seen(split)
        return not found.bad and not found.is_answerable.any()

    def without_labels(self, split: Split) -> Split:
        there = [name for name in self.answer_columns.names if name in split.column_names]
        return replace(split, rows=split.rows.remove_columns(there)) if there else split

    def strata(self, split: Split, spec: Spec) -> np.ndarray | None:
        return self.is_answerable(split).astype(np.int64) if may_have_none(spec) else None

    def groups(self, split: Split) -> np.ndarray | None:
        return text_hashes(split, [self.context_column])  # else val asks about texts that were trained on

    def summarize(self, train: Split, spec: Spec) -> Spec:
        without = float((~self.is_answerable(train)).mean())
        if without == 1.0:
            raise DataError(
                "no question of train has an answer: there is nothing to learn", where=train.title, fix="data with some"
            )
        baseline = dict.fromkeys(("exact_match", "f1"), without)  # of who never answers
        if may_have_none(spec):
            baseline |= {"exact_match/answerable": 0.0, "f1/answerable": 0.0, "accuracy/unanswerable": 1.0}
        return replace(spec, num_rows=len(train), baseline=baseline)

    # ---- rows to tensors ---------------------------------------------------------------------------------------------

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: Spec, max_length: int) -> Features:
        contexts = rows[self.context_column]
        windows = tokenize_windows(rows[self.question_column], contexts, tokenizer, max_length, self.stride)
        features: Features = {**windows, "context": contexts}
        if ID in rows and all(isinstance(name, str) for name in rows[ID]):
            features["id"] = rows[ID]
        names = self.answer_columns.names
        if not set(names) <= rows.keys():
            return features
        labels: Features = {"start_positions": [], "end_positions": [], "num_unreachable_answers": [], "answer": []}
        for i, context in enumerate(contexts):
            answers = self.answer_columns.of({name: rows[name][i] for name in names})
            places, is_unreachable = self.labels_of(windows, i, answers, context)
            labels["start_positions"].append([first for first, _ in places])
            labels["end_positions"].append([last for _, last in places])
            labels["num_unreachable_answers"].append(int(is_unreachable))
            labels["answer"].append([answer.text for answer in answers])
        return {**features, **labels}

    def labels_of(
        self, windows: Features, row: int, answers: list[Any], context: str
    ) -> tuple[list[tuple[int, int]], bool]:
        """First and last token of a row's first answer in each window; whether it is one that cannot be predicted.

        Raises:
            DataError: The context has none of the answers: a row of a stream that nobody has looked at.
        """
        parts = ("input_ids", "context_begins", "char_starts", "char_ends", "null_places")
        own = [dict(zip(parts, values, strict=True)) for values in zip(*(windows[p][row] for p in parts), strict=True)]
        nulls = [(window["null_places"],) * 2 for window in own]
        if not answers:
            return nulls, False
        answer = placed(answers, context)
        if answer is None:
            what = f"the context does not have the answer {answers[0].text[:60]!r}"
            raise DataError(what, where="data.train", fix="correct or drop this row")
        answer = answer.stripped()
        places = [answer_places(window, answer.start, answer.end) for window in own]
        lengths = [last - first + 1 for (first, last), null in zip(places, nulls, strict=True) if (first, last) != null]
        return places, not lengths or min(lengths) > self.max_answer_length

    def units(self, rows: datasets.Dataset, training: bool, reader: TextReader) -> Units:
        if not training:
            return WholeRows(rows)
        read = [name for name in TRAINED_ON if name in rows.column_names]
        return Windows(rows.select_columns(read), read)

    def padding_side(
        self, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig
    ) -> Literal["left", "right"]:
        return "right"  # positions are counted from the first column: padding there would change what is predicted

    def collator(self, padding: Padding, spec: Spec) -> Collator:
        return WindowCollator(padding)

    def configure(self, model_config: PretrainedConfig, spec: Spec) -> None:
        # two logits for each token, however many classes the model had before
        model_config.id2label, model_config.label2id = {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}
        setattr(model_config, CONFIG_FLAG, may_have_none(spec))

    # ---- loss, metrics, predictions ----------------------------------------------------------------------------------

    def forward(self, model: PreTrainedModel, batch: Batch) -> SpanLogits:
        """As many windows at once as the batch has rows: a long context takes no more memory than many short ones."""
        inputs = {name: value for name, value in batch.items() if name not in BOOKKEEPING}
        count, width = inputs["input_ids"].shape
        at_once = len(batch.get("example_ids", ())) or count
        starts, ends = [], []
        for begin in range(0, count, at_once):
            outputs = model(**{name: value[begin : begin + at_once] for name, value in inputs.items()})
            starts.append(outputs.start_logits[:, -width:])  # prompt tuning puts tokens in front
            ends.append(outputs.end_logits[:, -width:])
        return SpanLogits(torch.cat(starts), torch.cat(ends))

    def scores(self, outputs: Any) -> Tensor:
        return torch.stack([outputs.start, outputs.end])

    def loss(self, outputs: Any, batch: Batch, spec: Spec) -> tuple[Tensor, Tensor]:
        """Half the cross-entropy of the first token and half that of the last, over windows.

        Over all tokens of a window as in transformers, but not over padding, whose width depends on the batch.
        """
        is_padding = batch["attention_mask"] == 0
        parts = [
            losses.cross_entropy(logits.masked_fill(is_padding, -torch.inf), places)
            for logits, places in zip((outputs.start, outputs.end), batch["labels"].unbind(1), strict=True)
        ]
        return (parts[0][0] + parts[1][0]) / 2, parts[0][1]

    def metric_names(self, spec: Spec) -> dict[str, bool]:
        return {"loss": False} | dict.fromkeys(answer_metric_names(may_have_none(spec)), True)

    def primary_metric(self, spec: Spec) -> str:
        return "f1"

    def build_metrics(self, spec: Spec) -> MetricCollection:
        return MetricCollection({"answers": AnswerScores(may_have_none(spec))}, compute_groups=False)

    def update_metrics(self, metrics: MetricCollection, outputs: Any, batch: Batch) -> None:
        aside = batch["aside"]
        found = find_answers(outputs, aside, 1, self.max_answer_length)
        scorer: Any = metrics["answers"]
        with_none = scorer.with_no_answer
        texts = [self.record(f, c, with_none)["answer"] for f, c in zip(found, aside["contexts"], strict=True)]
        metrics.update(texts, aside["answers"])

    def decode(self, outputs: Any, batch: Batch, spec: Spec) -> list[dict[str, Any]]:
        """The answer, its characters in the context (-1 for no answer) and probability among the alternatives."""
        aside = batch["aside"]
        found = find_answers(outputs, aside, self.n_best, self.max_answer_length)
        records = [self.record(f, c, may_have_none(spec)) for f, c in zip(found, aside["contexts"], strict=True)]
        names = aside.get("ids")
        return [{"id": n, **r} for n, r in zip(names, records, strict=True)] if names else records

    def record(self, found: Found, context: str, with_none: bool) -> dict[str, Any]:
        """What is predicted for a question."""
        return found.record(context, self.null_score_threshold if with_none else None)

    def report(self, metrics: dict[str, Any], spec: Spec) -> str:
        return answer_report(metrics, spec)


FLAT_KEYS = ("answer_text_column", "answer_start_column")


def may_have_none(spec: Spec) -> bool:
    """Whether a question may have no answer."""
    return spec.problem_type == SOMETIMES
