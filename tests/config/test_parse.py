"""What a config means: overlays, overrides, links, defaults that depend on other keys, YAML as people write it."""

import pytest
import yaml

from lit_tune.cli import parse
from lit_tune.config.parameters import REQUIRED
from lit_tune.config.parse import as_plain
from lit_tune.config.ranges import RANGES
from lit_tune.config.sections import LINKS, SECTIONS, all_keys, tasks
from lit_tune.imports import allow_import

TRAIN = ["--data.train", "a.csv", "--model.model_name_or_path", "m"]


@pytest.fixture
def parsed(tmp_path):
    """Parse config texts, in order, and options; the config as plain dicts."""

    def run(*texts, options=TRAIN):
        files = []
        for number, text in enumerate(texts):
            path = tmp_path / f"{number}.yaml"
            path.write_text(text)
            files += ["--config", str(path)]
        return as_plain(parse([*files, *options]).config)

    return run


def test_two_keys_are_enough_and_the_rest_are_the_defaults_of_the_design(parsed):
    c = parsed()
    assert c["run_dir"] == "runs/a_m"
    assert c["seed_everything"] == 42
    assert c["task"]["class_path"] == "lit_tune.tasks.sequence_classification.SequenceClassification"
    assert (c["optimizer"]["name"], c["optimizer"]["lr"], c["optimizer"]["weight_decay"]) == ("adamw", 5e-5, 0.01)
    assert (c["lr_schedule"]["name"], c["lr_schedule"]["warmup"]) == ("linear", 0.1)
    assert (c["trainer"]["max_epochs"], c["trainer"]["gradient_clip_val"]) == (3, 1.0)
    assert c["trainer"]["use_distributed_sampler"] is False
    assert c["early_stopping"]["patience"] is None
    assert c["overfit"]["gap"] == 0.05
    assert c["logger"] == "tensorboard"


def test_later_files_and_then_options_come_on_top(parsed):
    first = "optimizer: {lr: 1e-5, weight_decay: 0.1}\ntrainer: {max_epochs: 5}"
    c = parsed(first, "optimizer: {lr: 2e-5}", options=[*TRAIN, "--trainer.max_epochs", "7"])
    assert (c["optimizer"]["lr"], c["optimizer"]["weight_decay"], c["trainer"]["max_epochs"]) == (2e-5, 0.1, 7)


def test_an_option_before_a_file_is_overlaid_by_it(parsed, tmp_path):
    (tmp_path / "x.yaml").write_text("optimizer: {lr: 2e-5}")
    c = as_plain(parse(["--optimizer.lr", "1e-5", "--config", str(tmp_path / "x.yaml"), *TRAIN]).config)
    assert c["optimizer"]["lr"] == 2e-5


def test_every_link_carries_its_value(parsed):
    options = ["--model.revision=abc", "--model.new_head=true", "--overfit.probe_size=7", "--seed_everything=3"]
    c = parsed("model: {config_overrides: {hidden_dropout_prob: 1e-1}}", options=[*TRAIN, *options, "--run_dir=r"])
    for source, target in LINKS:
        left, right = c, c
        for part in source.split("."):
            left = left[part]
        for part in target.split("."):
            right = right[part]
        assert left == right, (source, target)
    assert c["data"]["config_overrides"] == {"hidden_dropout_prob": 0.1}
    assert c["trainer"]["default_root_dir"] == "r"


def test_a_parameter_that_says_it_is_set_by_another_key_is_linked():
    for section in SECTIONS:
        for parameter in section.parameters():
            assert not parameter.help.startswith("Set by"), f"{section.name}.{parameter.name} is not in LINKS"


def test_task_arguments_can_be_given_short_and_in_a_file(parsed):
    text = "task: {class_path: SequenceClassification, init_args: {text_columns: [a, b], label_column: y}}"
    c = parsed(text, options=[*TRAIN, "--task.threshold", "0.3"])
    assert c["task"]["init_args"]["text_columns"] == ["a", "b"]
    assert (c["task"]["init_args"]["label_column"], c["task"]["init_args"]["threshold"]) == ("y", 0.3)


