"""The quickstart's data: reviews of hiking trails whose verdict hangs on who says what, and in which order.

    python configs/quickstart/generate.py

writes train.csv, test.csv and model/ (the config of a small ModernBERT and its WordPiece tokenizer) beside this file.
Standard library only, and byte for byte the same on every machine and Python version.

A review makes one or two points about a trail. All good: ``recommend``; all bad: ``avoid``; one of each: ``mixed``. A
point is

* plain: "The climb was steep.",
* negated: "The climb was never steep.", or
* a contrast, in which a good and a bad word both stand and only their places tell which one holds: "My sister found the
  climb gentle; I found it steep." Every contrast also occurs the other way round: "I found the climb steep; ...".

So the classes share their words, and a model that only counts words must guess at every contrast. ``NOISE_FRACTION`` of
the labels is wrong on purpose, as in data that people labelled: no model can score much above 1 - NOISE_FRACTION.

Accuracy on test: 0.66 with scikit-learn's LogisticRegression on counts of words, 0.74 on counts of words and pairs of
words, 0.88 with model/ trained as in ../quickstart.yaml, and 0.93 for who knows all true labels.
"""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

HERE = Path(__file__).parent
SEED = 2024
LABELS = ("avoid", "mixed", "recommend")
NUM_TRAIN, NUM_TEST = 3600, 800
MIN_WORDS, MAX_WORDS = 10, 40
MAX_TOKENS = 64
NOISE_FRACTION = 0.07
# How often each thing occurs. More contrasts, second points and asides make it harder for everybody: with half of the
# points plain and SECOND_POINT 0.5 a bag of words sinks to 0.53, and the encoder needs twice the epochs.
PLAIN, NEGATED = 0.68, 0.1  # the other points are contrasts
SECOND_POINT = 0.2  # of `recommend` and `avoid`; `mixed` needs two
OPENING, ASIDE, CLOSING = 0.4, 0.15, 0.2

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOKEN_OF = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]", "cls": "[CLS]", "sep": "[SEP]"}

T = TypeVar("T")

# (bad, good): a contrast takes both words of a pair, so that it reads as one thought.
ADJECTIVES = (
    ("muddy", "dry"), ("steep", "gentle"), ("crowded", "quiet"), ("slippery", "safe"), ("rough", "smooth"),
    ("dull", "lovely"), ("dirty", "clean"), ("confusing", "clear"),
)  # fmt: skip
NOUNS = (
    ("crowds", "silence"), ("litter", "flowers"), ("fog", "sunshine"), ("wasps", "butterflies"),
    ("traffic", "birdsong"),
)  # fmt: skip
PARTS = (
    "the climb", "the descent", "the ridge", "the way up", "the way down", "the first hour", "the last mile",
    "the forest section", "the stretch by the lake", "the loop", "the path to the summit", "the track to the hut",
)  # fmt: skip
PLACES = (
    "on the ridge", "past the bridge", "behind the dam", "in the forest", "near the summit", "by the lake",
    "above the tree line", "after the second gate", "below the hut", "along the river",
)  # fmt: skip
PEOPLE = (
    "my sister", "my brother", "a friend", "the ranger", "my neighbour", "the man at the car park", "my cousin",
)  # fmt: skip
OTHER_TRAILS = (
    "the valley path", "the coast trail", "the old mule road", "the trail next to it", "the northern route",
)  # fmt: skip
NAME_FIRST = ("Heron", "Birch", "Wolf", "Granite", "Larch", "Otter", "Raven", "Copper", "Juniper", "Stag")
NAME_LAST = ("Lake", "Gully", "Pass", "Ridge", "Falls", "Hollow", "Point", "Meadow", "Gorge", "Bluff")
MONTHS = ("April", "May", "June", "July", "August", "September", "October")
HOURS = ("two", "three", "four", "five", "six")
OPENINGS = (
    "Walked {trail} in {month} with {person}.",
    "{trail}, {month}, about {hours} hours.",
    "We did {trail} in {hours} hours.",
    "Took the bus to {trail} in {month}.",
    "Second visit to {trail}, this time with {person}.",
    "{trail} on a weekday in {month}.",
)
# Asides name good and bad things that say nothing about the trail.
ASIDES = (
    "{Person} cannot stand {noun}.",
    "{Person} had asked about {noun}.",
    "{Person} always talks about {noun}.",
    "{Person} prefers anything {adjective}.",
    "{Person} thinks that every hill is {adjective}.",
)
CLOSINGS = (
    "Bring water.", "Parking costs a few coins.", "Dogs are allowed.", "The bus leaves every hour.",
    "We took poles.", "Start early.", "It is about ten miles.", "No phone signal up there.", "Boots are enough.",
)  # fmt: skip

