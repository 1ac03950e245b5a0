"""``lit-tune export``, and what follows a run with an adapter: test, predict, resume, all through the command line."""

import json
import shutil

import pytest
import torch
from checkpointing.resume_matrix import EVERY_STEP, check
from checkpointing.resume_matrix import fit as fit_options
from commands.runs import config, said, train
from safetensors.torch import load_file, save_file
from tiny_runs import flags
from toy import make_tiny_model, toy_rows, write_csv
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from lit_tune.__main__ import main
from lit_tune.durable import fingerprints

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
]


def test_the_start_says_what_is_trained(finished):
    assert "adapter lora r 4, alpha 16 on query, value, classifier as a whole: " in " ".join(
        (finished / "run.log").read_text().split()
    )


def test_a_merged_model_is_a_plain_one_that_gives_the_adapters_answers(finished, tmp_path, capsys):
    assert main(["export", *config(finished), "--merge", "--output", str(tmp_path / "merged")]) == 0
    names = {p.name for p in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
    assert not any("adapter" in n for n in names)
    assert "pipeline(" in (tmp_path / "merged" / "README.md").read_text()
    answers = tmp_path / "answers.jsonl"
    new = write_csv(tmp_path / "new.csv", [{"text": r["text"]} for r in toy_rows(9, seed=4)])
    assert main(["predict", *config(finished), "--data.predict", str(new), "--output", str(answers)]) == 0
    records = [json.loads(line) for line in answers.read_text().splitlines()]
    classify = pipeline("text-classification", str(tmp_path / "merged"), device="cpu", top_k=None)
    for row, record in zip(toy_rows(9, seed=4), records, strict=True):
        scores = {found["label"]: found["score"] for found in classify([row["text"]])[0]}
        assert scores == pytest.approx(record["probabilities"], abs=1e-5)


def test_without_merge_the_verified_adapter_is_copied(finished, tmp_path):
    target = tmp_path / "copy"
    target.mkdir()  # an empty folder is free
    assert main(["export", *config(finished), "--output", str(target)]) == 0
    assert fingerprints(target) == fingerprints(finished / "best")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_a_whole_model_is_copied_and_not_merged(whole, tmp_path, capsys):
    assert main(["export", *config(whole), "--output", str(tmp_path / "copy")]) == 0
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "copy").config.num_labels == 3
    assert main(["export", *config(whole), "--merge", "--output", str(tmp_path / "merged")]) == 2
    assert "nothing to merge" in said(capsys)
    assert not (tmp_path / "merged").exists()


