"""Instruction tuning from files to a model directory: exact, answered as transformers answers, in order."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parity.runs import Recorder
from tasks.task_runs import CUTS, TaskRuns, finished_run, predict, report_of, same
from tiny_runs import flags, lines
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


def answering(packing: bool = True) -> InstructionTuning:
    return InstructionTuning(
        chat_template="plain", scorers=["exact_match"], generation={"max_new_tokens": 6}, packing=packing
    )


@pytest.fixture(scope="module")
def run(files) -> TaskRuns:
    data = {"train": files / "few.jsonl", "val": files / "val.jsonl", "max_length": 64}
    return TaskRuns(files / "llama", answering(), data)


@pytest.fixture(scope="module")
def reference(run) -> Recorder:
    found = run(16)
    assert "val/exact_match" in found.val[0]
    return found


def test_any_cut_gives_the_same_gradient_and_metrics(run, reference):
    for batch, accumulate, eval_batch in CUTS:
        same(reference, run(batch, accumulate, eval_batch=eval_batch))


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_give_the_same_gradient_and_metrics(run, reference, tmp_path):
    same(reference, run(2, 4, ranks=2, eval_batch=5, scratch=tmp_path))


def test_packed_or_padded_an_epoch_in_one_step_has_the_same_gradient(files, run):
    options = {"data": {"probe_size": 0}, "trainer": {"max_epochs": 2}}
    gpt2 = replace(run, model=files / "gpt2")
    packed, padded = (gpt2(400, task=answering(packing), **options) for packing in (True, False))
    same(packed, padded)
    assert "val/exact_match" in packed.val[0]
    assert len(packed.rows) < 0.7 * len(padded.rows)


# --- a person's whole way --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    """Its logger is the one that runs have by default."""
    return finished_run(
        tmp_path_factory.mktemp("run"),
        files / "llama",
        "InstructionTuning",
        {"train": files / "train.jsonl", "val": files / "val.jsonl", "train_batch_size": 4},
        lr=0.01,
        epochs=8,
        init_args={"chat_template": "plain", "scorers": ["exact_match"], "generation": {"max_new_tokens": 8}},
        sections={
            "overfit": {"probe_size": 20},
            "checkpoint": {"monitor": "val/exact_match"},
            "logger": "tensorboard",
        },
    )


def conversations(path) -> list[list[dict]]:
    return [row["messages"] for row in lines(path)]


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
    report = report_of(finished)["metrics"]
    assert "exact_match" in capsys.readouterr().out
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
    records = lines(predict(finished, new, tmp_path / "out.jsonl", "--data.eval_batch_size", "4"))
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
    samples = lines(finished / "samples.jsonl")
    steps = sorted({line["step"] for line in samples})
    assert len(steps) == 8
    assert [line["row"] for line in samples if line["step"] == steps[-1]] == [0, 1, 2]
    chats = conversations(files / "val.jsonl")
    assert [line["reference"] for line in samples[-3:]] == [chat[-1]["content"] for chat in chats[:3]]
    log = (finished / "run.log").read_text()
    assert f"sample   step {steps[-1]}, val row 0" in log
    assert samples[-1]["written"] in log


def test_a_model_without_a_template_is_an_error_with_a_remedy(files, tmp_path, capsys):
    model = {"task": "InstructionTuning", "model.model_name_or_path": files / "llama"}
    options = flags({**model, "data.train": files / "few.jsonl", "run_dir": tmp_path / "r"})
    assert main(["fit", *options]) == 4
    said = capsys.readouterr().err
    assert "no chat template" in said
    assert "Fix: task.init_args.chat_template: plain" in said
