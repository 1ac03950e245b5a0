"""The task by itself: tags read, sentences encoded, outputs turned into losses and spans."""

import pickle
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from torch.nn import functional as F
from toy import toy_sentences
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast

from lit_tune.data.collators import Padding
from lit_tune.data.split import Split
from lit_tune.errors import ConfigError, DataError, ModelError
from lit_tune.losses import IGNORE_INDEX
from lit_tune.metrics import scalars
from lit_tune.models.word_tokenizer import mark_words
from lit_tune.tasks.base import Spec
from lit_tune.tasks.encoding import class_labels, encode_batch
from lit_tune.tasks.token_classification import PROBLEM, TokenClassification

BASE = BertConfig(architectures=["BertModel"])
NAMES = ["O", "B-PLACE", "I-PLACE", "B-SKY", "I-SKY"]
SPEC = Spec(PROBLEM, NAMES, unit="word")


def split(rows: list[dict], name: str = "train", features=None) -> Split:
    mixed = None if features else "use_json"
    table = datasets.Dataset.from_list(rows, features=features, on_mixed_types=mixed)
    return Split(table, name, [(f"{name}.jsonl", len(rows))], "f")


def tagged(*tags: list) -> Split:
    return split([{"tokens": [f"w{i}" for i in range(len(row))], "ner_tags": row} for row in tags])


# --- reading the tags ------------------------------------------------------------------------------------------------


def test_names_are_sorted_with_o_first():
    spec = TokenClassification().inspect(tagged(["I-x", "B-x"], ["O", "B-a"]), BASE, False)
    assert spec == Spec(PROBLEM, ["O", "B-a", "B-x", "I-x"], unit="word")


def test_a_class_labels_own_order_stands_and_its_ids_are_mapped_by_name(tiny_model_dir):
    rows = [{"tokens": ["mud", "lake"], "ner_tags": [0, 1]}]
    for names, expected in ((["B-x", "O"], [1, 0]), (["O", "B-x"], [0, 1])):
        tags = datasets.List(datasets.ClassLabel(names=names))
        features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": tags})
        found = split(rows, features=features)
        assert TokenClassification().inspect(found, BASE, False).label_names == names
        spec, tokenizer = Spec(PROBLEM, ["O", "B-x"]), AutoTokenizer.from_pretrained(tiny_model_dir)
        assert TokenClassification().tag_ids(found, spec).tolist() == expected
        encoded = encode_batch(found.rows[:], TokenClassification(), tokenizer, spec, 9, class_labels(found))
        assert encoded["word_labels"] == [expected]


def test_ids_without_names_need_them():
    with pytest.raises(DataError, match=r"tags are ids such as 0 \(train.jsonl:1 word 1\)") as caught:
        TokenClassification().inspect(tagged([0, 1]), BASE, False)
    assert caught.value.where == "task.init_args.label_names"
    named = TokenClassification(label_names=["O", "B-x"])
    assert named.inspect(tagged([0, 1]), BASE, False).label_names == ["O", "B-x"]
    assert named.tag_ids(tagged([0, 1]), Spec(PROBLEM, ["O", "B-x"])).tolist() == [0, 1]


def test_tags_that_nothing_can_be_learned_from_are_refused():
    for tags, error, what in (
        (["O", "O"], DataError, "every word has the tag 'O'"),
        (["O", "B-x", "MISC"], ConfigError, "'MISC' has no prefix"),
        (["O", "B-x", None], DataError, r"missing \(train.jsonl:1 word 3\)"),
    ):
        with pytest.raises(error, match=what):
            TokenClassification().inspect(tagged(tags), BASE, False)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="2 numbers for 3 tags"):
        TokenClassification(class_weights=[1.0, 2.0]).inspect(tagged(["O", "B-x", "I-x"]), BASE, False)
    with pytest.raises(ConfigError, match="no effect beside focal_gamma"):
        TokenClassification(label_smoothing=0.1, focal_gamma=2.0)


def test_a_head_is_kept_in_its_order_and_another_one_refused():
    head = BertConfig(id2label={0: "B-x", 1: "O"}, architectures=["BertForTokenClassification"])
    task = TokenClassification()
    assert task.inspect(tagged(["O", "B-x"]), head, False).label_names == ["B-x", "O"]
    assert task.spec_of_model(head) == Spec(PROBLEM, ["B-x", "O"], unit="word")
    with pytest.raises(ModelError, match="head for other labels"):
        task.inspect(tagged(["O", "B-y"]), head, False)
    assert task.inspect(tagged(["O", "B-y"]), head, True).label_names == ["O", "B-y"]


