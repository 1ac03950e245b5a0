"""Faults 1 to 33: files, columns, texts and labels."""

import os

import datasets
from faults.registry import Options, Scene, fault
from toy import labelled, toy_rows

LABELS = ["bad", "fine", "good"]
NAMES = {"task.init_args.label_names": "[neg, pos]"}


def rows(*labels: object) -> list[dict]:
    """A text of its own for each label."""
    return [{"text": f"{row['text']} {i}", "label": row["label"]} for i, row in enumerate(labelled(list(labels)))]


def train(path: str, **more: object) -> Options:
    return {"data.train": path, **more}


@fault(1, "text column missing", 3, "there is no column 'text'; there are 'txt', 'label'", "'txt'", place="train.csv")
def text_column(s: Scene) -> Options:
    return train(s.csv("train.csv", [{"txt": "a", "label": 1}]))


@fault(1, "label column missing in val", 3, "there is no column 'label'", "'lable'", place="val.csv")
def label_column(s: Scene) -> Options:
    return train(s.good(), **{"data.val": s.csv("val.csv", [{"text": "a", "lable": "good"}])})


@fault(2, "train has a header only", 3, "has a header but no rows", place="train.csv")
def empty_train(s: Scene) -> Options:
    return train(s.text("train.csv", "text,label\n"))


@fault(3, "val has a header only", 3, "has a header but no rows", place="val.csv")
def empty_val(s: Scene) -> Options:
    return train(s.good(), **{"data.val": s.text("val.csv", "text,label\n")})


@fault(3, "val is an empty file", 3, "file is empty", place="val.jsonl")
def empty_file(s: Scene) -> Options:
    return train(s.good(), **{"data.val": s.text("val.jsonl", "")})


@fault(4, "a limit leaves no rows", 2, "0", place="data.limit_train")
def limit(s: Scene) -> Options:
    return train(s.good(), **{"data.limit_train": 0})


@fault(4, "a share of an epoch is no batch", 2, "0.01 of an epoch of 36 rows is no batch", place="trainer.limit_train")
def share(s: Scene) -> Options:
    return train(s.good(), **{"trainer.limit_train_batches": 0.01})


@fault(4, "one row cannot be split", 3, "one row cannot be split", place="train.csv")
def one_row(s: Scene) -> Options:
    return train(s.csv("train.csv", rows("a")), **{"task.init_args.label_names": "[a, b]"})


@fault(5, "text is null", 3, "is null in 7 row(s) (train.jsonl:2, 3, 4, 5, 6, ...)", place="text in column 'text'")
def null_text(s: Scene) -> Options:
    return train(s.jsonl("train.jsonl", [{"text": None if 0 < i < 8 else "a", "label": i % 2} for i in range(20)]))


@fault(6, "one text in 40 is empty", 0, "1 of 36 texts are empty in train", place="data.train")
def empty_text(s: Scene) -> Options:
    texts = rows(*(["a", "b"] * 20))
    texts[7]["text"] = "  "
    return train(s.csv("train.csv", texts), **{"data.seed": 1})


@fault(6, "a tenth of the texts is empty", 3, "4 of 40 texts are empty", "train.csv:1", place="data.train")
def empty_texts(s: Scene) -> Options:
    texts = rows(*(["a", "b"] * 20))
    for row in texts[:4]:
        row["text"] = ""
    return train(s.csv("train.csv", texts), **{"data.val": s.csv("val.csv", [{"text": "new", "label": "a"}])})


@fault(7, "classes that are called NA, null and None", 0, "NA", "None", "null")
def words_for_missing(s: Scene) -> Options:
    return train(s.csv("train.csv", rows(*(["NA", "null", "None"] * 14))))


@fault(8, "a blank label among integers", 3, "1 of 21 labels are missing", "train.csv:21")
def blank_label(s: Scene) -> Options:
    return train(s.csv("train.csv", rows(*([0, 1] * 10), "")))


