"""lit-tune, HF Trainer and plain Lightning on a small problem, with the gradients their optimizers used."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
import transformers
from problems import Problem, Rows, tiny_tokenizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader
from transformers import BertForSequenceClassification

import lit_tune
from lit_tune.data.orders import Permutation

SEED, LR, WINDOW = 42, 1e-30, 16
"""The learning rate leaves float64 weights as they are; WINDOW is the rows of an optimizer step."""


class Step(NamedTuple):
    """What an optimizer step used and what was logged for it."""

    gradient: torch.Tensor
    loss: float


class Cut(NamedTuple):
    """One way to cut the rows: batch per rank, accumulation, ranks, rows of the epoch."""

    batch: int
    accumulate: int
    ranks: int = 1
    rows: int = WINDOW


class Peer:
    """A trainer on a problem: ``fit`` gives the last optimizer step of one epoch, ``evaluate`` the validation loss.

    Args:
        problem: The problem.
        model: Folder with model and tokenizer.
        scratch: Empty folder for what a run writes; the same on all ranks.
    """

    def __init__(self, problem: Problem, model: Path, scratch: Path) -> None:
        self.problem, self.folder, self.scratch = problem, model, scratch
        self.tokenizer = tiny_tokenizer()

    def fit(self, rows: Rows, cut: Cut) -> Step:
        """Train one epoch over ``rows``, which are in the order of training."""
        raise NotImplementedError

    def evaluate(self, rows: Rows, cut: Cut) -> float:
        """Validation loss."""
        raise NotImplementedError

    def model(self) -> BertForSequenceClassification:
        """The model, in float64."""
        return BertForSequenceClassification.from_pretrained(self.folder).double()

    def collate(self, rows: Rows) -> dict[str, torch.Tensor]:
        """Pads to the longest text."""
        tokens = self.tokenizer([r["text"] for r in rows], padding=True, return_tensors="pt")
        return {**tokens, "labels": self.problem.targets(rows)}

    @contextmanager
    def recorded(self, model: Callable[[], Any]) -> Iterator[list[torch.Tensor]]:
        """Gradients that optimizers have used, whoever called them."""
        steps: list[torch.Tensor] = []

        def after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
            steps.append(flat_gradient(model()))

        handle = register_optimizer_step_post_hook(after_step)
        try:
            yield steps
        finally:
            handle.remove()


def write_jsonl(rows: Rows, path: Path) -> None:
    """Rows as a file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def flat_gradient(model: torch.nn.Module) -> torch.Tensor:
    """All gradients in the order of the model's parameters."""
    return torch.cat([p.grad.detach().double().flatten() for p in model.parameters() if p.grad is not None])