# {a} and {n} are the adjective and noun that hold for the trail, {b} and {m} their opposites.
PLAIN_FORMS = (
    "{Part} was {a}.",
    "{Part} was {a} and {a2}.",
    "I found {part} {a}.",
    "{Place} we found {n}.",
    "{N} {place}, and {n2} later on.",
)
NEGATED_FORMS = (
    "{Part} was not {b}.",
    "{Part} was never {b}.",
    "I would not call {part} {b}.",
    "We had no {m} {place}.",
)
# Each stands in both orders, so that neither the first nor the last word gives the answer away.
CONTRAST_FORMS = (
    "I expected {m} {place}, but found {n}.",
    "I found {n} {place}, but had expected {m}.",
    "{Person} found {part} {b}; I found it {a}.",
    "I found {part} {a}; {person} found it {b}.",
    "{Other} is {b}; this one is {a}.",
    "This one is {a}; {other} is {b}.",
    "Last year {part} was {b}; now it is {a}.",
    "Now {part} is {a}; last year it was {b}.",
)


@dataclass(frozen=True)
class Review:
    """One row.

    Args:
        text: The review, ``MIN_WORDS`` to ``MAX_WORDS`` words.
        true_label: What its points amount to.
        label: What the file says: ``true_label`` but for the noise.
    """

    text: str
    true_label: str
    label: str


def pick(rng: Random, options: Sequence[T]) -> T:
    """One of the options, from ``random()`` alone: ``Random.choice`` may draw differently in another Python version."""
    return options[int(rng.random() * len(options))]


def capitalized(words: str) -> str:
    """The words with a capital first letter, the rest as it is."""
    return words[0].upper() + words[1:]


def make_point(rng: Random, good: bool) -> str:
    """One sentence that says something good, or bad, about the trail."""
    kind = rng.random()
    forms = PLAIN_FORMS if kind < PLAIN else NEGATED_FORMS if kind < PLAIN + NEGATED else CONTRAST_FORMS
    adjectives, nouns = pick(rng, ADJECTIVES), pick(rng, NOUNS)
    holds, opposite = int(good), 1 - int(good)
    words = {
        "a": adjectives[holds],
        "a2": pick(rng, [pair for pair in ADJECTIVES if pair != adjectives])[holds],
        "b": adjectives[opposite],
        "n": nouns[holds],
        "n2": pick(rng, [pair for pair in NOUNS if pair != nouns])[holds],
        "m": nouns[opposite],
        "part": pick(rng, PARTS),
        "place": pick(rng, PLACES),
        "person": pick(rng, PEOPLE),
        "other": pick(rng, OTHER_TRAILS),
    }
    return pick(rng, forms).format(**words, **{k.capitalize(): capitalized(v) for k, v in words.items()})


def make_text(rng: Random, label: str) -> str:
    """A review that deserves the label."""
    good = rng.random() < 0.5 if label == "mixed" else label == "recommend"
    sentences = [make_point(rng, good)]
    if label == "mixed":
        sentences.append(make_point(rng, not good))
    elif rng.random() < SECOND_POINT:
        sentences.append(make_point(rng, good))
    if rng.random() < ASIDE:
        words = {
            "Person": capitalized(pick(rng, PEOPLE)),
            "noun": pick(rng, pick(rng, NOUNS)),
            "adjective": pick(rng, pick(rng, ADJECTIVES)),
        }
        sentences.insert(int(rng.random() * (len(sentences) + 1)), pick(rng, ASIDES).format(**words))
    if rng.random() < OPENING:
        words = {
            "trail": f"{pick(rng, NAME_FIRST)} {pick(rng, NAME_LAST)}",
            "month": pick(rng, MONTHS),
            "hours": pick(rng, HOURS),
            "person": pick(rng, PEOPLE),
        }
        sentences.insert(0, pick(rng, OPENINGS).format(**words))
    if rng.random() < CLOSING:
        sentences.append(pick(rng, CLOSINGS))
    return " ".join(sentences)


