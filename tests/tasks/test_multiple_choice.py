"""The task by itself: questions read, pairs encoded and cut, scores turned into losses and choices."""

import math
import pickle
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toy import WORDS, toy_choices
from transformers import AutoTokenizer, BertConfig

from lit_tune.data.collators import Padding
from lit_tune.data.split import Split
from lit_tune.data.texts import text_hashes
from lit_tune.errors import ConfigError, DataError
from lit_tune.metrics import scalars
from lit_tune.tasks.base import Spec
from lit_tune.tasks.encoding import class_labels, encode_batch
from lit_tune.tasks.multiple_choice import PROBLEM, MultipleChoice

SPEC = Spec(PROBLEM)


def split(rows: list[dict], name: str = "train", features=None) -> Split:
    mixed = None if features else "use_json"
    table = datasets.Dataset.from_list(rows, features=features, on_mixed_types=mixed)
    return Split(table, name, [(f"{name}.jsonl", len(rows))], "f")


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def encode(rows: list[dict], tokenizer, max_length=64, **settings):
    table = split(rows)
    return encode_batch(table.rows[:], MultipleChoice(**settings), tokenizer, SPEC, max_length, class_labels(table))


# --- reading ---------------------------------------------------------------------------------------------------------


def test_choices_may_be_a_list_columns_or_named_and_are_the_same(tokenizer):
    rows = toy_choices(9, seed=1)
    plain = encode(rows, tokenizer)
    columns = [f"ending{i}" for i in range(4)]
    wide = [
        {"sent": r["question"], "gold": r["label"], **dict(zip(columns, [*r["choices"], "", ""], strict=False))}
        for r in rows
    ]
    assert encode(wide, tokenizer, question_column="sent", choice_columns=columns, label_column="gold") == plain
    named = [
        {
            "question": r["question"],
            "choices": {"text": r["choices"], "label": list("ABCD"[: len(r["choices"])])},
            "answerKey": "ABCD"[r["label"]],
        }
        for r in rows
    ]
    assert encode(named, tokenizer, label_column="answerKey") == plain
    task = MultipleChoice(label_column="answerKey")
    task.check(split(named), SPEC)
    assert len(set(text_hashes(split(named), task.input_columns()).tolist())) == 9


def test_names_of_a_class_label_are_letters_in_any_order(tokenizer):
    label = datasets.ClassLabel(names=["B", "A"])
    features = datasets.Features(
        {"question": datasets.Value("string"), "choices": datasets.List(datasets.Value("string")), "label": label}
    )
    found = split([{"question": "q", "choices": ["mud", "fog"], "label": 0}], features=features)
    task = MultipleChoice()
    assert task.positions_of(found, task.choices_of(found)).tolist() == [1]
    assert encode_batch(found.rows[:], task, tokenizer, SPEC, 9, class_labels(found))["labels"] == [1]


