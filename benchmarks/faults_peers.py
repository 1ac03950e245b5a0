"""What lit-tune, HF Trainer and plain Lightning do when something goes wrong: each case in a process of its own.

    python benchmarks/faults_peers.py [--cases "one NaN loss" ...] [--markdown] [--json faults_peers.json]

A tiny random BERT, 48 rows, 4 epochs of 12 steps, validation and checkpoints per epoch, the best by validation loss.
Shown are the exit code of a script that only trains, what it says at its end, whether its last weights are numbers,
and whether those are that it calls the best. To add a case: an entry of CASES, and what it means in ``Injected``.
A minute and a half.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
import transformers
from exactness import aligned, quiet
from lightning.pytorch.callbacks import ModelCheckpoint
from peers import write_jsonl
from problems import Problem, tiny_tokenizer
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import BertForSequenceClassification

from lit_tune.__main__ import main as lit_tune_command

PROBLEM = Problem("single-label", "single_label_classification")
ROWS, BATCH, EPOCHS, LR = 48, 4, 4, 1e-3
STEPS = ROWS // BATCH * EPOCHS

CASES: dict[str, dict[str, Any]] = {
    "every loss is NaN": {"factor": math.nan, "steps": range(STEPS)},
    "one NaN loss": {"factor": math.nan, "steps": [17]},
    "one infinite loss": {"factor": math.inf, "steps": [17]},
    "a NaN gradient, its loss a number": {"gradient": math.nan, "steps": [17]},
    "validation loss is NaN from the second epoch on": {"factor": math.nan, "validations": range(1, EPOCHS)},
}
"""What is multiplied where: losses or their gradients, by optimizer step (from 0) or by validation (from 0)."""


MESSAGE = re.compile(r"step [\d,]+: ")
"""How lit-tune's message about a step begins."""


class Injected(torch.nn.Module):
    """Cross-entropy of each row, except where the case says otherwise; counts its calls itself.

    Args:
        case: A key of ``CASES``.
    """

    def __init__(self, case: str) -> None:
        super().__init__()
        self.what = CASES[case]
        self.trained = self.validated = 0

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = F.cross_entropy(logits, labels, reduction="none")
        if torch.is_grad_enabled():
            is_bad = self.trained in self.what.get("steps", ())
            self.trained += 1
        else:
            is_bad = self.validated // (ROWS // BATCH) in self.what.get("validations", ())
            self.validated += 1
        if is_bad and "gradient" in self.what:
            logits.register_hook(lambda g: g * self.what["gradient"])
        return losses * self.what["factor"] if is_bad and "factor" in self.what else losses


def batches() -> DataLoader:
    """Train and validation alike."""
    tokenizer, rows = tiny_tokenizer(), PROBLEM.rows(ROWS)
    tokens = tokenizer([r["text"] for r in rows], padding=True)
    items = [
        {**{k: tokens[k][i] for k in ("input_ids", "attention_mask")}, "labels": int(label)}
        for i, label in enumerate(PROBLEM.targets(rows))
    ]
    return DataLoader(items, batch_size=BATCH, collate_fn=transformers.default_data_collator)


def lit_tune(case: str, model: Path, folder: Path) -> dict[str, Any]:
    """The command line."""
    for name in ("train", "val"):
        write_jsonl(PROBLEM.rows(ROWS), folder / f"{name}.jsonl")
    loss = {"class_path": "faults_peers.Injected", "init_args": {"case": case}}
    settings = {
        "run_dir": folder / "run",
        "data.train": folder / "train.jsonl",
        "data.val": folder / "val.jsonl",
        "data.train_batch_size": BATCH,
        "data.eval_batch_size": BATCH,
        "data.cache_dir": folder / "cache",
        "data.accept": '["leakage"]',
        "model.model_name_or_path": model,
        "overfit.enabled": "false",
        "optimizer.lr": LR,
        "checkpoint.monitor": "val/loss",
        "trainer.max_epochs": EPOCHS,
        "trainer.accelerator": "cpu",
        "logger": "none",
        "task.init_args.loss": json.dumps(loss),
    }
    code = lit_tune_command(
        ["fit", "--allow-import", "faults_peers", *(str(x) for key, v in settings.items() for x in (f"--{key}", v))]
    )
    last = max((folder / "run" / "checkpoints").glob("last-*.ckpt"), default=None)
    best = max((folder / "run" / "checkpoints").glob("best-*.ckpt"), default=None)
    return {"code": code, "last": in_checkpoint(last), "best": in_checkpoint(best)}