@fault(9, "a regression target is NaN", 3, "1 of 21 labels are missing", "train.jsonl:21")
def nan_target(s: Scene) -> Options:
    return train(s.jsonl("train.jsonl", rows(*([0.5, 1.25] * 10), float("nan"))))


@fault(9, "a regression target is infinite", 3, "inf is not a finite number", "train.jsonl:21")
def infinite_target(s: Scene) -> Options:
    return train(s.jsonl("train.jsonl", rows(*([0.5, 1.25] * 10), float("inf"))))


@fault(10, "a label id is out of range", 3, "label id 5 is out of range", "0 ('neg') to 1 ('pos')", "train.jsonl:21")
def label_id(s: Scene) -> Options:
    return train(s.jsonl("train.jsonl", rows(*([0, 1] * 10), 5)), **NAMES)


@fault(10, "a label id is -1", 3, "label id -1 is out of range", "train.jsonl:21")
def negative_label_id(s: Scene) -> Options:
    return train(s.jsonl("train.jsonl", rows(*([0, 1] * 10), -1)), **NAMES)


@fault(11, "val has a label that train lacks", 3, "label 'god' never occurs in train", "val.csv:3", "is 'good' meant?")
def unknown_label(s: Scene) -> Options:
    return train(s.good(), **{"data.val": s.csv("val.csv", rows("good", "bad", "god"))})


@fault(12, "labels are words", 0, '"label_names": [\n      "bad",\n      "fine",\n      "good"\n    ]')
def string_labels(s: Scene) -> Options:
    return train(s.good())


@fault(13, "classes as 0.0 and 1.0", 0, "single_label_classification")
def float_classes(s: Scene) -> Options:
    return train(s.jsonl("train.jsonl", rows(*([0.0, 1.0] * 20))))


@fault(13, "numbers where classes are asked for", 3, "look like regression", place="task.init_args.problem_type")
def numbers(s: Scene) -> Options:
    problem = {"task.init_args.problem_type": "single_label_classification"}
    return train(s.jsonl("train.jsonl", rows(*([0.5, 1.0] * 20))), **problem)


@fault(
    14, "labels of several types", 3, "number such as 1 in 20 rows", "text such as 'pos' in 20 rows (train.jsonl:2, 4"
)
def mixed_labels(s: Scene) -> Options:
    return train(s.jsonl("train.jsonl", rows(*([1, "pos"] * 20))))


@fault(15, "val names its classes in another order", 0, "1 of 2 labels never occur in val: neg", place="data.val")
def class_order(s: Scene) -> Options:
    def split(names: list[str], ids: list[int], seed: int) -> datasets.Dataset:
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        texts = [f"{r['text']} {seed}x{i}" for i, r in enumerate(toy_rows(len(ids), seed))]
        return datasets.Dataset.from_dict({"text": texts, "label": ids}, features=features)

    # by number, val would be all neg; by name it is all pos
    parts = {"train": split(["neg", "pos"], [0, 1] * 20, 0), "validation": split(["pos", "neg"], [0] * 8, 1)}
    datasets.DatasetDict(parts).save_to_disk(str(s.folder / "saved"))
    return {"data.dataset": str(s.folder / "saved")}


@fault(16, "one class only", 3, "every row has the label 'a'", place="column label")
def one_class(s: Scene) -> Options:
    return train(s.csv("train.csv", rows(*(["a"] * 20))))


@fault(16, "one of two named classes only", 3, "every row of train has the label 'a'", "data.accept: [single_class]")
def one_named_class(s: Scene) -> Options:
    return train(s.csv("train.csv", rows(*(["a"] * 20))), **{"task.init_args.label_names": "[a, b]"})


@fault(16, "one class only, and it is meant so", 0, "every row of train has the label 'a'", place="data.train")
def one_class_meant(s: Scene) -> Options:
    return one_named_class(s) | {"data.accept": "[single_class]"}


