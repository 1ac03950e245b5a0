"""Conversations as a model reads them, and exactly which tokens of them it is to write.

A chat template says nothing of where an answer begins and ends, and few mark it. It is found by rendering. The text of
``messages[:i]`` with the generation prompt is what the model is given when it has to write message ``i``: all that
follows is its to write. The same conversation with another text in place of the message ends alike: what it has in
common with the real one at the end is not the message's. To the message belongs the special token that closes it, and
no more.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

STAND_IN = "\ue0c4\ue0c4"
"""A text that no conversation has: private characters of Unicode."""

Message = dict[str, Any]
Span = tuple[int, int]


class Rendered(NamedTuple):
    """A conversation as text.

    Args:
        text: What the model reads.
        answers: First character of each answer that is to be learned, and the one after its last.
        is_answered: It ends with an answer; else with what begins the next one.
    """

    text: str
    answers: list[Span]
    is_answered: bool

    @property
    def answer_bytes(self) -> int:
        """Of the answers, as UTF-8."""
        return sum(len(self.text[start:end].encode("utf-8", "surrogatepass")) for start, end in self.answers)


class Encoded(NamedTuple):
    """A conversation as tokens.

    Args:
        ids: (T,) up to the end of the last answer; or all, where an answer is to follow.
        is_target: (T,) 1 where a token is the model's to write.
        num_prompt: Tokens before the last answer, or before the one that is to follow.
    """

    ids: list[int]
    is_target: list[int]
    num_prompt: int


class Chat:
    """A tokenizer and its chat template.

    Args:
        tokenizer: Fast, with a template.
        options: What the template is given besides the messages, such as ``enable_thinking``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any] | None = None) -> None:
        self.tokenizer, self.options = tokenizer, dict(options or {})

    def render(self, messages: Sequence[Message], tools: Any = None, prompt: bool = False) -> str:
        """The text of some messages.

        Args:
            messages: With ``role`` and ``content``.
            tools: Functions the model may call.
            prompt: Begin the next answer.

        Raises:
            ValueError: The template refuses them; the message says why.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tools=tools, tokenize=False, add_generation_prompt=prompt, **self.options
            )
        except (TemplateError, TypeError, KeyError, AttributeError) as error:
            reason = str(error).splitlines() or [type(error).__name__]
            raise ValueError(f"the chat template refuses it: {reason[0][:160]}") from error
        assert isinstance(text, str)
        return text

    @cached_property
    def special(self) -> tuple[str, ...]:
        """Special tokens as text, the longest first; not the one that begins a text."""
        added = self.tokenizer.added_tokens_decoder.values()
        tokens = {token.content for token in added if token.special} | {*self.tokenizer.all_special_tokens}
        begins = {self.tokenizer.bos_token} - {self.tokenizer.eos_token}
        return tuple(sorted(tokens - begins, key=len, reverse=True))

    @cached_property
    def closing(self) -> str:
        """What the template closes an answer with, up to a special token; empty where there is none."""
        try:
            text = self.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": STAND_IN}])
        except ValueError:
            return ""
        tail = text.rpartition(STAND_IN)[2]
        bare = tail.lstrip()
        found = next((token for token in self.special if bare.startswith(token)), None)
        return "" if found is None else tail[: len(tail) - len(bare) + len(found)]

    @cached_property
    def end_tokens(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's, and what the template closes an answer with."""
        ends = {self.tokenizer.eos_token_id: None}
        if token := self.closing.strip():
            ends[self.tokenizer.convert_tokens_to_ids(token)] = None
        return list(ends)

    def answers(self, messages: Sequence[Message], tools: Any = None, last_only: bool = False) -> Rendered:
        """The conversation as text, and where the model's answers stand in it.

        Args:
            messages: With ``role`` and ``content``. Where the last is not the assistant's, its answer is begun.
            tools: Functions the model may call.
            last_only: Only the last answer counts.

        Raises:
            ValueError: The template refuses the conversation, or renders an answer so that it cannot be found.
        """
        is_answered = messages[-1]["role"] == "assistant"
        text = self.render(messages, tools, prompt=not is_answered)
        places = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        spans = [self._answer(text, messages, place, tools) for place in (places[-1:] if last_only else places)]
        return Rendered(text, [(start, end) for start, end in spans if end > start], is_answered)

    def _answer(self, text: str, messages: Sequence[Message], place: int, tools: Any) -> Span:
        """First character of a message that the model writes, and the one after its last."""
        others = [*messages[:place], {"role": "assistant", "content": STAND_IN}, *messages[place + 1 :]]
        other = self.render(others, tools, prompt=messages[-1]["role"] != "assistant")
        before, found, tail = other.partition(STAND_IN)
        start = self._start(text, before, messages[:place], tools)
        end = len(text) - len(tail)
        if not found or not text.endswith(tail) or start is None or end < start:
            raise ValueError(f"the chat template changes message {place + 1} so that it cannot be found")
        return start, end + (len(self.closing) if tail.startswith(self.closing) else 0)

    def _start(self, text: str, before: str, earlier: Sequence[Message], tools: Any) -> int | None:
        """Characters that stand before an answer."""
        try:
            prompt = self.render(earlier, tools, prompt=True) if earlier else None
        except ValueError:
            prompt = None
        if prompt is not None and text.startswith(prompt):
            return len(prompt)
        return len(before) if text.startswith(before) else None

    # ---- tokens ------------------------------------------------------------------------------------------------------

    def encode(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        """Tokens of conversations.

        A token that reaches over the edge of an answer would never stand there when the model writes: there the text is
        cut before it becomes tokens. (Behind such a place the tokens are those that were written, not those that the
        template gives for all of the text.) Where a template closes an answer with no token, the last one ends with the
        end-of-sequence token.
        """
        texts = [one.text for one in rendered]
        batch: Any = self.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )
        rows = zip(rendered, batch["input_ids"], batch["offset_mapping"], strict=True)
        return [self._targets(*self._cut(one, ids, offsets)) for one, ids, offsets in rows]

    def _cut(self, one: Rendered, ids: list[int], offsets: list[Span]) -> tuple[Rendered, list[int], list[Span]]:
        """The tokens, of which none reaches over the edge of an answer."""
        edges = [edge for span in one.answers for edge in span if any(start < edge < end for start, end in offsets)]
        if not edges:
            return one, ids, offsets
        ids, offsets = [], []
        for start, end in zip([0, *edges], [*edges, len(one.text)], strict=True):
            part: Any = self.tokenizer(
                one.text[start:end], add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            ids += part["input_ids"]
            offsets += [(start + a, start + b) for a, b in part["offset_mapping"]]
        return one, ids, offsets

    def _targets(self, one: Rendered, ids: list[int], offsets: list[Span]) -> Encoded:
        """Which tokens stand in an answer."""
        is_target = [0] * len(ids)
        place = begin = 0
        for start, end in one.answers:
            while place < len(ids) and offsets[place][1] <= start:
                place += 1
            begin = place
            while place < len(ids) and offsets[place][0] < end:
                is_target[place] = 1
                place += 1
        if not one.is_answered:
            return Encoded(ids, is_target, len(ids))
        ids, is_target = ids[:place], is_target[:place]
        if ids and ids[-1] not in self.end_tokens:
            ids, is_target = [*ids, self.tokenizer.eos_token_id], [*is_target, 1]
        return Encoded(ids, is_target, begin)
