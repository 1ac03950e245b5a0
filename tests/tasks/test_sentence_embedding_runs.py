"""Embeddings from files to a model directory: exact, complete, in order, and the same in other people's programs."""

import csv
import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from cards import run_card
from parity.runs import Recorder
from scipy.stats import pearsonr, spearmanr
from tasks.task_runs import TaskRuns, finished_run, predict, report_of, same, same_from_a_stream
from tiny_runs import lines
from torch.nn import functional as F
from toy import make_tiny_model, toy_pairs, write_csv, write_jsonl
from transformers import AutoModel, AutoTokenizer, pipeline

from lit_tune.__main__ import main
from lit_tune.tasks.sentence_embedding import SentenceEmbedding

TRIPLES = ["anchor", "positive", "negative"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Model and pairs of all tests here; 37 for training, so that the last window of 16 is short."""
    folder = tmp_path_factory.mktemp("pairs")
    make_tiny_model(folder / "model", dropout=0.0, hidden=32)
    for name, count in (("train", 160), ("few", 37), ("val", 41)):
        write_jsonl(folder / f"{name}.jsonl", toy_pairs(count, seed=count))
    new = [{k: r[k] for k in ("sentence1", "sentence2")} for r in toy_pairs(11, seed=5)]
    new[3]["sentence1"] = " ".join([new[3]["sentence1"]] * 40)  # longer than the model's 64 positions
    write_jsonl(folder / "new.jsonl", new)
    return folder


# --- exact -----------------------------------------------------------------------------------------------------------


TASKS = {
    "triples": SentenceEmbedding(text_columns=TRIPLES, symmetric=True, group_size=4),
    "cosine": SentenceEmbedding(loss="cosine"),
    "cosent": SentenceEmbedding(loss="cosent", group_size=4),
}


@pytest.fixture(scope="module")
def run(files) -> TaskRuns:
    return TaskRuns(files / "model", TASKS["triples"], {"train": files / "few.jsonl", "val": files / "val.jsonl"})


@pytest.fixture(scope="module")
def reference(run) -> Callable[[str], Recorder]:
    """The run in one piece of each task that is asked for."""
    return functools.cache(lambda name: run(16, task=TASKS[name]))


@pytest.mark.parametrize(
    "name", ["triples", *(pytest.param(n, marks=pytest.mark.slow) for n in TASKS if n != "triples")]
)
def test_any_cut_gives_the_same_gradient_and_metrics(name, run, reference):
    for batch, accumulate, eval_batch in [(4, 4, 1), (8, 2, 7)]:
        same(reference(name), run(batch, accumulate, eval_batch=eval_batch, task=TASKS[name]), num_steps=3)


@pytest.mark.ddp
@pytest.mark.parametrize("name", ["triples", pytest.param("cosent", marks=pytest.mark.slow)])
def test_two_ranks_give_the_same_gradient_and_metrics(name, run, reference, tmp_path):
    parts = run(4, 2, ranks=2, eval_batch=5, scratch=tmp_path, task=TASKS[name])
    same(reference(name), parts, num_steps=3)


def test_padding_changes_nothing(run, reference):
    for data in ({"padding": "max_length"}, {"pad_to_multiple_of": 16}):
        same(reference("triples"), run(16, data=data), num_steps=3)


def test_encoding_few_texts_at_a_time_changes_nothing(run, reference):
    task = SentenceEmbedding(text_columns=TRIPLES, symmetric=True, group_size=4, texts_at_once=5)
    same(reference("triples"), run(16, task=task), num_steps=3)


def test_groups_are_those_of_a_batch_unless_their_size_is_given(run):
    def losses(batch: int, accumulate: int = 1, **task) -> list[float]:
        return run(batch, accumulate, task=SentenceEmbedding(**task), trainer={"max_steps": 1}).losses

    whole = losses(16)
    assert losses(16, group_size=16) == whole
    assert losses(8, 2) == losses(16, group_size=8)
    assert abs(losses(8, 2)[0] - whole[0]) > 0.01


def test_groups_are_drawn_anew_in_each_epoch(run):
    rows = run(16, trainer={"max_epochs": 2}).rows
    first, second = ([frozenset(epoch[i : i + 4]) for i in range(0, 37, 4)] for epoch in (rows[:37], rows[37:]))
    assert sorted(rows[:37]) == sorted(rows[37:]) == list(range(37))
    assert not set(first) & set(second)


def test_a_stream_trains_on_the_groups_of_the_file(run):
    same_from_a_stream(run, 40, task=SentenceEmbedding(group_size=40))


# --- a person's whole way --------------------------------------------------------------------------------------------


def finish(files: Path, folder: Path, task: dict, adapter: str | None = None) -> Path:
    data = {"train": files / "train.jsonl", "val": files / "val.jsonl", "train_batch_size": 8}
    options = {"init_args": task, "sections": {"model": {"adapter": adapter}}}
    return finished_run(folder, files / "model", "SentenceEmbedding", data, lr=0.003, epochs=3, **options)


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    return finish(files, tmp_path_factory.mktemp("run"), {"loss": "cosine"})


def plain_embeddings(folder: Path, texts: list[str]) -> torch.Tensor:
    """Mean of the token vectors, by transformers alone, one text at a time."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        with torch.inference_mode():
            hidden = model(**tokenizer(text, truncation=True, max_length=64, return_tensors="pt")).last_hidden_state
        found.append(F.normalize(hidden[0].mean(0), dim=0))
    return torch.stack(found)


def plain_cosines(folder: Path, rows: list[dict]) -> list[float]:
    first, second = (plain_embeddings(folder, [r[name] for r in rows]) for name in ("sentence1", "sentence2"))
    return (first * second).sum(1).tolist()


def test_the_export_in_plain_transformers_has_the_metrics_that_test_reports(finished, files, capsys):
    found = report_of(finished)
    assert "spearman" in capsys.readouterr().out
    rows = lines(files / "val.jsonl")
    cosines, scores = plain_cosines(finished / "best", rows), [r["score"] for r in rows]
    before = spearmanr(plain_cosines(files / "model", rows), scores).statistic
    assert found["metrics"]["spearman"] == pytest.approx(spearmanr(cosines, scores).statistic, abs=1e-6)
    assert found["metrics"]["spearman"] > before + 0.02, "it has learned something"
    assert found["metrics"]["pearson"] == pytest.approx(pearsonr(cosines, scores).statistic, abs=1e-5)
    error = sum((c - s / 5) ** 2 for c, s in zip(cosines, scores, strict=True)) / len(rows)
    assert found["metrics"]["loss"] == pytest.approx(error, rel=1e-4)
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["monitor"] == "val/spearman"


def test_embeddings_are_the_mean_of_what_the_pipeline_gives(finished, tmp_path):
    texts = [{"text": r["sentence1"]} for r in toy_pairs(5, seed=3)]
    new = write_jsonl(tmp_path / "texts.jsonl", texts)
    output = predict(finished, new, tmp_path / "out.jsonl", "--task.init_args.text_columns", "[text]")
    run_pipeline = pipeline("feature-extraction", str(finished / "best"), device="cpu")
    for record, row in zip(lines(output), texts, strict=True):
        tokens = torch.tensor(run_pipeline(row["text"])[0])
        assert record["embedding"] == pytest.approx(F.normalize(tokens.mean(0), dim=0).tolist(), abs=1e-5)


def test_predictions_are_those_of_plain_transformers_in_input_order(finished, files, tmp_path):
    new = files / "new.jsonl"
    records = lines(predict(finished, new, tmp_path / "out.jsonl", "--data.eval_batch_size", "3"))
    assert [r["row"] for r in records] == list(range(11))
    expected = plain_cosines(finished / "best", lines(new))
    assert [r["similarity"] for r in records] == pytest.approx(expected, abs=1e-5)
    with predict(finished, new, tmp_path / "out.csv").open() as file:
        assert [float(r["similarity"]) for r in csv.DictReader(file)] == pytest.approx(expected, abs=1e-5)


def test_the_folder_says_to_sentence_transformers_how_embeddings_are_made(finished):
    best = finished / "best"
    modules = json.loads((best / "modules.json").read_text())
    assert [m["type"].rpartition(".")[2] for m in modules] == ["Transformer", "Pooling", "Normalize"]
    assert [m["path"] for m in modules] == ["", "1_Pooling", "2_Normalize"]
    pooling = json.loads((best / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 32
    assert [key for key, on in pooling.items() if key.startswith("pooling_mode_") and on] == [
        "pooling_mode_mean_tokens"
    ]
    assert json.loads((best / "sentence_bert_config.json").read_text())["max_seq_length"] == 64
    card = yaml.safe_load((best / "README.md").read_text().split("---\n")[1])
    assert (card["pipeline_tag"], card["library_name"]) == ("sentence-similarity", "sentence-transformers")


@pytest.mark.slow
@pytest.mark.parametrize("task", [{"loss": "cosine"}, {"loss": "cosent", "pooling": "last", "normalize": False}])
def test_sentence_transformers_makes_the_same_embeddings_of_the_folder(task, files, tmp_path):
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    best = finish(files, tmp_path, task) / "best"
    rows = lines(files / "new.jsonl")
    model = library.SentenceTransformer(str(best), device="cpu")
    first, second = (model.encode([r[n] for r in rows], convert_to_tensor=True) for n in ("sentence1", "sentence2"))
    records = lines(predict(tmp_path / "run", files / "new.jsonl", tmp_path / "out.jsonl"))
    expected = F.cosine_similarity(first, second).tolist()
    assert [r["similarity"] for r in records] == pytest.approx(expected, abs=1e-5)
    assert run_card(best)["similarities"].shape == (3, 3)


@pytest.mark.slow
def test_an_adapter_is_trained_and_merged_into_the_same_embeddings(files, tmp_path):
    run_dir = finish(files, tmp_path, {"text_columns": TRIPLES}, adapter="lora")
    settings = json.loads((run_dir / "best" / "adapter_config.json").read_text())
    assert settings["task_type"] == "FEATURE_EXTRACTION"
    whole = tmp_path / "whole"
    assert main(["export", "--config", str(run_dir / "config.yaml"), "--merge", "--output", str(whole)]) == 0
    assert (whole / "1_Pooling" / "config.json").is_file()
    options = ["--task.init_args.text_columns", "[sentence1, sentence2]"]
    records = lines(predict(run_dir, files / "new.jsonl", tmp_path / "out.jsonl", *options))
    expected = plain_cosines(whole, lines(files / "new.jsonl"))
    assert [r["similarity"] for r in records] == pytest.approx(expected, abs=1e-5)


def test_bad_rows_end_with_their_place_before_any_training(files, tmp_path, capsys):
    rows = [{k: r[k] for k in ("sentence1", "sentence2", "score")} for r in toy_pairs(9)]
    bad = write_csv(tmp_path / "val.csv", [*rows[:4], {**rows[4], "score": 7}, {**rows[5], "sentence2": " "}])
    options = ["--task.class_path", "SentenceEmbedding", "--model.model_name_or_path", str(files / "model")]
    data = ["--data.train", str(files / "train.jsonl"), "--data.val", str(bad), "--run_dir", str(tmp_path / "run")]
    assert main(["check", *options, *data, "--task.init_args.loss", "cosine"]) == 3
    said = capsys.readouterr().err.replace(f"{tmp_path}/", "")
    assert "outside 0 to 5\n  (val.csv:5)" in said
    assert "is empty in 1 row(s)\n  (val.csv:6)" in said
    assert main(["fit", *options, *data, "--task.init_args.group_size", "5"]) == 2
    assert "a multiple of 5" in capsys.readouterr().err