BAD_ROWS = {
    "lengths": ([{"tokens": ["a", "b"], "ner_tags": ["O"]}], r"2 words and 1 tags \(val.jsonl:1\)"),
    "null tag": (
        [{"tokens": ["a", "b"], "ner_tags": ["O", None]}],
        r"1 of 2 labels are missing \(val.jsonl:1 word 2\)",
    ),
    "unknown tag": (
        [{"tokens": ["a"], "ner_tags": ["O"]}, {"tokens": ["a", "b"], "ner_tags": ["O", "B-PLAICE"]}],
        r"'B-PLAICE' never occurs in train \(val.jsonl:2 word 2\)",
    ),
    "text for a list": ([{"tokens": "a b", "ner_tags": ["O", "O"]}], r"'tokens' is 'a b', a str, .*\(val.jsonl:1\)"),
    "text for tags": ([{"tokens": ["a"], "ner_tags": "O"}], r"'ner_tags' is 'O', a str, where a list of tags"),
    "no words": (
        [{"tokens": ["a"], "ner_tags": ["O"]}, {"tokens": [], "ner_tags": []}],
        r"a sentence has no words \(val.jsonl:2\)",
    ),
    "null": ([{"tokens": None, "ner_tags": ["O"]}, {"tokens": ["a"], "ner_tags": ["O"]}], r"is null \(val.jsonl:1\)"),
    "a number": ([{"tokens": ["a", 3], "ner_tags": ["O", "O"]}], r"a word is 3, a int \(val.jsonl:1 word 2\)"),
    "no column": ([{"words": ["a"], "ner_tags": ["O"]}], "there is no column 'tokens'"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_cannot_be_used_are_named(case):
    rows, message = BAD_ROWS[case]
    with pytest.raises(DataError, match=message) as caught:
        TokenClassification().check(split(rows, "val"), SPEC)
    assert caught.value.fix


def test_problems_of_words_and_tags_are_told_together():
    rows = [{"tokens": ["a", "b"], "ner_tags": ["O"]}, {"tokens": ["a"], "ner_tags": ["B-no"]}]
    with pytest.raises(DataError.__base__) as caught:
        TokenClassification().check(split(rows, "val"), SPEC)
    assert [p.exit_code for p in caught.value.problems] == [3, 3]


def test_splits_without_tags_are_known():
    task = TokenClassification()
    plain = split([{"tokens": ["a"]}])
    assert task.is_unlabelled(plain, SPEC)
    assert task.is_unlabelled(tagged([], []), SPEC)
    assert not task.is_unlabelled(tagged(["O"]), SPEC)
    assert task.without_labels(tagged(["O"])).column_names == ["tokens"]
    task.check(split([{"tokens": ["a"]}, {"tokens": []}]), SPEC, labelled=False)  # an empty line is no error there


def test_the_baseline_is_the_most_frequent_tag():
    spec = TokenClassification().summarize(tagged(["O", "O", "B-PLACE"], ["O"]), SPEC)
    assert (spec.label_counts, spec.num_rows, spec.num_units, spec.total) == ([3, 1, 0, 0, 0], 2, 4, 4)
    shares = np.array([0.75, 0.25])
    assert spec.baseline["accuracy"] == 0.75
    assert spec.baseline["f1"] == 0.0
    assert spec.baseline["loss"] == pytest.approx(-(shares * np.log(shares)).sum())
    for other in ({"class_weights": [1.0] * 5}, {"label_smoothing": 0.1}, {"label_subwords": "all"}):
        assert "loss" not in TokenClassification(**other).summarize(tagged(["O", "B-PLACE"]), SPEC).baseline


def test_strata_keep_sentences_of_rare_types_apart():
    rows = tagged(["O", "O"], ["O", "B-PLACE"], ["B-PLACE", "O", "B-SKY"], ["O"])
    strata = TokenClassification().strata(rows, SPEC)
    assert len(set(strata.tolist())) == 3
    assert strata[0] == strata[3]


def test_a_task_is_picklable_and_its_copy_is_equal():
    task = TokenClassification(label_names=["O", "B-x"], label_subwords="all", class_weights="balanced")
    assert pickle.loads(pickle.dumps(task)).settings() == task.settings()


# --- words to tokens -------------------------------------------------------------------------------------------------


def encode(sentences, tags=None, tokenizer=None, max_length=64, **settings):
    rows = {"tokens": sentences} | ({"ner_tags": tags} if tags else {})
    return TokenClassification(**settings).encode(rows, tokenizer, SPEC, max_length)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def test_the_first_token_of_a_word_has_its_label_or_all_have(tokenizer):
    words, tags = [["the", "mud-lake", "sun"]], [["O", "B-PLACE", "B-SKY"]]
    first = encode(words, tags, tokenizer)
    assert tokenizer.convert_ids_to_tokens(first["input_ids"][0])[2:5] == ["mud", "[UNK]", "lake"]
    assert first["labels"] == [[-100, 0, 1, -100, -100, 3, -100]]
    assert first["word_starts"] == [[1, 2, 5]]
    assert first["word_labels"] == [[0, 1, 3]]
    assert "words" not in first
    every = encode(words, tags, tokenizer, label_subwords="all")
    assert every["labels"] == [[-100, 0, 1, 2, 2, 3, -100]]


def test_a_continuing_tag_that_does_not_exist_stays_what_it_is():
    task, spec = TokenClassification(), Spec(PROBLEM, ["O", "B-x", "B-y", "I-y", "S-z", "B", "I"])
    assert task.continuing_tags(spec) == [0, 1, 3, 3, 4, 6, 6]


@pytest.mark.parametrize("max_length", [4, 6, 9, 64])
def test_encoding_equals_the_tokenizers_own_cut_row_by_row(tokenizer, max_length):
    rows = toy_sentences(30, seed=2)
    features = encode([r["tokens"] for r in rows], [r["ner_tags"] for r in rows], tokenizer, max_length)
    for i, row in enumerate(rows):
        plain = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=max_length)
        ids = plain.word_ids()
        assert features["input_ids"][i] == plain["input_ids"]
        expected = [
            -100 if word is None or word in ids[:place] else NAMES.index(row["ner_tags"][word])
            for place, word in enumerate(ids)
        ]
        assert features["labels"][i] == expected
        read = {word for word in ids if word is not None}
        assert features["num_cut_words"][i] == len(row["tokens"]) - len(read)
        assert features["word_starts"][i] == [ids.index(w) if w in read else -1 for w in range(len(row["tokens"]))]


def test_a_word_that_leaves_no_token_is_counted_and_not_trained_on(tokenizer):
    features = encode([["sun", " ", "mud"], []], [["B-SKY", "O", "O"], []], tokenizer)
    assert features["word_starts"] == [[1, -1, 2], []]
    assert features["labels"] == [[-100, 3, 0, -100], [-100, -100]]
    assert features["num_words_without_tokens"] == [1, 0]
    assert features["num_cut_words"] == [0, 0]


@pytest.mark.parametrize("kind", ["roberta", "modernbert"])
def test_byte_level_tokenizers_read_each_word_as_one(kind, tmp_path):
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["the mud and the lake"] * 50, vocab_size=300, special_tokens=["<s>", "<pad>", "</s>"])
    if kind == "roberta":
        from transformers import RobertaConfig, RobertaTokenizerFast

        trained.save_model(str(tmp_path))
        RobertaConfig(vocab_size=300).save_pretrained(tmp_path)
        RobertaTokenizerFast.from_pretrained(tmp_path).save_pretrained(tmp_path)
    else:
        special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **special).save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    words = [["mud", "lake", "lake"]]
    unmarked = read(words, is_split_into_words=True)["input_ids"]
    mark_words(read)
    features = encode(words, [["O", "B-PLACE", "I-PLACE"]], read)
    assert features["input_ids"] != unmarked
    tokens = read.convert_ids_to_tokens(features["input_ids"][0])
    assert all(tokens[place].startswith("Ġ") for place in features["word_starts"][0])
    read.save_pretrained(tmp_path / "saved")  # what best/ holds
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(words, is_split_into_words=True)["input_ids"] == features["input_ids"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_collator_keeps_words_beside_their_tokens(side, tokenizer):
    rows = toy_sentences(5, seed=3)
    features = encode([r["tokens"] for r in rows], [r["ner_tags"] for r in rows], tokenizer)
    singles = [{k: v[i] for k, v in features.items() if not k.startswith("num_")} for i in range(5)]
    batch = TokenClassification().collator(Padding(0, side=side, multiple_of=8), SPEC)(singles)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[1] % 8 == 0
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORE_INDEX).all()
    starts, labels = batch["aside"]["word_starts"], batch["aside"]["word_labels"]
    at_starts = batch["labels"].gather(1, starts.clamp(min=0))[starts >= 0]
    assert at_starts.tolist() == labels[starts >= 0].tolist()
    assert (starts >= 0).sum(1).tolist() == [len(r["tokens"]) for r in rows]


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_sums_of_losses_over_denominators_are_torchs_means():
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 0, 3, -100], [1, 1, -100, 2]])
    spec = Spec(PROBLEM, NAMES, [4, 2, 1, 1, 2], 2, unit="word", num_units=10)
    flat, target = logits.flatten(0, 1), labels.flatten()
    balanced = torch.tensor([10 / (5 * n) for n in spec.label_counts])
    for settings, expected, denominator in (
        ({}, F.cross_entropy(flat, target), 5.0),
        ({"class_weights": "balanced"}, F.cross_entropy(flat, target, balanced), 0.5 + 2.0 + 2 * 1.0 + 2.0),
        ({"label_smoothing": 0.1}, F.cross_entropy(flat, target, label_smoothing=0.1), 5.0),
        ({"focal_gamma": 0.0}, F.cross_entropy(flat, target), 5.0),
    ):
        total, count = TokenClassification(**settings).loss(SimpleNamespace(logits=logits), {"labels": labels}, spec)
        assert count.item() == pytest.approx(denominator), settings
        assert (total / count).item() == pytest.approx(expected.item(), rel=1e-6), settings


