"""The command line from outside: light start, exit codes, messages instead of tracebacks."""

import subprocess
import sys

import pytest

from lit_tune import __version__
from lit_tune.__main__ import VERBS, main


def run(*arguments, code=None):
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "lit_tune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], [], ["--version"]])
def test_help_and_version_import_nothing_heavy(arguments):
    code = f"""
import sys
from lit_tune.__main__ import main
assert main({arguments}) == 0
heavy = {{"torch", "lightning", "transformers", "datasets", "numpy", "jsonargparse"}} & sys.modules.keys()
assert not heavy, heavy
"""
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    assert __version__ in done.stdout


def test_the_module_runs_as_the_console_script_does():
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"lit-tune {__version__}\n", "")


def test_an_unknown_verb_is_exit_2_with_the_nearest_and_imports_nothing_heavy():
    done = run("ftt")
    assert done.returncode == 2
    assert done.stdout == ""
    assert " ".join(done.stderr.split()) == (
        f"lit-tune: there is no verb 'ftt'; there are: {', '.join(VERBS)} Fix: lit-tune fit ..."
    )


def test_the_overview_lists_every_verb(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    for verb, line in VERBS.items():
        assert f"  {verb:<12}{line}" in text
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.slow
def test_the_import_error_of_a_config_is_exit_2_without_traceback():
    done = run("fit", "--optimizer.lr", "abc", "--data.train", "a.csv", "--model.model_name_or_path", "m")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "optimizer.lr: expected a number above 0, got 'abc' (command line)\nFix: --optimizer.lr 5e-05\n"
    )


@pytest.fixture
def failing_verb(monkeypatch):
    """Let the verb ``schema`` end with an exception, as a run may."""

    def let(error):
        def schema() -> None:
            raise error

        monkeypatch.setattr("lit_tune.commands.schema.schema", schema)

    return let


def test_a_ctrl_c_is_exit_130(failing_verb, capsys):
    failing_verb(KeyboardInterrupt())
    assert main(["schema"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_ctrl_c_that_lightning_turned_into_an_exit_is_exit_130(monkeypatch):
    def schema() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setattr("lit_tune.commands.schema.schema", schema)
    assert main(["schema"]) == 130


def test_exhausted_memory_is_exit_8_and_the_fix_keeps_the_effective_batch(failing_verb, capsys):
    import torch

    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), MemoryError()):
        failing_verb(error)
        assert main(["schema"]) == 8
        printed = capsys.readouterr().err
        assert "Fix: halve it and double trainer.accumulate_grad_batches" in printed
        assert len(printed.splitlines()) <= 6
        assert "Traceback" not in printed


def test_an_error_of_ours_is_exit_1_with_a_traceback_and_says_so(failing_verb, capsys):
    failing_verb(ZeroDivisionError("x"))
    assert main(["schema"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "this is a bug in lit-tune" in printed


def test_debug_shows_the_traceback_of_a_users_error_too(capsys):
    assert main(["schema", "--foo", "--debug"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "Fix: " in printed


def test_flags_of_a_verb_are_not_config_keys(capsys):
    options = ["--data.train", "a.csv", "--model.model_name_or_path", "m", "--print_config"]
    assert main(["fit", "--overwrite", *options, "--verbose"]) == 0
    assert "overwrite" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["fit", "--overwrite=yes"], "--overwrite: takes no value, got 'yes'"),
        (["predict", "--output"], "--output: a value is missing"),
        (["predict", "--output", "--debug"], "--output: a value is missing"),
        (["fit", "--allow-import", "os;x"], "--allow-import: 'os;x' is not the dotted name"),
        (["schema", "foo"], "lit-tune schema: unexpected argument 'foo'"),
        (["fit", "--help", "optimzer"], "--help: there is no section optimzer"),
    ],
)
def test_a_flag_used_wrongly_is_exit_2(capsys, arguments, where):
    assert main(arguments) == 2
    assert where in capsys.readouterr().err
