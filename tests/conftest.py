"""Tiny real objects: a tokenizer trained here, a two-layer random model, rows made from a seed. No network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))

import csv
import random
from pathlib import Path

import pytest

WORDS = "trail rock river steep mud view forest long short easy hard great awful rain sun path climb lake bridge fog".split()
CLASSES = ("bad", "fine", "good")


def toy_rows(count: int, seed: int = 0, num_classes: int = 3) -> list[dict]:
    """Texts of ragged length whose label depends on their words, so that a model can learn something."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, 12))]
        score = sum(WORDS.index(w) for w in words) / len(words)
        label = min(num_classes - 1, int(score / len(WORDS) * num_classes * 1.0))
        rows.append({"text": " ".join(words), "label": CLASSES[label], "score": score / 4 + 0.05})
    return rows


def write_csv(path: Path, rows: list[dict]) -> Path:
    """Rows as a csv file with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Bit-equality and steady timings; two ranks would fight over two cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> Path:
    """A random two-layer BERT without a head, and its word-level tokenizer, as a folder."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_bert"))


def make_tiny_model(folder: Path, dropout: float = 0.1, hidden: int = 16) -> Path:
    """Save the tiny model into a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {w: i for i, w in enumerate(special + WORDS)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.3,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_csv(tmp_path_factory) -> Path:
    """120 labelled rows."""
    return write_csv(tmp_path_factory.mktemp("toy") / "train.csv", toy_rows(120))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test sees the cache of another or of the person."""
    monkeypatch.setenv("LIT_TUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