def decoded(tags: list[list[int]], sentences: list[list[str]], starts: list[list[int]], **settings):
    """What is predicted where the model is sure of these tags of tokens; probability 0.9, 0.8 ... by token."""
    logits = torch.full((len(tags), len(tags[0]), len(NAMES)), -30.0)
    for i, row in enumerate(tags):
        for j, tag in enumerate(row):
            p = 0.9 - 0.1 * j
            logits[i, j, tag], logits[i, j, (tag + 1) % 5] = np.log(p), np.log(1 - p)
    aside = {"words": sentences, "word_starts": torch.tensor(starts)}
    return TokenClassification(**settings).decode(SimpleNamespace(logits=logits), {"aside": aside}, SPEC)


def test_predictions_are_spans_of_words_with_the_mean_probability_of_their_tags():
    record, empty = decoded([[0, 1, 2, 3], [1, 1, 1, 1]], [["the", "mud", "lake", "x"], []], [[0, 1, 2, -1], [-1] * 4])
    assert record["tags"] == ["O", "B-PLACE", "I-PLACE", "O"]
    (found,) = record["entities"]
    assert found == {"type": "PLACE", "text": "mud lake", "start": 1, "end": 3, "score": pytest.approx(0.75)}
    assert record["score"] == pytest.approx((0.9 + 0.8 + 0.7) / 3)
    assert record["unread_words"] == 1
    assert empty == {"entities": [], "tags": [], "score": 0.0, "unread_words": 0}


