"""The task by itself: rows to conversations, conversations to targets, what is wrong with them."""

import pickle

import datasets
import pytest
from toy import make_tiny_decoder, toy_chats
from transformers import AutoTokenizer

from lit_tune.data.collators import Padding
from lit_tune.data.conversations import Columns
from lit_tune.data.loader import collate
from lit_tune.data.split import Split
from lit_tune.errors import ConfigError, DataError
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.base import Spec
from lit_tune.tasks.instruction_tuning import PROBLEM, InstructionTuning

SPEC = Spec(PROBLEM, unit="token")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_decoder(tmp_path_factory.mktemp("chat") / "llama")


def split(rows: list[dict]) -> Split:
    return Split(
        datasets.Dataset.from_list(rows, on_mixed_types="use_json"), "train", [("train.jsonl", len(rows))], "f"
    )


def said(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def encode(task, folder, rows: list[dict], max_length: int = 64) -> datasets.Dataset:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task.prepare_tokenizer(tokenizer)
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    return datasets.Dataset.from_dict(task.encode(columns, tokenizer, SPEC, max_length))


SAME = [
    ({}, {"messages": said("mud rain", "sun fog")}),
    (
        {"messages_column": "conversations"},
        {"conversations": [{"from": "human", "value": "mud rain"}, {"from": "gpt", "value": "sun fog"}]},
    ),
    (
        {},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "mud rain"}]},
                {"role": "assistant", "content": "sun fog", "name": None},
            ]
        },
    ),
    ({"prompt_columns": ["prompt"]}, {"prompt": "mud rain", "completion": "sun fog"}),
    (
        {"prompt_columns": ["prompt"]},
        {"prompt": said("mud rain"), "completion": [{"role": "assistant", "content": "sun fog"}]},
    ),
    (
        {"prompt_columns": ["instruction", "input"], "completion_column": "output"},
        {"instruction": "mud rain", "input": "", "output": "sun fog"},
    ),
]


@pytest.mark.parametrize(("options", "row"), SAME, ids=["messages", "ShareGPT", "parts", "prompt", "lists", "Alpaca"])
def test_all_layouts_are_the_same_conversation(options, row, folder):
    task = InstructionTuning(**options, chat_template="plain")
    task.check(split([row]), SPEC)
    expected = encode(InstructionTuning(chat_template="plain"), folder, [SAME[0][1]])[0]
    assert encode(task, folder, [row])[0] == expected
    assert expected["target_tokens"] == 3, "two words and the end"
    assert expected["reference"] == "sun fog"


def test_an_instruction_and_its_input_stand_one_under_the_other():
    columns = Columns(prompts=["instruction", "input"], completion="output", system="Be kind.")
    found = columns.read({"instruction": "Add.", "input": "1 2", "output": "3"})
    assert found == [{"role": "system", "content": "Be kind."}, *said("Add.\n\n1 2", "3")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([said("a", "b"), None], "no list of messages (null) in 1 row(s) (train.jsonl:2)"),
        ([said("a", "b"), []], "an empty list"),
        ([said("a", "b"), "text"], "no list of messages (str) in 1 row(s) (train.jsonl:2)"),
        ([said("a", "b"), [{"content": "x"}]], "message 1 has no role"),
        ([said("a", "b"), [{"role": "user", "content": 3}]], "the content of message 1 is no text"),
        ([said("a", "b"), said("a")], "the assistant says nothing in 1 row(s) (train.jsonl:2)"),
        ([said("a", ""), said("a", "b")], "the assistant says nothing in 1 row(s) (train.jsonl:1)"),
    ],
)
def test_rows_without_a_conversation_are_named(rows, message):
    with pytest.raises(DataError) as error:
        InstructionTuning(chat_template="plain").check(split([{"messages": row} for row in rows]), SPEC)
    assert message in str(error.value)
    assert "Fix:" in str(error.value)


