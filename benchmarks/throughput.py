"""Training speed on the same work: lit-tune, HF Trainer as it comes and at its best, and a bare loop.

    python benchmarks/throughput.py rotten_tomatoes --data DATA --model MODEL [--rounds 3] [--rows 1600]

DATA is a folder with rotten_tomatoes/train.csv and movie_reviews/train.jsonl. All train on the same rows once, in
float32 on the CPU, with the model's dropout, clipping to a norm of 1 and an update each 16 rows. The clock runs from
the tenth update to the last. The peers take turns, each in a process of its own; medians are printed, JSON lines
appended.

`bare_loop` has lit-tune's batches, made beforehand, and nothing around model, loss, clipping and update: what lit-tune
takes beyond it is the loop's own.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BATCH, WARM_UP, LR, SEED = 16, 10, 5e-5, 1
FILES = {
    "rotten_tomatoes": {"file": "rotten_tomatoes/train.csv", "max_length": 128, "rows": 1600},
    "movie_reviews": {"file": "movie_reviews/train.jsonl", "max_length": 512, "rows": 480},
}


class Clock:
    """Seconds between two updates, and what they took of the processor."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps, self.step = num_steps, 0

    def tick(self) -> None:
        """An update is done."""
        self.step += 1
        if self.step == WARM_UP:
            self.began = time.perf_counter(), time.process_time()
        elif self.step == self.num_steps:
            self.ended = time.perf_counter(), time.process_time()

    def rates(self) -> dict[str, float]:
        """Examples per second of the clock and of processor time."""
        examples = (self.num_steps - WARM_UP) * BATCH
        wall, cpu = (end - begin for begin, end in zip(self.began, self.ended, strict=True))
        return {"examples_per_second": examples / wall, "examples_per_cpu_second": examples / cpu}


