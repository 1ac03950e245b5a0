"""Instruction tuning from files to a model directory: exact, answered as transformers answers, in order."""

import json

import pytest
import torch
import yaml
from checkpointing.resume_matrix import check, fit
from parity.runs import Recorder, relative
from parity.runs import fit as fit_recorded
from toy import make_tiny_decoder, toy_chats, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from lit_tune.__main__ import main
from lit_tune.tasks.instruction_tuning import InstructionTuning


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Models and conversations of all tests here."""
    folder = tmp_path_factory.mktemp("chat")
    for kind in ("llama", "gpt2"):
        make_tiny_decoder(folder / kind, kind=kind)
    for name, count in (("train", 240), ("few", 120), ("val", 23)):
        write_jsonl(folder / f"{name}.jsonl", toy_chats(count, seed=count))
    return folder


# --- exact -----------------------------------------------------------------------------------------------------------


def run(files, batch: int, accumulate: int = 1, ranks: int = 1, eval_batch: int = 64, **more) -> Recorder:
    data = {
        "train": str(files / "few.jsonl"),
        "val": str(files / "val.jsonl"),
        "max_length": 64,
        "eval_batch_size": eval_batch,
        **more.pop("data", {}),
    }
    task = InstructionTuning(
        chat_template="plain", scorers=["exact_match"], generation={"max_new_tokens": 6}, **more.pop("task", {})
    )
    options = {"precision": "64-true", "max_epochs": 1, "module": {"config_overrides": {}}, **more}
    model = files / options.pop("kind", "llama")
    return fit_recorded(model, data, batch=batch, accumulate=accumulate, ranks=ranks, task=task, **options)


def same(reference: Recorder, other: Recorder, tolerance: float = 1e-12) -> None:
    assert len(reference.losses) == len(other.losses) >= 2
    for a, b in zip(reference.gradients, other.gradients, strict=True):
        assert relative(b, a) < tolerance
    assert other.losses == pytest.approx(reference.losses, rel=tolerance)
    assert other.val == [pytest.approx(v, rel=1e-6, nan_ok=True) for v in reference.val]
    assert "val/exact_match" in other.val[0]


def test_any_cut_gives_the_same_gradient_and_metrics(files):
    reference = run(files, 16)
    for batch, accumulate, eval_batch in [(1, 16, 1), (4, 4, 7)]:
        same(reference, run(files, batch, accumulate, eval_batch=eval_batch))


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_give_the_same_gradient_and_metrics(files, tmp_path):
    same(run(files, 16), run(files, 2, 4, ranks=2, eval_batch=5, scratch=tmp_path))


def test_packed_or_padded_an_epoch_in_one_step_has_the_same_gradient(files):
    packed, padded = (
        run(files, 400, task={"packing": p}, max_epochs=2, data={"probe_size": 0}, kind="gpt2") for p in (True, False)
    )
    same(packed, padded)
    assert len(packed.rows) < 0.7 * len(padded.rows)


# --- a person's whole way --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """A finished run, from a YAML file."""
    folder = tmp_path_factory.mktemp("run")
    task = {"chat_template": "plain", "scorers": ["exact_match"], "generation": {"max_new_tokens": 8}}
    config = {
        "run_dir": str(folder / "run"),
        "task": {"class_path": "InstructionTuning", "init_args": task},
        "model": {"model_name_or_path": str(files / "llama")},
        "data": {
            **{name: str(files / f"{name}.jsonl") for name in ("train", "val")},
            "test": str(files / "val.jsonl"),
            "cache_dir": str(folder / "cache"),
            "train_batch_size": 4,
        },
        "optimizer": {"lr": 0.01},
        "overfit": {"probe_size": 20},
        "checkpoint": {"monitor": "val/exact_match"},
        "trainer": {"accelerator": "cpu", "max_epochs": 8},
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "my.yaml")]) == 0
    return folder / "run"


def conversations(path) -> list[list[dict]]:
    return [json.loads(line)["messages"] for line in path.read_text().splitlines()]


def plain_answers(folder, chats: list[list[dict]], count: int = 8) -> list[str]:
    """What transformers alone writes, one conversation at a time, by its own template and settings."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for chat in chats:
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        written = model.generate(**asked, max_new_tokens=count, do_sample=False)
        found.append(tokenizer.decode(written[0, asked["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return found


def test_the_metrics_of_test_are_those_of_plain_transformers(finished, files, capsys):
    assert main(["test", "--config", str(finished / "config.yaml")]) == 0
    assert "exact_match" in capsys.readouterr().out
    report = json.loads((finished / "test_metrics.json").read_text())["metrics"]
    chats = conversations(files / "val.jsonl")
    written = plain_answers(finished / "best", [chat[:-1] for chat in chats])
    right = [text == chat[-1]["content"] for text, chat in zip(written, chats, strict=True)]
    assert report["exact_match"] == pytest.approx(sum(right) / len(right))
    assert report["exact_match"] > 0.3, "it has learned something"
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(finished / "best"),
        AutoTokenizer.from_pretrained(finished / "best"),
    )
    losses = []
    for chat in chats:
        for place in range(1, len(chat), 2):
            text = tokenizer.apply_chat_template(chat[:place], add_generation_prompt=True, tokenize=False)
            ids, answer = tokenizer(text)["input_ids"], tokenizer(f" {chat[place]['content']}</s>")["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
            losses += (-logits.gather(1, torch.tensor(answer)[:, None])[:, 0]).tolist()
    assert report["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_predictions_are_the_answers_in_their_order(finished, files, tmp_path):
    chats = [chat[:-1] if i % 2 else chat for i, chat in enumerate(conversations(files / "val.jsonl")[:9])]
    new = write_jsonl(tmp_path / "new.jsonl", [{"messages": chat} for chat in chats])
    out = tmp_path / "out.jsonl"
    options = ["--data.predict", new, "--data.eval_batch_size", "4", "--output", str(out)]
    assert main(["predict", "--config", str(finished / "config.yaml"), *options]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["row"] for r in records] == list(range(9))
    asked = [chat if chat[-1]["role"] == "user" else chat[:-1] for chat in chats]
    assert [r["text"] for r in records] == plain_answers(finished / "best", asked)


def test_the_export_answers_in_a_pipeline(finished, files):
    chat = conversations(files / "val.jsonl")[0][:1]
    write = pipeline("text-generation", str(finished / "best"), device="cpu")
    (found,) = write(chat, max_new_tokens=8)
    answer = found["generated_text"][-1]
    assert answer["role"] == "assistant"
    assert answer["content"].strip() == plain_answers(finished / "best", [chat])[0]


def test_samples_are_in_the_log(finished, files, caplog):
    lines = [json.loads(line) for line in (finished / "samples.jsonl").read_text().splitlines()]
    steps = sorted({line["step"] for line in lines})
    assert len(steps) == 8
    assert [line["row"] for line in lines if line["step"] == steps[-1]] == [0, 1, 2]
    chats = conversations(files / "val.jsonl")
    assert [line["reference"] for line in lines[-3:]] == [chat[-1]["content"] for chat in chats[:3]]
    log = (finished / "run.log").read_text()
    assert f"sample   step {steps[-1]}, val row 0" in log
    assert lines[-1]["written"] in log


def test_a_model_without_a_template_is_an_error_with_a_remedy(files, tmp_path, capsys):
    options = [
        "--task",
        "InstructionTuning",
        "--model.model_name_or_path",
        str(files / "llama"),
        "--run_dir",
        str(tmp_path / "r"),
    ]
    assert main(["fit", *options, "--data.train", str(files / "few.jsonl")]) == 4
    said = capsys.readouterr().err
    assert "no chat template" in said
    assert "Fix: task.init_args.chat_template: plain" in said


@pytest.mark.slow
def test_a_run_that_goes_on_equals_one_that_was_never_interrupted(files, tmp_path):
    model = make_tiny_decoder(tmp_path / "model", dropout=0.3, kind="gpt2")
    options = {
        "task.class_path": "InstructionTuning",
        "task.init_args.chat_template": "plain",
        "model.model_name_or_path": model,
        "data.train": files / "few.jsonl",
        "data.val": files / "val.jsonl",
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
