"""Is a resumed run the run that was not interrupted? lit-tune, HF Trainer and plain Lightning, bit by bit.

    python benchmarks/resume_peers.py [--markdown] [--json FILE] [--quick]

The same tiny random BERT with dropout 0.3, the same 24 rows in batches of 2, shuffled, 2 epochs of 12 steps. Each
trainer runs once to the end and keeps the checkpoint of every step; then it goes on from some of them in a fresh
folder, each as its documentation says: ``resume``, ``resume_from_checkpoint``, ``ckpt_path``. Compared are the final
weights, and the rows of the epoch that was interrupted: how often each was trained on, before and after together.
What a kill inside a save leaves is in checkpoint_faults.py. A minute.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import transformers
from exactness import aligned, quiet
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from problems import PROBLEMS
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, BertForSequenceClassification, Trainer, TrainingArguments

import lit_tune
from lit_tune.cli import parse
from lit_tune.preflight.start import checkpoint_path, plan_start

SEED, ROWS, BATCH, EPOCHS, LR = 42, 24, 2, 2, 1e-2
STEPS = ROWS // BATCH
Outcome = tuple[dict[str, torch.Tensor], list[list[int]]]
"""Final weights, and the rows of each step."""


class Work:
    """The problem, and where it is worked on."""

    def __init__(self, scratch: Path) -> None:
        self.problem, self.scratch = PROBLEMS[0], scratch
        self.folder = self.problem.save_model(scratch / "model")
        self.settings = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
        rows = self.problem.rows(ROWS)
        self.file = scratch / "train.jsonl"
        self.file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tokens = AutoTokenizer.from_pretrained(self.folder)(
            [r["text"] for r in rows], padding=True, return_tensors="pt"
        )
        batch = {**tokens, "labels": self.problem.targets(rows)}
        self.examples = [{"row": i, **{k: v[i] for k, v in batch.items()}} for i in range(ROWS)]

    def model(self) -> BertForSequenceClassification:
        """The same weights each time."""
        torch.manual_seed(SEED)
        return BertForSequenceClassification.from_pretrained(self.folder, **self.settings).float()


class SeenByLightning(Callback):
    """Rows of each step."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.steps: list[list[int]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append([int(row) for row in batch[self.key]])


def with_lit_tune(work: Work, folder: Path, source: Path | None) -> Outcome:
    seen = SeenByLightning("example_ids")
    values = {
        "model.model_name_or_path": work.folder,
        "model.config_overrides": json.dumps(work.settings),
        "data.train": work.file,
        "data.val_fraction": 0,
        "data.train_batch_size": BATCH,
        "data.cache_dir": work.scratch / "cache",
        "run_dir": folder,
        "resume": "auto" if source is None else source / "checkpoints" / f"last-{int(folder.name):07d}.ckpt",
        "optimizer.lr": LR,
        "logger": "none",
        "checkpoint.every_n_steps": 1,
        "checkpoint.keep_last": -1,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": EPOCHS,
        "trainer.enable_progress_bar": "false",
    }
    cli = parse([text for key, value in values.items() for text in (f"--{key}", str(value))], "fit")
    start = plan_start(cli.run_dir, cli.to_yaml(), cli.config.resume)
    trainer, module, datamodule = cli.build(start)
    trainer.callbacks.insert(0, seen)
    trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint_path(start), weights_only=True)
    return module.model.state_dict(), seen.steps


def with_hf_trainer(work: Work, folder: Path, source: Path | None) -> Outcome:
    steps: list[list[int]] = []

    class Seen(Trainer):
        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
            steps.append([int(row) for row in inputs.pop("row")])
            return super().compute_loss(model, inputs, *args, **options)

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        num_train_epochs=EPOCHS,
        learning_rate=LR,
        save_strategy="steps",
        save_steps=1,
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=SEED,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Seen(work.model(), arguments, train_dataset=work.examples)
    trainer.train(resume_from_checkpoint=source and str(source / f"checkpoint-{folder.name}"))
    return trainer.model.state_dict(), steps


class PlainModule(L.LightningModule):
    """What a user writes first."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model.train()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.model(**{k: v for k, v in batch.items() if k != "row"}).loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=LR)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS * EPOCHS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def with_lightning(work: Work, folder: Path, source: Path | None) -> Outcome:
    L.seed_everything(SEED, verbose=False)
    seen = SeenByLightning("row")
    saves = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        callbacks=[seen, saves],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module, loader = PlainModule(work.model()), DataLoader(work.examples, BATCH, shuffle=True)  # type: ignore[arg-type]
    path = source and str(source / f"step={folder.name}.ckpt")
    trainer.fit(module, loader, ckpt_path=path, weights_only=True)
    return module.model.state_dict(), seen.steps


TRAINERS: dict[str, Callable[[Work, Path, Path | None], Outcome]] = {
    f"lit-tune {lit_tune.__version__}": with_lit_tune,
    f"HF Trainer {transformers.__version__}": with_hf_trainer,
    f"plain Lightning {L.__version__}": with_lightning,
}


def compare(work: Work, name: str, stops: list[int]) -> list[dict[str, Any]]:
    """One line per step that was gone on from."""
    number = list(TRAINERS).index(name)
    fit, full = TRAINERS[name], work.scratch / f"full{number}"
    weights, steps = fit(work, full, None)
    lines = []
    for stop in stops:
        again, then = fit(work, work.scratch / f"resumed{number}" / str(stop), full)
        differing = sum(not torch.equal(weights[k], again[k]) for k in weights)
        began = stop // STEPS * STEPS
        trained = Counter(row for step in (steps[:stop] + then)[began : began + STEPS] for row in step)
        lines.append(
            {
                "trainer": name,
                "stop": stop,
                "bit_equal": differing == 0,
                "tensors_that_differ": differing,
                "rows_repeated": sum(n - 1 for n in trained.values()),
                "rows_skipped": ROWS - len(trained),
                "same_rows_in_every_step": steps[stop:] == then,
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one step only")
    args = parser.parse_args()
    quiet()
    stops = [5] if args.quick else [5, 11, 12, 17]
    with tempfile.TemporaryDirectory() as scratch:
        work = Work(Path(scratch))
        lines = [line for name in TRAINERS for line in compare(work, name, stops)]
    header = ["trainer", "resumed at step", "weights", "rows repeated", "rows skipped"]
    cells = [
        [
            x["trainer"],
            f"{x['stop']} of {STEPS * EPOCHS}",
            "bit-equal" if x["bit_equal"] else f"{x['tensors_that_differ']} tensors differ",
            str(x["rows_repeated"]),
            str(x["rows_skipped"]),
        ]
        for x in lines
    ]
    print(aligned([header, *cells], args.markdown))
    if args.json:
        args.json.write_text(json.dumps({"lines": lines}, indent=2) + "\n")


if __name__ == "__main__":
    main()
