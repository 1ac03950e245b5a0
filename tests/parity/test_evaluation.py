"""Evaluation: every example once, whatever the batch, the ranks and the number of rows; equal to scikit-learn."""

import json
import math
import random
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from parity.runs import build
from sklearn import metrics as sk
from toy import toy_rows

from lit_tune.callbacks.prediction_writer import PredictionWriter
from lit_tune.module import FineTuneModule


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def trained(tiny_model_dir, folder: Path, kind: str = "single") -> Path:
    """A folder with a model whose head fits the toy labels."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    problem, names = {
        "single": ("single_label_classification", ["bad", "fine", "good"]),
        "multi": ("multi_label_classification", ["a", "b", "c"]),
        "regression": ("regression", ["LABEL_0"]),
    }[kind]
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_model_dir,
        id2label=dict(enumerate(names)),
        label2id={n: i for i, n in enumerate(names)},
        problem_type=problem,
    )
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    return folder


def rows_of(kind: str, count: int, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    rows = toy_rows(count, seed)
    label = {
        "single": lambda r: r["label"],
        "multi": lambda r: sorted(rng.sample(["a", "b", "c"], rng.randint(0, 3))),
        "regression": lambda r: r["score"],
    }[kind]
    return [{"text": r["text"], "label": label(r)} for r in rows]


def run_trainer(ranks: int = 1, callbacks: tuple = (), **options) -> L.Trainer:
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo") if ranks > 1 else "auto"
    return L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        **options,
    )


class Keep(L.Callback):
    """Leaves rank zero's numbers on disk, because forked ranks take their memory with them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_test_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            self.path.write_text(json.dumps({k: float(v) for k, v in trainer.callback_metrics.items()}))


def measure(model: Path, data: Path, batch: int, ranks: int, scratch: Path, precision: str = "64-true") -> dict:
    module, datamodule = build(model, {"test": str(data), "eval_batch_size": batch})
    keep = scratch / "numbers.json"
    run_trainer(ranks, (Keep(keep),), precision=precision).test(module, datamodule=datamodule, verbose=False)
    return json.loads(keep.read_text())


def assert_same(a: dict, b: dict, tolerance: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for name in a:
        same = (math.isnan(a[name]) and math.isnan(b[name])) or a[name] == pytest.approx(b[name], abs=tolerance)
        assert same, (name, a[name], b[name])


@pytest.mark.parametrize("kind", ["single", "multi", "regression"])
def test_any_batch_size_gives_the_same_numbers(kind, tiny_model_dir, tmp_path):
    model = trained(tiny_model_dir, tmp_path / "model", kind)
    data = write(tmp_path / "test.jsonl", rows_of(kind, 37))
    reference = measure(model, data, 1, 1, tmp_path, precision="32-true")
    for batch in (4, 16, 64):
        assert_same(reference, measure(model, data, batch, 1, tmp_path, precision="32-true"))


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["single", "multi", "regression"])
def test_two_ranks_give_the_same_numbers_for_every_count_of_rows(kind, tiny_model_dir, tmp_path):
    model = trained(tiny_model_dir, tmp_path / "model", kind)
    for count in range(1, 21) if kind == "single" else (1, 2, 3, 5, 8, 9, 17, 20):
        data = write(tmp_path / f"test{count}.jsonl", rows_of(kind, count))
        reference = measure(model, data, 4, 1, tmp_path)
        assert_same(reference, measure(model, data, 4, 2, tmp_path), 1e-9)


def test_every_count_of_rows_is_evaluated_once(tiny_model_dir, tmp_path):
    model = trained(tiny_model_dir, tmp_path / "model")
    rows = rows_of("single", 20)
    for count in range(1, 21):
        data = write(tmp_path / f"test{count}.jsonl", rows[:count])
        module, datamodule = build(model, {"test": str(data), "eval_batch_size": 4})
        run_trainer().test(module, datamodule=datamodule, verbose=False)
        assert int(module.evaluated["test"]["confusion_matrix"].sum()) == count


