"""Quality on real text: lit-tune and HF Trainer with the same data, model and hyper-parameters, over seeds.

    python benchmarks/quality.py rotten_tomatoes --data DATA --model MODEL --seeds 1 2 3 --peers lit_tune hf_trainer

DATA is a folder with train, val and test files. Each run trains, takes the weights of the best validation and measures
them on the test split. Prints a table and appends JSON lines to --output.
"""

import argparse
import importlib
import json
import math
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from scipy import stats

SETTINGS: dict[str, dict[str, Any]] = {
    "rotten_tomatoes": {"task": {}, "lr": 5e-5, "epochs": 1, "suffix": "csv"},
    "banking77": {"task": {}, "lr": 3e-4, "epochs": 2, "suffix": "csv"},
    "goemotions": {
        "task": {"label_column": "labels", "threshold": 0.3},
        # An encoder rate of 3e-4 keeps the loss at that of the label rates (0.15 after 240 steps of 16; after 320 of 8
        # with this head_lr too), and 1e-4 with head_lr 1e-3 is slow (test f1_micro 0.388 after 1,000 steps of 16). With
        # these two the train loss is 0.130 after 320 steps of 8: biases fall fast to the log odds of rare labels.
        "lr": 1e-4,
        "head_lr": 1e-2,
        "batch": 8,
        "epochs": 1,
        "suffix": "jsonl",
        "limits": {"train": 8000, "val": 500, "test": 2000},
    },
    "sick": {"task": {"text_columns": ["sentence1", "sentence2"]}, "lr": 2e-4, "epochs": 2, "suffix": "csv"},
    "sick_regression": {
        "task": {"text_columns": ["sentence1", "sentence2"], "label_column": "score", "problem_type": "regression"},
        "lr": 2e-4,
        "epochs": 2,
        "suffix": "csv",
        "folder": "sick",
    },
    "sick_similarity": {
        "class_path": "SentenceEmbedding",
        "task": {"loss": "cosine"},
        "score_range": (1.0, 5.0),
        "lr": 5e-5,
        "epochs": 1,
        "suffix": "csv",
        "folder": "sick",
        "limits": {"train": 1600, "val": 300, "test": 2000},
    },
    "wnut17": {
        "class_path": "TokenClassification",
        "task": {},
        "lr": 3e-4,
        "batch": 8,
        "epochs": 2,
        "suffix": "jsonl",
        "limits": {"train": 1200, "val": 300, "test": 800},
    },
    "codah": {"class_path": "MultipleChoice", "task": {}, "lr": 2e-4, "epochs": 3, "suffix": "jsonl"},
    "xquad_en": {
        "class_path": "QuestionAnswering",
        "task": {},
        "lr": 3e-4,
        "batch": 8,
        "epochs": 2,
        "suffix": "jsonl",
        "max_length": 192,
        "limits": {"train": 400, "val": 60},
    },
    "wikitext2": {
        "class_path": "MaskedLM",
        "task": {},
        "lr": 5e-4,
        "epochs": 1,
        "max_length": 64,
        "files": {
            "train": "text/wikitext2_train.txt",
            "val": "text/wikitext2_test.txt",
            "test": "text/wikitext2_test.txt",
        },
        "lines": {"train": (0, 1200), "val": (0, 300), "test": (300, 900)},
    },
    "e2e_nlg": {
        "class_path": "Seq2Seq",
        "task": {"group_sources": True, "max_target_length": 80, "generation": {"num_beams": 4}},
        "lr": 2e-3,
        "batch": 16,
        "epochs": 4,
        "suffix": "jsonl",
        "max_length": 128,
        "val_sources": 60,
    },
}


def files_of(name: str, data: Path, scratch: Path) -> dict[str, str]:
    """The files of a data set; splits that its settings limit are cut once, so that both peers see the same rows."""
    settings = SETTINGS[name]
    folder = data / settings.get("folder", name)
    if "files" in settings:
        files = {s: data / path for s, path in settings["files"].items()}
    else:
        files = {s: folder / f"{s}.{settings['suffix']}" for s in ("train", "val", "test")}
    for split, (start, stop) in settings.get("lines", {}).items():
        lines = files[split].read_text(encoding="utf-8").split("\n")[start:stop]
        files[split] = scratch / f"{split}{files[split].suffix}"
        files[split].write_text("\n".join(lines), encoding="utf-8")
    for split, limit in settings.get("limits", {}).items():
        with files[split].open(encoding="utf-8") as file:
            lines = file.readlines()  # a row is a line
        header = lines[:1] if settings["suffix"] == "csv" else []
        files[split] = scratch / files[split].name
        kept = random.Random(0).sample(lines[len(header) :], limit)
        files[split].write_text("".join([*header, *kept]), encoding="utf-8")
    if "val_sources" in settings:
        files |= held_out(files["train"], settings["val_sources"], scratch)
    return {s: str(f) for s, f in files.items() if f.exists()}


def held_out(train: Path, num_sources: int, scratch: Path) -> dict[str, Path]:
    """Train without the rows of some sources, which are val."""
    lines = train.read_text(encoding="utf-8").splitlines(keepends=True)
    source_of = [json.loads(line)["source"] for line in lines]
    chosen = set(random.Random(0).sample(sorted(set(source_of)), num_sources))
    parts = {"train": scratch / "train.jsonl", "val": scratch / "val.jsonl"}
    for name, path in parts.items():
        rows = zip(lines, source_of, strict=True)
        path.write_text("".join(line for line, s in rows if (s in chosen) == (name == "val")), encoding="utf-8")
    return parts


