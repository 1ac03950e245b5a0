"""The task by itself: texts read and encoded, losses of hidden tokens, guesses."""

import math
import pickle
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from toy import make_tiny_model, toy_lines
from transformers import AutoModelForMaskedLM, AutoTokenizer, BartConfig, BartForConditionalGeneration, BertConfig

from lit_tune.data.collators import Padding
from lit_tune.data.loader import collate
from lit_tune.data.split import Split
from lit_tune.data.units import Units
from lit_tune.data.vocabulary import Vocabulary
from lit_tune.errors import ConfigError, DataError, ModelError
from lit_tune.metrics import scalars
from lit_tune.tasks.base import Spec
from lit_tune.tasks.examination import examine
from lit_tune.tasks.masked_lm import PROBLEM, MaskedLM

SPEC = Spec(PROBLEM, unit="token")
LINES = [*toy_lines(30, seed=1), "mud [MASK] sun"]


def split(texts: list, name: str = "train") -> Split:
    return Split(datasets.Dataset.from_dict({"text": texts}), name, [(f"{name}.txt", len(texts))], "f")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("masked"), dropout=0.0, subwords=True, mask=True)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def encoded(tokenizer, max_length: int = 12, **settings: Any) -> tuple[datasets.Dataset, Units, Any]:
    """Rows, units of training, and the collator."""
    task = MaskedLM(**settings)
    features = task.encode({"text": LINES}, tokenizer, SPEC, max_length)
    stored = datasets.Dataset.from_dict({k: v for k, v in features.items() if not k.startswith("num_")})
    units = task.units(stored, True, SimpleNamespace(tokenizer=tokenizer, max_length=max_length))  # type: ignore
    padding = Padding(0, vocabulary=Vocabulary(tokenizer), max_length=max_length)
    return stored, units, task.collator(padding, SPEC)


# --- texts -----------------------------------------------------------------------------------------------------------


def test_blocks_are_full_but_for_the_last_and_hold_every_token(tokenizer):
    _, units, collator = encoded(tokenizer)
    batch = collate(units.read(range(len(units))), list(range(len(units))), collator)
    original = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    lengths = batch["attention_mask"].sum(1).tolist()
    assert set(lengths[:-1]) == {12}
    inner = [i for row, n in zip(original.tolist(), lengths, strict=True) for i in row[1 : n - 1]]
    texts = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in LINES if line]
    assert inner == [i for n, ids in enumerate(texts) for i in [*([tokenizer.sep_token_id] if n else []), *ids]]
    hidden = batch["labels"][batch["labels"] != -100]
    assert not set(hidden.tolist()) & {tokenizer.sep_token_id, tokenizer.mask_token_id, tokenizer.cls_token_id}


def test_line_by_line_each_text_is_a_row_cut_as_the_tokenizer_would(tokenizer):
    task = MaskedLM(line_by_line=True)
    features = task.encode({"text": LINES}, tokenizer, SPEC, 8)
    assert features["num_tokens"] == [len(ids) for ids in tokenizer(LINES)["input_ids"]]
    _, units, collator = encoded(tokenizer, 8, line_by_line=True)
    full = [line for line in LINES if line]
    assert len(units) == len(full)
    batch = collate(units.read(range(len(full))), list(range(len(full))), collator)
    original = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    expected = tokenizer(full, truncation=True, max_length=8, padding=True, return_tensors="pt")["input_ids"]
    assert torch.equal(original, expected)
    assert (task.cut_at(8), MaskedLM().cut_at(8)) == (8, None)


def test_whole_words_are_hidden_together(tokenizer):
    for settings in ({}, {"line_by_line": True}):
        _, units, collator = encoded(tokenizer, 40, whole_word=True, mask_probability=0.3, **settings)
        batch = collate(units.read(range(len(units))), list(range(len(units))), collator, epoch=0)
        original = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
        several = 0
        for ids, labels in zip(original.tolist(), batch["labels"].tolist(), strict=True):
            tokens = tokenizer.convert_ids_to_tokens(ids)
            for before, token, a, b in zip(tokens, tokens[1:], labels, labels[1:], strict=False):
                if token.startswith("##") and before not in ("[CLS]", "[SEP]"):
                    assert (a == -100) == (b == -100)
                    several += b != -100
        assert several > 3


def test_the_baseline_is_the_entropy_of_the_tokens(tokenizer):
    stored, *_ = encoded(tokenizer)
    spec = MaskedLM().measure(stored, SPEC)
    counts = np.unique([i for ids in stored["input_ids"] for i in ids], return_counts=True)[1]
    shares = counts / counts.sum()
    assert spec.num_units == counts.sum()
    assert spec.baseline == {
        "loss": pytest.approx(-(shares * np.log(shares)).sum()),
        "perplexity": pytest.approx(math.exp(-(shares * np.log(shares)).sum())),
        "accuracy": pytest.approx(shares.max()),
    }


