"""Ten planted secrets are found in nothing that a run writes or says; one in a config is refused and not repeated."""

import subprocess
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
from security.watched import Outcome, watched
from toy import toy_rows, write_csv

HEX = "0123456789abcdef0123456789abcdef01234567"
"""The form of a W&B key."""

ENVIRONMENT = {
    "HF_TOKEN": "hf_CANARYone1111111111111111111111",
    "WANDB_API_KEY": "ca9a57" + HEX[6:],
    "AWS_SECRET_ACCESS_KEY": "CANARYthree/3333333333333333333333333333",
    "GITHUB_TOKEN": "ghp_CANARYfour44444444444444444444444444",
    "DATABASE_PASSWORD": "CANARYfive55555",
    "HTTPS_PROXY": "http://me:CANARYsix66666@127.0.0.1:9",
}
FILES = {
    ".netrc": "machine huggingface.co login me password CANARYseven7777777\n",
    ".aws/credentials": "[default]\naws_secret_access_key = CANARYeight8888888888888888888888888888\n",
    "token": "hf_CANARYnine99999999999999999999999",
    ".git/config": '[remote "origin"]\n\turl = https://me:CANARYten101010@example.org/x.git\n',
}
CANARIES = (b"CANARY", b"ca9a57")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder and an environment full of secrets; the working folder is a repository."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *identity, *command], check=True, timeout=60)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with (folder / name).open("a") as file:
            file.write(text)
    for name, value in {**ENVIRONMENT, "HOME": str(folder)}.items():
        monkeypatch.setenv(name, value)
    # both are read from the environment at import
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "caches" / "datasets")
    monkeypatch.setenv("LIT_TUNE_CACHE", str(tmp_path / "caches" / "lit_tune"))
    return folder


def leaks(outcome: Outcome, *folders: Path) -> list[str]:
    """Where a canary sings."""
    texts = {"stdout": outcome.out.encode(), "stderr": outcome.err.encode()}
    texts |= {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert len(texts) > 2 or not folders
    return [f"{name}: {canary!r}" for name, text in texts.items() for canary in CANARIES if canary in text]


def test_no_secret_of_the_environment_is_in_what_a_run_writes_and_says(home, tmp_path, tiny_model_dir):
    write_csv(tmp_path / "train.csv", toy_rows(40))
    run, caches = tmp_path / "run", tmp_path / "caches"
    run.mkdir()
    (caches / "lit_tune").mkdir(parents=True)
    fit = ["fit", f"--data.train={tmp_path / 'train.csv'}", f"--model.model_name_or_path={tiny_model_dir}"]
    fit += [f"--run_dir={run}", "--logger=[tensorboard, csv]", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    outcome = watched(fit, [run, caches])
    assert (outcome.code, outcome.foreign) == (0, []), outcome.err
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "manifest.json", "metrics.jsonl", "run.log", "best", "checkpoints", "tensorboard"} <= names
    assert leaks(outcome, run, caches) == []
    failed = watched(
        ["fit", "--data.train=nowhere.csv", "--model.model_name_or_path=me/private", "--run_dir=r"], [home]
    )
    assert failed.code == 4, failed.err
    assert leaks(failed, home / "r") == []


@pytest.mark.parametrize(
    "options",
    [
        ["--config=notes.yaml"],
        ["--wandb.notes=see hf_CANARYaaaaaaaaaaaaaaaaaaaaaaaa", "--logger=wandb"],
        ["--wandb.tags=[a, ghp_CANARYbbbbbbbbbbbbbbbbbbbbbbbb]", "--logger=wandb"],
        ["--data.train=https://me:CANARYcc@example.org/x.csv"],
        ["--model.model_name_or_path=https://me:CANARYdd@example.org/x"],
        ["--model.config_overrides={hidden_size: hf_CANARYeeeeeeeeeeeeeeeeeeeeeee}"],
        ["--optimizer.lr=hf_CANARYffffffffffffffffffffff"],
        ["--optimizer.token=hf_CANARYgggggggggggggggggggggg"],
        ["hf_CANARYhhhhhhhhhhhhhhhhhhhhhhhh"],
        ["--hf_CANARYiiiiiiiiiiiiiiiiiiiiiiii=1"],
        ["--task.loss={class_path: torch.nn.NLLLoss, init_args: {password: CANARYjjjjjj}}"],
        ["--run_dir=runs/AKIACANARYKKKKKKKKKK"],
        ["--seed_everything=-----BEGIN RSA PRIVATE KEY----- CANARYll"],
        ["--config=logger.yaml"],
    ],
)
def test_a_secret_in_a_config_is_refused_and_not_repeated(options, home, tmp_path):
    Path("notes.yaml").write_text("wandb: {notes: 'my key: sk-CANARYaaaaaaaaaaaaaaaaaaaaaaaa'}\nlogger: wandb\n")
    key = f"{{class_path: MLFlowLogger, init_args: {{tracking_uri: x, api_key: ca9a57{HEX[6:]}}}}}"
    Path("logger.yaml").write_text(f"trainer: {{logger: {key}}}\n")
    outcome = watched(["fit", "--data.train=a.csv", "--model.model_name_or_path=m", *options], [])
    assert (outcome.code, outcome.foreign) == (2, [])
    assert leaks(outcome) == []
    assert not Path("runs").exists()


def test_a_refusal_names_the_key_and_the_place(home):
    Path("a.yaml").write_text("wandb:\n  notes: hf_CANARYaaaaaaaaaaaaaaaaaaaaaaaa\n")
    outcome = watched(["fit", "--data.train=a.csv", "--model.model_name_or_path=m", "--config=a.yaml"], [])
    assert " ".join(outcome.err.split()) == (
        "wandb.notes: the value looks like a secret, and a config is copied into the run (a.yaml:2) Fix: remove it "
        "here; give it as an environment variable (HF_TOKEN, WANDB_API_KEY), or `hf auth login`"
    )
