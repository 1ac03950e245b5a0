from itertools import product

import pytest
import yaml
from transformers import (
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    RobertaConfig,
    T5Config,
)

from lit_tune.stats.advice import CHECK, MAX_ADVICE, RULES, advise
from lit_tune.stats.settings_in_use import ADVISED_KEYS, main_dropout
from lit_tune.stats.verdict import Facts, State, Verdict

DEFAULTS = {
    "optimizer.lr": 5e-5,
    "optimizer.head_lr": None,
    "optimizer.weight_decay": 0.01,
    "lr_schedule.warmup": 0.1,
    "trainer.max_epochs": 10,
    "trainer.max_steps": -1,
    "early_stopping.patience": None,
    "dropout_field": "hidden_dropout_prob",
    "dropout": 0.1,
    "model.config_overrides": {},
    "model.freeze": None,
    "model.from_scratch": False,
    "num_train_rows": 5000,
    "num_val_rows": 2000,
    "data.val_fraction": 0.1,
    "overfit.probe_size": 1000,
    "task.init_args.label_smoothing": 0.0,
    "task.init_args.label_column": "label",
    "task.init_args.text_columns": ["text"],
}


def verdict(state, **numbers):
    facts = {"step": 2000, "epoch": 10.0, "best_epoch": 4.0, "best_step": 800, "since_best": 6, "val": 0.8, "gap": 0.12}
    return Verdict(state, Facts(**{**facts, **numbers}).numbers(), "")


def lines(state, settings=None, monitor="val/f1", **numbers):
    return [str(a) for a in advise(verdict(state, **numbers), {**DEFAULTS, **(settings or {})}, monitor)]


def test_overfitting_with_the_defaults_is_advised_the_three_usual_changes():
    assert lines(State.SEVERE) == [
        "early_stopping.patience: 2 (now off): stop when val/f1 stops improving",
        "trainer.max_epochs: 4 (now 10): val/f1 was best in epoch 4",
        "model.config_overrides: {hidden_dropout_prob: 0.2} (now 0.1): dropout makes train harder to memorise",
    ]


def test_what_is_done_already_gives_way_to_the_next_change():
    done = {"early_stopping.patience": 2, "trainer.max_epochs": 4, "dropout": 0.3}
    assert lines(State.MODERATE, done) == [
        "optimizer.weight_decay: 0.05 (now 0.01): keeps the weights small",
        "task.init_args.label_smoothing: 0.1 (now 0): val loss grows where wrong answers are too certain",
        "optimizer.lr: 2.5e-5 (now 5.0e-5): smaller steps overshoot less",
    ]
    done |= {"optimizer.weight_decay": 0.1, "task.init_args.label_smoothing": 0.1, "optimizer.lr": 1e-5}
    assert lines(State.MODERATE, done) == []


def test_few_rows_are_advised_to_train_only_the_head():
    line = "model.freeze: backbone (now null): 300 train rows are few for all weights"
    assert line in lines(State.SEVERE, {"num_train_rows": 300})
    assert line not in lines(State.SEVERE, {"num_train_rows": 300, "model.from_scratch": True})
    assert not any(
        "model.freeze" in found for found in lines(State.SEVERE, {"num_train_rows": 300, "model.freeze": ["backbone"]})
    )


def test_other_overrides_of_the_config_stay_in_the_advised_value():
    found = lines(State.SEVERE, {"model.config_overrides": {"attention_probs_dropout_prob": 0.0}})
    assert "model.config_overrides: {attention_probs_dropout_prob: 0.0, hidden_dropout_prob: 0.2} (now 0.1)" in found[2]


def test_a_best_in_the_middle_of_an_epoch_keeps_that_epoch():
    assert lines(State.SEVERE, best_epoch=3.25)[1].startswith("trainer.max_epochs: 4 (now 10)")
    assert lines(State.SEVERE, {"trainer.max_epochs": -1})[1].startswith("trainer.max_epochs: 4 (now -1)")
    assert lines(State.SEVERE, since_best=0)[1].startswith("model.config_overrides")


def test_a_run_in_steps_is_advised_in_steps():
    assert (
        lines(State.SEVERE, {"trainer.max_steps": 2000})[1]
        == "trainer.max_steps: 800 (now 2000): val/f1 was best at step 800"
    )
    assert lines(State.SEVERE, {"trainer.max_steps": 2000}, best_epoch=None)[1].startswith("trainer.max_steps: 800")
    assert lines(State.UNDERFITTING, {"trainer.max_steps": 2000})[0].startswith("trainer.max_steps: 4000 (now 2000)")


