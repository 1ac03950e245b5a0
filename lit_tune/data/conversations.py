"""Rows of a data set -> conversations: lists of messages with a role and a content."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_tune.data.checks import require_columns
from lit_tune.data.places import places
from lit_tune.data.split import Split
from lit_tune.errors import DataError, LitTuneError, raise_problems

Message = dict[str, Any]
Conversation = list[Message]

ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
"""Other names of roles (ShareGPT's and its like) -> those of chat templates."""
ASSISTANT = "assistant"
KEY = "task.init_args."


@dataclass(frozen=True)
class Columns:
    """Where a row's conversation stands.

    Args:
        messages: Column with a list of messages; not read where there are prompts.
        prompts: Columns whose texts, one under the other, are what the user says; of the first also a list of messages.
        completion: Column with the answer to them: a text, or a list of messages.
        tools: Column with the functions a model may call.
        system: What the system says where a conversation does not begin with it.
    """

    messages: str = "messages"
    prompts: Sequence[str] | None = None
    completion: str = "completion"
    tools: str | None = None
    system: str | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns with what is read, besides answers that stand by themselves."""
        return tuple(self.prompts) if self.prompts else (self.messages,)

    @property
    def keys(self) -> dict[str, str]:
        """Column -> config key that names it."""
        if not self.prompts:
            return {self.messages: f"{KEY}messages_column"}
        return {**dict.fromkeys(self.prompts, f"{KEY}prompt_columns"), self.completion: f"{KEY}completion_column"}

    def require(self, split: Split, labelled: bool) -> None:
        """Demand the columns.

        Raises:
            DataError: One is missing.
        """
        there = split.column_names
        if not self.prompts and self.messages not in there and (other := _layout(there)):
            raise DataError(
                f"there is no column {self.messages!r}; there are {', '.join(map(repr, there))}",
                where=split.title,
                fix=other,
            )
        keys = dict(self.keys)
        if not labelled:
            keys.pop(self.completion, None)
        if self.tools:
            keys[self.tools] = f"{KEY}tools_column"
        require_columns(there, list(keys), split.title, keys)

    def read(self, row: Mapping[str, Any]) -> Conversation:
        """The messages of a row.

        Raises:
            ValueError: It has none; the message says why.
        """
        if not self.prompts:
            found = _messages(row.get(self.messages))
        else:
            found = self._prompt(row)
            answer = row.get(self.completion)
            if isinstance(answer, str):
                found = [*found, {"role": ASSISTANT, "content": answer}]
            elif answer is not None:
                found = [*found, *_messages(answer)]
        if self.system and found[0]["role"] != "system":
            found = [{"role": "system", "content": self.system}, *found]
        return found

    def _prompt(self, row: Mapping[str, Any]) -> Conversation:
        assert self.prompts
        values = [row.get(name) for name in self.prompts]
        if not isinstance(values[0], str) and values[0] is not None:
            return _messages(values[0])
        if any(value is not None and not isinstance(value, str) for value in values):
            raise ValueError(f"{self.prompts[0]} is text and another of the prompt's columns is not")
        text = "\n\n".join(value for value in values if value and value.strip())
        if not text:
            raise ValueError("an empty prompt")
        return [{"role": "user", "content": text}]

    def tools_of(self, row: Mapping[str, Any]) -> list[Any] | None:
        """The functions a row offers."""
        return (without_nulls(row[self.tools]) or None) if self.tools else None


def _layout(there: Sequence[str]) -> str | None:
    """How to read columns that are known from elsewhere."""
    for prompts, answer in (
        (["instruction", "input"], "output"),
        (["instruction"], "output"),
        (["instruction", "context"], "response"),
        (["prompt"], "completion"),
        (["prompt"], "response"),
        (["question"], "answer"),
    ):
        if {*prompts, answer} <= {*there}:
            return f"{KEY}prompt_columns: [{', '.join(prompts)}] and {KEY}completion_column: {answer}"
    return f"{KEY}messages_column: conversations" if "conversations" in there else None


def _messages(value: Any) -> Conversation:
    """A list of messages under the names that chat templates read.

    >>> _messages([{"from": "human", "value": "Hi"}, {"role": "assistant", "content": "Hello", "name": None}])
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    if value is None or value == []:
        raise ValueError(f"no list of messages ({'null' if value is None else 'an empty list'})")
    if not isinstance(value, list):
        raise ValueError(f"no list of messages ({type(value).__name__})")
    return [_message(one, place) for place, one in enumerate(value, 1)]


def _message(value: Any, place: int) -> Message:
    if not isinstance(value, Mapping):
        raise ValueError(f"message {place} has no role and content")
    found = without_nulls(dict(value))
    if "role" not in found and "from" in found:
        found = {"role": found.pop("from"), "content": found.pop("value", None), **found}
    role = found.get("role")
    if not isinstance(role, str):
        raise ValueError(f"message {place} has no role")
    found["role"] = ROLES.get(role, role)
    content = found.get("content")
    if isinstance(content, list):  # parts, as multi-modal templates read them
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            raise ValueError(f"message {place} has parts that are no text")
        found["content"] = content = "".join(part["text"] for part in content)
    if not isinstance(content, str) and not found.get("tool_calls"):
        raise ValueError(f"the content of message {place} is no text")
    return found


def without_nulls(value: Any) -> Any:
    """What Arrow has filled up with null, because other rows have it, is taken out again.

    >>> without_nulls({"a": None, "b": [{"c": None, "d": 1}]})
    {'b': [{'d': 1}]}
    """
    if isinstance(value, Mapping):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def is_answered(conversation: Conversation) -> bool:
    """Whether it ends with what the assistant says."""
    return conversation[-1]["role"] == ASSISTANT


def is_supervised(conversation: Conversation) -> bool:
    """Whether the assistant says anything."""
    return any(m["role"] == ASSISTANT and (m.get("content") or m.get("tool_calls")) for m in conversation)


def rows_of(split: Split, columns: Columns) -> Iterator[dict[str, Any]]:
    """The cells of each row that a conversation is made of."""
    names = [name for name in (*columns.keys, columns.tools) if name in split.column_names]
    yield from split.rows.select_columns(names)  # type: ignore[misc]


def check_conversations(split: Split, columns: Columns, labelled: bool, may_be_unsupervised: bool) -> None:
    """Find rows without a conversation, and those in which the assistant says nothing.

    Args:
        split: The rows.
        columns: Where the conversations stand.
        labelled: They are trained on or scored.
        may_be_unsupervised: Rows in which the assistant says nothing are left out.

    Raises:
        DataError: There are some, with ``file:row``; of both kinds together.
    """
    broken: dict[str, list[int]] = {}
    unsupervised: list[int] = []
    for number, row in enumerate(rows_of(split, columns)):
        try:
            conversation = columns.read(row)
        except ValueError as reason:
            broken.setdefault(str(reason), []).append(number)
            continue
        if labelled and not is_supervised(conversation):
            unsupervised.append(number)
    problems: list[LitTuneError] = [
        DataError(
            f"{reason} in {len(rows)} row(s) ({places(rows, split.locate)})",
            where=split.title,
            fix="each row needs a list of messages such as {role: user, content: ...}; or drop these rows",
        )
        for reason, rows in broken.items()
    ]
    if unsupervised and not may_be_unsupervised:
        problems.append(
            DataError(
                f"the assistant says nothing in {len(unsupervised)} row(s) ({places(unsupervised, split.locate)}): "
                "there is nothing to learn",
                where=split.title,
                fix=f"drop these rows, or {KEY}on_unsupervised: drop",
            )
        )
    raise_problems(problems)
