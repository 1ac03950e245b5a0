"""Quality on real text: lit-tune and HF Trainer with the same data, model and hyper-parameters, over seeds.

    python benchmarks/quality.py rotten_tomatoes --data DATA --model MODEL --seeds 1 2 3 --peers lit_tune hf_trainer

DATA is a folder with train, val and test files. Each run trains, takes the weights of the best validation and measures
them on the test split. Prints a table and appends JSON lines to --output.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

SETTINGS: dict[str, dict[str, Any]] = {
    "rotten_tomatoes": {"task": {}, "lr": 5e-5, "epochs": 1, "suffix": "csv"},
    "banking77": {"task": {}, "lr": 3e-4, "epochs": 2, "suffix": "csv"},
    "goemotions": {
        "task": {"label_column": "labels", "threshold": 0.3},
        "lr": 1e-4,
        "head_lr": 1e-3,
        "epochs": 2,
        "suffix": "jsonl",
        "limit": 8000,
    },
    "sick": {"task": {"text_columns": ["sentence1", "sentence2"]}, "lr": 2e-4, "epochs": 2, "suffix": "csv"},
    "sick_regression": {
        "task": {"text_columns": ["sentence1", "sentence2"], "label_column": "score", "problem_type": "regression"},
        "lr": 2e-4,
        "epochs": 2,
        "suffix": "csv",
        "folder": "sick",
    },
}


def config_of(name: str, data: Path, model: str, seed: int, run_dir: Path) -> dict[str, Any]:
    """The lit-tune config of a data set."""
    settings = SETTINGS[name]
    folder = data / settings.get("folder", name)
    files = {s: str(folder / f"{s}.{settings['suffix']}") for s in ("train", "val", "test")}
    files = {s: f for s, f in files.items() if Path(f).exists()}
    return {
        "run_dir": str(run_dir),
        "seed_everything": seed,
        "task": {"class_path": "SequenceClassification", "init_args": settings["task"]},
        "model": {"model_name_or_path": model},
        "data": {**files, "max_length": 128, "limit_train": settings.get("limit")},
        "optimizer": {"lr": settings["lr"], "head_lr": settings.get("head_lr")},
        "trainer": {"max_epochs": settings["epochs"], "accelerator": "cpu", "log_every_n_steps": 100},
    }


def run_lit_tune(name: str, data: Path, model: str, seed: int, scratch: Path) -> dict[str, Any]:
    """One run through the Python interface; returns test metrics, seconds of training and the verdict."""
    import lit_tune

    config = config_of(name, data, model, seed, scratch / f"{name}_{seed}")
    trainer, module, datamodule = lit_tune.build(config)
    started = time.perf_counter()
    trainer.fit(module, datamodule=datamodule)
    seconds = time.perf_counter() - started
    manifest = json.loads((scratch / f"{name}_{seed}" / "manifest.json").read_text())
    trainer.test(module, datamodule=datamodule, verbose=False)  # the module holds the best weights
    metrics = {k.removeprefix("test/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
    return {"metrics": metrics, "seconds": seconds, "verdict": manifest["verdict"]["message"]}


def run_hf_trainer(name: str, data: Path, model: str, seed: int, scratch: Path) -> dict[str, Any]:
    """The same with HF Trainer, single-label: its own head, loss, sampler, dynamic padding; best epoch by accuracy."""
    import numpy as np
    from datasets import load_dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    settings = SETTINGS[name]
    folder = data / settings.get("folder", name)
    files = {s: str(folder / f"{s}.{settings['suffix']}") for s in ("train", "val", "test")}
    raw = load_dataset("csv", data_files=files, keep_default_na=False, cache_dir=str(scratch / "cache"))
    names = sorted(set(raw["train"]["label"]))
    tokenizer = AutoTokenizer.from_pretrained(model)
    columns = settings["task"].get("text_columns", ["text"])

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        tokens = tokenizer(*(rows[c] for c in columns), truncation=True, max_length=128)
        return {**tokens, "labels": [names.index(label) for label in rows["label"]]}

    encoded = raw.map(encode, batched=True, remove_columns=raw["train"].column_names)
    set_seed(seed)
    arguments = TrainingArguments(
        output_dir=str(scratch / f"hf_{name}_{seed}"),
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        learning_rate=settings["lr"],
        weight_decay=0.01,
        warmup_steps=0.1,
        lr_scheduler_type="linear",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        seed=seed,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(names)),
        args=arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["val"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((np.argmax(p.predictions, -1) == p.label_ids).mean())},
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    result = trainer.evaluate(encoded["test"])
    return {"metrics": {"accuracy": result["eval_accuracy"], "loss": result["eval_loss"]}, "seconds": seconds}


PEERS = {"lit_tune": run_lit_tune, "hf_trainer": run_hf_trainer}
HEADLINE = {"goemotions": ("f1_micro", "f1_macro"), "sick_regression": ("pearson", "spearman", "mse")}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETTINGS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--output", type=Path, default=Path("quality.jsonl"))
    options = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {peer: [] for peer in options.peers}
    for seed in options.seeds:
        for peer in options.peers:  # alternating: both meet the same state of the machine
            with tempfile.TemporaryDirectory() as scratch:
                result = PEERS[peer](options.name, options.data, options.model, seed, Path(scratch))
            results[peer].append(result)
            line = {"data": options.name, "peer": peer, "seed": seed, **result}
            with options.output.open("a") as file:
                file.write(json.dumps(line) + "\n")
    print(f"\n{options.name}")
    for peer, runs in results.items():
        for metric in HEADLINE.get(options.name, ("accuracy", "f1_macro")):
            values = [r["metrics"][metric] for r in runs if metric in r["metrics"]]
            if values:
                spread = f" sd {statistics.stdev(values):.4f}" if len(values) > 1 else ""
                print(f"  {peer:<12}{metric:<12}{statistics.mean(values):.4f}{spread}  {[round(v, 4) for v in values]}")
        print(f"  {peer:<12}seconds     {statistics.median(r['seconds'] for r in runs):.0f} (median)")


if __name__ == "__main__":
    main()
