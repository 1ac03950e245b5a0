"""`lit-tune completion`: what bash makes of the script, and that it needs no Python."""

import builtins
import subprocess

import pytest

from lit_tune.__main__ import VERBS, main
from lit_tune.commands.completion import verbs
from lit_tune.config.sections import DEFAULT_TASK, all_keys, tasks
from lit_tune.preflight.trainer_rules import NOT_OFFERED


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "lit-tune.bash"
    assert main(["completion", "--output", str(path)]) == 0
    return path


@pytest.fixture
def complete(script, tmp_path):
    """What Tab offers after words, in a shell that finds no programs, so that none can be asked."""

    def offered(*words):
        quoted = " ".join(f"'{word}'" for word in ("lit-tune", *words))
        code = f"""
PATH=/nowhere; source '{script}'; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}
_shtab_lit_tune lit-tune '{words[-1]}'; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
        done = subprocess.run(
            ["bash", "--norc", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stderr == ""
        return set(done.stdout.split())

    return offered


def test_every_verb_is_completed(complete):
    assert verbs().keys() == VERBS.keys()
    assert complete("") == VERBS.keys()
    assert complete("pre") == {"predict", "prepare"}


def test_keys_and_options_are_completed(complete):
    assert complete("fit", "--optimizer.lr", "1e-4", "--optimizer.l") == {
        "--optimizer.lr",
        "--optimizer.layer_lr_decay",
    }
    assert complete("fit", "--overw") == {"--overwrite"}
    assert complete("export", "--form") == {"--format"}
    assert complete("schema", "--optimizer.l") == set()


def test_values_are_completed(complete):
    assert complete("fit", "--trainer.precision", "bf16-") == {"bf16-true", "bf16-mixed"}
    assert complete("fit", "--model.new_head", "") == {"true", "false"}
    assert complete("fit", "--task.class_path", "Se") == {t for t in tasks() if t.startswith("Se")}
    assert complete("completion", "--shell", "") == {"bash", "zsh"}


def test_files_are_completed(complete, tmp_path):
    (tmp_path / "my.yaml").touch()
    (tmp_path / "my.csv").touch()
    assert complete("fit", "--config", "my.y") == {"my.yaml"}
    assert complete("fit", "--data.train", "my.c") == {"my.csv"}


def test_a_key_that_no_config_may_set_is_not_offered(complete):
    offered = complete("fit", "--")
    keys = all_keys(tasks()[DEFAULT_TASK]).keys()
    assert {key for key in keys if f"--{key}" not in offered} == set(NOT_OFFERED) & keys


def test_zsh_has_a_script_of_its_own(capsys):
    assert main(["completion", "--shell", "zsh"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("#compdef lit-tune")
    assert "--trainer.precision" in printed


def test_without_the_extra_it_is_named(monkeypatch, capsys):
    def without_shtab(name, *arguments, **named):
        if name == "shtab":
            raise ImportError(name)
        return original(name, *arguments, **named)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without_shtab)
    assert main(["completion"]) == 2
    assert "pip install 'lit-tune[completion]'" in capsys.readouterr().err
