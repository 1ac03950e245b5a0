"""A small T5 of random weights and a tokenizer learned from the sources and targets it is to be trained on."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

TOKENS = 1500
SIZES = {"d_model": 96, "d_kv": 24, "d_ff": 384, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
"""0.7 million parameters: minutes on a core."""


def save_new_writer(rows: str, folder: Path) -> Path:
    """Make both.

    Args:
        rows: A jsonl file with the columns source and target.
        folder: Where to.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=TOKENS, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts(rows), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    named = dict(zip(("pad_token", "eos_token", "unk_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    config = T5Config(vocab_size=tokenizer.get_vocab_size(), **SIZES, **ids)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def texts(rows: str) -> Iterator[str]:
    """Both sides of all rows."""
    for line in Path(rows).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield from (row["source"], row["target"])