def built(rows: Path, model: str, max_length: int, scratch: Path, verb: str = "fit") -> tuple[Any, Any, Any]:
    """Trainer, module and datamodule of lit-tune, to train on some rows or to measure them."""
    import lit_tune

    return lit_tune.build(
        {
            "run_dir": str(scratch / "run"),
            "seed_everything": SEED,
            "model": {"model_name_or_path": model},
            "data": {
                {"fit": "train", "validate": "val"}[verb]: str(rows),
                "val_fraction": 0,
                "max_length": max_length,
                "train_batch_size": BATCH,
                "cache_dir": str(scratch / "cache"),
                "accept": ["leakage"],
            },
            "optimizer": {"lr": LR},
            "overfit": {"probe_size": 0},
            "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        },
        verb=verb,
    )


def lit_tune(train: Path, model: str, max_length: int, num_rows: int, scratch: Path) -> dict[str, float]:
    """Through its Python interface, as `lit-tune fit` does it: logs, checkpoint, export and all."""
    from lightning.pytorch.callbacks import LambdaCallback

    trainer, module, datamodule = built(train, model, max_length, scratch)
    clock = Clock(num_rows // BATCH)
    trainer.callbacks.append(LambdaCallback(on_train_batch_end=lambda *_: clock.tick()))
    trainer.fit(module, datamodule=datamodule)
    return clock.rates()


def bare_loop(train: Path, model: str, max_length: int, num_rows: int, scratch: Path) -> dict[str, float]:
    """The same batches, with nothing around the arithmetic."""
    trainer, _, datamodule = built(train, model, max_length, scratch)
    datamodule.trainer = trainer
    datamodule.prepare("fit")
    batches = [{k: v for k, v in b.items() if isinstance(v, torch.Tensor)} for b in datamodule.train_dataloader()]
    return loop(fresh_model(model), batches)


def loop(model: Any, batches: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Train on batches that are there."""
    decayed = [p for n, p in model.named_parameters() if not n.endswith(("bias", "LayerNorm.weight"))]
    others = [p for n, p in model.named_parameters() if n.endswith(("bias", "LayerNorm.weight"))]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer, clock = torch.optim.AdamW(groups, lr=LR, fused=True), Clock(len(batches))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))
    for batch in batches:
        labels = batch.pop("labels")
        loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        clock.tick()
    return clock.rates()


def fresh_model(model: str) -> Any:
    """The model with a new head, in training mode."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(SEED)
    return AutoModelForSequenceClassification.from_pretrained(model, num_labels=2).train()


def hf_trainer(
    train: Path, model: str, max_length: int, num_rows: int, scratch: Path, **options: Any
) -> dict[str, float]:
    """HF Trainer, with its defaults but for what is the same for all."""
    from datasets import Dataset
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    clock = Clock(num_rows // BATCH)

    class Ticks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    tokenizer = AutoTokenizer.from_pretrained(model)
    with train.open(encoding="utf-8", newline="") as file:
        rows = Dataset.from_list([{"text": r["text"], "labels": int(r["label"])} for r in csv.DictReader(file)])
    rows = rows.map(lambda r: tokenizer(r["text"], truncation=True, max_length=max_length), remove_columns=["text"])
    arguments = TrainingArguments(
        output_dir=str(scratch / "hf"),
        per_device_train_batch_size=BATCH,
        learning_rate=LR,
        weight_decay=0.01,
        num_train_epochs=1,
        seed=SEED,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    collator = DataCollatorWithPadding(tokenizer)
    Trainer(fresh_model(model), arguments, collator, rows, callbacks=[Ticks()]).train()
    return clock.rates()


def hf_best(train: Path, model: str, max_length: int, num_rows: int, scratch: Path) -> dict[str, float]:
    """HF Trainer with length grouping and fused AdamW."""
    best = {"train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"}
    return hf_trainer(train, model, max_length, num_rows, scratch, **best)


PEERS: dict[str, Callable[..., dict[str, float]]] = {
    "lit_tune": lit_tune,
    "hf_trainer": hf_trainer,
    "hf_best": hf_best,
    "bare_loop": bare_loop,
}


def max_length(name: str, model: str) -> int:
    """Tokens at which a text is cut: no more than the model reads."""
    from transformers import AutoConfig

    return min(FILES[name]["max_length"], AutoConfig.from_pretrained(model).max_position_embeddings)


def first_rows(source: Path, count: int, target: Path) -> Path:
    """The rows that all train on: labels as numbers, in a random order that is always the same."""
    with source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file)) if source.suffix == ".csv" else [json.loads(line) for line in file]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count].tolist()
    names = sorted({str(row["label"]) for row in rows})
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows({"text": rows[i]["text"], "label": names.index(str(rows[i]["label"]))} for i in order)
    return target


def one(options: argparse.Namespace, peer: str) -> dict[str, float]:
    """One peer in a process of its own, so that none finds what another has left in memory."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", peer]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{peer}: {ran.stderr[-2000:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=FILES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="a multiple of 16")
    parser.add_argument("--output", type=Path, default=Path("throughput.jsonl"))
    parser.add_argument("--only", choices=PEERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = FILES[options.name]
    num_rows = options.rows or settings["rows"]
    if options.only:
        with tempfile.TemporaryDirectory() as folder:
            train = first_rows(options.data / settings["file"], num_rows, Path(folder) / "train.csv")
            length = max_length(options.name, options.model)
            rates = PEERS[options.only](train, options.model, length, num_rows, Path(folder))
        print(json.dumps(rates))
        return
    found: dict[str, list[dict[str, float]]] = {peer: [] for peer in options.peers}
    for number in range(options.rounds):
        for peer in options.peers[number % len(options.peers) :] + options.peers[: number % len(options.peers)]:
            found[peer].append(one(options, peer))
            line = {"data": options.name, "peer": peer, "round": number, "rows": num_rows, **found[peer][-1]}
            with options.output.open("a") as file:
                file.write(json.dumps(line) + "\n")
    threads, cores = torch.get_num_threads(), os.cpu_count()
    print(f"\n{options.name}, {num_rows} rows, {threads} threads of {cores} cores, torch {torch.__version__}")
    print(f"  {'':<12}{'examples/s':>12}{'per CPU s':>12}{'lit_tune / it':>16}")
    medians = {p: [statistics.median(r[k] for r in runs) for k in runs[0]] for p, runs in found.items()}
    ours = medians.get("lit_tune", [float("nan")] * 2)
    for peer, (wall, cpu) in medians.items():
        print(f"  {peer:<12}{wall:>12.1f}{cpu:>12.1f}{ours[0] / wall:>10.2f} ({ours[1] / cpu:.2f})")


if __name__ == "__main__":
    main()
