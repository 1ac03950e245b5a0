"""Raw rows -> checked, cut, encoded once: through the datamodule, as every verb does it."""

import collections
import csv
import logging
import os
from pathlib import Path

import datasets
import pytest
from toy import CLASSES, labelled, make_tiny_model, model_with_head, toy_rows, toy_sentences, write_csv, write_jsonl
from transformers import AutoTokenizer

from lit_tune.config.sections import tasks
from lit_tune.data import splits
from lit_tune.datamodule import TokenizedDataModule
from lit_tune.errors import ConfigError, DataError, LitTuneError, ModelError, StorageError
from lit_tune.tasks.sequence_classification import SequenceClassification


@pytest.fixture(autouse=True)
def said(monkeypatch, caplog, tmp_path):
    """What is told to the person; the command line keeps messages from the root logger."""
    monkeypatch.setattr(logging.getLogger("lit_tune"), "propagate", True)
    caplog.set_level(logging.INFO, logger="lit_tune")
    monkeypatch.chdir(tmp_path)
    return caplog


TASK_KEYS = ("text_columns", "label_column", "label_names", "focal_gamma")


class Counting(SequenceClassification):
    """Counts the batches that are really encoded, in this process."""

    calls = 0

    def encode(self, *arguments):
        Counting.calls += 1
        return super().encode(*arguments)


def prepared(model: Path, verb: str = "fit", task: SequenceClassification | None = None, **data) -> TokenizedDataModule:
    datamodule = TokenizedDataModule(task or SequenceClassification(), model_name_or_path=str(model), **data)
    datamodule.prepare(verb)
    return datamodule


def problem(*arguments, **options) -> LitTuneError:
    with pytest.raises(LitTuneError) as caught:
        prepared(*arguments, **options)
    assert len(str(caught.value).splitlines()) <= 6
    assert caught.value.fix
    return caught.value


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_second_start_says_that_it_reuses_and_tokenizes_nothing(tiny_model_dir, toy_csv, said):
    Counting.calls = 0
    first = prepared(tiny_model_dir, task=Counting(), train=str(toy_csv))
    assert Counting.calls == 2  # train and val
    assert said.text.count("tokenized") == 2
    folder = first.preparation.cache_dir / str(first.fingerprint)
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    said.clear()
    second = prepared(tiny_model_dir, task=Counting(), train=str(toy_csv))
    assert Counting.calls == 2
    assert second.preparation.reused == {"train", "val"}
    assert said.text.count("reused from the cache") == 2
    assert ", tokenized;" not in said.text
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == written
    assert second.spec == first.spec
    assert second.text_overlap == first.text_overlap
    assert second.preparation.counts == first.preparation.counts
    for name in ("train", "val"):
        assert second.encoded[name].to_list() == first.encoded[name].to_list()


def test_whatever_decides_the_rows_is_part_of_the_key(tiny_model_dir, tmp_path):
    rows = [{"text": r["text"], "label": r["label"], "other": r["label"], "more": "mud"} for r in toy_rows(40)]
    path = write_csv(tmp_path / "a.csv", rows)
    stat = path.stat()
    other_model = make_tiny_model(tmp_path / "other_model")
    vocabulary = (other_model / "tokenizer.json").read_text()
    (other_model / "tokenizer.json").write_text(vocabulary.replace('"mud":', '"mut":'))

    def key(model=tiny_model_dir, **options) -> str | None:
        task = {k: options.pop(k) for k in TASK_KEYS if k in options}
        return prepared(model, task=SequenceClassification(**task), train=str(path), **options).fingerprint

    first = key()
    variants = {
        "nothing": first,
        "tokenizer": key(other_model),
        "own tokenizer": key(tokenizer=str(other_model), max_length=63),
        "text columns": key(text_columns=["text", "more"]),
        "label column": key(label_column="other"),
        "label names": key(label_names=["good", "fine", "bad"]),
        "max_length": key(max_length=5),
        "seed": key(seed=43),
        "val_fraction": key(val_fraction=0.2),
        "limit_train": key(limit_train=20),
        "limit_val": key(limit_val=2),
        "a loss of another scale": key(focal_gamma=2.0),
        "own task": prepared(tiny_model_dir, task=Counting(), train=str(path)).fingerprint,
    }
    # the order of two rows changed: same size, and the same time
    content = path.read_text().splitlines()
    content[1], content[2] = content[2], content[1]
    path.write_bytes(("\r\n".join(content) + "\r\n").encode())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    variants["content"] = key()
    same = [names for names in collections.Counter(variants.values()).items() if names[1] > 1]
    assert same == [], variants
    # and what decides nothing is not
    assert key(train_batch_size=4, eval_batch_size=8, padding="max_length", num_workers=2) == variants["content"]


