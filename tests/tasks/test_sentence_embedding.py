"""The task by itself: pairs read, texts encoded, groups compared."""

import pickle

import datasets
import numpy as np
import pytest
import torch
from toy import toy_pairs
from transformers import AutoTokenizer, BertConfig

from lit_tune.data.collators import Padding
from lit_tune.data.split import Split
from lit_tune.errors import ConfigError, DataError
from lit_tune.metrics import scalars
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.base import Spec
from lit_tune.tasks.encoding import encode_batch
from lit_tune.tasks.sentence_embedding import PROBLEM, SentenceEmbedding
from lit_tune.tasks.text_groups import Embeddings

SPEC = Spec(PROBLEM, score_range=[0.0, 5.0])
TRIPLES = ["anchor", "positive", "negative"]


def split(rows: list[dict], name: str = "train") -> Split:
    return Split(datasets.Dataset.from_list(rows, on_mixed_types="use_json"), name, [(f"{name}.jsonl", len(rows))], "f")


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def encode(rows: list[dict], tokenizer, max_length=64, **settings):
    return encode_batch(split(rows).rows[:], SentenceEmbedding(**settings), tokenizer, SPEC, max_length, {})


# --- reading ---------------------------------------------------------------------------------------------------------

SCORED = {"sentence1": "mud", "sentence2": "fog", "score": 2.0}
BAD_ROWS = {
    "null": ({"loss": "cosine"}, [{**SCORED, "sentence2": None}, SCORED], r"'sentence2' is null .* \(val.jsonl:1\)"),
    "empty": ({}, [{"anchor": " ", "positive": "mud"}], r"'anchor' is empty in 1 row\(s\) \(val.jsonl:1\)"),
    "range": ({"loss": "cosine"}, [SCORED, {**SCORED, "score": 5.5}], r"5.5, outside 0 to 5 \(val.jsonl:2\)"),
    "no number": ({"loss": "cosent"}, [SCORED, {**SCORED, "score": "high"}], r"'high' is not a finite .*val.jsonl:2"),
    "no score": ({"loss": "cosine"}, [{**SCORED, "score": None}, SCORED], "val.jsonl:1"),
    "no column": ({}, [{"query": "mud", "positive": "fog"}], "there is no column 'anchor'"),
    "negative": (
        {"text_columns": TRIPLES},
        [{"anchor": "a", "positive": "mud", "negative": "Mud "}],
        r"'negative' is the same text as 'positive' in 1 row\(s\) \(val.jsonl:1\)",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_cannot_be_used_are_named(case):
    settings, rows, message = BAD_ROWS[case]
    with pytest.raises(DataError, match=message) as caught:
        SentenceEmbedding(**settings).check(split(rows, "val"), SPEC)
    assert caught.value.fix


def test_rows_with_scores_say_that_the_loss_is_another():
    with pytest.raises(DataError) as caught:
        SentenceEmbedding().inspect(split([SCORED]), BertConfig(), False)
    assert caught.value.fix == "task.init_args.loss: cosine"


@pytest.mark.parametrize(
    ("scores", "expected"), [([1.0, 4.8], [1, 5]), ([0.2, 0.9], [0, 1]), ([0, 3, 5], [0, 5]), ([-0.5, 0.5], [-1, 1])]
)
def test_the_range_of_the_scores_is_read_off_train(scores, expected):
    rows = split([{**SCORED, "score": s} for s in scores])
    assert SentenceEmbedding("cosine").inspect(rows, BertConfig(), False).score_range == expected
    given = SentenceEmbedding("cosine", score_range=[-2, 8])
    assert given.inspect(rows, BertConfig(), False).score_range == [-2, 8]


def test_scores_that_are_all_the_same_and_ranges_that_nobody_knows_are_errors():
    with pytest.raises(DataError, match="every row has the score 2"):
        SentenceEmbedding("cosine").inspect(split([SCORED, SCORED]), BertConfig(), False)
    with pytest.raises(ConfigError, match="does not know the range"):
        SentenceEmbedding("cosine").limits(SentenceEmbedding("cosine").spec_of_model(BertConfig()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "cosine", "text_columns": TRIPLES}, "two columns"),
        ({"scale": 0}, "not above 0"),
        ({"texts_at_once": 0}, "not above 0"),
        ({"loss": "cosine", "score_range": [5, 0]}, "two rising numbers"),
        ({"loss": "cosine", "symmetric": True}, "no effect"),
        ({"loss": "cosine", "group_size": 4}, "no effect"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SentenceEmbedding(**settings)


def test_groups_fit_into_batches():
    assert SentenceEmbedding().rows_together(16) == 16
    assert SentenceEmbedding(group_size=8).rows_together(16) == 8
    assert SentenceEmbedding("cosine").rows_together(1) == 1
    for task, size in ((SentenceEmbedding(group_size=12), 16), (SentenceEmbedding(group_size=32), 16)):
        with pytest.raises(ConfigError, match="a batch has 16"):
            task.rows_together(size)
    with pytest.raises(ConfigError, match="no other to be compared with"):
        SentenceEmbedding().rows_together(1)


def test_a_held_out_part_has_anchors_of_its_own():
    rows = [{"anchor": f"a{i // 3}", "positive": f"p{i}"} for i in range(30)]
    train, held = SentenceEmbedding().hold_out(split(rows), 0.2, 0, SPEC)
    assert len(held) == 6
    assert not set(train.column("anchor")) & set(held.column("anchor"))


def test_the_task_survives_pickling_and_the_baseline_is_the_mean_score():
    task = SentenceEmbedding("cosine", score_range=[0, 4])
    assert pickle.loads(pickle.dumps(task)).settings() == task.settings()
    rows = split([{**SCORED, "score": s} for s in (0, 4, 2)])
    assert task.summarize(rows, Spec(PROBLEM)).baseline == {"loss": pytest.approx(np.var([0, 1, 0.5]))}


# --- texts to tensors ------------------------------------------------------------------------------------------------


def test_each_text_is_read_by_itself_and_cut_at_its_end(tokenizer):
    rows = toy_pairs(6, seed=1)
    features = encode(rows, tokenizer, max_length=6, text_columns=TRIPLES)
    for row, ids, count in zip(rows, features["input_ids"], features["num_tokens"], strict=True):
        whole = [tokenizer(row[name])["input_ids"] for name in TRIPLES]
        assert ids == [w if len(w) <= 6 else [*w[:5], w[-1]] for w in whole]
        assert count == max(map(len, whole))
    assert "labels" not in features
    scored = encode(rows, tokenizer, loss="cosine")
    assert scored["labels"] == pytest.approx([r["score"] / 5 for r in rows])


def batch_of(rows, tokenizer, group=1, **settings):
    features = encode(rows, tokenizer, **settings)
    singles = [{k: v[i] for k, v in features.items() if not k.startswith("num_")} for i in range(len(rows))]
    return SentenceEmbedding(**settings).collator(Padding(0, multiple_of=8, together=group), SPEC)(singles)


def test_a_batch_has_all_texts_column_after_column_and_knows_which_are_the_same(tokenizer):
    rows = [
        {"anchor": "mud", "positive": "fog"},
        {"anchor": "sun", "positive": "mud"},
        {"anchor": "mud", "positive": "a"},
    ]
    batch = batch_of(rows, tokenizer, group=2)
    assert batch["aside"]["text_keys"].tolist() == [[0, 1, 0], [2, 0, 3]]
    assert batch["labels"].tolist() == [0, 1, 0]  # place in the group
    texts = ["mud", "sun", "mud", "fog", "mud", "a"]
    for ids, mask, text in zip(batch["input_ids"], batch["attention_mask"], texts, strict=True):
        assert ids[mask.bool()].tolist() == tokenizer(text)["input_ids"]
    scored = batch_of(toy_pairs(3), tokenizer, loss="cosine")
    assert scored["labels"].tolist() == pytest.approx([r["score"] / 5 for r in toy_pairs(3)])


def test_validation_has_an_order_of_its_own_and_predict_that_of_the_file(tiny_model_dir):
    rows = datasets.Dataset.from_dict({"n": list(range(50))})
    reader, task = TextReader(str(tiny_model_dir)), SentenceEmbedding()
    drawn = [r["n"] for r in task.units(rows, False, reader).read(range(50))]
    assert sorted(drawn) == list(range(50)) != drawn
    assert drawn == [r["n"] for r in task.units(rows, False, reader).read(range(50))]
    assert [r["n"] for r in task.predict_units(rows, reader).read(range(50))] == list(range(50))


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_losses_and_metrics_of_groups_add_up_and_every_metric_is_named(tokenizer):
    rows = toy_pairs(10, seed=4)
    for settings in ({"text_columns": TRIPLES}, {"loss": "cosent"}, {"loss": "cosine"}):
        task = SentenceEmbedding(**settings)
        batch = batch_of(rows, tokenizer, group=4, **settings)
        vectors = torch.randn(len(batch["input_ids"]), 6, dtype=torch.float64)
        total, count = task.loss(Embeddings(vectors), batch, SPEC)
        collection = task.build_metrics(SPEC)
        task.update_metrics(collection, Embeddings(vectors), batch)
        sums = [0.0, 0.0]
        for start in range(0, 10, 4):
            part = batch_of(rows[start : start + 4], tokenizer, group=4, **settings)
            own = vectors.view(-1, 10, 6)[:, start : start + 4].flatten(0, 1)
            for i, found in enumerate(task.loss(Embeddings(own), part, SPEC)):
                sums[i] += float(found)
        assert [float(total), float(count)] == pytest.approx(sums, rel=1e-9)
        computed = {"loss": total / count, **collection.compute()}
        assert set(task.metric_names(SPEC)) == set(computed) == set(scalars(computed))
        assert task.primary_metric(SPEC) in computed
        assert task.primary_metric(SPEC) in task.report(computed, SPEC)


def test_one_embedding_for_all_texts_finds_nothing(tokenizer):
    batch = batch_of(toy_pairs(8), tokenizer, group=8)
    task = SentenceEmbedding()
    collection = task.build_metrics(SPEC)
    task.update_metrics(collection, Embeddings(torch.ones(16, 4)), batch)
    assert scalars(collection.compute()) == {"accuracy": 0.0, "mrr": pytest.approx(1 / 8)}
