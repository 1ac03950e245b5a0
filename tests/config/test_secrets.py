"""What counts as a secret in a config, and what does not."""

import pytest

from lit_tune.config.secrets import without_secrets
from lit_tune.config.sources import Setting
from lit_tune.errors import ConfigError, LitTuneError, hide_secrets

HEX = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("wandb.notes", "see hf_" + "a1B2" * 8),
        ("wandb.tags", ["a", "ghp_" + "a1B2" * 9]),
        ("wandb.notes", "AKIAIOSFODNN7EXAMPLE"),
        ("wandb.notes", "github_pat_" + "a1B2" * 9),
        ("wandb.notes", "glpat-" + "a1B2" * 5),
        ("wandb.notes", "sk-proj-" + "a1B2" * 9),
        ("wandb.notes", "-----BEGIN OPENSSH PRIVATE KEY-----"),
        ("data.train", "https://me:pa55word@host/x.csv"),
        ("data.train", ["a.csv", "ftp://:pa55word@host/x.csv"]),
        ("trainer.logger", {"class_path": "CometLogger", "init_args": {"api_key": HEX}}),
        ("trainer.logger.init_args.api_key", HEX),
        ("task.init_args.loss", {"init_args": {"auth_token": "opensesame"}}),
        ("wandb.password", "opensesame"),
        ("hf_" + "a1B2" * 8, 1),
    ],
)
def test_a_secret_is_refused_with_its_key_and_not_repeated(key, value):
    clean, (problem,) = without_secrets([Setting(key, value, "my.yaml:3")])
    assert clean == []
    assert isinstance(problem, ConfigError)
    assert "my.yaml:3" in str(problem)
    for secret in ("a1B2", "pa55word", "opensesame", HEX, "AKIAIO", "PRIVATE"):
        assert secret not in str(problem)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.revision", HEX),
        ("data.revision", "refs/pr/1"),
        ("model.model_name_or_path", "hf-internal-testing/tiny-random-bert"),
        ("data.tokenizer", "google-bert/bert-base-uncased"),
        ("model.config_overrides", {"pad_token_id": 0, "sep_token": "[SEP]", "bos_token": "<s>"}),
        ("data.train", "s3/me@host/x.csv"),
        ("wandb.notes", "a token of thanks; ask sk-learn people"),
        ("task.init_args.label_names", ["secret", "password", "token"]),
        ("run_dir", "runs/password_reset"),
    ],
)
def test_what_only_sounds_like_one_is_kept(key, value):
    settings = [Setting(key, value, "my.yaml:3")]
    assert without_secrets(settings) == (settings, [])


def test_every_message_hides_what_looks_like_a_secret():
    error = LitTuneError("cannot reach http://me:pa55@proxy:80/", where="hf_" + "a1B2" * 8, fix="ghp_" + "a1B2" * 9)
    assert str(error) == "***: cannot reach http://***@proxy:80/\nFix: ***"
    assert hide_secrets("https://example.org/a@b and x://y") == "https://example.org/a@b and x://y"