def test_a_damaged_entry_is_made_again(tiny_model_dir, toy_csv, said):
    first = prepared(tiny_model_dir, train=str(toy_csv))
    next((first.preparation.cache_dir / str(first.fingerprint) / "train").glob("*.arrow")).unlink()
    second = prepared(tiny_model_dir, train=str(toy_csv))
    assert "is damaged" in said.text
    assert second.preparation.reused == set()
    assert second.encoded["train"].to_list() == prepared(tiny_model_dir, train=str(toy_csv)).encoded["train"].to_list()


def test_a_cache_folder_that_cannot_be_written_is_exit_7(tiny_model_dir, toy_csv, tmp_path):
    (tmp_path / "file").write_text("")
    found = problem(tiny_model_dir, train=str(toy_csv), cache_dir=str(tmp_path / "file"))
    assert isinstance(found, StorageError)


def test_workers_that_tokenize_give_the_same_rows(tiny_model_dir, toy_csv, tmp_path):
    one = prepared(tiny_model_dir, train=str(toy_csv), cache_dir=str(tmp_path / "one"))
    two = prepared(tiny_model_dir, train=str(toy_csv), cache_dir=str(tmp_path / "two"), num_workers=2)
    assert two.preparation.reused == set()
    for name in ("train", "val"):
        assert two.encoded[name].to_list() == one.encoded[name].to_list()
    assert two.preparation.counts == one.preparation.counts


def test_nothing_is_written_beside_the_users_data_nor_left_in_between(tiny_model_dir, tmp_path):
    source = tmp_path / "saved"
    datasets.DatasetDict({"train": datasets.Dataset.from_list(labelled(["a", "b"] * 10))}).save_to_disk(str(source))
    before = sorted(source.rglob("*"))
    module = prepared(tiny_model_dir, dataset=str(source), cache_dir=str(tmp_path / "cache"))
    assert sorted(source.rglob("*")) == before
    assert os.listdir(tmp_path / "cache") == [module.fingerprint]


# --- labels ----------------------------------------------------------------------------------------------------------

KINDS = {
    "strings": (["b", "a", "c"], "single", ["a", "b", "c"], [1, 0, 2]),
    "ints": ([10, 9, 11], "single", ["9", "10", "11"], [1, 0, 2]),
    "ints from 0": ([2, 0, 1], "single", ["0", "1", "2"], [2, 0, 1]),
    "bools": ([True, False, True], "single", ["False", "True"], [1, 0, 1]),
    "integral floats": ([3.0, 1.0, 2.0], "single", ["1", "2", "3"], [2, 0, 1]),
    "lists of strings": ([["b", "a"], [], ["c"]], "multi", ["a", "b", "c"], [[0, 1], [], [2]]),
    "lists of ints": ([[2], [0, 1], []], "multi", ["0", "1", "2"], [[2], [0, 1], []]),
    "decimals": ([0.5, 1.0, -2.0], "regression", [], [0.5, 1.0, -2.0]),
}
PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_label_is_read_counted_and_encoded(tiny_model_dir, tmp_path, kind):
    values, name, names, ids = KINDS[kind]
    path = write_jsonl(tmp_path / "a.jsonl", labelled(values * 4))
    module = prepared(tiny_model_dir, train=path, val_fraction=0)
    assert module.spec is not None
    assert (module.spec.problem_type, module.spec.label_names) == (PROBLEMS[name], names)
    assert module.encoded["train"]["labels"][:] == ids * 4
    assert module.spec.num_rows == 12
    flat = [i for v in ids * 4 for i in (v if isinstance(v, list) else [v])]
    expected = [flat.count(i) for i in range(len(names))]
    assert module.spec.label_counts == expected
    assert module.spec.baseline