def test_a_known_layout_is_proposed():
    rows = split([{"instruction": "a", "input": "", "output": "b"}])
    with pytest.raises(
        DataError, match=r"prompt_columns: \[instruction, input\] and task.init_args.completion_column: output"
    ):
        InstructionTuning().check(rows, SPEC)


def test_rows_without_an_answer_are_left_out_and_counted(folder):
    task = InstructionTuning(chat_template="plain", on_unsupervised="drop")
    rows = [{"messages": said("mud", "rain")}, {"messages": said("mud")}]
    task.check(split(rows), SPEC)
    found = encode(task, folder, rows)
    assert found["num_rows_without_target"] == [0, 1]
    assert len(task.units(found, True, TextReader(str(folder), max_length_given=32))) == 1


def test_what_is_too_long_is_cut_where_the_policy_says(folder):
    rows = [{"messages": said("mud " * 9, "rain " * 9)}]

    def learned(truncation: str, max_length: int) -> tuple[int, int, int]:
        found = encode(InstructionTuning(chat_template="plain", truncation=truncation), folder, rows, max_length)[0]
        return len(found["input_ids"]), found["target_tokens"], found["prompt_length"]

    # 2 + 9 tokens of the user, 2 that begin the answer, 9 + 1 of it
    assert learned("end", 64) == (23, 10, 13)
    assert learned("end", 16) == (16, 3, 13)
    assert learned("start", 16) == (16, 10, 6)
    assert learned("drop", 16) == (13, 0, 13)
    assert learned("end", 13) == (12, 0, 12), "nothing of the answer is left; the prompt's end is, to be answered"


def test_nothing_to_learn_within_the_length_is_an_error(folder):
    task = InstructionTuning(chat_template="plain")
    rows = encode(task, folder, [{"messages": said("mud " * 30, "rain")}], 16)
    with pytest.raises(DataError, match="no answer of train stands within the first 16 tokens"):
        task.units(rows, True, TextReader(str(folder), max_length_given=16))


def test_labels_are_the_targets_and_nothing_else(folder):
    """By a plain loop over the rows, in packed blocks and for the rows that are answered alone."""
    task = InstructionTuning(chat_template="plain", generate_rows=3)
    rows = encode(task, folder, toy_chats(20))
    expected = sorted(i for row in rows for i, t in zip(row["input_ids"][1:], row["is_target"][1:], strict=True) if t)
    reader = TextReader(str(folder), max_length_given=64)
    for training in (True, False):
        units = task.units(rows, training, reader)
        numbers = list(range(len(units)))
        batch = collate(units.read(numbers), numbers, task.collator(Padding(0, max_length=64), SPEC))
        assert sorted(batch["labels"][batch["labels"] >= 0].tolist()) == expected
        assert ("prompts" in batch["aside"]) is not training
    asked = batch["aside"]["prompts"]["input_ids"]
    for prompt, mask, row in zip(asked, batch["aside"]["prompts"]["attention_mask"], rows, strict=False):
        assert prompt[mask.bool()].tolist() == row["input_ids"][: row["prompt_length"]]
        assert mask[-1] == 1, "padded to the left"
    assert batch["aside"]["references"] == rows["reference"][:3]


def test_settings_that_do_not_go_together():
    with pytest.raises(ConfigError, match="max_new_tokens"):
        InstructionTuning(generation={"max_new_token": 3})
    with pytest.raises(ConfigError, match=r"task.init_args.generation.num_beams"):
        InstructionTuning(generation={"num_beams": "four"})
    with pytest.raises(ConfigError, match="temperature"):
        InstructionTuning(generation={"temperature": 0.5, "do_sample": False})
    with pytest.raises(ConfigError, match="exact_match"):
        InstructionTuning(scorers=["exact"])
    with pytest.raises(ConfigError, match="regular expression"):
        InstructionTuning(scorers=["exact_match"], answer_pattern="(")
    assert pickle.loads(pickle.dumps(InstructionTuning(scorers=["exact_match"]))).settings()
