"""The HF Trainer side of quality.py: its own head, loss, sampler and padding; scores by scikit-learn and scipy.

Everything else is as in lit-tune's config: data, model, epochs, batch size, learning rates and schedule, weight decay,
the metric that decides which epoch is best, the threshold of a label.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from scipy.special import expit
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error, r2_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)

PRIMARY = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "f1_micro",
    "regression": "r2",
}
"""The metric that lit-tune's task takes for the best epoch, by problem."""


HEAD_PREFIX = "classifier."
"""Of BERT-like models; what ``head_lr`` is for."""


class FastHeadTrainer(Trainer):
    """Trainer with another learning rate for the head; the schedule scales both.

    Args:
        head_lr: Learning rate of the head; None: that of everything.
        kwargs: Trainer's own arguments.
    """

    def __init__(self, head_lr: float | None, **kwargs: Any) -> None:
        self.head_lr = head_lr
        super().__init__(**kwargs)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's own, its groups split by what the head is."""
        optimizer = super().create_optimizer(model)
        if self.head_lr is not None:
            head = {id(p) for n, p in self.model.named_parameters() if n.startswith(HEAD_PREFIX)}
            for group in list(optimizer.param_groups):
                fast = [p for p in group["params"] if id(p) in head]
                group["params"] = [p for p in group["params"] if id(p) not in head]
                optimizer.add_param_group({**group, "params": fast, "lr": self.head_lr})
        return optimizer


class Targets:
    """What a label column poses: kind of problem, names in the order of their ids, a label as the head needs it.

    Args:
        labels: The labels of the train split: names, lists of names or numbers.
    """

    def __init__(self, labels: list[Any]) -> None:
        if isinstance(labels[0], list):
            self.problem, self.names = "multi_label_classification", sorted({n for row in labels for n in row})
        elif isinstance(labels[0], float):
            self.problem, self.names = "regression", []
        else:
            self.problem, self.names = "single_label_classification", sorted(set(labels))

    def encode(self, label: Any) -> Any:
        """Id, number, or a float 0 or 1 for each name."""
        if self.problem == "regression":
            return float(label)
        if self.problem == "multi_label_classification":
            return [float(name in label) for name in self.names]
        return self.names.index(label)


def scores(problem: str, logits: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float]:
    """What other libraries make of the logits, under lit-tune's names.

    Args:
        problem: transformers' ``config.problem_type``.
        logits: (B, C); (B, 1) or (B,) for regression.
        labels: (B,) ids or numbers; (B, C), 0 or 1, for several labels per row.
        threshold: Probability above which a label counts as predicted.
    """
    if problem == "regression":
        preds = logits.reshape(-1).astype(np.float64)
        return {
            "mse": float(mean_squared_error(labels, preds)),
            "r2": float(r2_score(labels, preds)),
            "pearson": float(pearsonr(labels, preds)[0]),
            "spearman": float(spearmanr(labels, preds)[0]),
        }
    multi = problem == "multi_label_classification"
    found = (expit(logits) > threshold).astype(int) if multi else logits.argmax(-1)
    f1 = {f"f1_{a}": float(f1_score(labels, found, average=a, zero_division=0)) for a in ("micro", "macro")}
    return {"accuracy": float(accuracy_score(labels, found)), **f1}


def run(settings: dict[str, Any], files: dict[str, str], model: str, seed: int, scratch: Path) -> dict[str, Any]:
    """One run; returns test metrics and seconds of training."""
    kind = {"csv": "csv", "jsonl": "json"}[settings["suffix"]]
    options = {"keep_default_na": False} if kind == "csv" else {}
    raw = load_dataset(kind, data_files=files, cache_dir=str(scratch / "cache"), **options)
    task = settings["task"]
    label_column, threshold = task.get("label_column", "label"), task.get("threshold", 0.5)
    targets = Targets(list(raw["train"][label_column]))
    tokenizer = AutoTokenizer.from_pretrained(model)
    columns = task.get("text_columns", ["text"])

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        tokens = tokenizer(*(rows[c] for c in columns), truncation=True, max_length=128)
        return {**tokens, "labels": [targets.encode(label) for label in rows[label_column]]}

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        return scores(targets.problem, evaluated.predictions, evaluated.label_ids, threshold)

    encoded = raw.map(encode, batched=True, remove_columns=raw["train"].column_names)
    set_seed(seed)
    trainer = FastHeadTrainer(
        settings.get("head_lr"),
        model=AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=len(targets.names) or 1, problem_type=targets.problem
        ),
        args=arguments(settings, PRIMARY[targets.problem], seed, scratch),
        train_dataset=encoded["train"],
        eval_dataset=encoded["val"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    measured = trainer.evaluate(encoded["test"], metric_key_prefix="test")
    speed = ("test_runtime", "test_samples_per_second", "test_steps_per_second")
    metrics = {k.removeprefix("test_"): v for k, v in measured.items() if k.startswith("test_") and k not in speed}
    return {"metrics": metrics, "seconds": seconds}


def arguments(
    settings: dict[str, Any],
    primary: str,
    seed: int,
    scratch: Path,
    kind: type[TrainingArguments] = TrainingArguments,
    **more: Any,
) -> TrainingArguments:
    """The hyper-parameters of lit-tune's run in HF Trainer's names."""
    return kind(
        output_dir=str(scratch / "hf_trainer"),
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings.get("batch", 16),
        per_device_eval_batch_size=64,
        learning_rate=settings["lr"],
        weight_decay=0.01,
        warmup_steps=0.1,
        lr_scheduler_type="linear",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=primary,
        seed=seed,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **more,
    )