def hf_trainer(case: str, model: Path, folder: Path) -> dict[str, Any]:
    """HF Trainer as its documentation sets it up, with the best model loaded at the end."""
    injected = Injected(case)

    class Model(BertForSequenceClassification):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> Any:
            output = super().forward(input_ids, attention_mask)
            output.loss = injected(output.logits, labels).mean()
            return output

    options = transformers.TrainingArguments(
        output_dir=str(folder / "run"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        learning_rate=LR,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        Model.from_pretrained(model), options, train_dataset=batches().dataset, eval_dataset=batches().dataset
    )
    result = trainer.train()
    best = trainer.state.best_model_checkpoint
    newest = max((folder / "run").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    return {
        "says": f"train_loss {result.training_loss:.4g}",
        "last": load_file(newest / "model.safetensors"),
        "best": None if best is None else load_file(Path(best) / "model.safetensors"),
    }


def plain_lightning(case: str, model: Path, folder: Path) -> dict[str, Any]:
    """A module as Lightning's documentation writes it, with a ModelCheckpoint."""
    injected = Injected(case)

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = BertForSequenceClassification.from_pretrained(model)

        def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            labels = batch.pop("labels")
            return injected(self.model(**batch).logits, labels).mean()

        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            loss = self.loss(batch)
            self.log("train_loss", loss, on_epoch=True)
            return loss

        def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=LR)

    keep = ModelCheckpoint(folder, monitor="val_loss", save_top_k=1)
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        callbacks=[keep],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    module = Module()
    trainer.fit(module, batches(), batches())
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    best = Path(keep.best_model_path) if keep.best_model_path else None
    says = f"train_loss {found['train_loss_epoch']:.4g}, val_loss {found['val_loss']:.4g}"
    return {"says": says, "last": module.state_dict(), "best": in_checkpoint(best)}


PEERS = {"lit-tune": lit_tune, f"HF Trainer {transformers.__version__}": hf_trainer, "plain Lightning": plain_lightning}


def in_checkpoint(path: Path | None) -> dict[str, torch.Tensor] | None:
    """Weights in a Lightning checkpoint."""
    return None if path is None else torch.load(path, weights_only=True)["state_dict"]


def judged(weights: dict[str, torch.Tensor] | None) -> str:
    """Whether all are numbers."""
    if weights is None:
        return "none"
    return "numbers" if all(bool(torch.isfinite(w).all()) for w in weights.values()) else "NaN"


def worker(peer: str, case: str, model: Path, folder: Path) -> int:
    """One case with one peer; the result in ``result.json``, and the exit code."""
    result = PEERS[peer](case, model, folder)
    code = result.pop("code", 0)
    summary = {"says": result.get("says", ""), **{name: judged(result[name]) for name in ("last", "best")}}
    (folder / "result.json").write_text(json.dumps(summary))
    return code


def measure(cases: list[str]) -> Iterator[dict[str, Any]]:
    """Each case with each peer."""
    with tempfile.TemporaryDirectory() as scratch:
        model = PROBLEM.save_model(Path(scratch) / "model")
        for number, case in enumerate(cases):
            for peer in PEERS:
                folder = Path(scratch) / f"{number}-{peer}"
                folder.mkdir()
                told = json.dumps([peer, case, str(model), str(folder)])
                ran = subprocess.run(
                    [sys.executable, __file__, "--worker", told], capture_output=True, text=True, check=False
                )
                result = folder / "result.json"
                lines = [line for line in ran.stderr.splitlines() if line.strip()]
                found = json.loads(result.read_text()) if result.is_file() else {"last": "none", "best": "none"}
                says = found.get("says") or next((x for x in lines if MESSAGE.match(x)), " ".join(lines[-1:]))
                yield {"case": case, "peer": peer, "exit": ran.returncode, **found, "says": says}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    if options.worker:
        peer, case, model, folder = options.worker
        return worker(peer, case, Path(model), Path(folder))
    results = list(measure(options.cases))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    header = ["case", "trainer", "exit", "last weights", "called the best", "says"]
    keys = ("case", "peer", "exit", "last", "best", "says")
    print(aligned([header, *([str(r[k])[:90] for k in keys] for r in results)], options.markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