def test_empty_lines_are_no_fault_but_no_text_at_all_is():
    task, train, val = MaskedLM(), split(["a b", "", "", "c"]), split(["", "d"], "val")
    task.check(train, SPEC)
    found = examine(task, SPEC, {"train": train, "val": val, "test": split(["", "c", "e"], "test")})
    assert [(t.num_rows, t.num_empty) for t in found.texts.values()] == [(2, 0), (1, 0), (2, 0)]
    assert [(o.count, o.total) for o in found.overlaps.values()] == [(0, 1), (1, 2)]
    assert found.overlaps["test"].samples == ["test.txt:2 (as train.txt:4): c"]
    with pytest.raises(DataError, match="no text in any row"):
        task.check(split(["", " "]), SPEC)
    with pytest.raises(DataError, match=r"null in 1 row\(s\) \(train.txt:2\)"):
        task.check(split(["a", None]), SPEC)
    with pytest.raises(DataError, match="no column 'content'"):
        MaskedLM("content").check(split(["a"]), SPEC)


def test_what_cannot_be_is_refused(tokenizer):
    for settings in ({"mask_probability": 0.0}, {"mask_probability": 1.0}, {"top_k": 0}):
        with pytest.raises(ConfigError):
            MaskedLM(**settings)
    bare = Padding(0, vocabulary=Vocabulary(SimpleNamespace(mask_token_id=None)))
    with pytest.raises(ModelError, match="no mask token"):
        MaskedLM().collator(bare, SPEC)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    tiny = BartConfig(vocab_size=20, encoder_attention_heads=1, decoder_attention_heads=1, **sizes)
    with pytest.raises(ModelError, match="has a decoder"):
        MaskedLM().prepare_model(BartForConditionalGeneration(tiny), None)
    stream = Split(datasets.Dataset.from_dict({"text": ["a"]}).to_iterable_dataset(), "train", [("a.txt", 0)], "f")
    with pytest.raises(ConfigError, match="one by one"):
        MaskedLM().inspect(stream, BertConfig(), False)
    assert MaskedLM(line_by_line=True).inspect(stream, BertConfig(), False) == SPEC


def test_a_task_is_picklable_and_its_copy_is_equal():
    task = MaskedLM(whole_word=True, mask_probability=0.3)
    copy = pickle.loads(pickle.dumps(task))
    assert (copy.settings(), copy.needs_offsets) == (task.settings(), True)
    assert not MaskedLM().needs_offsets


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_with_the_same_masks_the_loss_is_that_of_transformers(folder, tokenizer):
    task, model = MaskedLM(), AutoModelForMaskedLM.from_pretrained(folder).eval()
    _, units, collator = encoded(tokenizer)
    batch = collate(units.read(range(len(units))), list(range(len(units))), collator, epoch=3)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        theirs = model(**inputs, labels=batch["labels"])
        outputs = task.forward(model, batch)
        total, count = task.loss(outputs, batch, SPEC)
        collection = task.build_metrics(SPEC)
        task.update_metrics(collection, outputs, batch)
    assert outputs.logits.shape == (int(count), len(tokenizer))
    assert float(total / count) == pytest.approx(float(theirs.loss), rel=1e-5)
    computed = {"loss": total / count, **collection.compute()}
    hidden = batch["labels"] != -100
    right = (theirs.logits.argmax(-1) == batch["labels"])[hidden].double().mean()
    assert float(computed["perplexity"]) == pytest.approx(math.exp(float(theirs.loss)), rel=1e-5)
    assert float(computed["accuracy"]) == pytest.approx(float(right))
    assert set(task.metric_names(SPEC)) == set(scalars(computed))
    assert "perplexity" in task.report(computed, Spec(PROBLEM, baseline={"perplexity": 9.0}))
    assert task.metric_names(SPEC)[task.primary_metric(SPEC)] is False


def test_a_batch_with_nothing_to_guess_counts_for_nothing(folder, tokenizer):
    task, model = MaskedLM(), AutoModelForMaskedLM.from_pretrained(folder)
    batch = collate([{"input_ids": []}, {"input_ids": []}], [0, 1], encoded(tokenizer)[2])
    total, count = task.loss(task.forward(model, batch), batch, SPEC)
    assert (total.item(), count.item()) == (0.0, 0.0)
    total.backward()


def test_a_broken_model_is_told_by_scores_that_are_no_numbers(tokenizer):
    vocabulary = Vocabulary(tokenizer)
    aside = {"mask_counts": [(0, 0), (2, 1)], "vocabulary": vocabulary}
    outputs = SimpleNamespace(logits=torch.full((2, len(tokenizer)), torch.nan))
    none, two = MaskedLM(top_k=3).decode(outputs, {"aside": aside}, SPEC)
    assert none == {"fills": [], "unread_masks": 0}
    assert two["unread_masks"] == 1
    assert [len(fill) for fill in two["fills"]] == [3, 3]
    assert all(math.isnan(guess["score"]) for fill in two["fills"] for guess in fill)
