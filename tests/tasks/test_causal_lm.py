"""The task by itself: texts to blocks, outputs to losses, metrics and records."""

import json
import math
import pickle
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from toy import make_tiny_decoder, toy_documents
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_tune.data.collators import Padding
from lit_tune.data.loader import collate
from lit_tune.data.split import Split
from lit_tune.errors import ConfigError, DataError, ModelError
from lit_tune.metrics import scalars
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks import token_scores
from lit_tune.tasks.base import Spec
from lit_tune.tasks.causal_lm import PROBLEM, CausalLM
from lit_tune.tasks.token_scores import TokenScores

SPEC = Spec(PROBLEM, unit="token")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    return make_tiny_decoder(tmp_path_factory.mktemp("decoder") / request.param, kind=request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_tiny_decoder(tmp_path_factory.mktemp("decoder") / "llama")


def split(texts: list, name: str = "train") -> Split:
    return Split(datasets.Dataset.from_list([{"text": t} for t in texts]), name, [(f"{name}.jsonl", len(texts))], "f")


def encoded(folder, texts: list[str]) -> datasets.Dataset:
    features = CausalLM().encode({"text": texts}, AutoTokenizer.from_pretrained(folder), SPEC, 64)
    return datasets.Dataset.from_dict(features)


def loaded(folder, dtype=torch.float64):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def reference(model, rows: datasets.Dataset, max_length: int) -> list[list[float]]:
    """Losses of each document's tokens by transformers alone, piece after piece."""
    found = []
    for ids in rows["input_ids"]:
        losses = []
        for start in range(0, len(ids) - 1, max_length - 1):
            piece = torch.tensor([ids[start : start + max_length]])
            outputs = model(piece, labels=piece)
            here = -outputs.logits[0, :-1].log_softmax(-1).gather(1, piece[0, 1:, None])
            assert float(outputs.loss) == pytest.approx(float(here.mean()), rel=1e-5)  # theirs is in float32
            losses += here[:, 0].tolist()
        found.append(losses)
    return found


TEXTS = [row["text"] for row in toy_documents(14, seed=3)] + ["", "mud"]


def batches(task, folder, rows, max_length, size=3, units=None, **padding):
    reader = TextReader(str(folder), max_length_given=max_length)
    units = task.units(rows, False, reader) if units is None else units
    collator = task.collator(Padding(0, max_length=max_length, **padding), SPEC)
    for start in range(0, len(units), size):
        numbers = list(range(start, min(start + size, len(units))))
        yield collate(units.read(numbers), numbers, collator)


@pytest.mark.parametrize(
    ("packing", "max_length", "options"),
    [
        (True, 64, {}),
        (True, 9, {}),
        (True, 9, {"length": 40}),
        (True, 9, {"multiple_of": 16}),
        (False, 9, {"length": 40}),
    ],
)
def test_loss_and_metrics_are_those_of_each_document_alone(folder, packing, max_length, options):
    model, rows = loaded(folder), encoded(folder, TEXTS)
    expected = [loss for losses in reference(model, rows, max_length) for loss in losses]
    task = CausalLM(packing=packing)
    metrics, total, tokens, widths = task.build_metrics(SPEC), 0.0, 0.0, 0
    with torch.no_grad():
        for batch in batches(task, folder, rows, max_length, **options):
            assert ("position_ids" in batch) == packing
            assert ("attention_mask" in batch) == (not packing)
            scores = task.forward(model, batch)
            loss, count = task.loss(scores, batch, SPEC)
            total, tokens, widths = total + float(loss), tokens + float(count), widths + batch["input_ids"].numel()
            task.update_metrics(metrics, scores, batch)
    assert tokens == len(expected) == sum(max(0, len(ids) - 1) for ids in rows["input_ids"])
    assert total == pytest.approx(sum(expected), rel=1e-9)
    found = scalars(metrics.compute())
    size = sum(len(t.encode()) for t in TEXTS[:-2]) + len("mud")
    assert found["perplexity"] == pytest.approx(math.exp(np.mean(expected)), rel=1e-9)
    assert found["bits_per_byte"] == pytest.approx(sum(expected) / math.log(2) / size, rel=1e-9)
    assert set(found) | {"loss"} == set(task.metric_names(SPEC))
    if packing and max_length == 64 and not options:
        assert widths <= 1.3 * sum(map(len, rows["input_ids"]))


def test_evaluation_in_parts_changes_nothing_and_keeps_no_logits(llama, monkeypatch):
    model, rows, task = loaded(llama), encoded(llama, TEXTS), CausalLM()
    monkeypatch.setattr(token_scores, "EXPORT_POSITIONS", 5)
    batch = next(batches(task, llama, rows, 12, size=8))
    with torch.no_grad():
        whole = task.forward(model, batch)
        monkeypatch.setattr(token_scores, "LOGITS_AT_ONCE", 3 * 12 * 22)
        shapes = []
        layer = model.model.layers[0]
        handle = layer.register_forward_pre_hook(lambda module, given: shapes.append(given[0].shape[0]))
        parts = task.forward(model, batch)
        handle.remove()
    assert shapes == [3, 3, 2]
    assert torch.allclose(parts.losses, whole.losses, rtol=0, atol=1e-12)
    assert torch.equal(parts.is_right, whole.is_right)
    assert task.scores(parts).shape == (8, 5, 22)
    trained = task.forward(model, batch)
    assert trained.losses.requires_grad
    assert torch.allclose(task.scores(parts), trained.logits[:, :5], rtol=0, atol=1e-12)
    assert torch.allclose(trained.losses, parts.losses, rtol=0, atol=1e-12)
    assert torch.equal(trained.is_right, parts.is_right)


def test_accuracy_is_the_share_of_tokens_that_were_the_likeliest(llama):
    model, rows, task = loaded(llama), encoded(llama, TEXTS), CausalLM()
    hits, count = 0, 0
    for ids in rows["input_ids"]:
        best = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        hits, count = hits + sum(a == b for a, b in zip(best, ids[1:], strict=False)), count + len(ids) - 1
    metrics = task.build_metrics(SPEC)
    with torch.no_grad():
        for batch in batches(task, llama, rows, 64):
            task.update_metrics(metrics, task.forward(model, batch), batch)
    assert float(metrics.compute()["accuracy"]) == pytest.approx(hits / count)


def test_a_record_for_each_text_however_many_rows_it_takes(folder):
    model, rows, task = loaded(folder), encoded(folder, TEXTS), CausalLM()
    expected = reference(model, rows, 9)
    found = []
    with torch.no_grad():
        units = task.predict_units(rows, TextReader(str(folder), max_length_given=9))
        for batch in batches(task, folder, rows, 9, units=units):
            found += task.decode(task.forward(model, batch), batch, SPEC)
    json.dumps(found, allow_nan=False)
    assert [r["num_tokens"] for r in found] == [len(losses) for losses in expected]
    for record, losses, text in zip(found, expected, TEXTS, strict=True):
        if not losses:
            assert (record["loss"], record["perplexity"], record["bits_per_byte"]) == (None, None, None)
            continue
        assert record["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
        assert record["perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-6)
        assert record["bits_per_byte"] == pytest.approx(sum(losses) / math.log(2) / len(text.encode()), rel=1e-6)


def test_a_batch_of_texts_in_which_nothing_is_predicted(llama):
    task = CausalLM()
    units = task.predict_units(encoded(llama, ["", ""]), TextReader(str(llama)))
    (batch,) = batches(task, llama, None, 64, units=units)
    with torch.no_grad():
        found = task.decode(task.forward(loaded(llama), batch), batch, SPEC)
    assert [r["loss"] for r in found] == [None, None]


def test_a_broken_model_gives_nan(llama):
    task, (batch,) = CausalLM(), batches(CausalLM(), llama, None, 64, units=None or _units(llama, ["mud rain"]))
    scores = TokenScores(batch["labels"], torch.full((1, batch["labels"].shape[1], 22), torch.nan))
    assert math.isnan(task.decode(scores, batch, SPEC)[0]["loss"])


def _units(folder, texts):
    return CausalLM().predict_units(encoded(folder, texts), TextReader(str(folder)))


def test_a_document_ends_with_the_end_token_once_and_keeps_its_length(llama):
    found = CausalLM().encode({"text": ["mud </s>", "mud é", ""]}, AutoTokenizer.from_pretrained(llama), SPEC, 2)
    assert [row.count(0) for row in found["input_ids"]] == [1, 1, 1]
    assert {row[-1] for row in found["input_ids"]} == {0}
    assert found["text_bytes"] == [8, 6, 0]
    assert found["num_tokens"] == [2, 3, 1]


def test_the_baseline_knows_how_frequent_tokens_are(llama):
    rows = encoded(llama, ["mud mud rain", "sun rain"])
    spec = CausalLM().measure(rows, SPEC)
    shares = np.array([2, 1, 2]) / 5  # rain, mud, the end: all but the first of each
    loss = -(shares * np.log(shares)).sum()
    assert spec.num_units == 5
    assert spec.baseline == pytest.approx(
        {"loss": loss, "perplexity": np.exp(loss), "accuracy": 0.4, "bits_per_byte": loss * 5 / math.log(2) / 20}
    )
    assert CausalLM().measure(encoded(llama, [""]), SPEC) == SPEC


def test_rows_that_cannot_be_used_are_named():
    task = CausalLM()
    task.check(split(["a", ""]), SPEC)
    assert task.inspect(split(["a"]), None, False) == task.spec_of_model(None) == SPEC
    with pytest.raises(DataError, match=r"is null in 1 row\(s\) \(train.jsonl:2\)"):
        task.check(split(["a", None]), SPEC)
    with pytest.raises(DataError, match="there is no column 'content'"):
        CausalLM("content").check(split(["a"]), SPEC)
    numbers = Split(datasets.Dataset.from_list([{"text": 3}]), "train", [("a.csv", 1)], "f")
    with pytest.raises(DataError) as caught:
        task.check(numbers, SPEC)
    assert "task.init_args.text_column" in str(caught.value)


def test_rows_of_one_token_are_refused(llama):
    with pytest.raises(ConfigError, match="nothing is predicted"):
        CausalLM().units(encoded(llama, ["mud"]), True, TextReader(str(llama), max_length_given=1))


def test_a_model_that_mixes_documents_is_refused_and_without_packing_taken(llama):
    def without_positions(input_ids, position_ids=None, use_cache=None):
        return real(input_ids=input_ids, use_cache=use_cache)

    model = loaded(llama)
    real, model.forward = model.forward, without_positions
    with pytest.raises(ModelError, match="does not keep packed documents apart"):
        CausalLM().prepare_model(model, None)
    CausalLM(packing=False).prepare_model(model, None)


def test_virtual_tokens_before_a_row_are_left_out():
    labels, logits = torch.tensor([[1, -100]]), torch.randn(1, 5, 3)
    assert torch.equal(TokenScores(labels, logits).losses, TokenScores(labels, logits[:, 3:]).losses)


def test_a_task_is_picklable_and_says_what_decides_its_tokens():
    task = CausalLM("content", packing=False)
    copy = pickle.loads(pickle.dumps(task))
    assert (copy.settings(), copy.packing) == ({"text_column": "content"}, False)
    assert CausalLM("content").settings() == copy.settings()  # packed or not, the same tokens are stored
    assert not task.is_unlabelled(SimpleNamespace(), SPEC)


def test_of_a_single_document_the_end_is_held_out_between_words():
    text = "to be or not to be\nthat is the question whether"
    for content, cut in ((text, 19), (text.replace("\n", " "), 31), ("a\n" + "b" * 300, 2)):
        kept, held = CausalLM().hold_out(split([content]), 0.3, 0, SPEC)
        assert kept.column("text") + held.column("text") == [content[:cut], content[cut:]]
        assert held.locate(0) == "train.jsonl:1"
    kept, held = CausalLM().hold_out(split(["a", "b", "c"]), 0.3, 0, SPEC)
    assert sorted(kept.column("text") + held.column("text")) == ["a", "b", "c"]
    for content in ("word", "b" * 500, "\n  b"):
        with pytest.raises(DataError, match="one row cannot be split"):
            CausalLM().hold_out(split([content]), 0.3, 0, SPEC)
