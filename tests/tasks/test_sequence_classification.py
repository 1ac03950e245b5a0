"""The task by itself: problems told apart, texts encoded, outputs turned into losses and records."""

import pickle
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, BertConfig

from lit_tune.data.collators import Padding
from lit_tune.data.split import Split
from lit_tune.errors import ConfigError, DataError
from lit_tune.tasks.base import Spec
from lit_tune.tasks.encoding import class_labels, encode_batch
from lit_tune.tasks.sequence_classification import MULTI, REGRESSION, SINGLE, SequenceClassification

BASE = BertConfig(architectures=["BertModel"])


def split(labels: list, texts: list[str] | None = None) -> Split:
    rows = {"text": texts or [f"text {i}" for i in range(len(labels))], "label": labels}
    return Split(datasets.Dataset.from_dict(rows), "train", [("a.jsonl", len(labels))], "f")


# --- which problem it is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "given", "expected"),
    [
        (["a", "b"], "auto", SINGLE),
        ([1, 2], "auto", SINGLE),
        ([[1], []], "auto", MULTI),
        ([0.5, 1.0], "auto", REGRESSION),
        ([1, 2], REGRESSION, REGRESSION),
        ([1.0, 2.0], REGRESSION, REGRESSION),
        (["a", "b"], SINGLE, SINGLE),
        ([["a"], ["b"]], MULTI, MULTI),
    ],
)
def test_the_problem_is_read_off_the_labels_or_set(labels, given, expected):
    spec = SequenceClassification(problem_type=given).inspect(split(labels), BASE, False)
    assert spec.problem_type == expected
    assert spec.num_labels == max(1, len(spec.label_names))


@pytest.mark.parametrize(
    ("labels", "given"),
    [
        (["a", "b"], MULTI),
        ([["a"], ["b"]], SINGLE),
        ([0.5, 1.0], SINGLE),
        (["a", "b"], REGRESSION),
        ([[1]], REGRESSION),
    ],
)
def test_a_problem_that_the_labels_contradict_is_an_error(labels, given):
    with pytest.raises(DataError):
        SequenceClassification(problem_type=given).inspect(split(labels), BASE, False)


def test_given_names_decide_the_order():
    spec = SequenceClassification(label_names=["b", "c", "a"]).inspect(split(["a", "b"]), BASE, False)
    assert spec.label_names == ["b", "c", "a"]


def test_settings_the_problem_would_ignore_are_found_as_soon_as_the_labels_are_read():
    for settings, labels in (
        ({"threshold": 0.3}, ["a", "b"]),
        ({"pos_weight": "balanced"}, ["a", "b"]),
        ({"class_weights": [1.0]}, ["a", "b"]),
        ({"label_names": ["a"]}, [0.5, 1.5]),
    ):
        with pytest.raises(ConfigError) as caught:
            SequenceClassification(**settings).inspect(split(labels), BASE, False)
        assert caught.value.where == f"task.init_args.{next(iter(settings))}"
    with pytest.raises(ConfigError, match="needs at least one column"):
        SequenceClassification(text_columns=[])


def test_the_spec_of_a_model_is_that_of_its_head():
    task = SequenceClassification()
    assert task.spec_of_model(BertConfig(id2label={0: "x", 1: "y"})) == Spec(SINGLE, ["x", "y"])
    assert task.spec_of_model(BertConfig(id2label={0: "x", 1: "y"}, problem_type=MULTI)) == Spec(MULTI, ["x", "y"])
    assert task.spec_of_model(BertConfig(num_labels=1)) == Spec(REGRESSION)


def test_configure_writes_labels_both_ways():
    config = BertConfig()
    SequenceClassification().configure(config, Spec(MULTI, ["x", "y", "z"]))
    assert (config.num_labels, config.id2label, config.label2id) == (
        3,
        {0: "x", 1: "y", 2: "z"},
        {"x": 0, "y": 1, "z": 2},
    )
    assert config.problem_type == MULTI
    SequenceClassification().configure(config, Spec(REGRESSION))
    assert (config.num_labels, config.problem_type) == (1, REGRESSION)


