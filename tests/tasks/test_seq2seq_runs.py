"""Sequence to sequence from files to a model directory: exact, complete, in order, the same in plain transformers."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from checkpointing.resume_matrix import check, fit
from parity.runs import Recorder, relative
from parity.runs import fit as fit_recorded
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf
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


def same(reference: Recorder, other: Recorder, num_steps: int = 2) -> None:
    assert len(reference.losses) == len(other.losses) == num_steps
    for a, b in zip(reference.gradients, other.gradients, strict=True):
        assert relative(b, a) < 1e-12
    assert other.losses == pytest.approx(reference.losses, rel=1e-12)
    assert other.val == [pytest.approx(v, rel=1e-6) for v in reference.val]


def run(files: Path, batch: int, accumulate: int = 1, ranks: int = 1, eval_batch: int = 64, **more) -> Recorder:
    data = {
        "train": str(files / "few.jsonl"),
        "val": str(files / "val.jsonl"),
        "eval_batch_size": eval_batch,
        "probe_size": 5,
        **more.pop("data", {}),
    }
    options = {"precision": "64-true", "max_epochs": 1, "task": Seq2Seq(generation=GENERATION), **more}
    options["module"] = {"config_overrides": {}, **options.get("module", {})}
    model = files / options.pop("kind", "t5")
    return fit_recorded(model, data, batch=batch, accumulate=accumulate, ranks=ranks, **options)


@pytest.fixture(scope="module")
def references(files) -> dict[str, Recorder]:
    return {"t5": run(files, 16), "bart": run(files, 16, kind="bart", task=Seq2Seq(generate_rows=0))}


@pytest.mark.parametrize("kind", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_any_cut_gives_the_same_gradient_texts_and_metrics(kind, files, references):
    reference = references["t5"] if kind == "t5" else run(files, 16, kind=kind)
    assert {"val/loss", "val/perplexity", "val/accuracy", "val/rougeLsum", "val/bleu", "val/chrf"} <= reference.val[
        0
    ].keys()
    for batch, accumulate, eval_batch in [(1, 16, 1), (4, 4, 7)]:
        same(reference, run(files, batch, accumulate, eval_batch=eval_batch, kind=kind))


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_give_the_same_gradient_texts_and_metrics(files, references, tmp_path):
    same(references["t5"], run(files, 2, 4, ranks=2, eval_batch=5, scratch=tmp_path))


@pytest.mark.parametrize("kind", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_padding_changes_nothing(kind, files, references):
    options = {} if kind == "t5" else {"task": Seq2Seq(generate_rows=0)}
    for data in ({"padding": "max_length"}, {"pad_to_multiple_of": 16}):
        same(references[kind], run(files, 16, data=data, kind=kind, **options))


@pytest.mark.slow
def test_several_references_are_trained_on_one_by_one_and_evaluated_together(files):
    data = {"train": str(files / "several.jsonl"), "val": str(files / "several.jsonl"), "probe_size": 0}
    lists = run(files, 11, data=data)
    rows = [json.loads(line) for line in (files / "several.jsonl").read_text().splitlines()]
    flat = [{"source": row["source"], "target": text} for row in rows for text in row["target"]]
    data = {name: write_jsonl(files / "flat.jsonl", flat) for name in ("train", "val")} | {"probe_size": 0}
    grouped = run(files, 11, data=data, task=Seq2Seq(generation=GENERATION, group_sources=True), eval_batch=3)
    same(lists, grouped, num_steps=3)
    alone = run(files, 11, data=data)
    assert alone.val[0]["val/loss"] == pytest.approx(grouped.val[0]["val/loss"], rel=1e-9)
    assert alone.val[0]["val/chrf"] < grouped.val[0]["val/chrf"], "the best reference counts"


@pytest.mark.parametrize("adapter", [None, pytest.param("lora", marks=pytest.mark.slow)])
def test_label_smoothing_and_an_adapter_are_exact_too(adapter, files):
    task = Seq2Seq(label_smoothing=0.1, metrics=[], generate_rows=0)
    options = {"task": task, "module": {"adapter": adapter}, "max_epochs": 2}
    same(run(files, 16, **options), run(files, 4, 4, eval_batch=3, **options), num_steps=4)


def test_a_stream_trains_on_the_rows_of_the_file(files):
    def losses(**data) -> list[float]:
        settings = {"probe_size": 0, **data}
        return run(files, 21, data=settings, task=Seq2Seq(generate_rows=0), max_epochs=-1, max_steps=2).losses

    assert losses(streaming=True) == pytest.approx(losses(), rel=1e-9)  # 21 rows in a step: in any order


@pytest.mark.slow
def test_steps_are_those_of_hugging_faces_seq2seq_trainer(files, tmp_path):
    """21 rows in a step, in any order, for 3 steps: the weights go the same way."""
    rows = [json.loads(line) for line in (files / "few.jsonl").read_text().splitlines()]
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
    options = {"precision": "32-true", "max_epochs": 3, "data": {"probe_size": 0}, "module": module}
    ours = run(files, 21, task=Seq2Seq(generate_rows=0), **options).weights
    theirs, start = model.state_dict(), AutoModelForSeq2SeqLM.from_pretrained(files / "t5").state_dict()
    both, moved = (torch.cat([(w - other[n]).flatten() for n, w in theirs.items()]) for other in (ours, start))
    assert (
        float(both.norm() / moved.norm()) < 1e-3
    )  # of Adam's steps, which amplify rounding where gradients are near 0


# --- a person's whole way --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    """A finished run, from a YAML file."""
    folder = tmp_path_factory.mktemp("run")
    config = {
        "run_dir": str(folder / "run"),
        "task": {"class_path": "Seq2Seq", "init_args": {"generation": GENERATION, "generate_rows": 5}},
        "model": {"model_name_or_path": str(files / "t5")},
        "data": {
            **{name: str(files / f"{name}.jsonl") for name in ("train", "val")},
            "test": str(files / "several.jsonl"),
            "cache_dir": str(folder / "cache"),
            "train_batch_size": 8,
        },
        "optimizer": {"lr": 0.01},
        "trainer": {"accelerator": "cpu", "max_epochs": 4},
        "logger": "none",
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "my.yaml")]) == 0
    return folder / "run"


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written_one_by_one(folder: Path, rows: list[dict]) -> list[str]:
    """What plain transformers makes of the export, with the settings that it brings."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for row in rows:
        source = tokenizer([row["source"]], return_tensors="pt")
        found.append(tokenizer.batch_decode(model.generate(**source), skip_special_tokens=True)[0].strip())
    return found


