"""The HF Trainer side of quality.py for multiple choice, as transformers' own example run_swag.py does it.

Everything else is as in lit-tune's config: data, model, epochs, batch size, learning rate and schedule, weight decay,
the metric that decides which epoch is best. Its collator wants as many choices in each row.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset
from quality_hf_trainer import arguments
from transformers import (
    AutoModelForMultipleChoice,
    AutoTokenizer,
    DataCollatorForMultipleChoice,
    EvalPrediction,
    Trainer,
    set_seed,
)


def run(settings: dict[str, Any], files: dict[str, str], model: str, seed: int, scratch: Path) -> dict[str, Any]:
    """One run; returns test metrics and seconds of training."""
    raw = load_dataset("json", data_files=files, cache_dir=str(scratch / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(model)

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        counts = [len(choices) for choices in rows["choices"]]
        first = [q for q, count in zip(rows["question"], counts, strict=True) for _ in range(count)]
        second = [choice for choices in rows["choices"] for choice in choices]
        tokens = tokenizer(first, second, truncation=True, max_length=128)
        ends = np.cumsum(counts).tolist()
        cut = {
            name: [values[end - count : end] for end, count in zip(ends, counts, strict=True)]
            for name, values in tokens.items()
        }
        return {**cut, "labels": rows["label"]}

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        return {"accuracy": float((evaluated.predictions.argmax(-1) == evaluated.label_ids).mean())}

    encoded = raw.map(encode, batched=True, remove_columns=raw["train"].column_names)
    set_seed(seed)
    trainer = Trainer(
        model=AutoModelForMultipleChoice.from_pretrained(model),
        args=arguments(settings, "accuracy", seed, scratch),
        train_dataset=encoded["train"],
        eval_dataset=encoded["val"],
        data_collator=DataCollatorForMultipleChoice(tokenizer),
        compute_metrics=compute_metrics,
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    measured = trainer.evaluate(encoded["test"], metric_key_prefix="test")
    return {"metrics": {name: measured[f"test_{name}"] for name in ("accuracy", "loss")}, "seconds": seconds}
