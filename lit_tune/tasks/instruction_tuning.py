"""Instruction tuning (chat SFT): the assistant's answers in conversations.

Shapes: B blocks, T tokens, R conversations that are answered.
"""

from typing import Any, Literal

import datasets
from torchmetrics import MetricCollection
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_tune.data import conversations
from lit_tune.data.collators import Padding
from lit_tune.data.conversations import Columns, check_conversations, is_answered, is_supervised
from lit_tune.data.documents import IDS, IS_TARGET, TEXT_BYTES, Blocks
from lit_tune.data.prompt_collator import PromptCollator
from lit_tune.data.prompts import NUM_PROMPT, REFERENCE, TARGETS, AnsweredBlocks, Prompts, Supervised
from lit_tune.data.split import Split
from lit_tune.data.units import FirstApart, Units
from lit_tune.errors import ConfigError, DataError
from lit_tune.metrics.texts import Scorer, TextScores
from lit_tune.models.chat import Chat, Encoded, Rendered
from lit_tune.models.chat_templates import read_template, use_template
from lit_tune.models.generation import generation_settings, set_generation, write_texts
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.base import Batch, Collator, Features, Rows, Spec
from lit_tune.tasks.language_modeling import NextToken
from lit_tune.tasks.scorers import build_scorers
from lit_tune.tasks.token_scores import TokenScores

PROBLEM = "instruction_tuning"
KEY = "task.init_args."
SAMPLES = 3
"""Rows of val that are answered to be read."""