def make_reviews(num_reviews: int, rng: Random, taken: set[str]) -> list[Review]:
    """Reviews with balanced true labels and exactly ``NOISE_FRACTION`` wrong labels, in random order.

    Args:
        num_reviews: How many.
        rng: Where the randomness comes from.
        taken: Texts that must not occur again; the new ones are added.
    """
    true_labels = [LABELS[i % len(LABELS)] for i in range(num_reviews)]
    texts: list[str] = []
    for label in true_labels:
        text = make_text(rng, label)
        while text in taken or not MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            text = make_text(rng, label)
        taken.add(text)
        texts.append(text)
    order = sorted(range(num_reviews), key=lambda _: rng.random())
    noisy = set(order[: round(NOISE_FRACTION * num_reviews)])
    labels = [
        pick(rng, [other for other in LABELS if other != label]) if i in noisy else label
        for i, label in enumerate(true_labels)
    ]
    reviews = [Review(*row) for row in zip(texts, true_labels, labels, strict=True)]
    return sorted(reviews, key=lambda _: rng.random())


def make_splits() -> dict[str, list[Review]]:
    """The reviews of ``train`` and ``test``; no text stands in both."""
    rng, taken = Random(SEED), set[str]()
    return {"train": make_reviews(NUM_TRAIN, rng, taken), "test": make_reviews(NUM_TEST, rng, taken)}


def make_vocabulary(texts: list[str]) -> list[str]:
    """A WordPiece vocabulary: special tokens, characters, and every lower-cased word of the texts, frequent ones first.

    A few hundred words need no merging. The characters let a word that is not here be spelled instead of lost.
    """
    counts = Counter("".join(c if c.isalnum() else " " for c in " ".join(texts).lower()).split())
    words = [w for w, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if len(w) > 1]
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    return [*SPECIAL_TOKENS, *".,;:!?'\"()-&", *characters, *(f"##{c}" for c in characters), *words]


def tokenizer(vocabulary: list[str]) -> dict[str, object]:
    """``tokenizer.json``: BERT's lower-casing WordPiece over the vocabulary.

    Written out by hand: what a library saves carries its version, so that the files would change with it.
    """
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **flags} for i, token in enumerate(SPECIAL_TOKENS)],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing",
            "sep": ["[SEP]", SPECIAL_TOKENS.index("[SEP]")],
            "cls": ["[CLS]", SPECIAL_TOKENS.index("[CLS]")],
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: i for i, token in enumerate(vocabulary)},
        },
    }


def tokenizer_config() -> dict[str, object]:
    """``tokenizer_config.json``; ModernBERT knows no ``token_type_ids``."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_TOKENS,
        "model_input_names": ["input_ids", "attention_mask"],
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
    }


def model_config(vocab_size: int) -> dict[str, object]:
    """``config.json`` of an encoder with 0.15 M parameters, which two CPU cores train in half a minute.

    ModernBERT and not BERT: its rotary positions make "the word after `found`" easy to learn. A BERT of this size ended
    at 0.61 after the same epochs.
    """
    return {
        "model_type": "modernbert",
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "max_position_embeddings": MAX_TOKENS,
        "classifier_pooling": "mean",
        "initializer_range": 0.1,  # near 1 / sqrt(hidden_size); the usual 0.02 is made for a hidden size of 768
        **{f"{part}_dropout": 0.1 for part in ("embedding", "attention", "mlp", "classifier")},
        **{f"{name}_token_id": SPECIAL_TOKENS.index(token) for name, token in TOKEN_OF.items()},
    }


def write_files(folder: Path) -> None:
    """Write train.csv, test.csv and model/ into the folder."""
    splits = make_splits()
    for name, reviews in splits.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["text", "label"])
            writer.writerows((r.text, r.label) for r in reviews)
    model = folder / "model"
    model.mkdir(exist_ok=True)
    vocabulary = make_vocabulary([r.text for r in splits["train"]])
    for name, content in {
        "config": model_config(len(vocabulary)),
        "tokenizer": tokenizer(vocabulary),
        "tokenizer_config": tokenizer_config(),
    }.items():
        (model / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_files(HERE)
