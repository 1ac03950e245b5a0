"""Small fits that record what reaches the optimizer; shared by the parity tests."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.functional import cross_entropy

from lit_tune.callbacks.eval_schedule import EvalSchedule
from lit_tune.datamodule import TokenizedDataModule
from lit_tune.module import FineTuneModule
from lit_tune.tasks.base import Task
from lit_tune.tasks.sequence_classification import SequenceClassification


class Recorder(Callback):
    """Gradients as the optimizer has used them (Lightning runs the closure inside its step), exact losses and norms,
    rows of each step, validation metrics."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.gradients: list[torch.Tensor] = []
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.rows: list[int] = []
        self.val: list[dict[str, float]] = []
        self.weights: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer, pl_module):
        def after_step(optimizer, args, kwargs):
            grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
            self.gradients.append(torch.cat([g.detach().double().flatten() for g in grads]))

        trainer.optimizers[0].register_step_post_hook(after_step)
        self.steps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rows += [r for r in batch["example_ids"] if r >= 0]
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            last = pl_module.last_step
            self.losses.append(float(last["loss_sum"] / last["denominator"]))
            self.norms.append(float(last["grad_norm"]))

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.val.append(
                {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("val/", "probe/"))}
            )

    def on_train_end(self, trainer, pl_module):
        self.weights = {k: v.clone() for k, v in pl_module.model.state_dict().items()}
        if self.path is not None:
            keep = ("gradients", "losses", "norms", "rows", "val", "weights")
            torch.save({k: getattr(self, k) for k in keep}, self.path / f"rank{trainer.global_rank}.pt")


def build(
    model_dir: Path,
    data: dict[str, Any],
    task: dict[str, Any] | Task | None = None,
    module: dict[str, Any] | None = None,
) -> tuple[FineTuneModule, TokenizedDataModule]:
    """A module and a datamodule from plain settings; those of a task are sequence classification's."""
    the_task = task if isinstance(task, Task) else SequenceClassification(**(task or {}))
    settings = {"optimizer": {"lr": 1e-2}, "config_overrides": NO_DROPOUT} | (module or {})
    datamodule = TokenizedDataModule(the_task, model_name_or_path=str(model_dir), **data)
    return FineTuneModule(str(model_dir), the_task, **settings), datamodule


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def fit(
    model_dir: Path,
    data: dict[str, Any],
    *,
    batch: int = 16,
    accumulate: int = 1,
    ranks: int = 1,
    task: dict[str, Any] | Task | None = None,
    module: dict[str, Any] | None = None,
    scratch: Path | None = None,
    **trainer: Any,
) -> Recorder:
    """Train; with several ranks the recorder is rank zero's, and every rank leaves ``scratch/rank<i>.pt``."""
    recorder = Recorder(scratch)
    the_module, datamodule = build(model_dir, {"val_fraction": 0, "train_batch_size": batch} | data, task, module)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo") if ranks > 1 else "auto"
    settings: dict[str, Any] = {"max_epochs": 2, "gradient_clip_val": 1.0, "num_sanity_val_steps": 0} | trainer
    run = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[EvalSchedule(settings.pop("eval_every_steps", None)), recorder],
        **settings,
    )
    run.fit(the_module, datamodule=datamodule)
    if ranks > 1:
        assert scratch is not None
        vars(recorder).update(torch.load(scratch / "rank0.pt", weights_only=True))
    return recorder


def token_counts(tokenizer: Any, content: list[dict[str, Any]]) -> Any:
    """How long rows are, by their numbers: what decides which of them are trained on in one step."""
    counts = np.array([len(ids) for ids in tokenizer([row["text"] for row in content])["input_ids"]])
    return lambda rows: counts[rows]


def plain_update(model: Any, tokenizer: Any, optimizer: Any, rows: list[dict[str, Any]], names: list[str]) -> float:
    """A step of plain torch on some rows, as anyone would write it; its loss."""
    inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    loss = cross_entropy(model(**inputs).logits, torch.tensor([names.index(row["label"]) for row in rows]))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Norm of the difference over norm of the whole."""
    return float((a - b).norm() / b.norm())