def test_a_task_is_picklable_and_its_copy_is_equal():
    task = SequenceClassification(text_columns=["a", "b"], label_names=["x", "y"], loss="CrossEntropyLoss")
    copy = pickle.loads(pickle.dumps(task))
    assert copy.settings() == task.settings()


# --- rows to features ------------------------------------------------------------------------------------------------


def test_encoding_equals_the_tokenizers_own_cut_row_by_row(tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    rows = {"text": ["mud " * n for n in range(9)], "b": ["lake " * (9 - n) for n in range(9)], "label": ["x"] * 9}
    for columns in (["text"], ["text", "b"]):
        task = SequenceClassification(text_columns=columns)
        features = task.encode(rows, tokenizer, Spec(SINGLE, ["w", "x"]), max_length=7)
        assert features["labels"] == [1] * 9
        for i in range(9):
            texts = [rows[c][i] for c in columns]
            plain = tokenizer(*texts, truncation=True, max_length=7)
            assert features["input_ids"][i] == plain["input_ids"]
            assert features["token_type_ids"][i] == plain["token_type_ids"]
            assert features["num_tokens"][i] == len(tokenizer(*texts)["input_ids"])
        assert "attention_mask" not in features


def test_ids_of_a_class_label_become_names_before_they_are_encoded(tiny_model_dir):
    tokenizer, task = AutoTokenizer.from_pretrained(tiny_model_dir), SequenceClassification()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})
    rows = datasets.Dataset.from_dict({"text": ["mud", "lake"], "label": [0, 1]}, features=features)
    val = Split(rows, "val", [], "f")
    assert class_labels(val) == {"label": ["pos", "neg"]}
    spec = Spec(SINGLE, ["neg", "pos"])
    encoded = encode_batch(rows[:], task, tokenizer, spec, 9, class_labels(val))
    assert encoded["labels"] == [1, 0] == task.encode_labels(rows["label"][:], spec, val).tolist()
    numbered = features.copy() | {"label": datasets.ClassLabel(names=["0", "1"])}
    assert class_labels(Split(rows.cast(datasets.Features(numbered)), "val", [], "f")) == {}


def test_all_models_but_xlnet_are_padded_on_the_right():
    task, left = SequenceClassification(), SimpleNamespace(padding_side="left")
    assert task.padding_side(left, BertConfig()) == "right"
    assert task.padding_side(left, SimpleNamespace(model_type="xlnet")) == "left"


def test_the_collator_makes_the_labels_of_the_problem():
    task = SequenceClassification()
    for spec, label, expected in (
        (Spec(SINGLE, ["a", "b"]), 1, [1]),
        (Spec(MULTI, ["a", "b"]), [1], [[0.0, 1.0]]),
        (Spec(REGRESSION), 0.5, [0.5]),
    ):
        batch = task.collator(Padding(0), spec)([{"input_ids": [5], "labels": label}])
        assert batch["labels"].tolist() == expected


# --- strata and baseline ---------------------------------------------------------------------------------------------


def test_strata_are_classes_or_parts_of_the_range():
    task = SequenceClassification()
    assert task.strata(split(["b", "a"]), Spec(SINGLE, ["a", "b"])).tolist() == [1, 0]
    assert task.strata(split([["a"], []]), Spec(MULTI, ["a"])) is None
    bins = task.strata(split([i + 0.5 for i in range(100)]), Spec(REGRESSION))
    assert np.bincount(bins).tolist() == [10] * 10


def test_the_baseline_is_what_ignoring_the_text_scores():
    labels = ["a"] * 6 + ["b"] * 3 + ["c"]
    task = SequenceClassification()
    spec = task.summarize(split(labels), Spec(SINGLE, ["a", "b", "c"]))
    assert (spec.label_counts, spec.num_rows) == ([6, 3, 1], 10)
    shares = np.array([0.6, 0.3, 0.1])
    assert spec.baseline["accuracy"] == pytest.approx(0.6)
    assert spec.baseline["loss"] == pytest.approx(-(shares * np.log(shares)).sum())
    weighted = SequenceClassification(class_weights="balanced").summarize(split(labels), Spec(SINGLE, ["a", "b", "c"]))
    assert "loss" not in weighted.baseline  # on another scale


