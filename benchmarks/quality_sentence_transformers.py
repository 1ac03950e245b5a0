"""The peer's side of quality.py for embeddings: sentence-transformers' own trainer, loss and evaluator.

Everything else is as in lit-tune's config: data, model, epochs, batch size, learning rate and schedule, weight decay,
clipping, the metric that decides which epoch is best. Needs `pip install sentence-transformers`.
"""

import time
from pathlib import Path
from typing import Any

from datasets import load_dataset
from scipy.stats import pearsonr, spearmanr
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.losses import CoSENTLoss, CosineSimilarityLoss
from torch.nn.functional import cosine_similarity

SENTENCES = ("sentence1", "sentence2")
LOSSES = {"cosine": CosineSimilarityLoss, "cosent": CoSENTLoss}


def measure(model: SentenceTransformer, rows: Any) -> dict[str, float]:
    """Correlations of cosines and scores, by scipy."""
    first, second = (model.encode(list(rows[name]), convert_to_tensor=True) for name in SENTENCES)
    cosines = cosine_similarity(first, second).cpu().numpy()
    return {
        "spearman": float(spearmanr(cosines, rows["score"]).statistic),
        "pearson": float(pearsonr(cosines, rows["score"]).statistic),
    }


def read(files: dict[str, str], scratch: Path, limits: tuple[float, float]) -> Any:
    """The splits, with scores from 0 to 1."""
    raw = load_dataset("csv", data_files=files, cache_dir=str(scratch / "cache"), keep_default_na=False)
    low, high = limits
    scaled = raw.map(lambda row: {"score": (row["score"] - low) / (high - low)})
    return scaled.select_columns([*SENTENCES, "score"])


def run(settings: dict[str, Any], files: dict[str, str], model: str, seed: int, scratch: Path) -> dict[str, Any]:
    """One run; returns test metrics and seconds of training."""
    raw = read(files, scratch, settings["score_range"])
    embedder = SentenceTransformer(model, device="cpu")
    embedder.max_seq_length = 128
    val = raw["val"]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(scratch / "sentence_transformers"),
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
        metric_for_best_model="eval_val_spearman_cosine",
        seed=seed,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = SentenceTransformerTrainer(
        model=embedder,
        args=arguments,
        train_dataset=raw["train"],
        eval_dataset=val,
        loss=LOSSES[settings["task"]["loss"]](embedder),
        evaluator=EmbeddingSimilarityEvaluator(
            list(val["sentence1"]), list(val["sentence2"]), list(val["score"]), name="val", main_similarity="cosine"
        ),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    return {"metrics": measure(embedder, raw["test"]), "seconds": seconds}


def run_untrained(
    settings: dict[str, Any], files: dict[str, str], model: str, seed: int, scratch: Path
) -> dict[str, Any]:
    """The model as it is, without training."""
    raw = read(files, scratch, settings["score_range"])
    return {"metrics": measure(SentenceTransformer(model, device="cpu"), raw["test"]), "seconds": 0.0}