def test_nothing_is_overwritten(finished, tmp_path, capsys):
    (tmp_path / "mine").write_text("x")
    assert main(["export", *config(finished), "--output", str(tmp_path)]) == 7
    assert "is not empty" in said(capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert main(["export", *config(finished), "--output", str(tmp_path / "mine")]) == 7


def test_an_output_is_needed(finished, capsys):
    assert main(["export", *config(finished)]) == 2
    assert "Fix: --output my_model" in said(capsys)


def test_without_a_run_there_is_nothing_to_export(files, tmp_path, capsys):
    options = ["--model.model_name_or_path", str(files / "tiny"), "--run_dir", str(tmp_path / "none")]
    assert main(["export", *options, "--output", str(tmp_path / "x")]) == 7
    assert "holds no run" in said(capsys)


def test_a_damaged_adapter_is_not_exported(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    weights = run / "best" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["export", *config(run), "--merge", "--output", str(tmp_path / "x")]) == 7
    assert "not what the run wrote: adapter_model.safetensors" in said(capsys)


def test_prompts_cannot_be_merged(files, tmp_path, capsys):
    run = train(files, tmp_path / "run", "--model.adapter", "prompt_tuning", "--data.max_length", "32")
    assert main(["export", *config(run), "--merge", "--output", str(tmp_path / "x")]) == 4
    assert "prompt_tuning cannot be merged" in said(capsys)
    assert not (tmp_path / "x").exists()


def test_test_measures_base_and_adapter(finished, files):
    """The same numbers as with the model that was merged by peft."""
    assert main(["test", *config(finished)]) == 0
    measured = json.loads((finished / "test_metrics.json").read_text())["metrics"]["accuracy"]
    from peft import AutoPeftModelForSequenceClassification

    best = finished / "best"
    model = AutoPeftModelForSequenceClassification.from_pretrained(best, num_labels=3).merge_and_unload().eval()
    tokenizer, rows = AutoTokenizer.from_pretrained(best), toy_rows(30, seed=3)
    with torch.no_grad():
        logits = model(**tokenizer([r["text"] for r in rows], padding=True, return_tensors="pt")).logits
    names = json.loads((best / "config.json").read_text())["id2label"]
    right = [names[str(i)] == r["label"] for i, r in zip(logits.argmax(-1).tolist(), rows, strict=True)]
    assert measured == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("verb", ["test", "export"])
def test_a_base_that_is_another_or_gone_is_told(files, tmp_path, verb, capsys):
    own = tmp_path / "files"
    shutil.copytree(files, own, ignore=shutil.ignore_patterns("cache"))
    run = train(own, tmp_path / "run", "--model.adapter", "lora")
    options = [verb, *config(run), *(["--merge", "--output", str(tmp_path / "x")] if verb == "export" else [])]
    path = own / "tiny" / "model.safetensors"
    weights = load_file(path)
    save_file({n: t + 1e-3 for n, t in weights.items()}, path, metadata={"format": "pt"})
    assert main(options) == 4
    assert "has changed" in said(capsys)
    shutil.rmtree(own / "tiny")
    assert main(options) == 4
    assert "is not there" in said(capsys)


def test_an_adapter_of_a_run_is_trained_on(finished, files, tmp_path):
    best = str(finished / "best")
    run = train(files, tmp_path / "on", "--model.model_name_or_path", best, "--optimizer.lr", "1e-9")
    assert "is trained on, over" in (run / "run.log").read_text()
    was, now = (load_file(folder / "best" / "adapter_model.safetensors") for folder in (finished, run))
    assert was.keys() == now.keys()
    assert all(torch.allclose(was[n], now[n], atol=1e-6) for n in was)
    assert main(["test", *config(run)]) == 0


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--model.adapter", "lorra"], 2, "Fix: model.adapter.type: lora"),
        (["--model.adapter.rank", "3"], 2, "no such key"),
        (["--model.adapter", "lora", "--model.from_scratch", "true"], 2, "an adapter on random weights"),
        (["--model.adapter", "lora", "--model.freeze", "backbone"], 2, "has no effect: with an adapter"),
        (["--model.adapter", '{"target_modules": ["querry"]}'], 4, "did you mean query?"),
        (["--model.adapter", "prompt_tuning"], 4, "Fix: data.max_length: 44"),
    ],
)
def test_what_cannot_be_trained_is_told_before_weights_are_loaded(files, tmp_path, more, code, words, capsys):
    options = ["--data.train", str(files / "train.csv"), "--model.model_name_or_path", str(files / "tiny")]
    options += ["--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu", "--data.cache_dir", str(tmp_path)]
    assert main(["fit", *options, *more]) == code
    message = said(capsys)
    assert words in message
    assert "new weights" not in message


@pytest.mark.slow
def test_a_run_with_an_adapter_goes_on_bit_for_bit(files, tmp_path):
    """With dropout in the base and in the adapter; from the end of an epoch, and from the middle of one."""
    make_tiny_model(tmp_path / "model", dropout=0.3)
    write_csv(tmp_path / "train.csv", toy_rows(29))
    settings = {
        **EVERY_STEP,
        "model.model_name_or_path": tmp_path / "model",
        "model.adapter.type": "lora",
        "model.adapter.dropout": 0.3,
        "data.train": tmp_path / "train.csv",
        "trainer.max_epochs": 2,
        "optimizer.lr": 0.01,
    }
    options = flags(settings)
    full = fit_options([*options, "--run_dir", str(tmp_path / "full")])
    per_epoch = full.read()["steps"] // 2
    for step in (per_epoch - 2, per_epoch):
        assert check(full, step, tmp_path / f"from{step}", options) == []
