"""The HF Trainer side of quality.py for taggers, as transformers' own example run_ner.py does it; scores by seqeval.

Everything else is as in lit-tune's config: data, model, epochs, batch size, learning rate and schedule, weight decay,
the metric that decides which epoch is best, labels on the first token of a word.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset
from quality_hf_trainer import arguments
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    EvalPrediction,
    Trainer,
    set_seed,
)

IGNORED = -100


def run(settings: dict[str, Any], files: dict[str, str], model: str, seed: int, scratch: Path) -> dict[str, Any]:
    """One run; returns test metrics and seconds of training."""
    raw = load_dataset("json", data_files=files, cache_dir=str(scratch / "cache"))
    words_in, tags_in = settings["task"].get("tokens_column", "tokens"), settings["task"].get("tags_column", "ner_tags")
    found = {tag for row in raw["train"][tags_in] for tag in row}
    names = sorted(found, key=lambda tag: (tag != "O", tag))
    tokenizer = AutoTokenizer.from_pretrained(model)

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        tokens = tokenizer(rows[words_in], is_split_into_words=True, truncation=True, max_length=128)
        tokens["labels"] = [first_tokens(tokens.word_ids(i), tags, names) for i, tags in enumerate(rows[tags_in])]
        return tokens

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        return scores(evaluated.predictions.argmax(-1), evaluated.label_ids, names)

    encoded = raw.map(encode, batched=True, remove_columns=raw["train"].column_names)
    set_seed(seed)
    trainer = Trainer(
        model=AutoModelForTokenClassification.from_pretrained(
            model, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
        ),
        args=arguments(settings, "f1", seed, scratch),
        train_dataset=encoded["train"],
        eval_dataset=encoded["val"],
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=compute_metrics,
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    measured = trainer.evaluate(encoded["test"], metric_key_prefix="test")
    return {
        "metrics": {name: measured[f"test_{name}"] for name in ("precision", "recall", "f1", "accuracy", "loss")},
        "seconds": seconds,
    }


def first_tokens(words: list[int | None], tags: list[str], names: list[str]) -> list[int]:
    """A label for the first token of each word, -100 for the others."""
    before = [None, *words[:-1]]
    return [
        IGNORED if word is None or word == last else names.index(tags[word])
        for word, last in zip(words, before, strict=True)
    ]


def scores(predicted: np.ndarray, labels: np.ndarray, names: list[str]) -> dict[str, float]:
    """What seqeval makes of tag ids (B, T); labels are -100 where none counts."""
    rows = [row != IGNORED for row in labels]
    true = [[names[i] for i in row[kept]] for row, kept in zip(labels, rows, strict=True)]
    found = [[names[i] for i in row[kept]] for row, kept in zip(predicted, rows, strict=True)]
    return {
        "precision": float(precision_score(true, found)),
        "recall": float(recall_score(true, found)),
        "f1": float(f1_score(true, found)),
        "accuracy": float(accuracy_score(true, found)),
    }
