"""Language modelling from files to a model directory: exact, complete, in order."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parity.runs import Recorder
from tasks.task_runs import CUTS, TaskRuns, finished_run, predict, report_of, same, same_from_a_stream
from tiny_runs import flags, lines
from toy import make_tiny_decoder, toy_documents, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, pipeline

from lit_tune.__main__ import main
from lit_tune.models import output_layer
from lit_tune.tasks import token_scores
from lit_tune.tasks.causal_lm import CausalLM


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Models and documents of all tests here; those of few.jsonl make two steps of 16 blocks of 16."""
    folder = tmp_path_factory.mktemp("language")
    for kind in ("llama", "gpt2"):
        make_tiny_decoder(folder / kind, kind=kind)
    for name, count in (("train", 300), ("few", 90), ("val", 37)):
        write_jsonl(folder / f"{name}.jsonl", toy_documents(count, seed=count))
    book = " ".join(row["text"] for row in toy_documents(60, seed=9))
    (folder / "book.txt").write_text(book)
    return folder


# --- exact -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(files) -> TaskRuns:
    data = {"train": files / "few.jsonl", "val": files / "val.jsonl", "max_length": 16}
    return TaskRuns(files / "llama", CausalLM(), data)


@pytest.mark.parametrize("packing", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_any_cut_gives_the_same_gradient_and_metrics(packing, run):
    task = CausalLM(packing=packing)
    reference = run(16, task=task)
    for batch, accumulate, eval_batch in CUTS:
        same(reference, run(batch, accumulate, eval_batch=eval_batch, task=task))


@pytest.mark.parametrize("kind", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_chunks_of_the_loss_give_the_same_gradient(kind, files, run, monkeypatch):
    """In any cut; of the logits of all tokens at once, as of a model that changes them, too."""
    of_kind = replace(run, model=files / kind)
    chunked = of_kind(16)
    monkeypatch.setattr(token_scores, "SMALLEST_CHUNK", 1)
    same(chunked, of_kind(4, 4))
    monkeypatch.setattr(output_layer, "is_last", lambda *given: False)
    same(chunked, of_kind(16))


@pytest.mark.ddp
def test_two_ranks_give_the_same_gradient_and_metrics(run, tmp_path):
    same(run(16), run(2, 4, ranks=2, eval_batch=5, scratch=tmp_path))


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_padding_changes_nothing(kind, files, run):
    of_kind = replace(run, model=files / kind)
    reference = of_kind(16)
    for data in ({"padding": "max_length"}, {"pad_to_multiple_of": 12}):
        same(reference, of_kind(16, data=data))


def packed_and_padded(run: TaskRuns, epochs: int, module: dict | None = None) -> list[Recorder]:
    """All documents in one step, in blocks and each for itself."""
    options = {"data": {"probe_size": 0}, "module": module, "trainer": {"max_epochs": epochs}}
    return [run(400, task=CausalLM(packing=packing), **options) for packing in (True, False)]


def test_an_epoch_in_one_step_has_the_gradient_of_the_documents_alone(run):
    """Packed or padded, in whatever blocks: the step is the same."""
    packed, padded = packed_and_padded(run, epochs=2)
    same(packed, padded)
    assert len(packed.rows) < 0.7 * len(padded.rows)


def test_a_stream_trains_on_all_documents_of_the_file(run):
    same_from_a_stream(run, 400)


def test_an_adapter_is_trained_on_packed_documents(run):
    packed, padded = packed_and_padded(run, epochs=4, module={"adapter": "lora"})
    same(packed, padded)
    assert packed.losses[-1] < packed.losses[0]


# --- a person's whole way --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    data = {"train": files / "train.jsonl", "val": files / "val.jsonl", "max_length": 32, "train_batch_size": 4}
    return finished_run(tmp_path_factory.mktemp("run"), files / "llama", "CausalLM", data, lr=0.01, epochs=4)


@torch.no_grad()
def plain_losses(folder: Path, texts: list[str], max_length: int = 32) -> list[list[float]]:
    """Losses of each text's tokens by transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        pieces = [torch.tensor([ids[i : i + max_length]]) for i in range(0, len(ids) - 1, max_length - 1)]
        logits = [model(piece).logits[0, :-1].log_softmax(-1) for piece in pieces]
        losses = [-rows.gather(1, piece[0, 1:, None])[:, 0] for rows, piece in zip(logits, pieces, strict=True)]
        found.append(torch.cat(losses).tolist())
    return found


def test_the_export_in_plain_transformers_has_the_metrics_that_test_reports(finished, files, capsys):
    report = report_of(finished)
    assert "bits_per_byte" in capsys.readouterr().out
    texts = [row["text"] for row in lines(files / "val.jsonl")]
    losses = [loss for losses in plain_losses(finished / "best", texts) for loss in losses]
    assert report["metrics"]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert report["metrics"]["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    size = sum(len(text.encode()) for text in texts)
    assert report["metrics"]["bits_per_byte"] == pytest.approx(sum(losses) / math.log(2) / size, rel=1e-5)
    assert report["metrics"]["loss"] < 0.8 * report["baseline"]["loss"], "it has learned something"
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["best_metrics"]["val/loss"] == pytest.approx(report["metrics"]["loss"], abs=1e-6)


def test_predictions_are_the_losses_of_the_texts_in_their_order(finished, files, tmp_path):
    texts = [row["text"] for row in lines(files / "val.jsonl")[:11]]
    texts[3] = " ".join([texts[3]] * 30)  # longer than the model's 64 positions
    new = write_jsonl(tmp_path / "new.jsonl", [{"text": t} for t in texts])
    records = lines(predict(finished, new, tmp_path / "out.jsonl", "--data.eval_batch_size", "3"))
    expected = plain_losses(finished / "best", texts)
    assert [r["row"] for r in records] == list(range(11))
    assert [r["num_tokens"] for r in records] == [len(losses) for losses in expected]
    assert [r["loss"] for r in records] == pytest.approx([sum(x) / len(x) for x in expected], rel=1e-4)


def test_the_export_goes_on_with_a_text_in_a_pipeline(finished):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(finished / "best"),
        AutoTokenizer.from_pretrained(finished / "best"),
    )
    write = pipeline("text-generation", str(finished / "best"), device="cpu")
    lengths = []
    for text in ("mud rain", "steep", "long trail"):
        ids = tokenizer(text)["input_ids"]
        for _ in range(8):
            if ids[-1] != tokenizer.eos_token_id:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        (found,) = write(text, max_new_tokens=8, do_sample=False)
        expected = tokenizer.decode(ids, skip_special_tokens=True)
        assert found["generated_text"].replace(" ", "") == expected.replace(" ", "")  # words, without spaces
        lengths.append(len(ids))
    assert max(lengths) > 4


def test_a_book_is_one_document_that_is_cut_and_not_truncated(files, tmp_path, capsys):
    data = {"train": files / "book.txt", "val": files / "book.txt", "max_length": 16, "accept": "[leakage]"}
    options = {
        "task": "CausalLM",
        "model.model_name_or_path": files / "gpt2",
        **{f"data.{key}": value for key, value in data.items()},
        "run_dir": tmp_path / "run",
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "logger": "none",
    }
    assert main(["check", *flags(options)]) == 0
    assert "no errors" in capsys.readouterr().out
    assert main(["fit", *flags(options)]) == 0
    said = capsys.readouterr()
    words = len((files / "book.txt").read_text().split())  # and the end: as many are predicted
    assert f"{-(-math.ceil(words / 15) // 16)} steps in" in said.out
    assert "1 rows, " in said.err
    assert not any(phrase in said.err for phrase in ("cut at", "cut off", "none longer"))


def test_a_model_that_cannot_keep_documents_apart_is_padded_and_says_so(files, tmp_path, capsys):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32}
    config = OPTConfig(vocab_size=22, word_embed_proj_dim=16, eos_token_id=0, bos_token_id=0, pad_token_id=0, **sizes)
    config.save_pretrained(tmp_path / "opt")
    AutoTokenizer.from_pretrained(files / "llama").save_pretrained(tmp_path / "opt")
    options = {
        "task": "CausalLM",
        "model.model_name_or_path": tmp_path / "opt",
        "model.from_scratch": "true",
        "data.train": files / "few.jsonl",
        "data.val": files / "val.jsonl",
        "data.accept": "[leakage]",
        "data.max_length": 16,
        "run_dir": tmp_path / "run",
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "logger": "none",
    }
    assert main(["fit", *flags(options)]) == 0
    shown = capsys.readouterr()
    assert "packing  off: opt models attend across documents" in shown.err + shown.out
