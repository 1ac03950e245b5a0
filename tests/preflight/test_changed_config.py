"""What a changed key does to a run that goes on."""

import pytest

from lit_tune.config.sections import all_keys, tasks
from lit_tune.preflight.changed_config import HARMLESS, LENGTH, MODEL, Effect, changes, effect_of, table

CONFIG = {
    "run_dir": "runs/a",
    "resume": "auto",
    "optimizer.lr": 2e-5,
    "trainer.max_epochs": 3,
    "trainer.max_steps": -1,
    "logger": "csv",
    "checkpoint.keep_last": 1,
    "model.model_name_or_path": "bert",
    "model.config_overrides": {},
    "data.train": "a.csv",
}


def effects(**now):
    changed = {**CONFIG, **{k.replace("__", "."): v for k, v in now.items()}}
    return {c.key: c.effect for c in changes(CONFIG, changed)}


def test_the_same_config_has_no_changes_and_neither_place_nor_resume_is_one():
    assert changes(CONFIG, dict(CONFIG)) == []
    assert effects(run_dir="runs/moved", resume="runs/a/checkpoints/last-0000004.ckpt") == {}


@pytest.mark.parametrize(
    ("key", "value", "effect"),
    [
        ("logger", ["csv", "wandb"], Effect.HARMLESS),
        ("checkpoint__keep_last", 4, Effect.HARMLESS),
        ("optimizer__lr", 3e-5, Effect.OTHER_RUN),
        ("data__train", "b.csv", Effect.OTHER_RUN),
        ("model__model_name_or_path", "roberta", Effect.OTHER_MODEL),
        ("model__config_overrides__num_hidden_layers", 3, Effect.OTHER_MODEL),
        ("trainer__max_epochs", 5, Effect.LONGER),
        ("trainer__max_epochs", -1, Effect.LONGER),
        ("trainer__max_epochs", None, Effect.LONGER),
        ("trainer__max_epochs", 2, Effect.OTHER_RUN),
        ("trainer__max_steps", 100, Effect.OTHER_RUN),  # from no limit to one
        ("a_key_of_tomorrow", 1, Effect.OTHER_RUN),
    ],
)
def test_what_a_change_does(key, value, effect):
    assert effects(**{key: value}) == {key.replace("__", "."): effect}


def test_a_key_that_is_gone_has_changed_too():
    was = {**CONFIG, "lr_schedule.warmup": 0.1}
    assert [(c.key, c.was, c.now) for c in changes(was, CONFIG)] == [("lr_schedule.warmup", 0.1, None)]


def test_every_pattern_names_a_key_there_is():
    """A key that is renamed would silently need --allow-changed, or worse, no longer be structural."""
    from fnmatch import fnmatchcase

    keys = list(all_keys(tasks()["SequenceClassification"]))
    unused = [p for p in (*HARMLESS, *LENGTH, *MODEL) if not any(fnmatchcase(k, p) for k in keys)]
    assert unused == []


@pytest.mark.parametrize("key", ["optimizer.lr", "data.train_batch_size", "seed_everything", "trainer.precision"])
def test_what_decides_the_weights_is_not_harmless(key):
    assert effect_of(key, 1, 2) == Effect.OTHER_RUN


def test_the_table_is_aligned_and_long_values_are_cut():
    now = {**CONFIG, "optimizer.lr": 3e-5, "data.train": "x" * 90}
    lines = table(changes(CONFIG, now)).splitlines()
    assert lines[0] == "  optimizer.lr  2e-05 -> 3e-05                                     needs --allow-changed"
    assert lines[1] == f"  data.train    a.csv -> {'x' * 37}...  needs --allow-changed"