def test_ints_as_strings_in_a_csv_are_the_same_classes_as_ints_in_json(tiny_model_dir, tmp_path):
    rows = labelled([0, 2, 1, 0] * 5)
    train = str(write_csv(tmp_path / "a.csv", rows))
    val = write_jsonl(tmp_path / "b.jsonl", labelled([2, 1, 0]))
    quoted = write_jsonl(tmp_path / "c.jsonl", labelled(["2", "1", "0"]))
    for other in (val, quoted):
        module = prepared(tiny_model_dir, train=train, val=other)
        assert module.spec.label_names == ["0", "1", "2"]
        assert module.encoded["val"]["labels"][:] == [2, 1, 0]


def test_ints_are_numbers_where_the_problem_is_regression(tiny_model_dir, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", labelled([1, 5, 3] * 4))
    module = prepared(tiny_model_dir, train=path, task=SequenceClassification(problem_type="regression"))
    assert module.spec.problem_type == "regression"
    assert {type(v) for v in module.encoded["train"]["labels"]} == {float}
    words = write_jsonl(tmp_path / "b.jsonl", labelled(["a", "b"] * 4))
    with pytest.raises(DataError, match="is not a finite number"):
        prepared(tiny_model_dir, train=words, task=SequenceClassification(problem_type="regression"))


def saved(folder: Path, **splits: datasets.Dataset) -> str:
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return str(folder)


def with_class_label(names: list[str], ids: list, multi: bool = False) -> datasets.Dataset:
    feature = datasets.ClassLabel(names=names)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.List(feature) if multi else feature}
    )
    return datasets.Dataset.from_list(labelled(ids), features=features)


def test_class_labels_are_mapped_by_name_where_splits_order_them_differently(tiny_model_dir, tmp_path):
    train, val = ["neg", "neutral", "pos"], ["pos", "neg", "neutral"]
    path = saved(
        tmp_path / "saved",
        train=with_class_label(train, [0, 1, 2, 0] * 3),
        validation=with_class_label(val, [0, 1, 2]),
    )
    module = prepared(tiny_model_dir, dataset=path)
    assert module.spec.label_names == train
    assert module.encoded["train"]["labels"][:] == [0, 1, 2, 0] * 3
    assert module.encoded["val"]["labels"][:] == [2, 0, 1]  # pos, neg, neutral
    path = saved(
        tmp_path / "multi",
        train=with_class_label(train, [[0], [1, 2], [2], []] * 3, multi=True),
        validation=with_class_label(val, [[0, 1], [2]], multi=True),
    )
    module = prepared(tiny_model_dir, dataset=path)
    assert module.spec.problem_type == PROBLEMS["multi"]
    assert module.encoded["val"]["labels"][:] == [[0, 2], [1]]


def test_a_trained_head_keeps_its_order_for_names_and_for_numbered_class_labels(tiny_model_dir, tmp_path):
    model = model_with_head(tiny_model_dir, tmp_path / "model", ["pos", "neg"])
    names = saved(tmp_path / "names", train=with_class_label(["neg", "pos"], [0, 1, 1] * 4))
    module = prepared(model, dataset=names, val_fraction=0)
    assert module.spec.label_names == ["pos", "neg"]
    assert module.encoded["train"]["labels"][:] == [1, 0, 0] * 4
    assert module.spec.label_counts == [8, 4]
    numbers = saved(tmp_path / "numbers", train=with_class_label(["0", "1"], [0, 1, 1] * 4))
    module = prepared(model, dataset=numbers, val_fraction=0)
    assert module.spec.label_names == ["pos", "neg"]
    assert module.encoded["train"]["labels"][:] == [0, 1, 1] * 4
    other = saved(tmp_path / "other", train=with_class_label(["spam", "ham"], [0, 1, 1] * 4))
    assert isinstance(problem(model, dataset=other), ModelError)
    assert prepared(model, dataset=other, new_head=True).spec.label_names == ["spam", "ham"]
    assert prepared(model, dataset=other, from_scratch=True).spec.label_names == ["spam", "ham"]


