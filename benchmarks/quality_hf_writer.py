"""The HF side of quality.py for sequence to sequence: Seq2SeqTrainer as in transformers' example run_translation.py.

Everything else is as in lit-tune's config: data, model, epochs, batch size, learning rate and schedule, weight decay,
the metric that decides which epoch is best, beams. As in the example, texts are written for every row of val at each
validation, with predict_with_generate, also where rows have the same source. Test texts are written once for each
source and compared with all its references.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset
from quality_hf_trainer import arguments
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)


def run(settings: dict[str, Any], files: dict[str, str], model: str, seed: int, scratch: Path) -> dict[str, Any]:
    """One run; returns test metrics and seconds of training."""
    raw = load_dataset("json", data_files=files, cache_dir=str(scratch / "cache"))
    tokenizer, task = AutoTokenizer.from_pretrained(model), settings["task"]

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        found = tokenizer(rows["source"], max_length=settings["max_length"], truncation=True)
        targets = tokenizer(text_target=rows["target"], max_length=task["max_target_length"], truncation=True)
        return {**found, "labels": targets["input_ids"]}

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        texts = [decoded(ids, tokenizer) for ids in (evaluated.predictions, evaluated.label_ids)]
        return {"bleu": corpus_bleu(texts[0], [texts[1]]).score / 100}

    encoded = raw.map(encode, batched=True, remove_columns=raw["train"].column_names)
    set_seed(seed)
    built = AutoModelForSeq2SeqLM.from_pretrained(model)
    trainer = Seq2SeqTrainer(
        model=built,
        args=arguments(
            settings,
            "loss",
            seed,
            scratch,
            Seq2SeqTrainingArguments,
            predict_with_generate=True,
            generation_max_length=task["max_target_length"],
            generation_num_beams=task["generation"]["num_beams"],
        ),
        train_dataset=encoded["train"],
        eval_dataset=encoded["val"],
        data_collator=DataCollatorForSeq2Seq(tokenizer, built),
        compute_metrics=compute_metrics,
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    references: dict[str, list[str]] = {}
    for row in raw["test"]:
        references.setdefault(row["source"], []).append(row["target"])
    sources = Dataset.from_dict({"source": list(references), "target": [some[0] for some in references.values()]})
    found = trainer.predict(sources.map(encode, batched=True, remove_columns=sources.column_names)).predictions
    metrics = scores(decoded(found, tokenizer), list(references.values()))
    trainer.args.predict_with_generate, trainer.compute_metrics = False, None
    metrics["loss"] = trainer.evaluate(encoded["test"], metric_key_prefix="test")["test_loss"]
    return {"metrics": metrics, "seconds": seconds}


def decoded(ids: np.ndarray, tokenizer: Any) -> list[str]:
    """Texts of token ids in which -100 is padding."""
    filled = np.where(ids == -100, tokenizer.pad_token_id, ids)
    return [text.strip() for text in tokenizer.batch_decode(filled, skip_special_tokens=True)]


def scores(written: list[str], references: list[list[str]]) -> dict[str, float]:
    """BLEU and chrF of the whole, the mean ROUGE-L of each text's best reference, on a scale of 0 to 1."""
    most = max(map(len, references))
    streams = [[some[i] if i < len(some) else None for some in references] for i in range(most)]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    rouge = [scorer.score_multi(some, text)["rougeL"].fmeasure for text, some in zip(written, references, strict=True)]
    return {
        "bleu": corpus_bleu(written, streams).score / 100,
        "chrf": corpus_chrf(written, streams).score / 100,
        "rougeL": float(np.mean(rouge)),
    }
