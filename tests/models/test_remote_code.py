"""Code of a model's repository: run only with the flag, at a named commit, and never from a third repository."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import transformers.dynamic_module_utils
from security.watched import Outcome, watched
from toy import toy_rows, write_csv

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = """
from transformers import BertConfig, BertForSequenceClassification

class OwnConfig(BertConfig):
    model_type = "own-bert"

class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.fixture
def own_model(tiny_model_dir, tmp_path) -> Path:
    """A model whose classes are in a file beside its weights."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own-bert", "auto_map": classes}))
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``lit-tune`` in a child process: what it imports is gone with it."""
    write_csv(tmp_path / "train.csv", toy_rows(30))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)

    def command(verb: str, *options: str) -> Outcome:
        return watched([verb, *options], [tmp_path])

    return command


def executed(outcome: Outcome) -> list[str]:
    """Files outside of the installation whose code has run."""
    return [what for what in outcome.foreign if what.startswith("executed")]


def fit(model: str) -> list[str]:
    options = {"data.train": "train.csv", "model.model_name_or_path": model, "run_dir": "run", "logger": "none"}
    options |= {"trainer.accelerator": "cpu", "trainer.max_steps": "2", "trainer.enable_progress_bar": "false"}
    return [f"--{key}={value}" for key, value in options.items()]


@pytest.mark.slow
def test_a_folders_code_runs_with_the_flag_alone_also_where_the_run_is_used_later(run, own_model):
    refused = run("fit", *fit("model"))
    assert (refused.code, executed(refused)) == (4, [])
    assert "--allow-remote-code" in refused.err
    done = run("fit", *fit("model"), "--allow-remote-code")
    assert done.code == 0, done.err
    assert any("own.py" in what for what in executed(done))
    later = ["--config", "run/config.yaml", "--data.test=train.csv"]
    assert run("test", *later).code == 4
    tested = run("test", *later, "--allow-remote-code")
    assert tested.code == 0, tested.err


def cached(folder: Path, name: str, cache: Path) -> None:
    """A repository as huggingface_hub keeps it once it was downloaded."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:12]])
def test_the_hubs_code_needs_a_commit(run, own_model, tmp_path, revision):
    cached(own_model, "org/own", tmp_path / "hub")
    options = [] if revision is None else [f"--model.revision={revision}"]
    outcome = run("fit", *fit("org/own"), *options, "--allow-remote-code")
    assert (outcome.code, executed(outcome)) == (2, []), outcome.err
    assert "model.revision" in outcome.err


def test_the_hubs_code_runs_at_its_commit(run, own_model, tmp_path):
    cached(own_model, "org/own", tmp_path / "hub")
    outcome = run("fit", *fit("org/own"), f"--model.revision={COMMIT}", "--allow-remote-code")
    assert outcome.code == 0, outcome.err
    assert any("own.py" in what for what in executed(outcome))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_third_repository_is_refused(run, own_model, file):
    content = json.loads((own_model / file).read_text())
    content["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoTokenizer": [None, "evil/repo--own.OwnTokenizer"]}
    (own_model / file).write_text(json.dumps(content))
    outcome = run("fit", *fit("model"), "--allow-remote-code")
    assert (outcome.code, executed(outcome)) == (4, []), outcome.err
    assert "evil/repo" in outcome.err


def test_no_config_can_switch_it_on(run, own_model):
    outcome = run("fit", *fit("model"), "--model.allow_remote_code=true")
    assert (outcome.code, executed(outcome)) == (2, [])
