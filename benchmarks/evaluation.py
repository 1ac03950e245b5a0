"""Evaluation speed on the same rows and weights: lit-tune's validation and ``Trainer.evaluate``.

    python benchmarks/evaluation.py rotten_tomatoes --data DATA --model MODEL [--rounds 3] [--rows 1600]

Batches of 64, float32 on the CPU; both give accuracy and F1 (Trainer through scikit-learn on its collected logits). The
second evaluation in a process is timed. The peers take turns, each in a process of its own; medians are printed, JSON
lines appended.
"""

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from throughput import FILES, built, first_rows, fresh_model, max_length

BATCH = 64


def lit_tune(rows: Path, model: str, length: int, scratch: Path) -> dict[str, float]:
    """``lit-tune``'s validation, through Lightning's trainer."""
    from lightning.pytorch.callbacks import LambdaCallback

    trainer, module, datamodule = built(rows, model, length, scratch, verb="validate")
    seconds: list[float] = []
    trainer.callbacks.append(
        LambdaCallback(
            on_validation_start=lambda *_: seconds.append(-time.perf_counter()),
            on_validation_end=lambda *_: seconds.append(time.perf_counter()),
        )
    )
    for _ in range(2):
        trainer.validate(module, datamodule=datamodule, verbose=False)
    return {"seconds": seconds[-1] + seconds[-2], "loss": float(trainer.callback_metrics["val/loss"])}


def hf_trainer(rows: Path, model: str, length: int, scratch: Path) -> dict[str, float]:
    """``Trainer.evaluate``."""
    from datasets import Dataset
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

    def compute(found: Any) -> dict[str, float]:
        guessed, true = found.predictions.argmax(-1), found.label_ids
        return {"accuracy": accuracy_score(true, guessed), "f1": f1_score(true, guessed)}

    tokenizer = AutoTokenizer.from_pretrained(model)
    with rows.open(encoding="utf-8", newline="") as file:
        data = Dataset.from_list([{"text": r["text"], "labels": int(r["label"])} for r in csv.DictReader(file)])
    data = data.map(lambda r: tokenizer(r["text"], truncation=True, max_length=length), remove_columns=["text"])
    options: dict[str, Any] = {"report_to": "none", "use_cpu": True, "disable_tqdm": True}
    arguments = TrainingArguments(str(scratch / "hf"), per_device_eval_batch_size=BATCH, **options)
    trainer = Trainer(fresh_model(model), arguments, DataCollatorWithPadding(tokenizer), compute_metrics=compute)
    for _ in range(2):
        began = time.perf_counter()
        metrics = trainer.evaluate(data)
    return {"seconds": time.perf_counter() - began, "loss": metrics["eval_loss"]}


PEERS: dict[str, Callable[..., dict[str, float]]] = {"lit_tune": lit_tune, "hf_trainer": hf_trainer}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=FILES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--output", type=Path, default=Path("evaluation.jsonl"))
    parser.add_argument("--only", choices=PEERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = FILES[options.name]
    if options.only:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            rows = first_rows(options.data / settings["file"], options.rows, scratch / "rows.csv")
            # the same head on both sides
            torch.manual_seed(0)
            whole = scratch / "model"
            fresh_model(options.model).save_pretrained(whole)
            for file in Path(options.model).iterdir():
                if file.is_file() and not (whole / file.name).exists():
                    shutil.copy(file, whole)  # the tokenizer's
            length = max_length(options.name, options.model)
            print(json.dumps(PEERS[options.only](rows, str(whole), length, scratch)))
        return
    found: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
    for number in range(options.rounds):
        for peer in list(PEERS)[:: 1 - 2 * (number % 2)]:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", peer]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise SystemExit(f"{peer}: {ran.stderr[-2000:]}")
            found[peer].append(json.loads(ran.stdout.splitlines()[-1]))
            with options.output.open("a") as file:
                line = {"data": options.name, "peer": peer, "rows": options.rows, **found[peer][-1]}
                file.write(json.dumps(line) + "\n")
    ours = statistics.median(run["seconds"] for run in found["lit_tune"])
    print(f"\n{options.name}, {options.rows} rows in batches of {BATCH}, {torch.get_num_threads()} threads")
    print(f"  {'':<12}{'seconds':>9}{'rows/s':>9}{'it / lit_tune':>15}{'loss':>10}")
    for peer, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        rate, loss = options.rows / seconds, runs[0]["loss"]
        print(f"  {peer:<12}{seconds:>9.1f}{rate:>9.1f}{seconds / ours:>15.2f}{loss:>10.4f}")


if __name__ == "__main__":
    main()