def test_a_gap_within_chance_asks_for_more_val_rows_first():
    # two standard errors of a share of 0.8 over 50 rows and as many probe rows: 2 * sqrt(0.16 * 2 / 50) = 0.16
    first = lines(State.SEVERE, {"num_val_rows": 50})[0]
    assert first == "data.val_fraction: 0.2 (now 0.1): 50 val rows leave the gap uncertain by 0.160"
    assert lines(State.SEVERE, {"num_val_rows": 50, "data.val_fraction": None})[0].startswith(
        "data.val: more rows (now 50 rows)"
    )
    assert lines(State.SEVERE, {"num_val_rows": 50}, gap=0.17)[0].startswith("early_stopping.patience")
    assert lines(State.SEVERE, {"num_val_rows": 50}, higher_is_better=False)[0].startswith("early_stopping.patience")


def test_a_model_that_does_not_learn_with_frozen_weights_is_thawed():
    found = lines(State.NOT_LEARNING, {"model.freeze": ["backbone"]})
    assert found[0] == "optimizer.head_lr: 1.0e-3 (now 5.0e-5): only the head is trained"
    assert found[1] == "model.freeze: null (now backbone): frozen weights cannot learn"
    assert lines(State.NOT_LEARNING, {"model.freeze": ["encoder"]})[0].startswith("model.freeze: null (now encoder)")


@pytest.mark.parametrize(
    ("lr", "scratch", "line"),
    [
        (1e-3, False, "optimizer.lr: 2.0e-5 (now 1.0e-3): too large"),
        (1e-7, False, "optimizer.lr: 2.0e-5 (now 1.0e-7): too small"),
        (5e-5, True, "optimizer.lr: 5.0e-4 (now 5.0e-5): too small for random weights"),
        (3e-5, False, "task.init_args.label_column (now label): are these the labels of the texts?"),
    ],
)
def test_not_learning_looks_at_the_learning_rate_then_at_the_labels(lr, scratch, line):
    assert lines(State.NOT_LEARNING, {"optimizer.lr": lr, "model.from_scratch": scratch})[0].startswith(line)


def test_a_model_that_fell_back_to_the_baseline_is_advised_smaller_steps():
    found = lines(State.NOT_LEARNING, {"lr_schedule.warmup": 0}, collapsed=True)
    assert found[0].startswith("optimizer.lr: 2.5e-5 (now 5.0e-5)")
    assert found[1].startswith("lr_schedule.warmup: 0.1 (now 0)")
    assert len(found) == 2


def test_a_run_of_few_steps_is_advised_more_epochs_counted_over_the_whole_run():
    found = lines(State.NOT_LEARNING, {"trainer.max_epochs": 3}, step=10, epoch=1.0)
    assert found[0] == "trainer.max_epochs: 10 (now 3): 30 optimizer steps are few"
    assert not any(
        "max_epochs" in line for line in lines(State.NOT_LEARNING, {"trainer.max_epochs": 3}, step=40, epoch=1.0)
    )


def test_underfitting_is_advised_longer_and_faster_training():
    assert lines(State.UNDERFITTING, {"trainer.max_epochs": 3}, val_change=0.02, epoch=3.0) == [
        "trainer.max_epochs: 6 (now 3): it was still improving",
        "optimizer.lr: 1.0e-4 (now 5.0e-5): train is not learned either",
    ]


def test_a_run_that_early_stopping_cut_short_is_advised_patience():
    found = lines(State.UNDERFITTING, {"early_stopping.patience": 1}, epoch=4.0)
    assert found[0] == "early_stopping.patience: 3 (now 1): it stopped the run before the end"


def test_a_plateau_far_from_perfect_is_advised_a_larger_step_and_a_good_one_an_earlier_end():
    assert lines(State.PLATEAU, train_skill=0.3)[0].startswith("optimizer.lr: 1.0e-4")
    assert lines(State.PLATEAU, train_skill=0.8)[0].startswith("early_stopping.patience: 2")