# --- rows that cannot be used ----------------------------------------------------------------------------------------

TRAIN = ["a", "b", "c", "a", "b", "c"]
BAD_VAL = {
    "unknown": ([*TRAIN[:4], "d"], "label 'd' never occurs in train", 5),
    "null": (["a", None, "b"], "1 of 3 labels are missing", 2),
    "unlabelled in part": (["a", "b", "-1"], "label id -1 is out of range", 3),
}


@pytest.mark.parametrize("case", BAD_VAL)
def test_a_label_of_val_that_cannot_be_used_names_its_row(tiny_model_dir, tmp_path, case):
    values, what, row = BAD_VAL[case]
    train = write_jsonl(tmp_path / "train.jsonl", labelled(TRAIN))
    val = write_jsonl(tmp_path / "val.jsonl", labelled(values))
    found = problem(tiny_model_dir, train=train, val=val)
    assert isinstance(found, DataError)
    assert what in str(found)
    assert f"{val}:{row}" in str(found)
    # the same file as test split
    test = problem(tiny_model_dir, "test", train=train, test=val) if case != "unknown" else None
    assert test is None or isinstance(test, DataError)


def test_a_label_outside_the_given_names_says_so(tiny_model_dir, tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", labelled(TRAIN))
    found = problem(tiny_model_dir, train=train, task=SequenceClassification(label_names=["a", "b"]))
    assert f"label 'c' never occurs in task.init_args.label_names ({train}:3, 6)" in str(found)


BAD_TRAIN = {
    "null label": ([{"text": "a", "label": "x"}, {"text": "b", "label": None}], "labels are missing", ":2"),
    "null text": ([{"text": "a", "label": "x"}, {"text": None, "label": "y"}], "is null", ":2"),
    "one class": ([{"text": "a", "label": "x"}] * 3, "every row has the label 'x'", ""),
    "mixed": ([{"text": "a", "label": 1}, {"text": "b", "label": "y"}], "several types", ":2"),
    "text that is no text": ([{"text": 1, "label": "x"}, {"text": 2, "label": "y"}], "is a int", ":1"),
    "no label column": ([{"text": "a", "labels": "x"}] * 3, "there is no column 'label'", ""),
    "no text column": ([{"txt": "a", "label": "x"}] * 3, "there is no column 'text'", ""),
}


@pytest.mark.parametrize("case", BAD_TRAIN)
def test_rows_of_train_that_cannot_be_used_are_named(tiny_model_dir, tmp_path, case):
    rows, what, place = BAD_TRAIN[case]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    found = problem(tiny_model_dir, train=path)
    assert found.exit_code == 3
    assert what in str(found)
    assert not place or f"{path}{place}" in str(found)


def test_empty_cells_are_counted_not_refused(tiny_model_dir, tmp_path, said):
    path = write_jsonl(
        tmp_path / "train.jsonl", [{"text": t, "label": i % 2} for i, t in enumerate(["a", " ", "", "b"])]
    )
    module = prepared(tiny_model_dir, train=path, val_fraction=0)
    assert "none longer than 64, 2 empty" in said.text
    quality = module.preparation.examination.texts["train"]
    assert (quality.num_empty, quality.empty_places) == (2, f"{path}:2, 3")
    assert [len(ids) for ids in module.encoded["train"]["input_ids"]] == [3, 2, 2, 3]


def test_a_text_column_of_numbers_stays_text(tiny_model_dir, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"{i}.50,{i % 2}\n" for i in range(10)))
    module = prepared(tiny_model_dir, train=str(path), val_fraction=0)
    unknown = AutoTokenizer.from_pretrained(tiny_model_dir)(["7.50"])["input_ids"][0]
    assert module.encoded["train"][7]["input_ids"] == unknown


