"""The quickstart's data are what the docs say: reproducible, balanced, noisy, and too hard for a bag of words."""

import csv
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

FOLDER = Path(__file__).parent.parent / "configs" / "quickstart"
COMMITTED = ("train.csv", "test.csv", "model/config.json", "model/tokenizer.json", "model/tokenizer_config.json")


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("quickstart_generate", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def splits(generator):
    return generator.make_splits()


def read_csv(name):
    with (FOLDER / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_generating_again_gives_the_committed_bytes(generator, tmp_path):
    generator.write_files(tmp_path)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == set(COMMITTED)
    for name in COMMITTED:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name


def test_the_committed_files_are_a_few_hundred_kilobytes():
    assert sum((FOLDER / name).stat().st_size for name in COMMITTED) < 600_000


def test_the_csv_files_hold_the_generated_reviews(splits):
    for name, reviews in splits.items():
        assert [(row["text"], row["label"]) for row in read_csv(f"{name}.csv")] == [(r.text, r.label) for r in reviews]


@pytest.mark.parametrize("split", ["train", "test"])
def test_classes_are_balanced(splits, split):
    counts = Counter(review.label for review in splits[split])
    assert len(counts) == 3
    assert max(counts.values()) - min(counts.values()) < 0.1 * len(splits[split]) / 3


@pytest.mark.parametrize("split", ["train", "test"])
def test_five_to_ten_percent_of_the_labels_are_noise_in_every_class(splits, split):
    reviews = splits[split]
    # who knows every true label scores the complement of this: nobody reaches 0.97 but by luck
    assert 0.05 <= sum(r.label != r.true_label for r in reviews) / len(reviews) <= 0.10
    for label in {r.true_label for r in reviews}:
        of_class = [r for r in reviews if r.true_label == label]
        assert 0.03 <= sum(r.label != label for r in of_class) / len(of_class) <= 0.12


def test_no_text_occurs_twice_in_train_or_test_or_in_both(splits):
    texts = [review.text for reviews in splits.values() for review in reviews]
    assert len(set(texts)) == len(texts)


def test_reviews_are_sentences_of_ten_to_forty_words(splits):
    for review in (r for reviews in splits.values() for r in reviews):
        assert 10 <= len(review.text.split()) <= 40
        assert review.text[0].isupper()
        assert review.text.endswith(".")
        assert "{" not in review.text


def test_every_frequent_word_occurs_in_every_class(splits):
    counter = CountVectorizer(binary=True)
    matrix = counter.fit_transform([r.text for r in splits["train"]])
    labels = [r.true_label for r in splits["train"]]  # the noise would put any word into any class
    rows_of_class = {c: [i for i, label in enumerate(labels) if label == c] for c in set(labels)}
    frequent = [w for w, column in counter.vocabulary_.items() if matrix[:, column].sum() >= 20]
    assert len(frequent) > 100
    for word in frequent:
        column = matrix[:, counter.vocabulary_[word]]
        assert all(column[rows].sum() > 0 for rows in rows_of_class.values()), word


@pytest.mark.parametrize("ngrams", [(1, 1), (1, 2)], ids=["words", "words_and_pairs"])
@pytest.mark.parametrize("vectorizer", [CountVectorizer, TfidfVectorizer])
def test_a_bag_of_words_scores_between_60_and_85_percent(vectorizer, ngrams):
    train, test = read_csv("train.csv"), read_csv("test.csv")
    model = make_pipeline(vectorizer(ngram_range=ngrams), LogisticRegression(max_iter=1000))
    model.fit([row["text"] for row in train], [row["label"] for row in train])
    assert 0.60 <= model.score([row["text"] for row in test], [row["label"] for row in test]) <= 0.85


def test_swapping_who_says_what_swaps_the_meaning(generator, splits):
    """The very same bag of words stands for good and for bad: no count of words can tell them apart."""
    bags = {good: set() for good in (True, False)}
    for good, bag in bags.items():
        rng = Random(1)
        bag.update(" ".join(sorted(generator.make_point(rng, good).lower().split())) for _ in range(20_000))
    assert len(bags[True] & bags[False]) > 100


def test_the_model_folder_loads_offline_and_its_tokenizer_knows_every_training_word(splits, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model")
    config = AutoConfig.from_pretrained(FOLDER / "model", num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config)
    texts = [review.text for review in splits["train"]]
    ids = tokenizer(texts)["input_ids"]
    assert max(map(len, ids)) <= config.max_position_embeddings == tokenizer.model_max_length
    assert max(map(max, ids)) < config.vocab_size == len(tokenizer)
    assert tokenizer.unk_token_id not in {i for row in ids for i in row}
    assert not any(token.startswith("##") for text in texts for token in tokenizer.tokenize(text))
    assert tokenizer.decode(ids[0], skip_special_tokens=True).replace(" ", "") == texts[0].lower().replace(" ", "")
    assert tokenizer.tokenize("Zigzag!") == ["z", "##i", "##g", "##z", "##a", "##g", "!"]
    batch = tokenizer(texts[:3], padding=True, return_tensors="pt")
    assert model(**batch).logits.shape == (3, 3)
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(texts[:5])["input_ids"] == ids[:5]
