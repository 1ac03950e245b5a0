"""``lit-tune export --format onnx`` and ``--dtype``: what is written gives the model's own numbers, anywhere."""

import json
import re
import shutil
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch
from cards import run_card
from commands.runs import config, said, train
from safetensors.torch import load_file, save_file
from toy import toy_rows, write_csv
from transformers import AutoModelForSequenceClassification, pipeline

import lit_tune
from lit_tune.__main__ import main
from lit_tune.durable import fingerprints
from lit_tune.run_dir import EXPORT_HASHES, RunDir

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
]


def predictions(run: Path, tmp_path: Path) -> list[dict]:
    new = write_csv(tmp_path / "new.csv", [{"text": r["text"]} for r in toy_rows(9, seed=4)])
    answers = tmp_path / "answers.jsonl"
    assert main(["predict", *config(run), "--data.predict", str(new), "--output", str(answers)]) == 0
    return [json.loads(line)["probabilities"] for line in answers.read_text().splitlines()]


@pytest.mark.slow
def test_the_graph_of_an_adapted_model_gives_its_predictions_in_onnxruntime(finished, tmp_path, capsys):
    """The lines of the model card run, with batches of other sizes than the graph was traced with."""
    folder = tmp_path / "onnx"
    assert main(["export", *config(finished), "--format", "onnx", "--output", str(folder)]) == 0
    assert "merged; ONNX, at most" in capsys.readouterr().out
    names = {p.name for p in folder.iterdir()}
    assert {"model.onnx", "model.onnx.data", "config.json", "tokenizer.json", "README.md"} <= names
    assert not any(n.endswith(".safetensors") or "adapter" in n for n in names)
    assert "library_name: onnx" in (folder / "README.md").read_text()
    assert str(tmp_path) not in "".join(p.read_text() for p in folder.glob("*.json"))
    card = run_card(folder)
    assert card["outputs"]["logits"].shape == (2, 3)
    expected = predictions(finished, tmp_path)
    texts = [r["text"] for r in toy_rows(9, seed=4)]
    names = json.loads((folder / "config.json").read_text())["id2label"]
    for size in (1, 2, 9):
        tokens = card["tokenizer"](texts[:size], padding=True, return_tensors="np")
        (logits,) = card["session"].run(["logits"], {i.name: tokens[i.name] for i in card["session"].get_inputs()})
        found = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        wanted = [[row[names[str(c)]] for c in range(3)] for row in expected[:size]]
        assert found == pytest.approx(np.array(wanted), abs=1e-4)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float16", 1e-3), pytest.param("bfloat16", 1e-2, marks=pytest.mark.slow)]
)
def test_half_precision_halves_the_weights_and_the_card_says_so(whole, tmp_path, dtype, tolerance):
    folder = tmp_path / "half"
    assert main(["export", *config(whole), "--dtype", dtype, "--output", str(folder)]) == 0
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {getattr(torch, dtype)}
    assert f"Exported by `lit-tune export`: {dtype}" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto")
    assert model.dtype == getattr(torch, dtype)
    classify = pipeline("text-classification", str(folder), device="cpu", top_k=None)
    for row, wanted in zip(toy_rows(9, seed=4), predictions(whole, tmp_path), strict=True):
        found = {f["label"]: f["score"] for f in classify([row["text"]])[0]}
        assert found == pytest.approx(wanted, abs=tolerance)


def with_weight(run: Path, copy: Path, value: float) -> Path:
    """A run one of whose weights is something else."""
    shutil.copytree(run, copy)
    path = copy / "best" / "model.safetensors"
    weights = load_file(path)
    weights["classifier.bias"][0] = value
    save_file(weights, path, metadata={"format": "pt"})
    there = RunDir(copy)
    there.update(
        {EXPORT_HASHES: {**there.read()[EXPORT_HASHES], path.name: list(fingerprints(path.parent)[path.name])}}
    )
    return copy


def test_a_weight_that_float16_cannot_hold_is_refused_and_bfloat16_holds_it(whole, tmp_path, capsys):
    run = with_weight(whole, tmp_path / "run", 1e5)
    assert main(["export", *config(run), "--dtype", "float16", "--output", str(tmp_path / "x")]) == 6
    assert "classifier.bias holds 1e+05, and float16 ends at 6.55e+04 Fix: --dtype bfloat16" in said(capsys)
    assert not (tmp_path / "x").exists()
    assert main(["export", *config(run), "--dtype", "bfloat16", "--output", str(tmp_path / "x")]) == 0


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("finished", ["--dtype", "float16"], "is an adapter, whose type is that of its base model Fix: add --merge"),
        ("whole", ["--format", "onnx", "--dtype", "float16"], "--dtype: an ONNX graph is written in float32"),
        ("whole", ["--format", "onx"], "--format: takes hf or onnx, not 'onx' Fix: --format onnx"),
        ("whole", ["--dtype", "int8"], "--dtype: takes float32 or float16 or bfloat16, not 'int8'"),
    ],
)
def test_what_contradicts_itself_is_a_matter_of_the_command_line(kind, more, words, request, tmp_path, capsys):
    run = request.getfixturevalue(kind)
    assert main(["export", *config(run), *more, "--output", str(tmp_path / "x")]) == 2
    assert words in said(capsys)
    assert not (tmp_path / "x").exists()


def test_an_adapter_is_merged_and_cast_in_one_go(finished, tmp_path):
    folder = tmp_path / "x"
    assert main(["export", *config(finished), "--merge", "--dtype", "bfloat16", "--output", str(folder)]) == 0
    assert AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    assert "merged; bfloat16" in (folder / "README.md").read_text()


def test_without_the_packages_the_extra_is_named(whole, tmp_path, capsys, monkeypatch):
    find = util.find_spec
    monkeypatch.setattr(
        "lit_tune.models.onnx_graph.find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    assert main(["export", *config(whole), "--format", "onnx", "--output", str(tmp_path / "x")]) == 2
    assert "onnx needs onnxscript, which is not installed Fix: pip install 'lit-tune[onnx]'" in said(capsys)


def test_files_that_another_task_adds_to_best_come_along(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "best" / "1_Pooling").mkdir()
    (run / "best" / "1_Pooling" / "config.json").write_text("{}")
    folder = tmp_path / "x"
    assert main(["export", *config(run), "--dtype", "float16", "--output", str(folder)]) == 0
    assert (folder / "1_Pooling" / "config.json").read_text() == "{}"
    assert not (folder / "base_model.json").exists()


def test_nothing_imports_an_exporter_before_one_is_asked_for():
    """They cost seconds."""
    package = Path(lit_tune.__file__).parent
    early = re.compile(r"^(import|from) (onnx|transformers\.exporters|torch\.onnx)", re.MULTILINE)
    assert [p.name for p in package.rglob("*.py") if early.search(p.read_text())] == []


@pytest.mark.slow
def test_the_graph_of_a_text_cnn_runs_where_its_tokenizer_is(files, tmp_path):
    run = train(files, tmp_path / "run", "--model.model_name_or_path", "text_cnn")
    assert main(["export", *config(run), "--format", "onnx", "--output", str(tmp_path / "x")]) == 0
    assert run_card(tmp_path / "x")["outputs"]["logits"].shape == (2, 3)


@pytest.mark.slow
def test_prompts_have_no_graph(files, tmp_path, capsys):
    run = train(files, tmp_path / "run", "--model.adapter", "prompt_tuning", "--data.max_length", "32")
    assert main(["export", *config(run), "--format", "onnx", "--output", str(tmp_path / "x")]) == 4
    assert "an ONNX graph holds a whole model: prompt_tuning cannot be merged" in said(capsys)
