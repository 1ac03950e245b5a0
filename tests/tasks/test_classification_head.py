"""A head that comes with the model: when its labels are those of the data."""

import pytest
from transformers import BertConfig

from lit_tune.errors import ConfigError, ModelError
from lit_tune.tasks.base import Spec
from lit_tune.tasks.classification_head import check_settings, head_labels, keep_head
from lit_tune.tasks.own_pieces import build_own_loss

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def config(names: list[str], architecture: str | None = "BertForSequenceClassification") -> BertConfig:
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    return BertConfig(architectures=[architecture] if architecture else None, **labels)


GENERIC = ["LABEL_0", "LABEL_1", "LABEL_2"]
KEPT = {
    "the same": (["a", "b", "c"], ["a", "b", "c"], ["a", "b", "c"]),
    "another order": (["c", "a", "b"], ["a", "b", "c"], ["c", "a", "b"]),
    "ids into the head's names": (["neg", "neu", "pos"], ["0", "1", "2"], ["neg", "neu", "pos"]),
    "ids of a head without names": (GENERIC, ["0", "1", "2"], ["0", "1", "2"]),
}


@pytest.mark.parametrize("case", KEPT)
@pytest.mark.parametrize("problem", [SINGLE, MULTI])
def test_a_head_is_kept_where_its_labels_are_those_of_the_data(case, problem):
    head, data, expected = KEPT[case]
    assert keep_head(Spec(problem, data), config(head), "ForSequenceClassification") == Spec(problem, expected)


REFUSED = {
    "others": (
        ["x", "y"],
        Spec(SINGLE, ["a", "b"]),
        "the model has a head for other labels (x, y) than the data (a, b)",
    ),
    "fewer in the data": (["a", "b", "c"], Spec(SINGLE, ["a", "b"]), "(a, b, c) than the data (a, b)"),
    "more in the data": (["a", "b"], Spec(SINGLE, ["0", "1", "2"]), "(a, b) than the data (0, 1, 2)"),
    "generic names, words": (GENERIC, Spec(SINGLE, ["a", "b", "c"]), "(LABEL_0, LABEL_1, LABEL_2) than the data"),
    "numbers for classes": (["a", "b"], Spec(REGRESSION), "(a, b) than the data (a number)"),
    "classes for numbers": (["LABEL_0"], Spec(SINGLE, ["a", "b"]), "(a number) than the data (a, b)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_head_for_other_labels_is_refused(case):
    names, spec, what = REFUSED[case]
    with pytest.raises(ModelError) as caught:
        keep_head(spec, config(names), "ForSequenceClassification")
    assert what in str(caught.value)
    assert caught.value.where == "model.new_head"


def test_a_model_without_a_classification_head_takes_any_labels():
    for architecture in ("BertModel", "BertForMaskedLM", None):
        spec = Spec(SINGLE, ["a", "b"])
        assert keep_head(spec, config(["x", "y"], architecture), "ForSequenceClassification") == spec
    assert keep_head(Spec(REGRESSION), config(["LABEL_0"]), "ForSequenceClassification") == Spec(REGRESSION)


def test_labels_of_a_head_come_in_the_order_of_their_ids():
    assert head_labels(BertConfig(id2label={1: "b", 0: "a"})) == ["a", "b"]


def test_a_loss_of_the_users_own_is_made_per_target():
    assert build_own_loss("CrossEntropyLoss").reduction == "none"
    made = build_own_loss({"class_path": "torch.nn.HuberLoss", "init_args": {"delta": 0.5}})
    assert (made.delta, made.reduction) == (0.5, "none")
    for wrong, what in (
        ({"init_args": {}}, "has no class_path"),
        ({"class_path": None}, "has no class_path"),
        ({"class_path": "torch.nn.HuberLoss", "init_args": {"dleta": 1}}, "unexpected keyword argument 'dleta'"),
    ):
        with pytest.raises(ConfigError, match=what) as caught:
            build_own_loss(wrong)
        assert caught.value.where == "task.init_args.loss"


NONE = {"class_weights": None, "pos_weight": None}
OFF = {"label_smoothing": None, "focal_gamma": None}
TWO = Spec(SINGLE, ["a", "b"])
CONTRADICTIONS = {
    "class_weights of several labels": (Spec(MULTI, ["a", "b"]), None, 0.5, {**NONE, "class_weights": "balanced"}, OFF),
    "pos_weight of one label": (TWO, None, 0.5, {**NONE, "pos_weight": [1.0, 2.0]}, OFF),
    "threshold of one label": (TWO, None, 0.4, NONE, OFF),
    "label_names of numbers": (Spec(REGRESSION), ["a"], 0.5, NONE, OFF),
    "label_smoothing of numbers": (Spec(REGRESSION), None, 0.5, NONE, {**OFF, "label_smoothing": 0.1}),
    "focal_gamma of numbers": (Spec(REGRESSION), None, 0.5, NONE, {**OFF, "focal_gamma": 2.0}),
    "class_weights for three": (TWO, None, 0.5, {**NONE, "class_weights": [1.0, 1.0, 1.0]}, OFF),
    "label_smoothing beside focal_gamma": (TWO, None, 0.5, NONE, {"label_smoothing": 0.1, "focal_gamma": 0.0}),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_setting_that_the_problem_ignores_is_refused(case):
    with pytest.raises(ConfigError) as caught:
        check_settings(*CONTRADICTIONS[case])
    assert caught.value.where == f"task.init_args.{case.split()[0]}"
    assert caught.value.fix


def test_settings_that_fit_pass():
    check_settings(TWO, ["a", "b"], 0.5, {**NONE, "class_weights": [1.0, 2.0]}, {**OFF, "label_smoothing": 0.1})
    check_settings(Spec(MULTI, ["a", "b"]), None, 0.3, {**NONE, "pos_weight": "balanced"}, {**OFF, "focal_gamma": 2.0})
    check_settings(Spec(REGRESSION), None, 0.5, NONE, OFF)
