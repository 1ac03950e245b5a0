"""The HF Trainer side of quality.py for question answering, as transformers' own example run_qa.py does it.

Everything else is as in lit-tune's config: data, model, epochs, batch size, learning rate and schedule, weight decay,
the metric that decides which epoch is best, windows and their stride. Every question has an answer (SQuAD 1.1).
"""

import re
import string
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset
from quality_hf_trainer import arguments
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    set_seed,
)

N_BEST, MAX_ANSWER_LENGTH = 20, 30
"""Defaults of run_qa.py."""


def run(settings: dict[str, Any], files: dict[str, str], model: str, seed: int, scratch: Path) -> dict[str, Any]:
    """One run; returns test metrics and seconds of training."""
    raw = load_dataset("json", data_files=files, cache_dir=str(scratch / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    options = {"max_length": settings["max_length"], "stride": min(128, settings["max_length"] // 3)}
    windows = {name: windows_of(rows, tokenizer, options) for name, rows in raw.items()}
    columns = ["input_ids", "token_type_ids", "attention_mask", "start_positions", "end_positions"]
    encoded = {name: Dataset.from_list([{c: w[c] for c in columns} for w in made]) for name, made in windows.items()}
    measured_on = "val"

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        start, end = evaluated.predictions
        found = answers(windows[measured_on], start, end, raw[measured_on]["context"][:])
        return scores(found, [row["text"] for row in raw[measured_on]["answers"]])

    set_seed(seed)
    trainer = Trainer(
        model=AutoModelForQuestionAnswering.from_pretrained(model),
        args=arguments(settings, "f1", seed, scratch),
        train_dataset=encoded["train"],
        eval_dataset=encoded["val"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    measured_on = "test"
    measured = trainer.evaluate(encoded["test"], metric_key_prefix="test")
    return {"metrics": {name: measured[f"test_{name}"] for name in ("exact_match", "f1", "loss")}, "seconds": seconds}


def windows_of(rows: Any, tokenizer: Any, options: dict[str, int]) -> list[dict[str, Any]]:
    """Windows of all rows, with labels, as prepare_train_features makes them; ``offsets`` of the context's tokens."""
    cut = tokenizer(
        [question.lstrip() for question in rows["question"][:]],
        rows["context"][:],
        truncation="only_second",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        **options,
    )
    names = ("input_ids", "token_type_ids", "attention_mask")
    made = []
    for i, row in enumerate(cut["overflow_to_sample_mapping"]):
        answer = rows[row]["answers"]
        begin, end = answer["answer_start"][0], answer["answer_start"][0] + len(answer["text"][0])
        is_context = [part == 1 for part in cut.sequence_ids(i)]
        offsets = [o if inside else None for o, inside in zip(cut["offset_mapping"][i], is_context, strict=True)]
        places = [p for p, inside in enumerate(is_context) if inside]
        start = stop = 0
        if places and offsets[places[0]][0] <= begin and offsets[places[-1]][1] >= end:
            start = max(p for p in places if offsets[p][0] <= begin)
            stop = min(p for p in places if offsets[p][1] >= end)
        labels = {"start_positions": start, "end_positions": stop}
        made.append({**{n: cut[n][i] for n in names}, **labels, "offsets": offsets, "row": row})
    return made


def answers(windows: list[dict[str, Any]], start: np.ndarray, end: np.ndarray, contexts: list[str]) -> list[str]:
    """The answer of each row, as postprocess_qa_predictions finds it."""
    best: dict[int, tuple[float, str]] = {}
    for window, first_logits, last_logits in zip(windows, start, end, strict=True):
        offsets, row = window["offsets"], window["row"]
        for first in np.argsort(first_logits)[-1 : -N_BEST - 1 : -1].tolist():
            for last in np.argsort(last_logits)[-1 : -N_BEST - 1 : -1].tolist():
                if first >= len(offsets) or last >= len(offsets) or offsets[first] is None or offsets[last] is None:
                    continue
                if not 0 <= last - first < MAX_ANSWER_LENGTH:
                    continue
                score = float(first_logits[first] + last_logits[last])
                if row not in best or score > best[row][0]:
                    best[row] = score, contexts[row][offsets[first][0] : offsets[last][1]]
    return [best[row][1] if row in best else "" for row in range(len(contexts))]


def scores(found: list[str], golds: list[list[str]]) -> dict[str, float]:
    """evaluate-v1.1.py, on a scale of 0 to 1."""
    exact = [max(float(words(text) == words(gold)) for gold in right) for text, right in zip(found, golds, strict=True)]
    f1 = [max(overlap(words(text), words(gold)) for gold in right) for text, right in zip(found, golds, strict=True)]
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(f1))}


def words(text: str) -> list[str]:
    """What is compared."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def overlap(given: list[str], right: list[str]) -> float:
    """F1 of two lists of words."""
    shared = sum((Counter(given) & Counter(right)).values())
    return 2 * shared / (len(given) + len(right)) if shared else 0.0