def test_a_broken_model_is_told_by_a_score_that_is_no_number():
    aside = {"words": [["a"]], "word_starts": torch.tensor([[0]])}
    outputs = SimpleNamespace(logits=torch.full((1, 1, len(NAMES)), torch.nan))
    (record,) = TokenClassification().decode(outputs, {"aside": aside}, SPEC)
    assert np.isnan(record["score"])


def test_strict_spans_are_those_of_the_scheme():
    tags, words, starts = [[2, 1, 4, 4]], [["a", "b", "c", "d"]], [[0, 1, 2, 3]]
    lenient, strict = decoded(tags, words, starts), decoded(tags, words, starts, strict=True)
    assert [(e["type"], e["start"], e["end"]) for e in lenient[0]["entities"]] == [
        ("PLACE", 0, 1),
        ("PLACE", 1, 2),
        ("SKY", 2, 4),
    ]
    assert [(e["type"], e["start"], e["end"]) for e in strict[0]["entities"]] == [("PLACE", 1, 2)]


@pytest.mark.parametrize("names", [NAMES, ["O", "NOUN", "VERB"], ["DET", "NOUN"]])
def test_every_metric_that_is_named_is_computed_and_the_primary_one_is_among_them(names):
    task, spec = TokenClassification(), Spec(PROBLEM, names, unit="word")
    collection, directions = task.build_metrics(spec), task.metric_names(spec)
    labels = torch.arange(12).reshape(3, 4) % len(names)
    logits = F.one_hot(labels.roll(1, 0), len(names)).float()
    aside = {"word_starts": torch.arange(4).expand(3, 4), "word_labels": labels}
    task.update_metrics(collection, SimpleNamespace(logits=logits), {"aside": aside})
    computed = collection.compute()
    assert set(directions) == set(scalars({"loss": torch.tensor(1.0), **computed}))
    assert task.primary_metric(spec) in directions
    assert directions["loss"] is False
    report = task.report({"loss": torch.tensor(1.0), **computed}, spec)
    assert "accuracy" in report
    assert all(kind in report for kind in task.tag_set(spec).type_names)