@fault(16, "one regression target only", 3, "every row of train has the same target", place="data.train")
def one_target(s: Scene) -> Options:
    return train(s.csv("train.csv", rows(*([2.5] * 20))))


@fault(17, "no row has any label", 3, "no row of train has any label", place="data.train")
def nothing_is_trained_on(s: Scene) -> Options:
    return train(s.jsonl("train.jsonl", rows(*([[]] * 20))), **{"task.init_args.label_names": "[a, b]"})


@fault(17, "every label is -1", 3, "every row has the label '-1'", place="column label")
def secret_labels(s: Scene) -> Options:
    return train(s.csv("train.csv", rows(*([-1] * 20))))


@fault(18, "some of val stands in train", 0, "2 of 10 val rows (20.0%)", "(as ", place="data.val")
def leakage(s: Scene) -> Options:
    seen, new = rows(*(["a", "b"] * 10)), [{"text": f"new {i}", "label": "a"} for i in range(8)]
    return train(s.csv("train.csv", seen), **{"data.val": s.csv("val.csv", [*seen[3:5], *new])})


@fault(18, "val is train", 3, "40 of 40 val rows (100.0%)", "data.accept: [leakage]", place="data.val")
def val_is_train(s: Scene) -> Options:
    return train(s.good(), **{"data.val": s.folder / "good.csv"})


@fault(
    18, "rows that are repeated", 0, "10 of 50 train rows (20.0%) repeat an earlier text", "(as ", place="data.train"
)
def duplicates(s: Scene) -> Options:
    seen = rows(*(["a", "b"] * 20))
    val = [{"text": f"new {i}", "label": "ab"[i % 2]} for i in range(8)]
    return train(s.csv("train.csv", [*seen, *seen[:10]]), **{"data.val": s.csv("val.csv", val)})


@fault(19, "bytes that are no utf-8", 3, "byte 0xe9", "is not utf-8", "data.encoding: cp1252", place="train.csv:3")
def wrong_encoding(s: Scene) -> Options:
    return train(s.text("train.csv", "text,label\nok,1\ncafé,0\n".encode("latin-1")))


@fault(20, "a byte order mark", 0, "single_label_classification")
def byte_order_mark(s: Scene) -> Options:
    content = "text,label\n" + "".join(f"t{i},{'ab'[i % 2]}\n" for i in range(30))
    return train(s.text("train.csv", b"\xef\xbb\xbf" + content.encode()))


@fault(21, "a row with too many cells", 3, "3 columns where the header has 2", place="train.csv:3")
def ragged(s: Scene) -> Options:
    return train(s.text("train.csv", "text,label\nok,1\ntoo, many,0\nok,1\n"))


@fault(21, "a quote that is never closed", 3, 'a double quote (") is never closed', place="train.csv:3")
def unclosed(s: Scene) -> Options:
    return train(s.text("train.csv", 'text,label\nok,1\n"open,0\nok,1\n'))


@fault(22, "semicolons between the cells", 3, "the delimiter is not ','", "data.delimiter: ';'", place="train.csv:1")
def semicolons(s: Scene) -> Options:
    return train(s.text("train.csv", "text;label\nok;1\nno;0\n"))


@fault(23, "a column twice", 3, "column 'text' stands twice", place="train.csv:1")
def column_twice(s: Scene) -> Options:
    return train(s.text("train.csv", "text,text,label\na,b,1\n"))


@fault(24, "a broken json line", 3, "broken json", "near: ", place="train.jsonl:2")
def broken_json(s: Scene) -> Options:
    return train(s.text("train.jsonl", '{"text": "a", "label": 1}\n{"text": "b, "label": 0}\n'))


@fault(25, "json is an object, not rows", 3, "json is one object", "data.field: rows", place="train.json")
def json_object(s: Scene) -> Options:
    return train(s.text("train.json", '{"version": 1, "rows": [{"text": "a", "label": 1}]}'))