BAD_ROWS = {
    "label": ([{"question": "q", "choices": ["a", "b"], "label": 2}], r"'2', none of its 2 choices \(val.jsonl:1\)"),
    "one choice": ([{"question": "q", "choices": ["a"], "label": 0}], r"fewer than two choices: 1 \(val.jsonl:1\)"),
    "null choice": ([{"question": "q", "choices": ["a", None], "label": 0}], r"a choice is null.* \(val.jsonl:1\)"),
    "null question": (
        [{"question": None, "choices": ["a", "b"], "label": 0}, {"question": "q", "choices": ["a", "b"], "label": 0}],
        r"'question' is null in 1 row\(s\) \(val.jsonl:1\)",
    ),
    "no column": ([{"question": "q", "options": ["a", "b"], "label": 0}], "there is no column 'choices'"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_cannot_be_used_are_named(case):
    rows, message = BAD_ROWS[case]
    with pytest.raises(DataError, match=message) as caught:
        MultipleChoice().check(split(rows, "val"), SPEC)
    assert caught.value.fix


def test_splits_without_labels_are_known():
    task, rows = MultipleChoice(), toy_choices(3)
    assert not task.is_unlabelled(split(rows), SPEC)
    for secret in ("", -1, None):
        assert task.is_unlabelled(split([{**row, "label": secret} for row in rows]), SPEC)
    bare = task.without_labels(split(rows))
    assert bare.column_names == ["question", "choices"]
    assert task.is_unlabelled(bare, SPEC)
    task.check(bare, SPEC, labelled=False)


def test_the_baseline_is_chance_or_the_position_that_is_right_most_often():
    def rows(*labels):
        return split([{"question": "q", "choices": ["a", "b", "c", "d"], "label": i} for i in labels])

    task = MultipleChoice()
    two = [{"question": "q", "choices": ["a", "b"], "label": 1}, {"question": "q", "choices": list("abcd"), "label": 0}]
    assert task.summarize(split(two), SPEC).baseline == {
        "accuracy": 0.5,
        "loss": pytest.approx((math.log(2) + math.log(4)) / 2),
    }
    assert task.summarize(rows(0, 1, 2, 3), SPEC).baseline["accuracy"] == 0.25
    assert task.summarize(rows(0, 1, 1, 3), SPEC).baseline["accuracy"] == 0.5
    assert task.summarize(rows(0, 0, 0, 0), SPEC).baseline["accuracy"] == 0.25  # nothing that this model could use
    assert task.summarize(rows(0, 1), SPEC).num_rows == 2


def test_settings_are_checked_and_survive_pickling():
    with pytest.raises(ConfigError, match="at least two columns"):
        MultipleChoice(choice_columns=["a"])
    task = MultipleChoice(context_column="passage", choice_columns=["a", "b"])
    assert pickle.loads(pickle.dumps(task)).settings() == task.settings()
    assert task.input_columns() == ("passage", "question", "a", "b")
    assert task.inspect(
        split([{"passage": "p", "question": "q", "a": "x", "b": "y", "label": 0}]), BertConfig(), False
    ) == Spec(PROBLEM)


# --- texts to tensors ------------------------------------------------------------------------------------------------


def test_a_context_is_read_first_and_question_and_choice_as_one_text(tokenizer):
    row = {"context": "long path", "question": "the mud", "choices": ["fog", "sun rain"], "label": 1}
    features = encode([row], tokenizer, context_column="context")
    texts = [f"the mud {choice}" for choice in row["choices"]]  # as transformers' run_swag.py puts them together
    assert features["input_ids"][0] == tokenizer(["long path"] * 2, texts)["input_ids"]


@pytest.mark.parametrize("max_length", [6, 8, 10, 64])
def test_what_is_too_long_is_cut_in_the_question_and_choices_stay_whole(max_length, tokenizer):
    rows = toy_choices(30, seed=2)
    rows[3]["question"] = " ".join(WORDS * 2)
    rows[4]["choices"][0] = " ".join(WORDS)  # longer than max_length by itself
    features = encode(rows, tokenizer, max_length)
    for i, row in enumerate(rows):
        full = tokenizer([row["question"]] * len(row["choices"]), row["choices"])["input_ids"]
        assert features["num_tokens"][i] == max(map(len, full))
        assert features["num_choices"][i] == len(full)
        assert features["num_cut_choices"][i] == sum(len(ids) > max_length for ids in full)
        for ids, whole, types, choice in zip(
            features["input_ids"][i], full, features["token_type_ids"][i], row["choices"], strict=True
        ):
            assert len(ids) == len(types) == min(len(whole), max_length)
            size = len(choice.split()) + 1  # and the separator
            if size + 3 <= max_length:
                assert ids[-size:] == whole[-size:]
                assert ids[: -size - 1] == whole[: len(ids) - size - 1]
            assert sum(types) >= 2, "of a choice something is left always"


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_has_a_row_for_each_choice_and_none_for_padding(side, tokenizer):
    features = encode(toy_choices(5, seed=3), tokenizer)
    singles = [{k: v[i] for k, v in features.items() if not k.startswith("num_")} for i in range(5)]
    batch = MultipleChoice().collator(Padding(0, side=side, multiple_of=8), SPEC)(singles)
    flat = [ids for row in features["input_ids"] for ids in row]
    assert batch["input_ids"].shape == batch["token_type_ids"].shape == (len(flat), 16)
    for question, rows in enumerate(batch["aside"]["choice_rows"].tolist()):
        for choice, row in enumerate(r for r in rows if r >= 0):
            kept = batch["input_ids"][row][batch["attention_mask"][row].bool()]
            assert kept.tolist() == features["input_ids"][question][choice]
    assert batch["labels"].tolist() == features["labels"]


# --- outputs ---------------------------------------------------------------------------------------------------------

ROWS = torch.tensor([[0, 1, -1], [2, 3, 4], [5, 6, -1]])
LOGITS = torch.tensor([[0.5, 1.5, 2.0, -1.0, 0.0, 3.0, 1.0]])


def batch(labels=None, **aside):
    made = {"aside": {"choice_rows": ROWS, **aside}}
    return made | ({"labels": torch.tensor(labels)} if labels else {})


def test_the_loss_is_the_cross_entropy_of_each_question_by_itself():
    parts = [LOGITS[:, :2], LOGITS[:, 2:5], LOGITS[:, 5:]]
    expected = [F.cross_entropy(part, torch.tensor([label])) for part, label in zip(parts, [1, 2, 0], strict=True)]
    logits = LOGITS.clone().requires_grad_()
    total, count = MultipleChoice().loss(SimpleNamespace(logits=logits), batch([1, 2, 0]), SPEC)
    assert total.item() == pytest.approx(float(sum(expected)))
    assert float(count) == 3.0
    total.backward()
    assert bool(torch.isfinite(logits.grad).all())
    assert float(logits.grad.sum()) == pytest.approx(0.0, abs=1e-6)


def test_accuracy_counts_questions_and_every_metric_is_named():
    task = MultipleChoice()
    collection = task.build_metrics(SPEC)
    for labels in ([1, 0, 0], [1, 2, 1]):
        task.update_metrics(collection, SimpleNamespace(logits=LOGITS), batch(labels))
    computed = {"loss": torch.tensor(1.0), **collection.compute()}
    assert scalars(computed) == {"loss": 1.0, "accuracy": pytest.approx(4 / 6)}
    assert set(task.metric_names(SPEC)) == set(computed)
    assert task.primary_metric(SPEC) == "accuracy"
    assert "accuracy" in task.report(computed, Spec(PROBLEM, baseline={"accuracy": 0.25}))


def test_predictions_name_the_choice_and_give_the_probability_of_each():
    texts = [["a", "b"], ["c", "d", "e"], ["f", "g"]]
    names = [["A", "B"], ["0", "1", "2"], ["A", "B"]]
    found = MultipleChoice().decode(SimpleNamespace(logits=LOGITS), batch(choices=texts, names=names), SPEC)
    assert [(r["choice"], r["label"], r["text"]) for r in found] == [(1, "B", "b"), (0, "0", "c"), (0, "A", "f")]
    for record, part in zip(found, (LOGITS[0, :2], LOGITS[0, 2:5], LOGITS[0, 5:]), strict=True):
        assert record["scores"] == pytest.approx(part.softmax(-1).tolist())


def test_a_broken_model_is_told_by_scores_that_are_no_numbers():
    outputs = SimpleNamespace(logits=torch.full((1, 7), torch.nan))
    texts = [["a", "b"], ["c", "d", "e"], ["f", "g"]]
    records = MultipleChoice().decode(outputs, batch(choices=texts, names=texts), SPEC)
    assert np.isnan([r["scores"][0] for r in records]).all()