def test_a_task_of_ones_own_needs_allow_import(parsed, tmp_path, monkeypatch):
    (tmp_path / "own_task_for_test.py").write_text(
        "from lit_tune.tasks.sequence_classification import SequenceClassification\n"
        "class MyTask(SequenceClassification):\n"
        "    def __init__(self, depth: int, label_column: str = 'y') -> None:\n"
        "        super().__init__(label_column=label_column)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("lit_tune.imports._added", [])
    allow_import("own_task_for_test")
    c = parsed("task: {class_path: own_task_for_test.MyTask, init_args: {depth: 3}}")
    assert c["task"]["init_args"] == {"depth": 3, "label_column": "y"}


@pytest.mark.parametrize(("text", "value"), [("2e-5", 2e-5), ("2.0e-5", 2e-5), ("1", 1.0), ("'3e-5'", 3e-5)])
def test_a_learning_rate_may_be_written_as_people_write_it(parsed, text, value):
    assert parsed(f"optimizer: {{lr: {text}}}")["optimizer"]["lr"] == value


def test_names_that_yaml_1_1_would_turn_into_something_else_stay_names(parsed):
    c = parsed("task: {init_args: {label_names: [no, yes, on, off, 12:30, 2024-01-01, y]}}")
    assert c["task"]["init_args"]["label_names"] == ["no", "yes", "on", "off", "12:30", "2024-01-01", "y"]


def test_max_steps_alone_is_not_cut_short_by_the_default_epochs(parsed):
    assert parsed(options=[*TRAIN, "--trainer.max_steps=500"])["trainer"]["max_epochs"] == -1
    both = parsed(options=[*TRAIN, "--trainer.max_steps=500", "--trainer.max_epochs=2"])
    assert both["trainer"]["max_epochs"] == 2


@pytest.mark.parametrize(
    ("options", "run_dir"),
    [
        (["--data.dataset=nyu/glue", "--data.name=mrpc", "--model.model_name_or_path=g/bert"], "runs/glue-mrpc_bert"),
        (["--data.train=x/hikes.csv.gz", "--model.model_name_or_path=./tiny/"], "runs/hikes_tiny"),
        (["--data.train=data/hikes/train.csv", "--model.model_name_or_path=m"], "runs/hikes_m"),
        (["--data.train=[a b.csv, c.csv]", "--model.model_name_or_path=m"], "runs/a-b_m"),
        (["--data.train=data/hikes/*.csv", "--model.model_name_or_path=m"], "runs/hikes_m"),
        ([*TRAIN, "--run_dir=/tmp/any where"], "/tmp/any where"),
    ],
)  # fmt: skip
def test_the_run_directory_follows_from_data_and_model(parsed, options, run_dir):
    assert parsed(options=options)["run_dir"] == run_dir


def test_the_printed_config_gives_the_same_config_again(parsed, tmp_path):
    options = [*TRAIN, "--trainer.callbacks+=LearningRateMonitor", "--logger=[csv,wandb]"]
    options += ["--optimizer.betas=[0.9,0.98]"]
    first = parse([*options, "--task.label_names=[no,yes]", "--model.config_overrides.hidden_dropout_prob=0.2"])
    text = first.to_yaml()
    (tmp_path / "config.yaml").write_text(text)
    second = parse(["--config", str(tmp_path / "config.yaml")])
    assert second.to_yaml() == text
    assert as_plain(second.config) == as_plain(first.config)
    tree = yaml.safe_load(text)
    assert tree["task"]["class_path"] == "SequenceClassification"
    assert not {"task", "optimizer", "lr_schedule"} & tree["model"].keys()
    assert "default_root_dir" not in tree["trainer"]


def test_every_section_key_has_a_help_text_and_a_default_or_is_known_to_be_required():
    keys = all_keys(tasks()["SequenceClassification"])
    required = {k for k, p in keys.items() if p.default is REQUIRED}
    assert required == {"model.model_name_or_path"}
    assert [k for k, p in keys.items() if not p.help] == []


def test_every_range_is_of_a_key_that_exists_and_holds_its_default():
    keys = all_keys(tasks()["SequenceClassification"])
    for key, allowed in RANGES.items():
        default = keys[key].default
        assert default is None or default in allowed, key
