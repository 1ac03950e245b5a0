"""Multiple choice: which of a question's answers, or of a text's continuations, is the right one.

Shapes: B questions, C choices of the question that has the most, N choices of all questions, T tokens.
"""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModelForMultipleChoice, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_tune import losses
from lit_tune.data import checks, labels
from lit_tune.data.choices import Choices, of_columns, read_choices, require_choices, require_positions
from lit_tune.data.collators import ChoiceCollator, Padding
from lit_tune.data.places import Locate
from lit_tune.data.split import Split
from lit_tune.data.texts import read_texts
from lit_tune.errors import ConfigError, LitTuneError, collected, raise_problems
from lit_tune.metrics import RatioMetric
from lit_tune.tasks.base import BOOKKEEPING, Batch, Collator, Features, Rows, Spec, Task
from lit_tune.tasks.classification_report import report_text
from lit_tune.tasks.encoding import class_labels, name_of
from lit_tune.tasks.text_pairs import encode_pairs

PROBLEM = "multiple_choice"


class MultipleChoice(Task):
    """Which of the choices is right; each question may have another number of them, two or more.

    The model reads each choice behind its question and gives it one score. A batch size counts questions: one of 16
    with four choices each is 64 texts to the model.

    Args:
        question_column: Column with the question, or with the beginning that a choice continues.
        context_column: Column with a text that the question is about. It is read first, and then question and choice
            as one text.
        choices_column: Column with the choices: a list of texts, or ``{text: [...], label: [...]}`` where each has a
            name.
        choice_columns: Instead of it columns with a choice each, as ``[ending0, ending1, ending2, ending3]``. Empty
            cells at the end are choices that the row does not have.
        label_column: Column with the right choice: its name, its position from 0, its letter, or its text.
    """

    auto_class = AutoModelForMultipleChoice
    pipeline, has_pipeline = "multiple-choice", False
    usage = """\
from transformers import AutoModelForMultipleChoice, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID")
model = AutoModelForMultipleChoice.from_pretrained("PATH_OR_ID")
question, choices = "He opened the umbrella because", ["it rained.", "it was Monday."]
texts = tokenizer([question] * len(choices), choices, padding=True, return_tensors="pt")
scores = model(**{name: value[None] for name, value in texts.items()}).logits[0]"""
    input_key = "question_column"

    def __init__(
        self,
        question_column: str = "question",
        context_column: str | None = None,
        choices_column: str = "choices",
        choice_columns: list[str] | None = None,
        label_column: str = "label",
    ) -> None:
        if choice_columns is not None and len(choice_columns) < 2:
            raise ConfigError(
                "needs at least two columns", where="task.init_args.choice_columns", fix="[ending0, ending1]"
            )
        self.question_column, self.context_column = question_column, context_column
        self.choices_column, self.choice_columns, self.label_column = choices_column, choice_columns, label_column

    def settings(self) -> dict[str, Any]:
        return {
            "question_column": self.question_column,
            "context_column": self.context_column,
            "choices_column": self.choices_column,
            "choice_columns": self.choice_columns,
            "label_column": self.label_column,
        }

    def keys(self) -> dict[str, str]:
        """Column with text -> config key that names it."""
        found = {self.context_column: "context_column"} if self.context_column else {}
        found[self.question_column] = "question_column"
        if self.choice_columns:
            found |= dict.fromkeys(self.choice_columns, "choice_columns")
        else:
            found[self.choices_column] = "choices_column"
        return {column: f"task.init_args.{key}" for column, key in found.items()}

    def input_columns(self) -> tuple[str, ...]:
        return tuple(self.keys())

    # ---- reading choices and labels ----------------------------------------------------------------------------------

    def inspect(self, train: Split, model_config: PretrainedConfig | None, new_head: bool) -> Spec:
        self.require(train, labelled=True)
        return Spec(PROBLEM)  # one score for each choice, however many there are

    def spec_of_model(self, model_config: PretrainedConfig) -> Spec:
        return Spec(PROBLEM)

    def require(self, split: Split, labelled: bool) -> None:
        """Demand the columns."""
        keys = self.keys()
        if labelled:
            keys[self.label_column] = "task.init_args.label_column"
        checks.require_columns(split.column_names, list(keys), where=split.title, keys=keys)

    def check(self, split: Split, spec: Spec, labelled: bool = True) -> None:
        self.require(split, labelled)
        problems: list[LitTuneError] = []
        for column in (self.context_column, self.question_column):
            if column:
                with collected(problems):
                    read_texts(split, column, self.keys()[column])
        with collected(problems):
            choices = self.choices_of(split)
            if labelled:
                self.positions_of(split, choices)
        raise_problems(problems)

    def choices_of(self, split: Split) -> list[Choices]:
        """The choices of every row."""
        key = "choice_columns" if self.choice_columns else "choices_column"
        fix = f"two or more texts in each row; or another column as task.init_args.{key}"
        columns = self.choice_columns or [self.choices_column]
        return require_choices(self.cells({name: split.column(name) for name in columns}), split.locate, fix)

    def cells(self, rows: Rows) -> list[Any]:
        """What stands for the choices in each row."""
        if not self.choice_columns:
            return rows[self.choices_column]
        return [of_columns(cells) for cells in zip(*(rows[name] for name in self.choice_columns), strict=True)]

    def positions_of(self, split: Split, choices: list[Choices]) -> np.ndarray:
        """(N,) which choice is right in each row."""
        names = class_labels(split).get(self.label_column, [])
        column = split.distinct(self.label_column)
        named = [name_of(value, names) for value in column.values] if names else column.values
        return self.positions([named[code] for code in column.codes.tolist()], choices, split.locate)

    def positions(self, values: list[Any], choices: list[Choices], locate: Locate) -> np.ndarray:
        """Labels as they stand in the file -> (N,) positions."""
        return require_positions(values, choices, locate, self.label_column)

    def is_unlabelled(self, split: Split, spec: Spec) -> bool:
        return self.label_column not in split.column_names or labels.is_unlabelled(split.distinct(self.label_column))

    def without_labels(self, split: Split) -> Split:
        if self.label_column not in split.column_names:
            return split
        return replace(split, rows=split.rows.remove_columns(self.label_column))

    def strata(self, split: Split, spec: Spec) -> np.ndarray | None:
        return None  # a model that scores each choice by itself does not know which comes first

    def summarize(self, train: Split, spec: Spec) -> Spec:
        choices = self.choices_of(train)
        counts, right = np.array([len(c) for c in choices]), self.positions_of(train, choices)
        accuracy, commonest = float((1 / counts).mean()), float(np.bincount(right).max() / len(right))
        if commonest < 1:  # where all are the first, as in files made by hand, the model still has all to learn
            accuracy = max(accuracy, commonest)
        baseline = {"accuracy": accuracy, "loss": float(np.log(counts).mean())}
        return replace(spec, num_rows=len(train), baseline=baseline)

    # ---- rows to tensors ---------------------------------------------------------------------------------------------

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: Spec, max_length: int) -> Features:
        choices = [read_choices(cell) for cell in self.cells(rows)]
        questions = rows[self.question_column]
        if self.context_column:
            context = rows[self.context_column]
            first = [text for text, those in zip(context, choices, strict=True) for _ in those.texts]
            second = [f"{q} {text}" for q, those in zip(questions, choices, strict=True) for text in those.texts]
        else:
            first = [q for q, those in zip(questions, choices, strict=True) for _ in those.texts]
            second = [text for those in choices for text in those.texts]
        pairs, num_tokens = encode_pairs(first, second, tokenizer, max_length)
        ends = np.cumsum([len(those) for those in choices]).tolist()
        parts = [slice(end - len(those), end) for end, those in zip(ends, choices, strict=True)]
        features: Features = {name: [values[part] for part in parts] for name, values in pairs.items()}
        features["num_tokens"] = [max(num_tokens[part]) for part in parts]
        features["num_choices"] = [len(those) for those in choices]
        features["num_cut_choices"] = [sum(n > max_length for n in num_tokens[part]) for part in parts]
        if self.label_column in rows:
            found = self.positions(rows[self.label_column], choices, lambda i: f"row {i + 1} of the batch")
            return {**features, "labels": found.tolist()}
        names = [those.names or [str(i) for i in range(len(those))] for those in choices]
        return {**features, "choices": [those.texts for those in choices], "names": names}

    def padding_side(
        self, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig
    ) -> Literal["left", "right"]:
        return "left" if model_config.model_type == "xlnet" else "right"  # as for SequenceClassification

    def collator(self, padding: Padding, spec: Spec) -> Collator:
        return ChoiceCollator(padding)

    # ---- loss, metrics, predictions ----------------------------------------------------------------------------------

    def forward(self, model: PreTrainedModel, batch: Batch) -> Any:
        """Run the model on one "question" of N choices: these models ask for as many choices in each."""
        return model(**{name: value[None] for name, value in batch.items() if name not in BOOKKEEPING})

    def loss(self, outputs: Any, batch: Batch, spec: Spec) -> tuple[Tensor, Tensor]:
        return losses.cross_entropy(by_question(outputs.logits, batch["aside"]["choice_rows"]), batch["labels"])

    def metric_names(self, spec: Spec) -> dict[str, bool]:
        return {"loss": False, "accuracy": True}

    def primary_metric(self, spec: Spec) -> str:
        return "accuracy"

    def build_metrics(self, spec: Spec) -> MetricCollection:
        return MetricCollection({"accuracy": RatioMetric()}, compute_groups=False)

    def update_metrics(self, metrics: MetricCollection, outputs: Any, batch: Batch) -> None:
        best = by_question(outputs.logits, batch["aside"]["choice_rows"]).argmax(-1)
        right = best == batch["labels"]
        metrics.update(right.sum(), torch.tensor(len(right), device=right.device))

    def decode(self, outputs: Any, batch: Batch, spec: Spec) -> list[dict[str, Any]]:
        """The chosen position, its name (without names the position), its text, and the probability of each choice."""
        aside = batch["aside"]
        probabilities = by_question(outputs.logits, aside["choice_rows"]).float().softmax(-1).cpu()
        best = probabilities.argmax(-1).tolist()
        rows = zip(best, aside["names"], aside["choices"], probabilities.tolist(), strict=True)
        return [
            {"choice": chosen, "label": names[chosen], "text": texts[chosen], "scores": scores[: len(texts)]}
            for chosen, names, texts, scores in rows
        ]

    def report(self, metrics: dict[str, Any], spec: Spec) -> str:
        return report_text(metrics, spec)


def by_question(logits: Tensor, choice_rows: Tensor) -> Tensor:
    """Scores of all choices (1, N) -> (B, C), minus infinity where a question has fewer.

    >>> by_question(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), torch.tensor([[0, 1, -1], [2, 3, 4]])).tolist()
    [[1.0, 2.0, -inf], [3.0, 4.0, 5.0]]
    """
    picked = logits.flatten()[choice_rows.clamp(min=0)]
    return torch.where(choice_rows >= 0, picked, -torch.inf)