class InstructionTuning(NextToken):
    """Conversations, of which what the assistant says is learned, and nothing else.

    Each answer counts up to the token that closes it. Which tokens these are is found by rendering the conversation
    with and without it, so that any chat template works.

    Args:
        messages_column: Column with messages: ``{role: user, content: ...}``, or ``{from: human, value: ...}``.
        prompt_columns: Instead of it columns with what the user says, as ``[instruction, input]``; empty cells are
            left out. Of the first also lists of messages.
        completion_column: The answer to them.
        tools_column: Column with the functions that a model may call, for templates that show them.
        system_prompt: What the system says where a conversation does not begin with it.
        chat_template: ``plain``, ``alpaca`` or ``chatml``, or a file with a Jinja template; default: the tokenizer's
            own. It is saved with the model.
        template_options: What else the template reads, such as ``{enable_thinking: false}``.
        learn: All ``answers`` of a conversation, or its ``last_answer``.
        truncation: A conversation longer than ``data.max_length`` loses its ``end`` or its ``start``, or is left out
            (``drop``).
        on_unsupervised: Rows without an answer are an ``error``, or are left out and counted (``drop``).
        packing: Put several conversations into one row of ``data.max_length`` tokens, in which none sees another. Off
            for architectures that cannot do it, and for streams.
        generation: Settings of transformers' GenerationConfig for the answers that are written: ``max_new_tokens``
            (default 128), ``num_beams``, ``do_sample`` ...
        generate_rows: Rows of an evaluated split that the model answers; default: 3, to be read in the log, or all
            where there are scorers.
        scorers: What the answers written are scored by: ``exact_match``, or the class path of a callable that maps
            ``(written, reference)`` to a number.
        answer_pattern: Regular expression for the part of both texts that is scored: its last match, or the first group
            of it, as ``'#### (.+)'``.
    """

    input_key, label_key = "messages_column", "completion_column"
    needs_offsets = True

    def __init__(
        self,
        messages_column: str = "messages",
        prompt_columns: list[str] | None = None,
        completion_column: str = "completion",
        tools_column: str | None = None,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        template_options: dict[str, Any] | None = None,
        learn: Literal["answers", "last_answer"] = "answers",
        truncation: Literal["end", "start", "drop"] = "end",
        on_unsupervised: Literal["error", "drop"] = "error",
        packing: bool = True,
        generation: dict[str, Any] | None = None,
        generate_rows: int | None = None,
        scorers: list[str | dict[str, Any]] | None = None,
        answer_pattern: str | None = None,
    ) -> None:
        super().__init__(packing)
        if prompt_columns == []:
            raise ConfigError("names no column", where=f"{KEY}prompt_columns", fix="[instruction, input]")
        if generate_rows is not None and generate_rows < 0:
            raise ConfigError("is a number of rows", where=f"{KEY}generate_rows", fix="0 or more")
        self.columns = Columns(messages_column, prompt_columns, completion_column, tools_column, system_prompt)
        self.chat_template, self.template_options = chat_template, dict(template_options or {})
        self.template = read_template(chat_template) if chat_template is not None else None
        self.learn, self.truncation, self.on_unsupervised = learn, truncation, on_unsupervised
        self.generation = generation_settings(generation, f"{KEY}generation", max_new_tokens=128)
        self.scorers: dict[str, Scorer] = build_scorers(scorers or [], answer_pattern, KEY)
        self.generate_rows = generate_rows

    def settings(self) -> dict[str, Any]:
        return {
            "columns": vars(self.columns),
            "template": self.template,
            "template_options": self.template_options,
            "learn": self.learn,
            "truncation": self.truncation,
        }

    def input_columns(self) -> tuple[str, ...]:
        return self.columns.inputs

    def verbatim_columns(self) -> tuple[str, ...]:
        return tuple(self.columns.keys)

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        use_template(tokenizer, self.chat_template)

    def prepare_model(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        super().prepare_model(model, tokenizer)
        ends = [] if tokenizer is None else Chat(tokenizer, self.template_options).end_tokens
        set_generation(model, self.generation, ends)

    # ---- conversations -----------------------------------------------------------------------------------------------

    def inspect(self, train: Split, model_config: PretrainedConfig | None, new_head: bool) -> Spec:
        self.columns.require(train, labelled=True)
        return Spec(PROBLEM, unit="token")

    def spec_of_model(self, model_config: PretrainedConfig) -> Spec:
        return Spec(PROBLEM, unit="token")

    def check(self, split: Split, spec: Spec, labelled: bool = True) -> None:
        self.columns.require(split, labelled)
        check_conversations(split, self.columns, labelled, self.on_unsupervised == "drop")

    def is_unlabelled(self, split: Split, spec: Spec) -> bool:
        if self.columns.prompts and self.columns.completion not in split.column_names:
            return True
        try:
            return not any(is_supervised(self.columns.read(row)) for row in conversations.rows_of(split, self.columns))
        except (ValueError, KeyError):
            return False  # ``check`` says what is wrong

    def without_labels(self, split: Split) -> Split:
        return split  # an answer is the reference of the one that is written

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, spec: Spec, max_length: int) -> Features:
        chat = Chat(tokenizer, self.template_options)
        count = len(next(iter(rows.values())))
        cells = [{name: values[i] for name, values in rows.items()} for i in range(count)]
        found = [(self.columns.read(row), self.columns.tools_of(row)) for row in cells]
        rendered = [self.rendered(chat, *one) for one in found]
        encoded = chat.encode(rendered)
        kept = [self.cut(one, max_length) for one in encoded]
        targets = [sum(one.is_target[1:]) for one in kept]
        return {
            IDS: [one.ids for one in kept],
            IS_TARGET: [one.is_target for one in kept],
            TEXT_BYTES: [one.answer_bytes for one in rendered],
            NUM_PROMPT: [one.num_prompt for one in kept],
            TARGETS: targets,
            REFERENCE: [str(c[-1].get("content") or "") if is_answered(c) else "" for c, _ in found],
            "num_tokens": [len(one.ids) for one in encoded],
            "num_target_tokens": targets,
            "num_rows_without_target": [int(not count) for count in targets],
        }

    def rendered(self, chat: Chat, messages: conversations.Conversation, tools: Any) -> Rendered:
        """A conversation as text.

        Raises:
            DataError: The chat template cannot be used for it.
        """
        try:
            return chat.answers(messages, tools, last_only=self.learn == "last_answer")
        except ValueError as reason:
            said = str(messages[0].get("content"))[:60]
            raise DataError(
                f"{reason} (the conversation that begins with {said!r})",
                where=f"{KEY}chat_template",
                fix="roles as the template wants them, another chat_template, or drop these rows",
            ) from reason

    def cut(self, one: Encoded, max_length: int) -> Encoded:
        """At most so many tokens. A prompt as long as that keeps its end, for the answer that follows it."""
        over = len(one.ids) - max_length
        if over <= 0:
            return one
        if self.truncation == "drop" or one.num_prompt >= max_length:
            prompt = one.ids[: one.num_prompt][-(max_length - 1) :]
            return Encoded(prompt, [0] * len(prompt), len(prompt))
        if self.truncation == "start":
            return Encoded(one.ids[over:], one.is_target[over:], max(1, one.num_prompt - over))
        return Encoded(one.ids[:max_length], one.is_target[:max_length], one.num_prompt)

    # ---- blocks and prompts ------------------------------------------------------------------------------------------

    def units(self, rows: datasets.Dataset, training: bool, reader: TextReader) -> Units:
        packing = self.packs(reader)
        if not training:
            answered = self.num_answered(len(rows))
            return FirstApart(AnsweredBlocks(rows, reader.max_length, packing, answered), SAMPLES, answered)
        blocks = Blocks(Supervised(rows), reader.max_length, packing)
        if not len(blocks):
            raise DataError(
                f"no answer of train stands within the first {reader.max_length} tokens",
                where="data.max_length",
                fix="a larger data.max_length",
            )
        return blocks

    def num_answered(self, num_rows: int) -> int:
        """How many rows of an evaluated split the model answers."""
        default = num_rows if self.scorers else SAMPLES
        return min(num_rows, default if self.generate_rows is None else self.generate_rows)

    def predict_units(self, rows: datasets.Dataset, reader: TextReader) -> Units:
        return Prompts(rows)

    def collator(self, padding: Padding, spec: Spec) -> Collator:
        return PromptCollator(padding)

    # ---- answers -----------------------------------------------------------------------------------------------------

    def evaluate(self, model: PreTrainedModel, batch: Batch, tokenizer: PreTrainedTokenizerBase) -> TokenScores:
        outputs = self.forward(model, batch) if "labels" in batch else TokenScores.none()
        if prompts := batch["aside"].get("prompts"):
            outputs.written = write_texts(model, prompts, tokenizer)
            outputs.prompts = tokenizer.batch_decode(prompts[IDS], skip_special_tokens=True)
        return outputs

    def samples(self, outputs: TokenScores, batch: Batch) -> list[dict[str, str]]:
        rows = zip(outputs.prompts, outputs.written, batch["aside"].get("references", []), strict=True)
        return [{"prompt": prompt, "written": text, "reference": answer} for prompt, text, answer in rows]

    def metric_names(self, spec: Spec) -> dict[str, bool]:
        return {**super().metric_names(spec), **dict.fromkeys(self.scorers, True)}

    def build_metrics(self, spec: Spec) -> MetricCollection:
        metrics = super().build_metrics(spec)
        if self.scorers:
            metrics.add_metrics({"texts": TextScores(self.scorers)})
        return metrics

    def update_metrics(self, metrics: MetricCollection, outputs: TokenScores, batch: Batch) -> None:
        super().update_metrics(metrics, outputs, batch)
        if self.scorers and outputs.written:
            texts: Any = metrics["texts"]
            texts.update(outputs.written, batch["aside"]["references"])

    def decode(self, outputs: TokenScores, batch: Batch, spec: Spec) -> list[dict[str, Any]]:
        """The answer to each conversation."""
        return [{"text": text} for text in outputs.written]
