"""Entities and their scores beside seqeval, over random sequences of tags, most of them ill-formed."""

import random
import warnings

import pytest
import torch
from seqeval import metrics as seqeval
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.metrics.v1 import classification_report as strict_report
from seqeval.scheme import IOB2, IOBES, Entities

from lit_tune.errors import ConfigError
from lit_tune.metrics import scalars
from lit_tune.metrics.entities import UNREAD, EntityCounts, find_spans, read_tag_set

TYPES = ("LOC", "PER", "creative-work", "_")
SCHEMES = {"BIO": ("BI", IOB2), "BIOES": ("BIES", IOBES)}


def names_of(scheme: str, types=TYPES) -> list[str]:
    return ["O", *(f"{p}-{t}" for t in types for p in SCHEMES[scheme][0])]


def sentences(names: list[str], seed: int, count: int = 60) -> tuple[list[list[str]], list[list[str]]]:
    """Random tags and predictions that agree in about two thirds of the words, many runs among them."""
    rng = random.Random(seed)
    true, found = [], []
    for _ in range(count):
        row: list[str] = []
        for _ in range(rng.randint(1, 12)):
            again = row and rng.random() < 0.4
            row.append(row[-1].replace("B-", "I-") if again else rng.choice(names))
        true.append(row)
        found.append([tag if rng.random() < 0.66 else rng.choice(names) for tag in row])
    return true, found


def ids(rows: list[list[str]], names: list[str], width: int = 0) -> torch.Tensor:
    width = max(width, *(len(row) for row in rows))
    return torch.tensor([[names.index(tag) for tag in row] + [UNREAD] * (width - len(row)) for row in rows])


def computed(true, found, names, strict=False, batch=7) -> dict:
    metric = EntityCounts(read_tag_set(names, strict=strict))
    for start in range(0, len(true), batch):
        rows = true[start : start + batch]
        width = max(map(len, rows))
        metric.update(ids(found[start : start + batch], names, width), ids(rows, names, width))
    return metric.compute()


def spans_of(rows: list[list[str]], names: list[str], strict: bool) -> list[set[tuple]]:
    tags = read_tag_set(names, strict=strict)
    spans = find_spans(ids(rows, names), tags)
    return [
        {(tags.type_names[t], s, int(e)) for s, (b, e, t) in enumerate(zip(*row, strict=True)) if b}
        for row in zip(spans.begins, spans.ends, spans.types, strict=True)
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_spans_are_those_of_seqeval(scheme):
    names = names_of(scheme)
    rows = sentences(names, seed=1, count=300)[0]
    assert spans_of(rows, names, strict=False) == [{(t, s, e + 1) for t, s, e in get_entities(row)} for row in rows]
    strict = [{(e.tag, e.start, e.end) for e in row} for row in Entities(rows, SCHEMES[scheme][1]).entities]
    assert spans_of(rows, names, strict=True) == strict
    assert strict != spans_of(rows, names, strict=False)  # ill-formed ones are among them


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_seqevals(scheme, seed):
    names = names_of(scheme)
    true, found = sentences(names, seed)
    ours = computed(true, found, names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = seqeval.classification_report(true, found, output_dict=True)
    for name, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert ours[name].item() == pytest.approx(report["micro avg"][key], abs=1e-12)
        for kind in TYPES:
            assert ours[f"{name}/{kind}"].item() == pytest.approx(report[kind][key], abs=1e-12)
    assert ours["f1_macro"].item() == pytest.approx(report["macro avg"]["f1-score"], abs=1e-12)
    assert ours["accuracy"].item() == pytest.approx(seqeval.accuracy_score(true, found), abs=1e-12)
    assert ours["entity_counts"][2].tolist() == [report[kind]["support"] for kind in sorted(TYPES)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(4))
def test_strict_scores_are_seqevals(scheme, seed):
    names = names_of(scheme, TYPES[:3])
    true, found = sentences(names, seed, count=200)
    ours = computed(true, found, names, strict=True)
    report = strict_report(true, found, output_dict=True, scheme=SCHEMES[scheme][1], zero_division=0)
    assert 0 < report["micro avg"]["f1-score"] < 1
    for name, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert ours[name].item() == pytest.approx(report["micro avg"][key], abs=1e-12)
        for kind in TYPES[:3]:
            assert ours[f"{name}/{kind}"].item() == pytest.approx(report[kind][key], abs=1e-12)


def test_no_cut_into_batches_changes_a_score():
    names = names_of("BIO")
    true, found = sentences(names, seed=9)
    whole = scalars(computed(true, found, names, batch=60))
    for batch in (1, 7, 59):
        assert scalars(computed(true, found, names, batch=batch)) == whole


def test_a_word_that_was_not_read_counts_as_outside():
    names = ["O", "B-PER", "I-PER"]
    metric = EntityCounts(read_tag_set(names))
    metric.update(torch.tensor([[1, UNREAD, UNREAD]]), torch.tensor([[1, 2, 0]]))
    scores = scalars(metric.compute())
    assert (scores["accuracy"], scores["f1"]) == (pytest.approx(2 / 3), 0.0)


def test_what_is_undefined_is_zero_with_words_and_null_without():
    names = ["O", "B-PER", "I-PER"]
    metric = EntityCounts(read_tag_set(names))
    assert set(scalars(metric.compute()).values()) == {None}
    metric.update(torch.tensor([[0, 0]]), torch.tensor([[0, 0]]))
    scores = scalars(metric.compute())
    assert (scores["f1"], scores["precision"], scores["recall"], scores["accuracy"]) == (0.0, 0.0, 0.0, 1.0)
    assert scores["f1/PER"] is None


def test_tags_without_prefix_are_their_own_types():
    names = ["DET", "NOUN", "VERB"]
    assert spans_of([["DET", "NOUN", "NOUN", "VERB"]], names, strict=True) == [
        {("DET", 0, 1), ("NOUN", 1, 3), ("VERB", 3, 4)}
    ]


@pytest.mark.parametrize(
    ("names", "scheme", "types"),
    [
        (["O", "B-a", "I-a"], "auto", ("a",)),
        (["O", "B", "I"], "auto", ("_",)),
        (["O", "B-a-b", "I-a-b", "B-c"], "BIO", ("a-b", "c")),
        (["O", "S-a", "B-a", "E-a"], "auto", ("a",)),
        (["O", "B-a"], "IO", ("B-a",)),
        (["O"], "auto", ()),
    ],
)
def test_types_are_read_off_the_tags(names, scheme, types):
    assert read_tag_set(names, scheme).type_names == types


@pytest.mark.parametrize(
    ("names", "scheme", "message"),
    [
        (["O", "B-a", "MISC"], "auto", "'MISC' has no prefix"),
        (["O", "B-a", "E-a"], "BIO", "BIO has no tag like 'E-a'"),
        (["O", "NOUN"], "BIOES", "BIOES has no tag like 'NOUN'"),
    ],
)
def test_tags_that_the_scheme_lacks_are_refused(names, scheme, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_tag_set(names, scheme)
    assert caught.value.where == "task.init_args.scheme"
    assert caught.value.fix
