"""Sequence to sequence from files to a model directory: exact, complete, in order, the same in plain transformers."""

import json
from pathlib import Path

import pytest
import torch
from cards import run_card
from parity.runs import Recorder
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf
from tasks.task_runs import CUTS, TaskRuns, finished_run, predict, report_of, same, same_from_a_stream
from tiny_runs import flags, lines
from toy import make_tiny_decoder, make_tiny_model, make_tiny_writer, toy_descriptions, write_jsonl
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from lit_tune.__main__ import main
from lit_tune.tasks.seq2seq import Seq2Seq

GENERATION = {"num_beams": 2, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Models and rows of all tests here; 21 for training, so that the last window of 16 is short."""
    folder = tmp_path_factory.mktemp("writing")
    for kind in ("t5", "bart"):
        make_tiny_writer(folder / kind, kind)
    for name, count, references in (("train", 200, 1), ("few", 21, 1), ("val", 9, 1), ("several", 11, 3)):
        write_jsonl(folder / f"{name}.jsonl", toy_descriptions(count, seed=count, references=references))
    write_jsonl(folder / "new.jsonl", [{"source": r["source"]} for r in toy_descriptions(9, seed=5)])
    return folder


# --- exact -----------------------------------------------------------------------------------------------------------


NO_TEXTS = Seq2Seq(generate_rows=0)


@pytest.fixture(scope="module")
def runs(files) -> dict[str, TaskRuns]:
    data = {"train": files / "few.jsonl", "val": files / "val.jsonl", "probe_size": 5}
    return {kind: TaskRuns(files / kind, Seq2Seq(generation=GENERATION), data) for kind in ("t5", "bart")}


@pytest.fixture(scope="module")
def run(runs) -> TaskRuns:
    return runs["t5"]


@pytest.fixture(scope="module")
def references(runs) -> dict[str, Recorder]:
    return {"t5": runs["t5"](16), "bart": runs["bart"](16, task=NO_TEXTS)}


@pytest.mark.parametrize("kind", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_any_cut_gives_the_same_gradient_texts_and_metrics(kind, runs, references):
    run = runs[kind]
    reference = references["t5"] if kind == "t5" else run(16)
    assert {"val/loss", "val/perplexity", "val/accuracy", "val/rougeLsum", "val/bleu", "val/chrf"} <= reference.val[
        0
    ].keys()
    for batch, accumulate, eval_batch in CUTS:
        same(reference, run(batch, accumulate, eval_batch=eval_batch), num_steps=2)


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_give_the_same_gradient_texts_and_metrics(run, references, tmp_path):
    same(references["t5"], run(2, 4, ranks=2, eval_batch=5, scratch=tmp_path), num_steps=2)


@pytest.mark.parametrize("kind", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_padding_changes_nothing(kind, runs, references):
    task = None if kind == "t5" else NO_TEXTS
    for data in ({"padding": "max_length"}, {"pad_to_multiple_of": 16}):
        same(references[kind], runs[kind](16, data=data, task=task), num_steps=2)


@pytest.mark.slow
def test_several_references_are_trained_on_one_by_one_and_evaluated_together(files, run):
    data = {"train": files / "several.jsonl", "val": files / "several.jsonl", "probe_size": 0}
    whole = run(11, data=data)
    rows = lines(files / "several.jsonl")
    flat = [{"source": row["source"], "target": text} for row in rows for text in row["target"]]
    data = {name: write_jsonl(files / "flat.jsonl", flat) for name in ("train", "val")} | {"probe_size": 0}
    grouped = run(11, data=data, task=Seq2Seq(generation=GENERATION, group_sources=True), eval_batch=3)
    same(whole, grouped, num_steps=3)
    alone = run(11, data=data)
    assert alone.val[0]["val/loss"] == pytest.approx(grouped.val[0]["val/loss"], rel=1e-9)
    assert alone.val[0]["val/chrf"] < grouped.val[0]["val/chrf"], "the best reference counts"


@pytest.mark.parametrize("adapter", [None, pytest.param("lora", marks=pytest.mark.slow)])
def test_label_smoothing_and_an_adapter_are_exact_too(adapter, run):
    task = Seq2Seq(label_smoothing=0.1, metrics=[], generate_rows=0)
    options = {"task": task, "module": {"adapter": adapter}, "trainer": {"max_epochs": 2}}
    same(run(16, **options), run(4, 4, eval_batch=3, **options), num_steps=4)


def test_a_stream_trains_on_the_rows_of_the_file(run):
    same_from_a_stream(run, 21, task=NO_TEXTS)


@pytest.mark.slow
def test_steps_are_those_of_hugging_faces_seq2seq_trainer(files, run, tmp_path):
    """21 rows in a step, in any order, for 3 steps: the weights go the same way."""
    rows = lines(files / "few.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(files / "t5")
    encoded = [dict(tokenizer(row["source"]), labels=tokenizer(text_target=row["target"])["input_ids"]) for row in rows]
    model = AutoModelForSeq2SeqLM.from_pretrained(files / "t5")
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=21,
        max_steps=3,
        learning_rate=0.01,
        weight_decay=0.0,
        lr_scheduler_type="constant",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, model)
    Seq2SeqTrainer(model=model, args=arguments, train_dataset=encoded, data_collator=collator).train()
    module = {"optimizer": {"lr": 0.01, "weight_decay": 0.0}, "lr_schedule": {"name": "constant", "warmup": 0}}
    trainer = {"precision": "32-true", "max_epochs": 3}
    ours = run(21, task=NO_TEXTS, data={"probe_size": 0}, module=module, trainer=trainer).weights
    theirs, start = model.state_dict(), AutoModelForSeq2SeqLM.from_pretrained(files / "t5").state_dict()
    both, moved = (torch.cat([(w - other[n]).flatten() for n, w in theirs.items()]) for other in (ours, start))
    assert (
        float(both.norm() / moved.norm()) < 1e-3
    )  # of Adam's steps, which amplify rounding where gradients are near 0


# --- a person's whole way --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    data = {name: files / f"{file}.jsonl" for name, file in (("train", "train"), ("val", "val"), ("test", "several"))}
    return finished_run(
        tmp_path_factory.mktemp("run"),
        files / "t5",
        "Seq2Seq",
        {**data, "train_batch_size": 8},
        lr=0.01,
        epochs=4,
        init_args={"generation": GENERATION, "generate_rows": 5},
    )


def written_one_by_one(folder: Path, rows: list[dict]) -> list[str]:
    """What plain transformers makes of the export, with the settings that it brings."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for row in rows:
        source = tokenizer([row["source"]], return_tensors="pt")
        found.append(tokenizer.batch_decode(model.generate(**source), skip_special_tokens=True)[0].strip())
    return found


def test_test_reports_the_scores_of_what_plain_transformers_writes(finished, files, capsys):
    report = report_of(finished)
    assert "to 100: rouge1 " in capsys.readouterr().out
    rows = lines(files / "several.jsonl")
    written = written_one_by_one(finished / "best", rows)
    streams = [list(texts) for texts in zip(*(row["target"] for row in rows), strict=True)]
    assert report["metrics"]["bleu"] == pytest.approx(corpus_bleu(written, streams).score / 100, abs=1e-9)
    assert report["metrics"]["chrf"] == pytest.approx(corpus_chrf(written, streams).score / 100, abs=1e-9)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    rouge = [
        scorer.score_multi(row["target"], text)["rougeL"].fmeasure for row, text in zip(rows, written, strict=True)
    ]
    assert report["metrics"]["rougeL"] == pytest.approx(sum(rouge) / len(rows), abs=1e-9)
    assert report["metrics"]["rougeL"] > 0.5, "it has learned something"
    assert report["metrics"]["loss"] > 0
    assert report["baseline"].keys() == {"loss", "perplexity", "accuracy"}


def test_the_loss_is_that_of_transformers_own_head(finished, files):
    """Of all targets together, one row at a time, without padding."""
    report = json.loads((finished / "manifest.json").read_text())["best_metrics"]
    model = AutoModelForSeq2SeqLM.from_pretrained(finished / "best")
    tokenizer = AutoTokenizer.from_pretrained(finished / "best")
    total = tokens = 0.0
    for row in lines(files / "val.jsonl"):
        batch = tokenizer(row["source"], text_target=row["target"], return_tensors="pt")
        with torch.inference_mode():
            total += float(model(**batch).loss) * batch["labels"].numel()
        tokens += batch["labels"].numel()
    assert report["val/loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_samples_are_in_the_log_of_the_run(finished, files):
    samples = lines(finished / "samples.jsonl")
    assert len(samples) == 4 * 3
    first = lines(files / "val.jsonl")[0]
    assert (samples[0]["source"], samples[0]["target"]) == (first["source"], first["target"])
    assert samples[-3]["written"].split()[0] == "great"


def test_predictions_are_those_of_plain_transformers_in_input_order(finished, files, tmp_path):
    output = predict(finished, files / "new.jsonl", tmp_path / "out.jsonl", "--data.eval_batch_size", "4")
    written = written_one_by_one(finished / "best", lines(files / "new.jsonl"))
    assert lines(output) == [{"row": i, "text": text} for i, text in enumerate(written)]


def test_the_model_card_shows_lines_that_run(finished):
    assert run_card(finished / "best", "mud lake rain")["written"].startswith("great view")
    settings = json.loads((finished / "best" / "generation_config.json").read_text())
    assert (settings["num_beams"], settings["max_new_tokens"]) == (2, 8)


def test_bad_rows_and_other_models_end_before_any_training(files, tmp_path, capsys):
    rows = toy_descriptions(9)
    rows[4]["target"] = None
    bad = write_jsonl(tmp_path / "bad.jsonl", rows)
    options = ["--task.class_path", "Seq2Seq", "--run_dir", str(tmp_path / "run"), "--data.train"]
    model = "--model.model_name_or_path"
    assert main(["check", *options, bad, model, str(files / "t5")]) == 3
    assert "bad.jsonl:5" in capsys.readouterr().err
    others = [
        (make_tiny_decoder(tmp_path / "gpt"), "InstructionTuning"),
        (make_tiny_model(tmp_path / "bert"), "encoder"),
    ]
    for folder, said in others:
        assert main(["check", *options, str(files / "few.jsonl"), model, str(folder)]) == 4
        assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "prompt_tuning"])
def test_an_adapted_model_writes_the_same_from_its_adapter_and_merged(adapter, files, tmp_path):
    options = {
        "task.class_path": "Seq2Seq",
        "task.init_args.generation.num_beams": 2,
        "task.init_args.max_target_length": 8,
        "model.model_name_or_path": files / "t5",
        "model.adapter": adapter,
        "data.train": files / "train.jsonl",
        "data.val": files / "val.jsonl",
        "data.max_length": 32,
        "optimizer.lr": 0.05,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 2,
        "run_dir": tmp_path / "run",
    }
    assert main(["fit", *flags(options)]) == 0
    config = str(tmp_path / "run" / "config.yaml")
    output = predict(tmp_path / "run", files / "new.jsonl", tmp_path / "out.jsonl")
    assert main(["test", "--config", config, "--data.test", str(files / "several.jsonl")]) == 0
    if adapter == "lora":
        assert main(["export", "--config", config, "--merge", "--output", str(tmp_path / "merged")]) == 0
        written = written_one_by_one(tmp_path / "merged", lines(files / "new.jsonl"))
        assert [record["text"] for record in lines(output)] == written