@fault(26, "labels are words in train and numbers in val", 3, "label id 7 is out of range", "(val.csv:1, 2)")
def other_schema(s: Scene) -> Options:
    return train(s.good(), **{"data.val": s.csv("val.csv", rows(7, 8))})


@fault(26, "files of one split have other columns", 3, "this file lacks 'label'", "has 'stars'", place="b.csv")
def other_columns(s: Scene) -> Options:
    files = [s.good("a.csv"), s.csv("b.csv", [{"text": "a", "stars": 1}])]
    return train(f"[{', '.join(files)}]")


def parquet(s: Scene) -> str:
    path = str(s.folder / "train.parquet")
    datasets.Dataset.from_list(rows(*(["a", "b"] * 500))).to_parquet(path)
    return path


@fault(27, "a parquet file that is cut off", 3, "parquet file is cut off", place="train.parquet")
def cut_parquet(s: Scene) -> Options:
    path = parquet(s)
    os.truncate(path, os.path.getsize(path) // 2)
    return train(path)


@fault(27, "a parquet file that is a web page", 3, "file is HTML (download failed?)", place="train.parquet")
def web_page(s: Scene) -> Options:
    return train(s.text("train.parquet", "<!DOCTYPE html><html>not found</html>"))


@fault(27, "bytes of a parquet file that are flipped", 3, "file is damaged", place="train.parquet")
def flipped_parquet(s: Scene) -> Options:
    path = parquet(s)
    with open(path, "r+b") as file:
        file.seek(4)
        file.write(b"\xff" * 64)
    return train(path)


@fault(28, "a row as long as a book", 0, "the longest train row has 120,002 characters", place="train.csv:12")
def huge_row(s: Scene) -> Options:
    texts = rows(*(["a", "b"] * 20))
    texts[11]["text"] = "a " * 60_001
    return train(s.csv("train.csv", texts), **{"data.val": s.csv("val.csv", [{"text": "new", "label": "a"}])})


@fault(29, "half of the tokens are cut off", 0, "of the train tokens are cut off", place="data.max_length")
def truncation(s: Scene) -> Options:
    texts = [{"text": f"{'rock ' * 30} {i}", "label": "ab"[i % 2]} for i in range(40)]
    return train(s.csv("train.csv", texts), **{"data.max_length": 10})


@fault(30, "a stream without a number of steps", 2, "a stream has no length", place="trainer.max_steps")
def stream(s: Scene) -> Options:
    return train(s.good(), **{"data.streaming": "true", "data.val": s.folder / "good.csv"})


@fault(31, "a file that is not there", 3, "does not exist", "good.csv", place="data.train")
def missing_file(s: Scene) -> Options:
    return train(s.good().replace("good.csv", "god.csv"))


@fault(31, "a data set that is not cached, offline", 3, "is not cached here", "HF_HUB_OFFLINE", place="data.dataset")
def offline(s: Scene) -> Options:
    return {"data.dataset": "nyu-mll/glue", "data.name": "mrpc"}


@fault(32, "a pickle", 3, "has the ending '.pkl'", place="data.train")
def pickle(s: Scene) -> Options:
    return train(s.text("train.pkl", b"\x80\x04."))


@fault(32, "a data set that is a Python script", 3, "is a Python script, which is not run", place="data.dataset")
def script(s: Scene) -> Options:
    (s.folder / "scripted").mkdir()
    marker = s.folder / "ran"
    s.text("scripted/scripted.py", f"open({str(marker)!r}, 'w')\n")
    return {"data.dataset": str(s.folder / "scripted")}


@fault(
    33, "fewer rows than a batch on each device", 2, "36 train rows do not fill one batch of 32 on each of 2 devices"
)
def few_rows(s: Scene) -> Options:
    return train(s.good(), **{"trainer.devices": 2, "data.train_batch_size": 32})
