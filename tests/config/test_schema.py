"""The JSON schema, judged by the jsonschema package: shipped configs pass, typos do not."""

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from lit_tune.__main__ import main
from lit_tune.cli import parse
from lit_tune.config.schema import config_schema

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


@pytest.fixture(scope="module")
def validator():
    schema = config_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(json.loads(json.dumps(schema)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_passes(validator, path):
    assert list(validator.iter_errors(yaml.safe_load(path.read_text()))) == []


def test_there_are_shipped_configs():
    assert len(CONFIGS) >= 8


def test_the_resolved_config_passes(validator):
    text = parse(["--data.train", "a.csv", "--model.model_name_or_path", "m"]).to_yaml()
    assert list(validator.iter_errors(yaml.safe_load(text))) == []


@pytest.mark.parametrize(
    "text",
    [
        "optimiser: {lr: 1.0}",
        "optimizer: {learning_rate: 1.0}",
        "optimizer: {lr: abc}",
        "optimizer: {lr: 0.0}",
        "data: {train_batch_size: 0}",
        "data: {train_batch_size: 1.5}",
        "data: {padding: long}",
        "data: {val_fraction: 1}",
        "data: {task: x}",
        "data: {model_name_or_path: x}",
        "task: {init_args: {text_colums: [a]}}",
        "task: {class_path: SequenceClassification, init_args: {label_smoothing: 1.0}}",
        "task: {class_path: SequenceClasification}",
        "early_stopping: null",
        "logger: tensorbord",
        "logger: [tensorboard, wandbb]",
        "trainer: {max_epochs: many}",
        "trainer: {max_epochs: 0}",
        "checkpoint: {dirpath: x}",
        "model: {dtype: int8}",
    ],
)
def test_a_mistake_does_not_pass(validator, text):
    assert list(validator.iter_errors(yaml.safe_load(text))) != []


@pytest.mark.parametrize(
    "text",
    [
        "trainer: {max_epochs: -1, some_future_option: 1, callbacks: [{class_path: X, init_args: {a: 1}}]}",
        "task: {class_path: my_package.MyTask, init_args: {anything: 1}}",
        "data: {max_length: null, train: [a.csv, b.csv]}",
        "logger: [tensorboard, wandb]",
        "model: {freeze: [a, b], config_overrides: {hidden_dropout_prob: 0.2}}",
        "optimizer: {betas: [0.9, 0.98]}",
        "trainer: {precision: bf16-mixed, devices: 2, strategy: ddp}",
    ],
)
def test_what_the_parser_takes_passes(validator, text):
    assert list(validator.iter_errors(yaml.safe_load(text))) == []


def test_the_verb_prints_it_and_writes_it(capsys, tmp_path):
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(config_schema()))
    assert printed["properties"]["optimizer"]["properties"]["lr"]["default"] == 5e-5
    assert main(["schema", "--output", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text()) == printed


def test_a_place_that_cannot_be_written_is_exit_7(capsys, tmp_path):
    assert main(["schema", "--output", str(tmp_path / "no" / "s.json")]) == 7
    assert "Fix: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("adapter", "is_right"),
    [
        ("lora", True),
        ({"type": "dora", "r": 4, "target_modules": ["query"]}, True),
        ({"class_path": "peft.VeraConfig", "init_args": {"r": 4}}, True),
        (None, True),
        ("lorra", False),
        ({"rank": 4}, False),
        ({"r": 0}, False),
        ({"dropout": 1.0}, False),
    ],
)
def test_an_adapter_is_exact(validator, adapter, is_right):
    assert validator.is_valid({"model": {"adapter": adapter}}) is is_right
