"""Training a head on a frozen backbone: lit-tune, which computes the backbone's features once, beside HF Trainer.

    python benchmarks/frozen.py --model MODEL --data train.csv [--rows 2048] [--epochs 4] [--repeats 3]
        [--json frozen.json] [--quick]

Both train the same parameters on the same rows, with the same batch size, learning rate, schedule, clipping and
optimizer, in turn; nothing is evaluated or saved. Shown are medians of examples per second: of the first epoch, which
in lit-tune has the one pass over all rows in it, and of those after it, also by processor time, which other work on the
machine changes less. HF Trainer's backbone runs in training mode, with dropout, as Trainer has it; lit-tune's in eval
mode. The csv file has the columns text and label. ``--quick`` makes model and rows by itself, which tells nothing about
speed. Twenty minutes for MiniLM on one core.
"""

import argparse
import csv
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from problems import Problem
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import lit_tune

BATCH, LR, WARMUP = 16, 1e-3, 0.1
TINY = Problem("tiny", "single_label_classification")


def now() -> np.ndarray:
    """Seconds of the clock, and of processor time."""
    return np.array([time.perf_counter(), time.process_time()])


class OurClock(Callback):
    """Seconds of each epoch; the first begins with the pass over all rows."""

    def __init__(self) -> None:
        self.seconds: list[np.ndarray] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.begun = now()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds.append(now() - self.begun)
        self.begun = now()


class TheirClock(TrainerCallback):
    """The same."""

    def __init__(self) -> None:
        self.seconds: list[np.ndarray] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = now()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(now() - self.begun)


def ours(model: str, data: Path, epochs: int, scratch: Path) -> list[np.ndarray]:
    """Seconds of each epoch of lit-tune; its caches are empty."""
    clock = OurClock()
    made = lit_tune.build(
        {
            "run_dir": str(scratch / "run"),
            "logger": "none",
            "model": {"model_name_or_path": model, "freeze": "backbone"},
            "data": {
                "train": str(data),
                "val_fraction": 0,
                "train_batch_size": BATCH,
                "cache_dir": str(scratch / "cache"),
            },
            "optimizer": {"lr": LR, "weight_decay": 0.0},
            "lr_schedule": {"warmup": WARMUP},
            "checkpoint": {"keep_best": 0, "keep_last": 0},
            "trainer": {"max_epochs": epochs, "accelerator": "cpu", "enable_progress_bar": False},
        }
    )
    made.trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    made.trainer.fit(made.module, datamodule=made.datamodule)
    return clock.seconds


def theirs(model: str, data: Path, epochs: int, scratch: Path) -> list[np.ndarray]:
    """Seconds of each epoch of HF Trainer."""
    clock = TheirClock()
    with data.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["label"] for row in rows})
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = [{**tokenizer(r["text"], truncation=True), "labels": names.index(r["label"])} for r in rows]
    network: nn.Module = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(names))
    network.base_model.requires_grad_(False)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        learning_rate=LR,
        warmup_steps=WARMUP,
        save_strategy="no",
        logging_steps=10,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    collate = DataCollatorWithPadding(tokenizer)
    trainer = Trainer(network, arguments, collate, train_dataset=encoded, callbacks=[clock])  # type: ignore[arg-type]
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.seconds


RUNS = {"lit-tune": ours, "HF Trainer": theirs}


def write_rows(rows: list[dict[str, Any]], target: Path) -> None:
    """Texts and labels as a csv file."""
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def measure(model: str, data: Path, rows: int, epochs: int, repeats: int) -> dict[str, Any]:
    """Examples per second of both, in turn: first epoch and later ones, one number for each repetition."""
    kinds = ("first", "later", "later_by_processor_time")
    found: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in kinds} for name in RUNS}
    for _ in range(repeats):
        for name, run in RUNS.items():
            with tempfile.TemporaryDirectory() as scratch:
                seconds = np.array(run(model, data, epochs, Path(scratch)))
            later = np.median(seconds[1:], axis=0)
            for kind, value in zip(kinds, (seconds[0, 0], *later), strict=True):
                found[name][kind].append(rows / float(value))
    medians = {name: {kind: statistics.median(v) for kind, v in of.items()} for name, of in found.items()}
    ratios = {kind: medians["lit-tune"][kind] / medians["HF Trainer"][kind] for kind in kinds}
    return {"examples_per_second": found, "medians": medians, "ratios": ratios}


def as_table(report: dict[str, Any]) -> str:
    """Medians and ratios."""
    lines = ["| | first epoch | later epochs | later epochs, of processor time |", "|---|---|---|---|"]
    for name, speed in report["medians"].items():
        lines.append(f"| {name}, examples/s | " + " | ".join(f"{value:.1f}" for value in speed.values()) + " |")
    ratios = " | ".join(f"{value:.1f}" for value in report["ratios"].values())
    return "\n".join([*lines, f"| ratio | {ratios} |"])


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lit_tune", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "train.csv"
        if options.quick:
            options.rows, options.repeats = 48, 1
            options.model = str(TINY.save_model(Path(folder) / "model"))
            write_rows(TINY.rows(options.rows), data)
        else:
            with options.data.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            write_rows(rows[:: max(1, len(rows) // options.rows)][: options.rows], data)  # files are sorted by label
        report = measure(options.model, data, options.rows, options.epochs, options.repeats)
    how = {"rows": options.rows, "epochs": options.epochs, "repeats": options.repeats, "batch": BATCH}
    report = {**how, "threads": torch.get_num_threads(), "model": Path(options.model).name, **report}
    print(as_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