class Truth(Peer):
    """Plain torch, one batch."""

    def fit(self, rows: Rows, cut: Cut) -> Step:
        batch = self.collate(rows[(len(rows) - 1) // WINDOW * WINDOW :])
        model, targets = self.model(), batch.pop("labels")
        loss = self.problem.mean_loss(model(**batch).logits, targets)
        loss.backward()
        return Step(flat_gradient(model), loss.item())

    def evaluate(self, rows: Rows, cut: Cut) -> float:
        batch = self.collate(rows)
        targets = batch.pop("labels")
        return self.problem.mean_loss(self.model()(**batch).logits, targets).item()


class LitTune(Peer):
    """Through the Python interface, from a file of raw text; losses as written to metrics.jsonl."""

    def config(self, data: Path, cut: Cut, verb: str) -> dict[str, Any]:
        """What a user would write in YAML."""
        weights = self.problem.class_weights
        return {
            "run_dir": str(self.scratch / "run"),
            "seed_everything": SEED,
            "logger": "none",
            "task": {
                "class_path": "SequenceClassification",
                "init_args": {} if weights is None else {"class_weights": list(weights)},
            },
            "model": {"model_name_or_path": str(self.folder)},
            "data": {
                {"fit": "train", "validate": "val"}.get(verb, verb): str(data),
                "val_fraction": 0,
                "train_batch_size": cut.batch,
                "eval_batch_size": cut.batch,
                "group_by_length": False,  # the peers have no say in the order
                "cache_dir": str(self.scratch / "cache"),
            },
            "optimizer": {"lr": LR, "weight_decay": 0.0},
            "checkpoint": {"keep_best": 0, "keep_last": 0},
            "trainer": {
                "max_epochs": 1,
                "accumulate_grad_batches": cut.accumulate,
                "gradient_clip_val": 0,
                "precision": "64-true",
                "log_every_n_steps": 1,
                "accelerator": "cpu",
                "devices": cut.ranks,
                "strategy": "ddp" if cut.ranks > 1 else "auto",
                "enable_progress_bar": False,
            },
        }

    def build(self, rows: Rows, cut: Cut, verb: str) -> Any:
        """Trainer, module and datamodule."""
        data = self.scratch / f"rows{torch.distributed.get_rank() if cut.ranks > 1 else 0}.jsonl"
        write_jsonl(rows, data)
        return lit_tune.build(self.config(data, cut, verb), verb=verb)

    def fit(self, rows: Rows, cut: Cut) -> Step:
        places = {place: i for i, place in enumerate(Permutation(len(rows), SEED, 0)(np.arange(len(rows))).tolist())}
        trainer, module, datamodule = self.build([rows[places[i]] for i in range(len(rows))], cut, "fit")
        with self.recorded(lambda: module.model) as steps:
            trainer.fit(module, datamodule=datamodule)
        lines = [json.loads(line) for line in (self.scratch / "run" / "metrics.jsonl").read_text().splitlines()]
        return Step(steps[-1], [line["train/loss"] for line in lines if "train/loss" in line][-1])

    def evaluate(self, rows: Rows, cut: Cut) -> float:
        trainer, module, datamodule = self.build(rows, cut, "validate")
        trainer.validate(module, datamodule=datamodule, verbose=False)
        return float(trainer.callback_metrics["val/loss"])


class HFTrainer(Peer):
    """Defaults; its model's own loss, or for class weights the usual ``compute_loss`` of a subclass."""

    losses_are_means = False
    """Tell Trainer what it cannot see: that the loss of a micro-batch is a mean over it."""

    def build(self, rows: Rows, cut: Cut) -> transformers.Trainer:
        problem = self.problem

        class WeightedTrainer(transformers.Trainer):
            def compute_loss(  # type: ignore[override]  # as users write it
                self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
            ) -> Any:
                targets = inputs.pop("labels")
                outputs = model(**inputs)
                loss = problem.mean_loss(outputs.logits, targets)
                return (loss, outputs) if return_outputs else loss

        arguments = transformers.TrainingArguments(
            output_dir=str(self.scratch),
            num_train_epochs=1,
            per_device_train_batch_size=cut.batch,
            per_device_eval_batch_size=cut.batch,
            gradient_accumulation_steps=cut.accumulate,
            average_tokens_across_devices=not self.losses_are_means,
            train_sampling_strategy="sequential",
            learning_rate=LR,
            max_grad_norm=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=True,
        )
        kind = transformers.Trainer if problem.class_weights is None else WeightedTrainer
        trainer = kind(self.model(), arguments, self.collate, train_dataset=rows, eval_dataset=rows)
        if self.losses_are_means:
            trainer.loss_is_scaled_for_ga = False
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer

    def fit(self, rows: Rows, cut: Cut) -> Step:
        trainer = self.build(rows, cut)
        with self.recorded(lambda: trainer.model) as steps:
            trainer.train()
        return Step(steps[-1], [line["loss"] for line in trainer.state.log_history if "loss" in line][-1])

    def evaluate(self, rows: Rows, cut: Cut) -> float:
        return self.build(rows, cut).evaluate()["eval_loss"]


class HFTrainerToldSo(HFTrainer):
    """``loss_is_scaled_for_ga = False`` and ``average_tokens_across_devices=False``: what an expert sets."""

    losses_are_means = True


class PlainModule(L.LightningModule):
    """The LightningModule that everyone writes first."""

    def __init__(self, model: torch.nn.Module, problem: Problem) -> None:
        super().__init__()
        self.model, self.problem = model, problem

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean over the batch."""
        logits = self.model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        return self.problem.mean_loss(logits, batch["labels"])

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=LR)


class PlainLightning(Peer):
    """Trainer defaults and ``accumulate_grad_batches``."""

    def trainer(self, cut: Cut) -> L.Trainer:
        return L.Trainer(
            max_epochs=1,
            accumulate_grad_batches=cut.accumulate,
            precision="64-true",
            accelerator="cpu",
            devices=cut.ranks,
            strategy="ddp" if cut.ranks > 1 else "auto",
            log_every_n_steps=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def fit(self, rows: Rows, cut: Cut) -> Step:
        module, trainer = PlainModule(self.model(), self.problem), self.trainer(cut)
        with self.recorded(lambda: module.model) as steps:
            trainer.fit(module, DataLoader(rows, batch_size=cut.batch, collate_fn=self.collate))  # type: ignore[arg-type]
        return Step(steps[-1], float(trainer.callback_metrics["train_loss"]))

    def evaluate(self, rows: Rows, cut: Cut) -> float:
        loader: Any = DataLoader(rows, batch_size=cut.batch, collate_fn=self.collate)  # type: ignore[arg-type]
        result = self.trainer(cut).validate(PlainModule(self.model(), self.problem), loader, verbose=False)
        return result[0]["val_loss"]


PEERS: dict[str, type[Peer]] = {
    f"lit-tune {lit_tune.__version__}": LitTune,
    f"HF Trainer {transformers.__version__}": HFTrainer,
    "HF Trainer, flags": HFTrainerToldSo,
    f"plain Lightning {L.__version__}": PlainLightning,
}
