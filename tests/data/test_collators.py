"""Features -> tensors, against transformers' own collator."""

import random

import pytest
import torch
from transformers import AutoTokenizer, DataCollatorWithPadding

from lit_tune.data.collators import Padding, TextCollator, pad


@pytest.fixture(scope="module")
def features() -> list[dict]:
    rng = random.Random(0)
    lengths = [3, 1, 9, 5, 9, 2]
    return [
        {
            "input_ids": [rng.randint(4, 23) for _ in range(n)],
            "token_type_ids": [rng.randint(0, 1) for _ in range(n)],
            "labels": i % 3,
        }
        for i, n in enumerate(lengths)
    ]


def padding_of(tokenizer, **options) -> Padding:
    return Padding(
        tokenizer.pad_token_id, tokenizer.padding_side, pad_token_type_id=tokenizer.pad_token_type_id, **options
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"padding": "longest"}),
        ({"multiple_of": 8}, {"padding": "longest", "pad_to_multiple_of": 8}),
        ({"length": 12}, {"padding": "max_length", "max_length": 12}),
        ({"length": 12, "multiple_of": 8}, {"padding": "max_length", "max_length": 12, "pad_to_multiple_of": 8}),
    ],
)
@pytest.mark.parametrize("pad_token_type_id", [0, 3])  # XLNet pads the segments with 3
def test_a_batch_equals_that_of_transformers(tiny_model_dir, features, side, ours, theirs, pad_token_type_id):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir, padding_side=side)
    tokenizer._pad_token_type_id = pad_token_type_id
    expected = DataCollatorWithPadding(tokenizer, **theirs)([dict(f) for f in features])
    batch = TextCollator(padding_of(tokenizer, **ours), "class", 3)(features)
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        assert batch[name].dtype == value.dtype == torch.int64
        assert torch.equal(batch[name], value), name


def test_token_types_are_left_out_where_the_tokenizer_gives_none(features):
    batch = TextCollator(Padding(0), "class", 3)([{"input_ids": f["input_ids"]} for f in features])
    assert batch.keys() == {"input_ids", "attention_mask"}
    assert batch["attention_mask"].sum(1).tolist() == [3, 1, 9, 5, 9, 2]


def test_each_kind_of_label_becomes_the_tensor_its_loss_wants():
    def labels(kind, values):
        rows = [{"input_ids": [5], "labels": v} for v in values]
        return TextCollator(Padding(0), kind, 4)(rows)["labels"]

    classes, numbers, sets = labels("class", [2, 0]), labels("number", [1.5, 2]), labels("multi", [[0, 3], [], [1]])
    assert (classes.dtype, classes.tolist()) == (torch.int64, [2, 0])
    assert (numbers.dtype, numbers.tolist()) == (torch.float32, [1.5, 2.0])
    assert (sets.dtype, sets.tolist()) == (torch.float32, [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])


def test_rows_without_a_token_still_give_a_rectangle():
    assert TextCollator(Padding(7), "class", 2)([{"input_ids": []}])["input_ids"].tolist() == [[7]]


def test_a_row_longer_than_the_fixed_length_widens_the_batch_instead_of_being_cut():
    assert Padding(0, length=4, multiple_of=3).width([2, 5]) == 6
    with pytest.raises(ValueError, match="could not broadcast"):
        pad([[1, 2, 3]], 0, 2, "right")