def test_doubts_about_the_data_name_where_the_data_comes_from():
    (cut,) = lines(State.LEAKAGE, text_overlap=0.3)
    assert cut == "data.train: remove repeated texts, val is cut from it and 30% of its texts stand in train"
    (own,) = lines(State.LEAKAGE, {"data.val_fraction": None}, text_overlap=0.3)
    assert own.startswith("data.val: 30% of its texts stand in train")
    assert lines(State.SUSPICIOUS)[0] == "task.init_args.text_columns (now [text]): does a text give its label away?"


def test_columns_are_named_by_the_arguments_of_the_task_in_use():
    task = {"label_key": "task.init_args.tags_column", "input_key": "task.init_args.tokens_column"}
    task |= {"task.init_args.tags_column": "ner_tags", "task.init_args.tokens_column": "tokens"}
    shown = "task.init_args.tokens_column (now tokens): does a text give its label away?"
    assert lines(State.SUSPICIOUS, task)[0] == shown
    advised = [line for state in State for line in lines(state, task)]
    assert any(line.startswith("task.init_args.tags_column (now ner_tags)") for line in advised)
    assert not any("label_column" in line or "text_columns" in line for line in advised)


def test_a_run_that_was_not_measured_is_advised_what_to_measure():
    none = {"data.val_fraction": 0.0, "num_val_rows": 0}
    assert lines(State.NOT_MEASURED, none) == ["data.val_fraction: 0.1 (now 0): without val rows nothing can be said"]
    assert lines(State.NOT_MEASURED, {"overfit.probe_size": 0})[0].startswith("overfit.probe_size: 1000 (now 0)")
    assert lines(State.NOT_MEASURED, nonfinite=True)[0].startswith("optimizer.lr: 2.5e-5")
    assert lines(State.NOT_MEASURED) == []


def test_a_healthy_run_is_left_alone():
    assert lines(State.HEALTHY) == []


def test_unknown_settings_give_advice_without_present_values():
    found = [str(a) for a in advise(verdict(State.SEVERE), None, "val/f1")]
    assert found == [
        "early_stopping.patience: 2: stop when val/f1 stops improving",
        "trainer.max_epochs: 4: val/f1 was best in epoch 4",
        "optimizer.weight_decay: 0.05: keeps the weights small",
    ]


GRID = {
    "early_stopping.patience": [None, 1, 2, 5],
    "trainer.max_epochs": [None, -1, 4, 10],
    "trainer.max_steps": [-1, 800, 2000],
    "optimizer.lr": [1e-6, 1e-5, 2e-5, 1e-4, 1e-2],
    "model.freeze": [None, ["backbone"], ["encoder", "head"]],
    "num_train_rows": [0, 300, 5000],
}


@pytest.mark.parametrize("state", list(State))
def test_no_advice_repeats_a_value_in_use_or_names_an_unknown_key(state):
    for values in product(*GRID.values()):
        settings = {**DEFAULTS, **dict(zip(GRID, values, strict=True))}
        for collapsed in (False, True):
            found = advise(verdict(state, collapsed=collapsed, nonfinite=collapsed, epoch=3.0), settings, "val/f1")
            assert len(found) <= MAX_ADVICE
            assert len({a.key for a in found}) == len(found)
            for advice in found:
                assert advice.key in ADVISED_KEYS
                assert advice.value != advice.now
                if advice.value != CHECK:
                    assert f"{advice.key}: {advice.value}" in str(advice)


def test_every_advised_value_is_read_back_from_yaml_as_what_it_means():
    for state in State:
        for advice in advise(
            verdict(state, collapsed=True, nonfinite=True), {**DEFAULTS, "model.freeze": ["backbone"]}
        ):
            value = yaml.safe_load(advice.value)
            if advice.key in ("optimizer.lr", "optimizer.head_lr"):
                assert isinstance(value, float), advice.value
            if advice.key == "model.freeze":
                assert value is None or value == "backbone"


def test_every_state_has_rules():
    assert set(RULES) == set(State)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (BertConfig, "hidden_dropout_prob"),
        (RobertaConfig, "hidden_dropout_prob"),
        (DistilBertConfig, "dropout"),
        (GPT2Config, "resid_pdrop"),
        (T5Config, "dropout_rate"),
        (ModernBertConfig, "mlp_dropout"),
        (LlamaConfig, "attention_dropout"),
    ],
)
def test_the_dropout_of_a_transformers_config_is_found(config, field):
    made = config()
    assert main_dropout(made.to_dict()) == (field, getattr(made, field))
