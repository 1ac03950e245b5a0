"""The HF Trainer side of quality.py for masked language modelling, as transformers' own example run_mlm.py does it.

Everything else is as in lit-tune's config: data, model, epochs, batch size, learning rate and schedule, weight decay,
share of hidden tokens. Its blocks hold the special tokens of each line, what is left over at the end is dropped, and
each evaluation hides other tokens.
"""

import math
import time
from pathlib import Path
from typing import Any

from datasets import load_dataset
from quality_hf_trainer import arguments
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    set_seed,
)


def run(settings: dict[str, Any], files: dict[str, str], model: str, seed: int, scratch: Path) -> dict[str, Any]:
    """One run; returns test metrics and seconds of training."""
    raw = load_dataset("text", data_files=files, cache_dir=str(scratch / "cache"))
    tokenizer, length = AutoTokenizer.from_pretrained(model), settings["max_length"]

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        return tokenizer(rows["text"], return_special_tokens_mask=True, verbose=False)

    def group(rows: dict[str, list[Any]]) -> dict[str, Any]:
        joined = {name: [item for row in values for item in row] for name, values in rows.items()}
        total = len(joined["input_ids"]) // length * length
        return {name: [v[i : i + length] for i in range(0, total, length)] for name, v in joined.items()}

    encoded = raw.map(encode, batched=True, remove_columns=["text"]).map(group, batched=True)
    set_seed(seed)
    trainer = Trainer(
        model=AutoModelForMaskedLM.from_pretrained(model),
        args=arguments(settings, "loss", seed, scratch),
        train_dataset=encoded["train"],
        eval_dataset=encoded["val"],
        data_collator=DataCollatorForLanguageModeling(tokenizer),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    loss = trainer.evaluate(encoded["test"], metric_key_prefix="test")["test_loss"]
    return {"metrics": {"loss": loss, "perplexity": math.exp(loss)}, "seconds": seconds}