def predictions(model: Path, data: Path, out: Path, ranks: int = 1, batch: int = 4) -> list[dict]:
    module, datamodule = build(model, {"predict": str(data), "eval_batch_size": batch})
    run_trainer(ranks, (PredictionWriter(out),)).predict(module, datamodule=datamodule, return_predictions=False)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_predictions_stay_in_order_although_rows_are_computed_by_length(tiny_model_dir, tmp_path, monkeypatch):
    model = trained(tiny_model_dir, tmp_path / "model")
    rows = [{"text": " ".join([row["text"]] * (1 + i % 5))} for i, row in enumerate(rows_of("single", 130))]
    data = write(tmp_path / "rows.jsonl", rows)
    computed = []
    step = FineTuneModule.predict_step

    def recorded(self, batch, batch_idx):
        computed.extend(batch["example_ids"])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(FineTuneModule, "predict_step", recorded)
    found = predictions(model, data, tmp_path / "out.jsonl", batch=1)  # three stretches of 50 batches
    assert computed != sorted(computed) == list(range(130))
    assert [p["row"] for p in found] == list(range(130))
    again = predictions(model, write(tmp_path / "back.jsonl", rows[::-1]), tmp_path / "back_out.jsonl", batch=64)
    for a, b in zip(found, again[::-1], strict=True):
        assert list(a["probabilities"].values()) == pytest.approx(list(b["probabilities"].values()), abs=1e-6)


def test_metrics_equal_scikit_learn_on_the_dumped_predictions(tiny_model_dir, tmp_path):
    model = trained(tiny_model_dir, tmp_path / "model")
    rows = rows_of("single", 60)
    data = write(tmp_path / "rows.jsonl", rows)
    dumped = predictions(model, data, tmp_path / "out.jsonl")
    numbers = measure(model, data, 16, 1, tmp_path, precision="32-true")
    truth, guess = [r["label"] for r in rows], [p["label"] for p in dumped]
    names = ["bad", "fine", "good"]
    scores = np.array([[p["probabilities"][n] for n in names] for p in dumped])
    expected = {
        "accuracy": sk.accuracy_score(truth, guess),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, guess),
        "f1": sk.f1_score(truth, guess, average="macro"),
        "f1_weighted": sk.f1_score(truth, guess, average="weighted"),
        "precision_macro": sk.precision_score(truth, guess, average="macro", zero_division=0),
        "recall_macro": sk.recall_score(truth, guess, average="macro"),
        "mcc": sk.matthews_corrcoef(truth, guess),
        "auroc": sk.roc_auc_score(truth, scores / scores.sum(1, keepdims=True), multi_class="ovr"),
        "loss": sk.log_loss(truth, scores / scores.sum(1, keepdims=True), labels=names),
    }
    for name, value in expected.items():
        assert numbers[f"test/{name}"] == pytest.approx(value, abs=1e-6), name


@pytest.mark.ddp
@pytest.mark.parametrize("count", [1, 2, 5, 11])
def test_predictions_of_two_ranks_come_in_input_order(count, tiny_model_dir, tmp_path):
    model = trained(tiny_model_dir, tmp_path / "model")
    data = write(tmp_path / "rows.jsonl", [{"text": r["text"]} for r in rows_of("single", count)])
    one = predictions(model, data, tmp_path / "one.jsonl")
    two = predictions(model, data, tmp_path / "two.jsonl", ranks=2)
    assert [p["row"] for p in one] == [p["row"] for p in two] == list(range(count))
    for a, b in zip(one, two, strict=True):
        assert a["label"] == b["label"]
        assert list(a["probabilities"].values()) == pytest.approx(list(b["probabilities"].values()), abs=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir() if "part" in p.name) == []


def test_csv_and_parquet_hold_the_same_predictions(tiny_model_dir, tmp_path):
    import csv

    import pyarrow.parquet as pq

    model = trained(tiny_model_dir, tmp_path / "model")
    data = write(tmp_path / "rows.jsonl", [{"text": r["text"]} for r in rows_of("single", 7)])
    lines = predictions(model, data, tmp_path / "out.jsonl")
    for name in ("out.csv", "out.parquet"):
        module, datamodule = build(model, {"predict": str(data)})
        run_trainer(1, (PredictionWriter(tmp_path / name),)).predict(
            module, datamodule=datamodule, return_predictions=False
        )
    with (tmp_path / "out.csv").open() as file:
        cells = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [c["label"] for c in cells] == [t["label"] for t in table] == [p["label"] for p in lines]
    assert [t["probability/good"] for t in table] == pytest.approx(
        [p["probabilities"]["good"] for p in lines], abs=1e-6
    )
