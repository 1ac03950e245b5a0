"""What holds for every task, those to come included: settings, configs, docs, and tests of the whole way."""

import inspect
import pickle
import re
from pathlib import Path

import pytest
import transformers
import yaml

from lit_tune.config.sections import tasks
from lit_tune.tasks.base import Task

ROOT = Path(__file__).parents[2]
TASKS = tasks()
WHOLE_WAY = {
    "any cut": r"test_any_cut|test_exactness|cuts? (gives|of)|same_gradient",
    "padding": r"padding",
    "two ranks": r"ranks",
    "predict": r"predict",
    "export": r"best|export",
    "resume": r"never_interrupted|resume",
}
"""What the tests of a task must look at -> words of a test's name or body."""


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).replace("LM", "_lm").replace("__", "_").lower()


@pytest.fixture(params=TASKS)
def name(request) -> str:
    return request.param


def test_it_is_built_of_plain_settings_and_survives_pickling(name):
    cls = TASKS[name]
    for parameter in inspect.signature(cls).parameters.values():
        assert parameter.default is not inspect.Parameter.empty, f"{parameter.name} has no default"
        assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD, "no **kwargs"
    task = cls()
    copy = pickle.loads(pickle.dumps(task))
    assert copy.settings() == task.settings()
    assert set(task.input_columns()) <= set(task.verbatim_columns())


def test_every_setting_is_explained(name):
    said = TASKS[name].__doc__ or ""
    for parameter in inspect.signature(TASKS[name]).parameters:
        assert re.search(rf"^ {{8}}{parameter}: ", said, re.MULTILINE), parameter


def test_transformers_has_what_it_promises(name):
    cls = TASKS[name]
    assert getattr(transformers, cls.auto_class.__name__) is cls.auto_class
    known = transformers.pipelines.PIPELINE_REGISTRY.get_supported_tasks()
    assert (cls.pipeline in known) is cls.has_pipeline
    assert cls.has_pipeline or cls().usage, "the model card says how to run it"


def test_a_config_names_a_data_set_of_the_hub_and_another_one_local_files(name):
    trees = [yaml.safe_load(path.read_text()) for path in (ROOT / "configs" / snake(name)).glob("*.yaml")]
    mine = [t for t in trees if (t.get("task") or {"class_path": "SequenceClassification"})["class_path"] == name]
    assert any("dataset" in tree["data"] for tree in mine)
    assert any(str(tree["data"].get("train", "")).startswith("data/") for tree in mine)


def test_the_readme_and_the_changelog_know_it(name):
    assert f"`{name}`" in (ROOT / "README.md").read_text() or f": {name}`" in (ROOT / "README.md").read_text()
    assert name in (ROOT / "CHANGELOG.md").read_text() or name == "SequenceClassification"


def test_its_whole_way_is_tested(name):
    """A reminder, not a proof: the tests themselves say what holds."""
    files = [*(ROOT / "tests" / "tasks").glob("*.py"), *(ROOT / "tests" / "parity").glob("*.py")]
    mine = [path.read_text() for path in files if f"{name}(" in path.read_text() or f'"{name}"' in path.read_text()]
    if name == "SequenceClassification":  # the default task of the tests that are about no task
        mine += [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    for what, words in WHOLE_WAY.items():
        assert any(re.search(words, text) for text in mine), what


def test_a_method_of_the_interface_is_explained_where_tasks_are_added():
    said = (ROOT / "CONTRIBUTING.md").read_text()
    public = [n for n in vars(Task) if not n.startswith("_")]
    assert [n for n in public if f"`{n}`" not in said] == []
