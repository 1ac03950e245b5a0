"""What the rows tell: each rule on plain numbers, at its threshold."""

import pytest

from lit_tune.data.quality import Overlap, TextQuality
from lit_tune.data.truncation import TokenCounts
from lit_tune.errors import DataError
from lit_tune.preflight.data_rules import Facts, data_findings
from lit_tune.tasks.base import Spec
from lit_tune.tasks.examination import Examination

SINGLE = "single_label_classification"


def quality(**changes) -> TextQuality:
    plain = {"num_rows": 100, "num_empty": 0, "empty_cells": {}, "empty_places": "", "num_duplicates": 0}
    more = {"duplicate_samples": [], "longest_chars": 80, "longest_place": "train.csv:7"}
    return TextQuality(**{**plain, **more, **changes})


def found(
    names=("a", "b"), counts=(50, 50), kind=SINGLE, texts=None, overlaps=None, label_counts=None, tokens=None, **more
) -> list[tuple[str, str, str]]:
    """(severity, place, what) of each finding."""
    unit = {"unit": "word", "num_units": sum(counts)} if more.get("of_words") else {}
    spec = Spec(kind, list(names), list(counts), sum(counts) // (3 if unit else 1), more.get("baseline", {}), **unit)
    examination = Examination(texts or {}, overlaps or {}, label_counts or {}, more.get("is_sorted", False))
    facts = Facts(spec, examination, tokens or {}, 64, tuple(more.get("accepted", ())))
    findings = data_findings(facts)
    assert all(f.problem.fix and len(str(f.problem).splitlines()) <= 6 for f in findings)
    return [(f.severity, str(f.problem.where), f.problem.what) for f in findings]


def test_rows_without_anything_odd_give_nothing():
    assert found(texts={"train": quality(), "val": quality()}, overlaps={"val": Overlap(0, 100, [])}) == []


@pytest.mark.parametrize(
    ("counts", "kind", "what"),
    [
        ((100, 0), SINGLE, "every row of train has the label 'a'"),
        ((0, 100), SINGLE, "every row of train has the label 'b'"),
        ((100, 0), "multi_label_classification", "every row of train has the label 'a'"),
    ],
)
def test_one_answer_for_all_rows_is_an_error_unless_it_is_accepted(counts, kind, what):
    assert found(counts=counts, kind=kind)[0] == ("error", "data.train", what)
    assert found(counts=counts, kind=kind, accepted=["single_class"])[0] == ("warning", "data.train", what)
    assert found(counts=counts, kind=kind, accepted=["leakage"])[0][0] == "error"


def test_tags_are_counted_by_words():
    words = {"kind": "token_classification", "of_words": True}
    assert found(("O", "B-x"), (60, 0), **words)[0][2] == "every word of train has the label 'O'"
    assert [what for *_, what in found(("O", "B-x", "B-y"), (900, 9, 0), **words)] == [
        "1 of 3 labels have no word in train: B-y",
        "1 label(s) have fewer than 10 words in train: 'B-x' 9",
    ]


def test_one_target_for_all_rows_is_an_error():
    assert found((), (), "regression", baseline={"mse": 0.0})[0][2].startswith("every row of train has the same target")
    assert found((), (), "regression", baseline={"mse": 0.1}) == []


def test_rare_absent_and_dominant_classes_are_told():
    ((severity, _, what),) = found(("a", "b", "c"), (50, 50, 0))
    assert (severity, what) == ("warning", "1 of 3 labels have no row in train: c")
    ((_, _, what),) = found(("a", "b", "c"), (50, 50, 9))
    assert what == "1 label(s) have fewer than 10 rows in train: 'c' 9"
    assert found(("a", "b", "c"), (50, 50, 10)) == []
    assert found(("a", "b"), (8, 8)) == []  # so few rows are no matter of balance
    ((_, _, what),) = found(("a", "b"), (900, 95))
    assert what.startswith("90.5% of the train rows are 'a'")
    assert found(("a", "b"), (900, 100)) == []
    ((_, where, what),) = found(label_counts={"train": [50, 50], "val": [0, 9], "test": [3, 3]})
    assert (where, what) == ("data.val", "1 of 2 labels never occur in val: a")


def test_empty_texts_warn_and_over_five_percent_are_an_error():
    five = found(texts={"val": quality(num_empty=5, empty_cells={"text": 5}, empty_places="v.csv:1, 2, ...")})
    assert five == [("warning", "data.val", "5 of 100 texts are empty in val (5.0%; v.csv:1, 2, ...)")]
    six = {"val": quality(num_empty=6, empty_cells={"text": 6})}
    assert found(texts=six)[0][0] == "error"
    assert found(texts=six, accepted=["empty_texts"])[0][0] == "warning"
    one_of_two = found(texts={"train": quality(empty_cells={"title": 40})})
    assert one_of_two == [("warning", "data.train", "40 of 100 cells of column 'title' are empty in train")]


def test_leakage_warns_with_samples_and_over_half_is_an_error():
    samples = [f"val.csv:{i} (as train.csv:{i}): text {i}" for i in range(3)]
    ((severity, where, what),) = found(overlaps={"val": Overlap(50, 100, samples)})
    assert (severity, where) == ("warning", "data.val")
    assert what.splitlines()[0] == "50 of 100 val rows (50.0%) have a text that stands in train"
    assert [line.strip() for line in what.splitlines()[1:]] == samples
    assert found(overlaps={"test": Overlap(51, 100, samples)})[0][0] == "error"
    assert found(overlaps={"test": Overlap(51, 100, samples)}, accepted=["leakage"])[0][0] == "warning"


def test_repeated_and_enormous_rows_and_lost_tokens_are_told():
    ((_, _, what),) = found(texts={"train": quality(num_duplicates=3, duplicate_samples=["s"])})
    assert what == "3 of 100 train rows (3.0%) repeat an earlier text\n  s"
    ((_, where, what),) = found(texts={"train": quality(longest_chars=100_001)})
    assert (where, what) == ("train.csv:7", "the longest train row has 100,001 characters, 64 tokens are read")
    assert found(tokens={"train": TokenCounts(100, 1000, 90, 5, 50)}) == []
    ((_, where, what),) = found(tokens={"train": TokenCounts(100, 1000, 90, 5, 51)})
    assert where == "data.max_length"
    assert what == "5.1% of the train tokens are cut off: 5% of the rows are longer than 64 (longest 90)"


def test_a_stream_that_comes_class_after_class_is_told():
    assert found(is_sorted=True)[0][1] == "data.streaming"


def test_an_error_that_may_be_accepted_says_how():
    facts = Facts(Spec(SINGLE, ["a", "b"], [9, 0], 9), Examination(), {}, 64)
    (finding,) = [f for f in data_findings(facts) if f.is_error]
    assert isinstance(finding.problem, DataError)
    assert "if it is meant so, data.accept: [single_class]" in str(finding.problem)