def test_test_reports_the_scores_of_what_plain_transformers_writes(finished, files, capsys):
    assert main(["test", "--config", str(finished / "config.yaml")]) == 0
    assert "to 100: rouge1 " in capsys.readouterr().out
    report = json.loads((finished / "test_metrics.json").read_text())
    rows = read(files / "several.jsonl")
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
    for row in read(files / "val.jsonl"):
        batch = tokenizer(row["source"], text_target=row["target"], return_tensors="pt")
        with torch.inference_mode():
            total += float(model(**batch).loss) * batch["labels"].numel()
        tokens += batch["labels"].numel()
    assert report["val/loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_samples_are_in_the_log_of_the_run(finished, files):
    samples = read(finished / "samples.jsonl")
    assert len(samples) == 4 * 3
    first = read(files / "val.jsonl")[0]
    assert (samples[0]["source"], samples[0]["target"]) == (first["source"], first["target"])
    assert samples[-3]["written"].split()[0] == "great"


def test_predictions_are_those_of_plain_transformers_in_input_order(finished, files, tmp_path):
    output, config = tmp_path / "out.jsonl", str(finished / "config.yaml")
    options = ["--data.predict", str(files / "new.jsonl"), "--data.eval_batch_size", "4", "--output", str(output)]
    assert main(["predict", "--config", config, *options]) == 0
    written = written_one_by_one(finished / "best", read(files / "new.jsonl"))
    assert read(output) == [{"row": i, "text": text} for i, text in enumerate(written)]


def test_the_model_card_shows_lines_that_run(finished):
    card = (finished / "best" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    found: dict = {}
    exec(code.replace("PATH_OR_ID", str(finished / "best")).replace("your text", "mud lake rain"), found)
    assert found["written"].startswith("great view")
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
    assert main(["fit", *[text for key, value in options.items() for text in (f"--{key}", str(value))]]) == 0
    config, output = str(tmp_path / "run" / "config.yaml"), tmp_path / "out.jsonl"
    new = ["--data.predict", str(files / "new.jsonl"), "--output", str(output)]
    assert main(["predict", "--config", config, *new]) == 0
    assert main(["test", "--config", config, "--data.test", str(files / "several.jsonl")]) == 0
    if adapter == "lora":
        assert main(["export", "--config", config, "--merge", "--output", str(tmp_path / "merged")]) == 0
        written = written_one_by_one(tmp_path / "merged", read(files / "new.jsonl"))
        assert [record["text"] for record in read(output)] == written


@pytest.mark.slow
def test_a_run_that_goes_on_equals_one_that_was_never_interrupted(files, tmp_path):
    options = {
        "task.class_path": "Seq2Seq",
        "task.init_args.generate_rows": 3,
        "model.model_name_or_path": make_tiny_writer(tmp_path / "model", dropout=0.3),
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