# --- splits without labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [["-1", "-1"], [-1, -1], [None, None], "no column"])
def test_a_test_split_without_any_label_is_noted_and_its_labels_are_dropped(tiny_model_dir, tmp_path, labels):
    model = model_with_head(tiny_model_dir, tmp_path / "model", ["a", "b"])
    rows = [{"text": "mud"}] * 2 if labels == "no column" else labelled(labels)
    module = prepared(model, "test", test=write_jsonl(tmp_path / "test.jsonl", rows))
    assert module.preparation.unlabelled == {"test"}
    assert "labels" not in module.encoded["test"].column_names
    assert len(module.encoded["test"]) == 2
    again = prepared(model, "test", test=str(tmp_path / "test.jsonl"))
    assert again.preparation.unlabelled == {"test"}
    assert again.preparation.reused == {"test"}


def test_minus_one_is_a_label_where_train_has_it(tiny_model_dir, tmp_path):
    model = model_with_head(tiny_model_dir, tmp_path / "model", ["-1", "0", "1"])
    module = prepared(model, "test", test=write_jsonl(tmp_path / "test.jsonl", labelled([-1, -1])))
    assert module.preparation.unlabelled == set()
    assert module.encoded["test"]["labels"][:] == [0, 0]


def test_a_val_split_without_labels_is_an_error_not_skipped(tiny_model_dir, tmp_path):
    model = model_with_head(tiny_model_dir, tmp_path / "model", ["a", "b"])
    val = write_jsonl(tmp_path / "val.jsonl", labelled([-1, -1]))
    train = write_jsonl(tmp_path / "train.jsonl", labelled(["a", "b"] * 3))
    assert problem(model, "validate", val=val).exit_code == 3
    assert problem(model, train=train, val=val).exit_code == 3


@pytest.mark.parametrize("labels", [["a", "b"], ["unheard", "of"], [None, "a"], [7, 8], "no column"])
def test_rows_to_predict_may_have_any_label_or_none(tiny_model_dir, tmp_path, labels):
    model = model_with_head(tiny_model_dir, tmp_path / "model", ["a", "b"])
    rows = [{"text": "mud"}] * 2 if labels == "no column" else labelled(labels)
    module = prepared(model, "predict", predict=write_jsonl(tmp_path / "new.jsonl", rows))
    assert len(module.encoded["predict"]) == 2
    assert "labels" not in module.encoded["predict"].column_names


# --- val cut from train, subsets, overlap ----------------------------------------------------------------------------


def texts_of(module: TokenizedDataModule, name: str) -> list[str]:
    return [module.tokenizer.decode(ids, skip_special_tokens=True) for ids in module.encoded[name]["input_ids"]]