# --- outputs ---------------------------------------------------------------------------------------------------------


def outputs(shape: tuple[int, ...], seed: int = 0) -> SimpleNamespace:
    return SimpleNamespace(logits=torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def test_sums_of_losses_over_denominators_are_torchs_means():
    out, single, multi = (
        outputs((4, 3)),
        Spec(SINGLE, list("abc"), [5, 3, 2], 10),
        Spec(MULTI, list("abc"), [5, 3, 2], 10),
    )
    target, hot = torch.tensor([0, 2, 1, 1]), torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    weights = torch.tensor([10 / 15, 10 / 9, 10 / 6])
    number = outputs((4, 1))
    cases = [
        ({}, single, out, target, F.cross_entropy(out.logits, target)),
        ({"class_weights": "balanced"}, single, out, target, F.cross_entropy(out.logits, target, weights)),
        ({"label_smoothing": 0.1}, single, out, target, F.cross_entropy(out.logits, target, label_smoothing=0.1)),
        ({"loss": "CrossEntropyLoss"}, single, out, target, F.cross_entropy(out.logits, target)),
        ({}, multi, out, hot, F.binary_cross_entropy_with_logits(out.logits, hot)),
        (
            {"pos_weight": "balanced"},
            multi,
            out,
            hot,
            F.binary_cross_entropy_with_logits(out.logits, hot, pos_weight=torch.tensor([1.0, 7 / 3, 4.0])),
        ),
        ({}, Spec(REGRESSION), number, torch.arange(4.0), F.mse_loss(number.logits[:, 0], torch.arange(4.0))),
    ]
    for settings, spec, logits, labels, expected in cases:
        total, denominator = SequenceClassification(**settings).loss(logits, {"labels": labels}, spec)
        assert (total / denominator).item() == pytest.approx(expected.item(), rel=1e-6), settings


def test_records_hold_label_and_probabilities():
    task = SequenceClassification(threshold=0.6)
    out = SimpleNamespace(logits=torch.tensor([[2.0, -1.0], [0.1, 0.2]]))
    single = task.decode(out, {}, Spec(SINGLE, ["x", "y"]))
    assert [r["label"] for r in single] == ["x", "y"]
    assert [sum(r["probabilities"].values()) for r in single] == pytest.approx([1.0, 1.0])
    multi = task.decode(out, {}, Spec(MULTI, ["x", "y"]))
    assert [r["labels"] for r in multi] == [["x"], []]
    assert multi[0]["probabilities"]["y"] == pytest.approx(1 / (1 + np.e))
    assert task.decode(SimpleNamespace(logits=torch.tensor([[1.5]])), {}, Spec(REGRESSION)) == [{"prediction": 1.5}]


@pytest.mark.parametrize(
    "spec", [Spec(SINGLE, ["x", "y"]), Spec(SINGLE, list("xyz")), Spec(MULTI, list("xyz")), Spec(REGRESSION)]
)
def test_every_metric_that_is_named_is_computed_and_the_primary_one_is_among_them(spec):
    task = SequenceClassification()
    collection, names = task.build_metrics(spec), task.metric_names(spec)
    logits = outputs((12, spec.num_labels))
    labels = {
        SINGLE: torch.arange(12) % spec.num_labels,
        MULTI: (torch.arange(36).reshape(12, 3) % 2).float(),
        REGRESSION: torch.arange(12.0),
    }[spec.problem_type]
    task.update_metrics(collection, logits, {"labels": labels})
    from lit_tune.metrics import scalars

    computed = scalars({"loss": torch.tensor(1.0), **collection.compute()})
    assert set(names) == set(computed)
    assert task.primary_metric(spec) in names
    assert names["loss"] is False
    assert "metric" in task.report(collection.compute(), spec)
