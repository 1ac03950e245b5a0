"""Language modelling from files to a model directory: exact, complete, in order."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from checkpointing.resume_matrix import check, fit
from parity.runs import Recorder, relative
from parity.runs import fit as fit_recorded
from toy import make_tiny_decoder, toy_documents, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, pipeline

from lit_tune.__main__ import main
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


def run(files: Path, batch: int, accumulate: int = 1, ranks: int = 1, eval_batch: int = 64, **more) -> Recorder:
    data = {
        "train": str(files / more.pop("train", "few.jsonl")),
        "val": str(files / "val.jsonl"),
        "max_length": 16,
        "eval_batch_size": eval_batch,
        **more.pop("data", {}),
    }
    options = {"precision": "64-true", "max_epochs": 1, **more}
    options["module"] = {"config_overrides": {}, **options.get("module", {})}
    task = options.pop("task", CausalLM())
    model = files / options.pop("kind", "llama")
    return fit_recorded(model, data, batch=batch, accumulate=accumulate, ranks=ranks, task=task, **options)


def same(reference: Recorder, other: Recorder, tolerance: float = 1e-12) -> None:
    assert len(reference.losses) == len(other.losses) >= 2
    for a, b in zip(reference.gradients, other.gradients, strict=True):
        assert relative(b, a) < tolerance
    assert other.losses == pytest.approx(reference.losses, rel=tolerance)
    assert other.val == [pytest.approx(v, rel=1e-6, nan_ok=True) for v in reference.val]


@pytest.mark.parametrize("packing", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_any_cut_gives_the_same_gradient_and_metrics(packing, files):
    task = CausalLM(packing=packing)
    reference = run(files, 16, task=task)
    for batch, accumulate, eval_batch in [(1, 16, 1), (4, 4, 7)]:
        same(reference, run(files, batch, accumulate, eval_batch=eval_batch, task=task))


@pytest.mark.ddp
def test_two_ranks_give_the_same_gradient_and_metrics(files, tmp_path):
    same(run(files, 16), run(files, 2, 4, ranks=2, eval_batch=5, scratch=tmp_path))


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_padding_changes_nothing(kind, files):
    reference = run(files, 16, kind=kind)
    for data in ({"padding": "max_length"}, {"pad_to_multiple_of": 12}):
        same(reference, run(files, 16, kind=kind, data=data))


def test_an_epoch_in_one_step_has_the_gradient_of_the_documents_alone(files):
    """Packed or padded, in whatever blocks: the step is the same."""
    packed, padded = (
        run(files, 400, task=CausalLM(packing=p), max_epochs=2, data={"probe_size": 0}) for p in (True, False)
    )
    same(packed, padded)
    assert len(packed.rows) < 0.7 * len(padded.rows)


def test_a_stream_trains_on_all_documents_of_the_file(files):
    def losses(**data) -> list[float]:
        settings = {"probe_size": 0, **data}
        return run(files, 400, data=settings, max_epochs=-1, max_steps=2).losses

    assert losses(streaming=True) == pytest.approx(losses(), rel=1e-9)


def test_an_adapter_is_trained_on_packed_documents(files):
    options = {"module": {"adapter": "lora"}, "max_epochs": 4, "data": {"probe_size": 0}}
    packed, padded = (run(files, 400, task=CausalLM(packing=p), **options) for p in (True, False))
    same(packed, padded)
    assert packed.losses[-1] < packed.losses[0]


# --- a person's whole way --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    """A finished run, from a YAML file."""
    folder = tmp_path_factory.mktemp("run")
    config = {
        "run_dir": str(folder / "run"),
        "task": {"class_path": "CausalLM"},
        "model": {"model_name_or_path": str(files / "llama")},
        "data": {
            **{name: str(files / f"{name}.jsonl") for name in ("train", "val")},
            "test": str(files / "val.jsonl"),
            "cache_dir": str(folder / "cache"),
            "max_length": 32,
            "train_batch_size": 4,
        },
        "optimizer": {"lr": 0.01},
        "trainer": {"accelerator": "cpu", "max_epochs": 4},
        "logger": "none",
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "my.yaml")]) == 0
    return folder / "run"


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


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_the_export_in_plain_transformers_has_the_metrics_that_test_reports(finished, files, capsys):
    assert main(["test", "--config", str(finished / "config.yaml")]) == 0
    assert "bits_per_byte" in capsys.readouterr().out
    report = json.loads((finished / "test_metrics.json").read_text())
    texts = texts_of(files / "val.jsonl")
    losses = [loss for losses in plain_losses(finished / "best", texts) for loss in losses]
    assert report["metrics"]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert report["metrics"]["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    size = sum(len(text.encode()) for text in texts)
    assert report["metrics"]["bits_per_byte"] == pytest.approx(sum(losses) / math.log(2) / size, rel=1e-5)
    assert report["metrics"]["loss"] < 0.8 * report["baseline"]["loss"], "it has learned something"
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["best_metrics"]["val/loss"] == pytest.approx(report["metrics"]["loss"], abs=1e-6)


def test_predictions_are_the_losses_of_the_texts_in_their_order(finished, files, tmp_path):
    texts = texts_of(files / "val.jsonl")[:11]
    texts[3] = " ".join([texts[3]] * 30)  # longer than the model's 64 positions
    new = write_jsonl(tmp_path / "new.jsonl", [{"text": t} for t in texts])
    out = tmp_path / "out.jsonl"
    options = ["--data.predict", new, "--data.eval_batch_size", "3", "--output", str(out)]
    assert main(["predict", "--config", str(finished / "config.yaml"), *options]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    expected = plain_losses(finished / "best", texts)
    assert [r["row"] for r in records] == list(range(11))
    assert [r["num_tokens"] for r in records] == [len(losses) for losses in expected]
    assert [r["loss"] for r in records] == pytest.approx([sum(x) / len(x) for x in expected], rel=1e-4)


def test_the_export_goes_on_with_a_text_in_a_pipeline(finished):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(finished / "best"),
        AutoTokenizer.from_pretrained(finished / "best"),
    )
    ids = tokenizer("mud rain")["input_ids"]
    for _ in range(8):
        if ids[-1] != tokenizer.eos_token_id:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    write = pipeline("text-generation", str(finished / "best"), device="cpu")
    (found,) = write("mud rain", max_new_tokens=8, do_sample=False)
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    assert found["generated_text"].replace(" ", "") == expected.replace(" ", "")  # a tokenizer of words has no spaces
    assert len(ids) > 4


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
    flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    assert main(["check", *flags]) == 0
    assert "no errors" in capsys.readouterr().out
    assert main(["fit", *flags]) == 0
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
    assert main(["fit", *(text for key, value in options.items() for text in (f"--{key}", str(value)))]) == 0
    shown = capsys.readouterr()
    assert "packing  off: opt models attend across documents" in shown.err + shown.out


@pytest.mark.slow
def test_a_run_that_goes_on_equals_one_that_was_never_interrupted(files, tmp_path):
    model = make_tiny_decoder(tmp_path / "model", dropout=0.3, kind="gpt2")
    options = {
        "task.class_path": "CausalLM",
        "model.model_name_or_path": model,
        "data.train": files / "few.jsonl",
        "data.val": files / "val.jsonl",
        "data.max_length": 16,
        "trainer.accumulate_grad_batches": 2,
        "data.train_batch_size": 4,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "logger": "none",
        "checkpoint.every_n_steps": 1,
        "checkpoint.keep_last": -1,
        "checkpoint.keep_best": -1,
    }
    flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    full = fit([*flags, "--run_dir", str(tmp_path / "full")])
    assert check(full, 2, tmp_path / "at2", flags) == []
