"""The help names every key, fits the terminal, and shows no module paths."""

import re

import pytest

from lit_tune.__main__ import VERBS, main
from lit_tune.config.sections import all_keys, section_names, tasks
from lit_tune.preflight.trainer_rules import NOT_OFFERED


@pytest.fixture
def help_of(capsys, monkeypatch):
    def run(*tokens, width=100):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main([*tokens]) == 0
        return capsys.readouterr().out

    return run


def test_the_help_of_fit_names_every_key(help_of):
    text = help_of("fit", "--help")
    for key in all_keys(tasks()["SequenceClassification"]).keys() - NOT_OFFERED:
        assert re.search(rf"\b{key.rsplit('.', 1)[-1]}\b", text), key
    assert "barebones" not in text
    for flag in ("--overwrite", "--verbose", "--print_config", "--allow-import", "--debug", "--config FILE"):
        assert flag in text


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(help_of, width):
    for line in help_of("fit", "--help", width=width).splitlines():
        is_command = line.startswith("  lit-tune ")
        assert len(line) <= width or is_command or " " not in line.strip()


def test_types_are_short_and_defaults_are_shown(help_of):
    text = help_of("fit", "--help")
    assert "[float = 5e-05]" in text
    assert "[longest|max_length = longest]" in text
    assert "[str, required]" in text
    for wall in ("lightning.pytorch", "typing.", "Union[", "<class", "lit_tune.tasks"):
        assert wall not in text


@pytest.mark.parametrize("section", section_names())
def test_every_section_has_a_help_of_its_own(help_of, section):
    assert help_of("fit", "--help", section).startswith(f"{section}: ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_and_its_line_in_the_overview_is_its_summary(help_of, verb):
    assert help_of(verb, "--help", width=200).startswith(f"lit-tune {verb}: {VERBS[verb]}\n")


def test_the_help_of_the_trainer_has_no_markup(help_of):
    text = help_of("fit", "--help", "trainer")
    assert ":class:" not in text
    assert "``" not in text
    assert "limit_train_batches" in text