def test_val_is_cut_by_class_and_seed(tiny_model_dir, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", labelled(["a"] * 60 + ["b"] * 30 + ["c"] * 10))
    modules = [
        prepared(tiny_model_dir, train=path, seed=s, cache_dir=str(tmp_path / str(i))) for i, s in enumerate([1, 1, 2])
    ]
    counts = [collections.Counter(m.encoded["val"]["labels"]) for m in modules]
    assert counts == [{0: 6, 1: 3, 2: 1}] * 3
    first, again, other = (texts_of(m, "val") for m in modules)
    assert first == again
    assert first != other
    assert modules[0].spec.label_counts == [54, 27, 9]
    assert sorted(texts_of(modules[0], "train") + first) == sorted(r["text"] for r in toy_rows(100))
    assert modules[0].preparation.val_fraction_used == 0.1


def test_targets_of_a_regression_are_cut_over_their_whole_range(tiny_model_dir, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", labelled([i + 0.5 for i in range(100)]))
    held = sorted(prepared(tiny_model_dir, train=path).encoded["val"]["labels"])
    assert [int(v // 10) for v in held] == list(range(10))


def test_without_val_fraction_all_rows_are_trained_on(tiny_model_dir, toy_csv):
    module = prepared(tiny_model_dir, train=str(toy_csv), val_fraction=0)
    assert set(module.encoded) == {"train"}
    assert len(module.encoded["train"]) == 120
    assert module.preparation.val_fraction_used is None
    assert module.text_overlap is None
    assert module.val_dataloader() == []


def test_limits_take_a_seeded_subset_of_each_split(tiny_model_dir, toy_csv, tmp_path):
    data = {"train": str(toy_csv), "val": str(toy_csv), "test": str(toy_csv)}
    module = prepared(tiny_model_dir, **data, limit_train=30, limit_val=7)
    assert (len(module.encoded["train"]), len(module.encoded["val"])) == (30, 7)
    assert module.spec.num_rows == 30
    larger = prepared(tiny_model_dir, **data, limit_train=60)
    assert set(texts_of(module, "train")) <= set(texts_of(larger, "train"))
    assert texts_of(module, "train") != [r["text"] for r in toy_rows(120)][:30]
    other = prepared(tiny_model_dir, **data, limit_train=30, seed=7)
    assert texts_of(other, "train") != texts_of(module, "train")
    assert module.preparation.val_fraction_used is None
    model = model_with_head(tiny_model_dir, tmp_path / "model", list(CLASSES))
    assert len(prepared(model, "test", **data, limit_test=5).encoded["test"]) == 5


def test_one_row_cannot_be_split(tiny_model_dir, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", labelled([0.5]))
    assert "val_fraction: 0" in str(problem(tiny_model_dir, train=path))


def test_the_share_of_val_that_stands_in_train_is_measured(tiny_model_dir, tmp_path):
    rows = labelled(["a", "b"] * 20)
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    fresh = [{"text": f"new {i}", "label": "a"} for i in range(3)]
    val = write_jsonl(tmp_path / "val.jsonl", [{**rows[4], "text": rows[4]["text"].upper() + " "}, *fresh])
    assert prepared(tiny_model_dir, train=train, val=val).text_overlap == 0.25


def test_validate_of_a_run_measures_the_rows_that_fit_held_out(tiny_model_dir, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", labelled(["b", "a", "c"] * 20))
    fitted = prepared(tiny_model_dir, train=path)
    model = model_with_head(tiny_model_dir, tmp_path / "best", fitted.spec.label_names)
    module = TokenizedDataModule(SequenceClassification(), model_name_or_path=str(tiny_model_dir), train=path)
    module.use_model(str(model))
    module.spec = fitted.spec
    module.prepare("validate")
    assert module.encoded["val"].to_list() == fitted.encoded["val"].to_list()
    assert module.spec == fitted.spec


# --- lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [["text"], ["text", "b"], ["text", "b", "c"]])
def test_rows_and_token_counts_equal_a_plain_pass_with_the_tokenizer(tiny_model_dir, tmp_path, columns):
    others = [r["text"] for r in toy_rows(50, seed=5)]
    rows = [
        {"text": r["text"], "b": b, "c": c, "label": r["label"]}
        for r, b, c in zip(toy_rows(50), others, reversed(others), strict=True)
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = {"train": path, "val": path, "max_length": 9}
    module = prepared(tiny_model_dir, task=SequenceClassification(text_columns=columns), **data)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    lengths = []
    for row, encoded in zip(rows, module.encoded["train"], strict=True):
        pair = [row["text"]] + ([" [SEP] ".join(row[c] for c in columns[1:])] if len(columns) > 1 else [])
        lengths.append(len(tokenizer(*pair)["input_ids"]))
        plain = tokenizer(*pair, truncation=True, max_length=9)
        assert encoded["input_ids"] == plain["input_ids"]
        assert encoded["token_type_ids"] == plain["token_type_ids"]
    over = [n - 9 for n in lengths if n > 9]
    assert over
    for name in ("train", "val"):
        counts = module.preparation.counts[name]
        assert (counts.num_rows, counts.num_tokens, counts.longest) == (50, sum(lengths), max(lengths))
        assert (counts.num_cut_rows, counts.num_cut_tokens) == (len(over), sum(over))


@pytest.mark.parametrize(
    ("max_length", "what", "code"), [(65, "65 is more than the 64 tokens", 4), (2, "leave no room for text", 2)]
)
def test_a_max_length_that_cannot_be_used(tiny_model_dir, toy_csv, max_length, what, code):
    found = problem(tiny_model_dir, train=str(toy_csv), max_length=max_length)
    assert found.exit_code == code
    assert found.where == "data.max_length"
    assert what in str(found)


def test_a_pair_needs_room_for_its_separators_and_both_texts(tiny_model_dir, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"a": "mud rock", "b": "lake fog", "label": i % 2} for i in range(6)])
    task = SequenceClassification(text_columns=["a", "b"])
    assert problem(tiny_model_dir, task=task, train=path, max_length=4).where == "data.max_length"
    module = prepared(tiny_model_dir, task=task, train=path, max_length=5, val_fraction=0)
    assert texts_of(module, "train") == ["mud lake"] * 6


# --- streams ---------------------------------------------------------------------------------------------------------


def write_stream(folder: Path, kind: str, rows: list[dict]) -> str:
    path = folder / f"stream.{kind}"
    if kind == "jsonl":
        write_jsonl(path, rows)
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_stream_keeps_a_probe_and_val_and_names_its_labels(tiny_model_dir, tmp_path, kind):
    rows = labelled(["b", "a"] * 15)
    path, val = write_stream(tmp_path, kind, rows), write_jsonl(tmp_path / "val.jsonl", labelled(["a", "b"]))
    data = {"train": path, "val": val, "streaming": True, "probe_size": 5}
    task = SequenceClassification(label_names=["b", "a"])
    module = prepared(tiny_model_dir, task=task, **data)
    assert module.spec.label_names == ["b", "a"]
    assert set(module.encoded) == {"probe", "val"}
    drawn = splits.subset(30, 5, module.seed)  # from all of the first block, not its beginning
    assert module.encoded["probe"]["labels"][:] == [i % 2 for i in drawn]
    batch = next(iter(module.train_dataloader()))
    assert batch["labels"].tolist() == [i % 2 for i in batch["example_ids"]]
    assert prepared(tiny_model_dir, task=task, **data).preparation.reused == {"probe", "val"}
    without = prepared(tiny_model_dir, task=task, **{**data, "probe_size": 0})
    assert set(without.encoded) == {"val"}
    assert without.probe() is None


def test_the_baseline_of_a_stream_is_that_of_its_first_rows_unless_they_are_all_alike(tiny_model_dir, tmp_path):
    task = SequenceClassification(label_names=["a", "b"])
    path = write_stream(tmp_path, "jsonl", labelled(["a", "b", "a", "a"] * 5))
    data = {"train": path, "streaming": True, "probe_size": 8}
    for _ in range(2):  # tokenized, then from the cache
        spec = prepared(tiny_model_dir, task=task, **data).spec
        assert spec.baseline["accuracy"] == 0.75
        assert (spec.label_counts, spec.num_rows) == ([], 0)
    for alike in (["a"] * 20, ["a"] * 100 + ["b"] * 100):
        path = write_stream(tmp_path, "jsonl", labelled(alike))
        module = prepared(tiny_model_dir, task=task, **data)
        assert module.spec.baseline == {}
        assert module.preparation.examination.is_sorted == (len(alike) == 200)


def test_a_stream_takes_its_labels_from_a_class_label_in_any_order(tiny_model_dir, tmp_path):
    names = ["neg", "pos"]
    path = saved(tmp_path / "saved", train=with_class_label(names, [0, 1, 1] * 6))
    module = prepared(tiny_model_dir, dataset=path, streaming=True)
    assert module.spec.label_names == names
    model = model_with_head(tiny_model_dir, tmp_path / "model", ["pos", "neg"])
    module = prepared(model, dataset=path, streaming=True)
    assert module.spec.label_names == ["pos", "neg"]
    for batch in module.train_dataloader():
        assert batch["labels"].tolist() == [[1, 0, 0][i % 3] for i in batch["example_ids"]]


def test_a_stream_of_label_lists_is_multi_label(tiny_model_dir, tmp_path):
    path = write_stream(tmp_path, "jsonl", labelled([["a"], [], ["b", "a"]] * 3))
    module = prepared(tiny_model_dir, train=path, streaming=True, task=SequenceClassification(label_names=["a", "b"]))
    assert module.spec.problem_type == PROBLEMS["multi"]
    batch = next(iter(module.train_dataloader()))
    assert batch["labels"].tolist() == [[[1, 0], [0, 0], [1, 1]][i % 3] for i in batch["example_ids"]]


def test_a_stream_without_label_names_is_exit_2(tiny_model_dir, tmp_path):
    path = write_stream(tmp_path, "jsonl", labelled(["a", "b"]))
    found = problem(tiny_model_dir, train=path, streaming=True)
    assert (found.exit_code, found.where) == (2, "task.init_args.label_names")


def test_weights_that_cannot_be_balanced_are_found_before_training(tiny_model_dir, tmp_path):
    path = write_stream(tmp_path, "jsonl", labelled(["a", "b"] * 5))
    task = SequenceClassification(label_names=["a", "b"], class_weights="balanced")
    assert "which a stream does not give" in str(problem(tiny_model_dir, task=task, train=path, streaming=True))
    task = SequenceClassification(label_names=["a", "b", "c"], class_weights="balanced")
    assert "class 2 has no train rows" in str(problem(tiny_model_dir, task=task, train=path))


FAULTS = {
    "null text": ({"text": None, "label": "a"}, "is null"),
    "unknown label": ({"text": "mud", "label": "z"}, "label 'z' never occurs in task.init_args.label_names"),
    "missing label": ({"text": "mud", "label": None}, "labels are missing"),
}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_row_of_a_stream_that_cannot_be_used_is_named(tiny_model_dir, tmp_path, fault, num_workers, monkeypatch):
    row, what = FAULTS[fault]
    path = write_stream(tmp_path, "jsonl", [*labelled(["a", "b"] * 15), row])
    task = SequenceClassification(label_names=["a", "b"])
    # within the first block it is found before training
    assert f"{path}:31" in str(problem(tiny_model_dir, task=task, train=path, streaming=True))
    monkeypatch.setattr("lit_tune.preparation.FIRST_BLOCK", 30)
    module = prepared(tiny_model_dir, task=task, train=path, streaming=True, probe_size=3, num_workers=num_workers)
    with pytest.raises(DataError) as caught:
        list(module.train_dataloader())
    assert what in str(caught.value)
    assert f"{path}:31" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6


def test_a_stream_without_rows_is_exit_3(tiny_model_dir, tmp_path):
    datasets.Dataset.from_list(labelled(["a"])).select([]).to_parquet(str(tmp_path / "a.parquet"))
    task = SequenceClassification(label_names=["a", "b"])
    assert problem(tiny_model_dir, task=task, train=str(tmp_path / "a.parquet"), streaming=True).exit_code == 3


@pytest.mark.parametrize("name", ["SequenceClassification", "TokenClassification"])
def test_settings_that_do_not_fit_are_refused_where_the_data_comes_from_the_cache(name, tiny_model_dir, tmp_path):
    rows = {"SequenceClassification": toy_rows(40), "TokenClassification": toy_sentences(40)}[name]
    data = {"model_name_or_path": str(tiny_model_dir), "train": write_jsonl(tmp_path / "rows.jsonl", rows)}
    for weights in ([1.0] * (3 if name.startswith("Sequence") else 5), None):
        TokenizedDataModule(tasks()[name](class_weights=weights), **data).prepare("fit")
    with pytest.raises(ConfigError, match="2 numbers for") as caught:
        TokenizedDataModule(tasks()[name](class_weights=[1.0, 2.0]), **data).prepare("fit")
    assert caught.value.where == "task.init_args.class_weights"
