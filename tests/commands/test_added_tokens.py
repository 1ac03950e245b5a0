"""Runs with added tokens, through the command line: trained, exported, read by transformers and peft alone."""

import json
from pathlib import Path

import pytest
import torch
from toy import make_tiny_model, toy_lines, toy_rows, write_csv
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from lit_tune.__main__ import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
]
WORDS = ["--model.add_tokens", '["mud-mud", "xylophone"]', "--model.add_special_tokens", '["<e1>"]']
"""xylophone has no pieces and stands in no text, so that nothing but its weight decay moves it."""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    make_tiny_model(folder / "tiny", subwords=True, mask=True)
    (folder / "train.txt").write_text("\n".join(line.replace("mud", "mud-mud <e1>") for line in toy_lines(240)))
    marked = [{**r, "text": f"<e1> {r['text']} mud-mud"} for r in toy_rows(60, seed=1)]
    write_csv(folder / "train.csv", marked)
    return folder


def train(files: Path, run: Path, *more: str, code: int = 0) -> Path:
    options = ["--model.model_name_or_path", str(files / "tiny"), "--run_dir", str(run), "--optimizer.lr", "0.01"]
    options += ["--trainer.accelerator", "cpu", "--logger", "none", "--trainer.max_epochs", "1"]
    if "--data.train" not in more:
        options += ["--data.train", str(files / "train.csv")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_TUNE_CACHE", str(files / "cache"))
        assert main(["fit", *options, *more]) == code
    return run


def rows_of(model) -> torch.Tensor:
    return model.get_input_embeddings().weight.detach()


def test_a_language_model_learns_new_words_and_is_read_by_transformers_alone(files, tmp_path):
    text = ["--task", "MaskedLM", "--data.train", str(files / "train.txt"), "--data.max_length", "32"]
    best = train(files, tmp_path / "run", *text, *WORDS) / "best"
    tokenizer, model = AutoTokenizer.from_pretrained(best), AutoModelForMaskedLM.from_pretrained(best)
    base = AutoTokenizer.from_pretrained(files / "tiny")
    assert tokenizer.tokenize("<e1> mud-mud rock") == ["<e1>", "mud-mud", "rock"]
    assert len(tokenizer) == model.config.vocab_size == len(base) + 3
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.cls.predictions.bias.shape == model.cls.predictions.decoder.bias.shape == (len(tokenizer),)
    before = rows_of(AutoModelForMaskedLM.from_pretrained(files / "tiny"))
    started = before[base("mud-mud", add_special_tokens=False)["input_ids"]].mean(0)
    learned = rows_of(model)[tokenizer.convert_tokens_to_ids("mud-mud")]
    assert 0 < (learned - started).norm() < (learned - before.mean(0)).norm()
    guesses = pipeline("fill-mask", model=str(best), top_k=len(tokenizer))("rock [MASK] river")
    assert len(guesses) == len(tokenizer)


@pytest.mark.slow
def test_a_head_over_new_words_and_the_cache_of_rows_that_are_cut_otherwise(files, tmp_path, capsys):
    plain = train(files, tmp_path / "plain")
    run = train(files, tmp_path / "run", *WORDS)
    assert "reused from the cache" not in capsys.readouterr().err
    counts = [(r / "run.log").read_text().split(" tokens (mean")[0].split()[-1] for r in (plain, run)]
    assert counts[0] != counts[1]
    model = AutoModelForSequenceClassification.from_pretrained(run / "best")
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(run / "best"))
    answers = tmp_path / "answers.jsonl"
    new = write_csv(tmp_path / "new.csv", [{"text": "<e1> mud-mud rock"}])
    config = ["--config", str(run / "config.yaml"), "--trainer.accelerator", "cpu"]
    assert main(["predict", *config, "--data.predict", str(new), "--output", str(answers)]) == 0
    record = json.loads(answers.read_text())
    (theirs,) = pipeline("text-classification", model=str(run / "best"))("<e1> mud-mud rock")
    assert record["label"] == theirs["label"]
    assert max(record["probabilities"].values()) == pytest.approx(theirs["score"], abs=1e-5)


@pytest.mark.slow
def test_an_adapter_trains_and_saves_the_rows_of_new_tokens_alone(files, tmp_path):
    from peft import PeftConfig, PeftModel

    run = train(files, tmp_path / "run", "--model.adapter", "lora", *WORDS)
    assert "the rows of 3 added tokens are trained and saved with it" in (run / "run.log").read_text()
    # as the model card says
    folder = str(run / "best")
    card = (run / "best" / "README.md").read_text()
    config, base = AutoConfig.from_pretrained(folder), PeftConfig.from_pretrained(folder).base_model_name_or_path
    size, config.vocab_size = config.vocab_size, AutoConfig.from_pretrained(base).vocab_size
    assert size == config.vocab_size + 3
    assert all(line in card for line in ("config.vocab_size = AutoConfig", "model.resize_token_embeddings(size)"))
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config)
    model.resize_token_embeddings(size)
    model = PeftModel.from_pretrained(model, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("<e1> mud-mud rock", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    merged = tmp_path / "merged"
    options = ["--config", str(run / "config.yaml"), "--trainer.accelerator", "cpu"]
    assert main(["export", *options, "--merge", "--output", str(merged)]) == 0
    assert "pipeline(" in (merged / "README.md").read_text()
    whole = AutoModelForSequenceClassification.from_pretrained(merged).eval()
    with torch.no_grad():
        assert torch.allclose(whole(**inputs).logits, logits, atol=1e-5)
    before = rows_of(AutoModelForMaskedLM.from_pretrained(files / "tiny"))
    after = rows_of(whole)
    assert torch.equal(after[: len(before)], before)
    assert not torch.allclose(after[tokenizer.convert_tokens_to_ids("<e1>")], before.mean(0))
    assert main(["test", *options, "--data.test", str(files / "train.csv")]) == 0


@pytest.mark.slow
def test_an_adapter_with_new_tokens_is_trained_on(files, tmp_path):
    first = train(files, tmp_path / "first", "--model.adapter", "lora", *WORDS)
    again = train(files, tmp_path / "again", "--model.model_name_or_path", str(first / "best"))
    config = json.loads((again / "best" / "adapter_config.json").read_text())
    assert len(config["trainable_token_indices"]) == 3


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--model.adapter", "ia3"], 2, "ia3 trains no rows of embeddings"),
        (["--model.freeze", "backbone"], 0, "the rows of 3 tokens stay the mean of their pieces while the embeddings"),
        (["--model.add_tokens", "nowhere.txt"], 2, "nowhere.txt is no file with a token per line"),
        (["--model.unfreeze", "gradual"], 2, "model.unfreeze: has no effect: nothing is frozen"),
        (["--model.freeze", "backbone", "--model.unfreeze", '[{"at_epoch": 1}]'], 2, "lacks layers or patterns"),
        (["--model.freeze", "backbone", "--model.unfreeze", "gradual"], 0, "layer 2, layer 1, embeddings stay frozen"),
    ],
)
def test_what_does_not_go_together_is_said(files, tmp_path, capsys, options, code, said):
    train(files, tmp_path / "run", *WORDS, *options, code=code)
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_model_of_random_weights_is_made_with_a_row_for_each_token(files, tmp_path):
    run = train(files, tmp_path / "run", "--model.from_scratch", "true", *WORDS)
    model = AutoModelForSequenceClassification.from_pretrained(run / "best")
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(run / "best"))