def run_lit_tune(
    settings: dict[str, Any], files: dict[str, str], model: str, seed: int, scratch: Path
) -> dict[str, Any]:
    """One run through the Python interface; returns test metrics, seconds of training and the verdict."""
    import lit_tune

    config = {
        "run_dir": str(scratch / "run"),
        "seed_everything": seed,
        "task": {"class_path": settings.get("class_path", "SequenceClassification"), "init_args": settings["task"]},
        "model": {"model_name_or_path": model},
        "data": {
            **files,
            "max_length": settings.get("max_length", 128),
            "train_batch_size": settings.get("batch", 16),
            **settings.get("data", {}),
        },
        "optimizer": {"lr": settings["lr"], "head_lr": settings.get("head_lr")},
        "trainer": {"max_epochs": settings["epochs"], "accelerator": "cpu", "log_every_n_steps": 100},
    }
    trainer, module, datamodule = lit_tune.build(config)
    started = time.perf_counter()
    trainer.fit(module, datamodule=datamodule)
    seconds = time.perf_counter() - started
    manifest = json.loads((scratch / "run" / "manifest.json").read_text())
    trainer.test(module, datamodule=datamodule, verbose=False)  # the module holds the best weights
    metrics = {k.removeprefix("test/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
    return {"metrics": metrics, "seconds": seconds, "verdict": manifest["verdict"]["message"]}


def run_random_order(
    settings: dict[str, Any], files: dict[str, str], model: str, seed: int, scratch: Path
) -> dict[str, Any]:
    """The same without ``data.group_by_length``: what does sorting by length cost?"""
    return run_lit_tune({**settings, "data": {"group_by_length": False}}, files, model, seed, scratch)


def run_hf_trainer(
    settings: dict[str, Any], files: dict[str, str], model: str, seed: int, scratch: Path
) -> dict[str, Any]:
    """The same with HF Trainer."""
    peer = HF_SIDES.get(settings.get("class_path", ""), "quality_hf_trainer")
    return importlib.import_module(peer).run(settings, files, model, seed, scratch)


HF_SIDES = {
    "TokenClassification": "quality_hf_tagger",
    "MultipleChoice": "quality_hf_choices",
    "QuestionAnswering": "quality_hf_answers",
    "MaskedLM": "quality_hf_masked",
    "SentenceEmbedding": "quality_sentence_transformers",
    "Seq2Seq": "quality_hf_writer",
}
"""Task -> the script that does the same with HF Trainer, or with the trainer that sentence-transformers made of it."""


def run_untrained(
    settings: dict[str, Any], files: dict[str, str], model: str, seed: int, scratch: Path
) -> dict[str, Any]:
    """The model as it is, where it can do something without training: embeddings."""
    peer = importlib.import_module(HF_SIDES[settings["class_path"]])
    return peer.run_untrained(settings, files, model, seed, scratch)


PEERS = {
    "lit_tune": run_lit_tune,
    "hf_trainer": run_hf_trainer,
    "untrained": run_untrained,
    "random_order": run_random_order,
}
HEADLINE = {
    "wnut17": ("f1", "precision", "recall"),
    "codah": ("accuracy", "loss"),
    "xquad_en": ("f1", "exact_match"),
    "wikitext2": ("loss", "perplexity"),
    "e2e_nlg": ("bleu", "rougeL", "chrf"),  # HF's loss is a mean of batch means: 5.283 for 5.345
    "goemotions": ("f1_micro", "f1_macro"),
    "sick_similarity": ("spearman", "pearson"),
    "sick_regression": ("pearson", "spearman", "mse"),
}


def new_model(name: str, files: dict[str, str], scratch: Path) -> str:
    """A model of random weights, always the same."""
    if SETTINGS[name].get("class_path") != "Seq2Seq":
        raise SystemExit(f"{name} wants a --model")
    return str(importlib.import_module("new_writer").save_new_writer(files["train"], scratch / "new"))


def difference(first: list[float], second: list[float]) -> str:
    """Mean of the differences seed by seed, with its 95 % interval by Student's t."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{statistics.mean(differences):+.4f} ± {half:.4f}"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETTINGS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", help="a folder or Hub id; for e2e_nlg default: a small one of random weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["lit_tune", "hf_trainer"])
    parser.add_argument("--output", type=Path, default=Path("quality.jsonl"))
    options = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {peer: [] for peer in options.peers}
    for seed in options.seeds:
        for peer in options.peers:  # alternating: both meet the same state of the machine
            with tempfile.TemporaryDirectory() as scratch:
                files = files_of(options.name, options.data, Path(scratch))
                model = options.model or new_model(options.name, files, Path(scratch))
                result = PEERS[peer](SETTINGS[options.name], files, model, seed, Path(scratch))
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
    if len(results) == 2 and len(options.seeds) > 1:
        first, second = results.values()
        for metric in HEADLINE.get(options.name, ("accuracy", "f1_macro")):
            of_both = [[r["metrics"].get(metric, math.nan) for r in runs] for runs in (first, second)]
            print(f"  {' - '.join(results)}  {metric:<12}{difference(*of_both)}")


if __name__ == "__main__":
    main()
