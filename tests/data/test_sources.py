import csv
import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import datasets
import numpy as np
import pandas as pd
import pytest

from lit_tune.data.labels import encode_class_labels, label_kind
from lit_tune.data.sources import class_label_names, load_files, load_hub
from lit_tune.errors import ConfigError, DataError, LitTuneError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(tmp_path / "downloads"))
    monkeypatch.chdir(tmp_path)


def write(name, content, encoding="utf-8"):
    data = content if isinstance(content, bytes) else content.encode(encoding)
    with gzip.open(name, "wb") if name.endswith(".gz") else open(name, "wb") as file:
        file.write(data)
    return name


def load(
    paths,
    split="train",
    delimiter=None,
    encoding="utf-8",
    field=None,
    streaming=False,
    text_columns=(),
    txt_rows="line",
):
    return load_files(
        split,
        paths,
        delimiter=delimiter,
        encoding=encoding,
        field=field,
        streaming=streaming,
        text_columns=text_columns,
        txt_rows=txt_rows,
    )


def problem(*args, **options):
    """The error a read gives; it must be short and say how to go on."""
    with pytest.raises(LitTuneError) as caught:
        load(*args, **options)
    assert len(str(caught.value).splitlines()) <= 6
    assert caught.value.fix
    return caught.value


ROWS = [
    {"text": 'a "quoted", long\nstory; with | marks', "label": 3, "score": 0.12345678901234567},
    {"text": "naïve 日本 😀", "label": 1, "score": -1.5},
    {"text": "", "label": 2, "score": 2.0},
]


def write_rows(name, rows):
    """Each format by a writer that is not ours."""
    frame = pd.DataFrame(rows)
    plain = name.removesuffix(".gz")
    if plain.endswith((".csv", ".tsv")):
        frame.to_csv(plain, index=False, sep="\t" if plain.endswith("tsv") else ",")
    elif plain.endswith(".parquet"):
        frame.to_parquet(plain)
    elif plain.endswith(".arrow"):
        table = datasets.Dataset.from_list(rows).data.table
        import pyarrow as pa

        make = pa.ipc.new_stream if "stream" in plain else pa.ipc.new_file
        with pa.OSFile(plain, "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table)
    elif plain.endswith(".json"):
        write(plain, json.dumps(rows, indent=1))
    else:
        write(plain, "\n".join(json.dumps(row) for row in rows))
    if name != plain:
        with open(plain, "rb") as file:
            write(name, file.read())
    return name


FORMATS = ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.ndjson", "a.parquet", "a.arrow", "stream.arrow"]


@pytest.mark.parametrize("name", FORMATS + [name + ".gz" for name in FORMATS])
def test_every_format_gives_the_rows_that_were_written(name):
    split = load(write_rows(name, ROWS))
    assert split.rows.to_list() == ROWS
    assert split.files == [(name, 3)]
    assert split.locate(2) == f"{name}:3"


@pytest.mark.parametrize("name", [*FORMATS, "a.csv.gz", "a.jsonl.gz"])
def test_a_stream_gives_the_same_rows(name):
    stream = load(write_rows(name, ROWS), streaming=True)
    assert isinstance(stream.rows, datasets.IterableDataset)
    rows = list(stream.rows)
    if "sv" in name:  # a streamed csv stays text
        assert rows == [{k: str(v) for k, v in row.items()} for row in ROWS]
    else:
        assert rows == ROWS


@pytest.mark.parametrize("name", ["t.txt", "t.txt.gz"])
def test_a_txt_file_is_one_text_per_line(name):
    assert load(write(name, "\ufeffone\r\n\r\nthree é\n")).rows.to_list() == [
        {"text": "one"},
        {"text": ""},
        {"text": "three é"},
    ]


def test_rows_of_csv_parquet_and_json_lines_are_memory_mapped():
    for name in ("a.csv", "a.parquet", "a.jsonl"):
        rows = load(write_rows(name, ROWS)).rows
        assert rows.cache_files, name


def test_words_for_missing_values_stay_words():
    split = load(write("a.csv", "text,label\nNA,None\nnull,NA\nNaN,None\n,nan\n"))
    assert split.rows["text"][:] == ["NA", "null", "NaN", ""]
    assert split.rows["label"][:] == ["None", "NA", "None", "nan"]


def test_columns_of_numbers_become_numbers_and_names_made_of_digits_do_not():
    text = "a,b,c,d,e,f,g\n1,1.5,007,12345678901234567890,1,-0,1e3\n-2,.5,1,1,x,0,2.\n"
    rows = load(write("a.csv", text)).rows
    assert rows.to_list() == [
        {"a": 1, "b": 1.5, "c": "007", "d": "12345678901234567890", "e": "1", "f": "-0", "g": 1000.0},
        {"a": -2, "b": 0.5, "c": "1", "d": "1", "e": "x", "f": "0", "g": 2.0},
    ]
    assert rows.column_names == list("abcdefg")
    assert load("a.csv", text_columns=["a", "b"]).rows[0]["a"] == "1"


def test_a_word_far_down_a_column_of_numbers_makes_it_text_as_a_whole():
    # pandas infers a type per 10,000 rows
    lines = [f"t{i},{i}" for i in range(12_000)] + ["last,other"]
    rows = load(write("a.csv", "text,label\n" + "\n".join(lines) + "\n")).rows
    assert rows["label"][0] == "0"
    assert rows["label"][12_000] == "other"


def test_a_blank_label_among_integers_is_reported_with_its_row():
    split = load(write("train.csv", "text,label\na,1\nb,\nc,2\n"))
    assert split.rows["label"][:] == ["1", "", "2"]
    with pytest.raises(DataError, match=r"1 of 3 labels are missing \(train.csv:2\)"):
        label_kind(split.rows["label"][:], split.locate)


def test_csv_agrees_with_pythons_reader_on_awkward_cells():
    cells = ["a,b", 'say "x"', "two\nlines", "tab\there", " spaces ", "'", "x;y|z", "é" * 200_000]
    with open("a.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "label"], *([cell, "k"] for cell in cells)])
    assert load("a.csv").rows["text"][:] == cells


def test_byte_order_mark_old_line_ends_blank_lines_and_index_columns_are_handled():
    write("a.csv", "text,label\r\nx,1\r\n\r\ny,2\r\n", "utf-8-sig")
    assert load("a.csv").rows.to_list() == [{"text": "x", "label": 1}, {"text": "y", "label": 2}]
    write("b.csv", ",text,label\n0,x,a\n1,y,b\n")
    assert load("b.csv").rows.column_names == ["Unnamed: 0", "text", "label"]
    assert load(write("c.csv", 'text,label\n"Great" film,1\n')).rows["text"][:] == ["Great film"]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16", "utf-8-sig", "shift_jis"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.txt"])
def test_an_encoding_is_honoured(name, encoding):
    word = "日本" if encoding == "shift_jis" else "café"
    content = {
        "a.csv": f"text,label\n{word},x\n",
        "a.jsonl": f'{{"text": "{word}"}}\n',
        "a.json": f'[{{"text": "{word}"}}]',
        "a.txt": f"{word}\n",
    }[name]
    assert load(write(name, content, encoding), encoding=encoding).rows["text"][:] == [word]


def test_delimiters_can_be_given():
    assert load(write("a.csv", "text;label\nx,y;1\n"), delimiter=";").rows.to_list() == [{"text": "x,y", "label": 1}]
    assert load(write("b.csv", "text\tlabel\nx\t1\n"), delimiter=r"\t").rows.to_list() == [{"text": "x", "label": 1}]


def test_json_keeps_digits_dates_and_changing_types():
    write("a.json", json.dumps({"v": 1, "data": {"x": 1}, "rows": [{"text": "2011-01-01", "label": "1"}]}))
    assert load("a.json", field="rows").rows.to_list() == [{"text": "2011-01-01", "label": "1"}]
    write("b.jsonl", '{"text": "2011-01-01"}\n{"text": "2012-01-01"}\n')
    assert load("b.jsonl").rows["text"][:] == ["2011-01-01", "2012-01-01"]
    write("c.json", '[{"text": "a"}, {"text": "b", "label": 0.12345678901234567}]')
    assert load("c.json").rows["label"][:] == [None, 0.12345678901234567]
    write("d.json", '{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n')  # json lines under a .json name
    assert load("d.json").rows["label"][:] == [1, 2]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_labels_of_several_types_in_json_come_back_as_they_were_and_are_refused(name):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": "x"}]
    write(name, json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows)))
    split = load(name)
    assert split.rows["label"][:] == [1, "x"]
    with pytest.raises(DataError, match="several types"):
        label_kind(split.rows["label"][:], split.locate)


def test_json_lines_whose_types_change_after_the_first_block_are_read():
    # datasets takes the types of the first 10 MB for the whole file
    lines = [json.dumps({"text": "x" * 5000, "label": i}) for i in range(2200)]
    lines.append(json.dumps({"text": "last", "label": 0.5}))
    rows = load(write("a.jsonl", "\n".join(lines))).rows
    assert rows["label"][1] == 1.0
    assert rows["label"][2200] == 0.5


def test_several_files_are_joined_in_order_and_rows_are_found_in_them():
    write("b.csv", "text,label\nb1,1\nb2,2\n")
    write("a.csv", "label,text\nx,a1\n")
    write("c[1].csv", "text,label\nc1,3\n")
    split = load(["b.csv", "a.csv", "c[1].csv"])
    assert split.rows["text"][:] == ["b1", "b2", "a1", "c1"]
    assert split.rows["label"][:] == ["1", "2", "x", "3"]
    assert split.files == [("b.csv", 2), ("a.csv", 1), ("c[1].csv", 1)]
    assert [split.locate(i) for i in range(4)] == ["b.csv:1", "b.csv:2", "a.csv:1", "c[1].csv:1"]
    assert load("?.csv").rows["text"][:] == ["a1", "b1", "b2"]


def test_ints_nulls_and_decimals_of_several_files_get_one_type():
    write("a.jsonl", '{"text": "a", "label": null}\n')
    write("b.jsonl", '{"text": "b", "label": 1}\n')
    write("c.jsonl", '{"text": "c", "label": 0.5}\n')
    assert load("?.jsonl").rows["label"][:] == [None, 1.0, 0.5]


def test_an_edited_file_is_read_again_even_within_one_tick_of_the_clock():
    for label in ("1", "2"):
        write("a.csv", f"text,label\nx,{label}\n")
        os.utime("a.csv", (1e9, 1e9))
        assert load("a.csv").rows["label"][:] == [int(label)]


def test_fingerprint_follows_content_and_reading_not_the_name():
    write("a.csv", "text;x,label\na;b,1\n")
    write("b.csv", "text;x,label\na;b,1\n")
    one = load("a.csv").fingerprint
    assert load("b.csv").fingerprint == one
    assert load("a.csv", delimiter=";").fingerprint != one
    write("b.csv", "text;x,label\na;b,2\n")
    assert load("b.csv").fingerprint != one


def test_reading_is_silent_and_leaves_the_settings_of_datasets_alone(capfd):
    before = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    load(write("a.csv", "text,label\nx,1\n"))
    with pytest.raises(DataError):
        load(write("b.parquet", b"PAR1" + b"\x00" * 50 + b"PAR1"))
    assert (datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()) == before
    assert capfd.readouterr() == ("", "")


# --- faults ------------------------------------------------------------------------------------------------------

FAULTS = {
    "semicolons": ("a.csv", "text;label\nx;1\n", {}, ["a.csv:1", "'text;label'", "data.delimiter: ';'"]),
    "tabs": ("a.csv", "text\tlabel\nx\t1\n", {}, [r'data.delimiter: "\t"']),
    "bars": ("a.csv", "text|label\nx|1\n", {}, ["data.delimiter: '|'"]),
    "commas in tsv": ("a.tsv", "text,label\nx,1\n", {}, ["data.delimiter: ','"]),
    "wrong delimiter": ("a.csv", "text,label\nx,1\n", {"delimiter": ";"}, ["not ';'", "data.delimiter: ','"]),
    "short row": ("a.csv", "text,label\nx,1\ny\nz,2\n", {}, ["a.csv:3", "1 columns where the header has 2", "'y'"]),
    "long row": ("a.csv", "text,label\nx,1\n\ny,2,3\n", {}, ["a.csv:4", "3 columns where the header has 2"]),
    "all rows long": ("a.csv", "text,label\nx,1,2\ny,2,3\n", {}, ["a.csv:2", "3 columns where the header has 2"]),
    "open quote": ("a.csv", 'text,label\nx,1\n"y,2\nz,3\n', {}, ["a.csv:3", "never closed", "line 3 to line 4"]),
    "open quote at the end": ("a.csv", 'text,label\nx,1\ny,"2\nz,3\n', {}, ["a.csv:3", "never closed"]),
    "open quote after odd one": ("a.csv", 'text,label\n"Hm" x,1\ny,"2\nz,3\n', {}, ["a.csv", "csv"]),
    "duplicate column": ("a.csv", "text,label,text\nx,1,y\n", {}, ["a.csv:1", "'text' stands twice"]),
    "header only": ("a.csv", "text,label\n", {}, ["a.csv", "no rows"]),
    "empty csv": ("a.csv", "", {}, ["a.csv", "file is empty"]),
    "blank": ("a.txt", "\n \n", {}, ["file is empty"]),
    "latin-1": (
        "a.csv",
        "text,label\nx,1\ncafé,2\n".encode("cp1252"),
        {},
        ["a.csv:3", "0xe9", "data.encoding: cp1252"],
    ),
    "cyrillic": ("a.csv", ("text,label\n" + "широкая страна моя родная,x\n" * 9).encode("cp1251"), {}, ["cp1251"]),
    "latin-1 txt": ("a.txt", "ok\ncafé\n".encode("cp1252"), {}, ["a.txt:2", "byte 0xe9 (4 of the line)", "cp1252"]),
    "latin-1 jsonl": ("a.jsonl", '{"text": "ok"}\n{"text": "café"}\n'.encode("cp1252"), {}, ["a.jsonl:2", "cp1252"]),
    "utf-16": ("a.csv", "text,label\nx,1\n".encode("utf-16"), {}, ["data.encoding: utf-16"]),
    "utf-16 unmarked": ("a.csv", "text,label\nx,1\n".encode("utf-16-le"), {}, ["data.encoding: utf-16-le"]),
    "not utf-16": ("a.csv", "text,label\nx,1\n", {"encoding": "utf-16"}, ["not utf-16", "data.encoding: utf-8"]),
    "utf-8 as latin-1": ("a.csv", "text,label\né,1\n", {"encoding": "latin-1"}, ["misread", "data.encoding: utf-8"]),
    "html csv": ("a.csv", "\n<!DOCTYPE html><html>", {}, ["file is HTML (download failed?)"]),
    "html parquet": ("a.parquet", "<html><body>404</body>", {}, ["file is HTML (download failed?)"]),
    "lfs": ("a.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:1", {}, ["git lfs pull"]),
    "no parquet": ("a.parquet", "text,label\nx,1", {}, ["not parquet", "text,label"]),
    "no arrow": ("a.arrow", "text,label\nx,1", {}, ["a.arrow", "damaged or cut off"]),
    "broken line": (
        "a.jsonl",
        '{"text": "a", "label": 1}\n\n{"text": "b", "label": 2,}\n',
        {},
        ["a.jsonl:3", "broken json", '"label": 2,}'],
    ),
    "line is an array": ("a.jsonl", '{"text": "a"}\n["b"]\n', {}, ["a.jsonl:2", "an array, not an object"]),
    "broken array": ("a.json", '[{"text": "a"},\n {"text" "b"}]', {}, ["a.json:2", "broken json"]),
    "object": ("a.json", '{"v": 1, "rows": [{"text": "a"}]}', {}, ["not an array", "'rows'", "data.field: rows"]),
    "pretty object": ("a.json", '{\n "v": 1,\n "rows": [\n{"text": "a"}]\n}', {}, ["data.field: rows"]),
    "no such field": ("a.json", '{"rows": [{"text": "a"}]}', {"field": "row"}, ["'row'", "data.field: rows"]),
    "field is no array": ("a.json", '{"rows": 3}', {"field": "rows"}, ["a number instead of an array"]),
    "array of strings": ("a.json", '["a", "b"]', {}, ["a.json:1", "a string, not an object"]),
    "empty array": ("a.json", "[]", {}, ["array of rows is empty"]),
    "unknown ending": ("a.xlsx", "x", {}, ["'.xlsx'", ".csv", "data.train"]),
    "unknown encoding": ("a.csv", "text\nx", {"encoding": "utf8x"}, ["data.encoding", "'utf8x'", "utf-8"]),
    "long delimiter": ("a.csv", "text\nx", {"delimiter": "||"}, ["data.delimiter", "not one character"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_place_and_remedy(fault):
    name, content, options, parts = FAULTS[fault]
    message = str(problem(write(name, content), **options))
    for part in parts:
        assert part in message


def test_settings_are_config_errors_and_files_are_data_errors():
    write("a.csv", "text\nx\n")
    assert isinstance(problem("a.csv", encoding="nope"), ConfigError)
    assert isinstance(problem("a.csv", delimiter=""), ConfigError)
    assert isinstance(problem("b.csv"), DataError)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow", "a.csv.gz", "a.json.gz"])
def test_a_file_that_is_cut_off_is_named(name):
    rows = [{"text": f"row {i} {np.random.default_rng(i).random()}", "label": i} for i in range(300)]
    write_rows(name, rows)
    with open(name, "rb") as file:
        content = file.read()
    with open(name, "wb") as file:
        file.write(content[: len(content) // 2])
    message = str(problem(name))
    assert name in message
    assert "cut off" in message


def test_a_flipped_byte_in_parquet_is_named():
    rows = [{"text": f"row {i} {np.random.default_rng(i).random()}"} for i in range(3000)]
    write_rows("a.parquet", rows)
    with open("a.parquet", "r+b") as file:
        file.seek(10)
        file.write(b"\xff" * 40)
    assert "a.parquet: file is damaged or cut off" in str(problem("a.parquet"))


def test_a_missing_file_a_glob_without_match_and_a_folder_name_what_is_there():
    os.mkdir("data")
    write("data/train.csv", "text\nx\n")
    assert "Fix: data.train: data/train.csv" in str(problem("data/trian.csv"))
    assert "glob data/*.jsonl matches nothing" in str(problem("data/*.jsonl"))
    assert "train.csv" in str(problem("data/*.jsonl"))
    assert "Fix: data.val: data" in str(problem("dtaa/train.csv", split="val"))
    assert "data is a folder" in str(problem("data"))
    assert "an address" in str(problem("https://example.org/a.csv"))
    assert "named twice" in str(problem(["data/train.csv", "data/*.csv"]))


def test_files_of_several_formats_or_columns_or_types_are_refused():
    write("a.csv", "text,label\nx,1\n")
    write("b.jsonl", '{"text": "x", "label": 1}')
    write("c.csv", "text,lable\nx,1\n")
    write("d.jsonl", '{"text": "x", "label": [1]}')
    assert "csv (a.csv), jsonl (b.jsonl)" in str(problem(["a.csv", "b.jsonl"]))
    message = str(problem(["a.csv", "c.csv"]))
    assert "c.csv: columns differ from those of a.csv: this file lacks 'label' and has 'lable' besides" in message
    message = str(problem(["b.jsonl", "d.jsonl"]))
    assert "d.jsonl: column 'label' is List(Value('int64')) here and int64 in b.jsonl" in message


# --- data sets -----------------------------------------------------------------------------------------------------


def hub(dataset, split="train", name=None, revision=None, split_name=None, streaming=False):
    return load_hub(split, dataset, name=name, revision=revision, split_name=split_name, streaming=streaming)


@pytest.fixture
def review_data():
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
            "tags": datasets.List(datasets.ClassLabel(names=["b", "a"])),
        }
    )
    rows = [{"text": f"t{i}", "label": i % 2, "tags": [i % 2]} for i in range(5)]
    return datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_list(rows, features=features),
            "dev": datasets.Dataset.from_list(rows[:2], features=features),
        }
    )


def test_a_folder_saved_by_datasets_is_read_by_split(review_data):
    review_data.save_to_disk("saved")
    train, val = hub("saved"), hub("saved", "val")
    assert train.rows.to_list() == review_data["train"].to_list()
    assert val.rows.num_rows == 2
    assert train.files == []
    assert train.locate(16) == "saved[train]:17"
    assert val.locate(0) == "saved[dev]:1"
    assert hub("saved", "test") is None
    with pytest.raises(DataError, match=r"data.test_split: saved has no split 'tset'; it has train, dev"):
        hub("saved", "test", split_name="tset")
    assert list(hub("saved", streaming=True).rows) == review_data["train"].to_list()
    review_data["train"].save_to_disk("single")
    assert hub("single").rows.num_rows == 5
    assert hub("single", "val") is None


def test_class_label_names_survive_and_encode_by_name(review_data):
    review_data.save_to_disk("saved")
    split = hub("saved")
    assert class_label_names(split, "label") == ["negative", "positive"]
    assert class_label_names(split, "tags") == ["b", "a"]
    assert class_label_names(split, "text") is None
    review_data["train"].to_parquet("a.parquet")
    split = load("a.parquet")
    names = class_label_names(split, "label")
    assert names == ["negative", "positive"]
    assert encode_class_labels(split.rows["label"][:], names, split.locate).tolist() == [0, 1, 0, 1, 0]


def test_fingerprint_of_a_data_set_is_its_content_however_it_is_stored(review_data):
    review_data.save_to_disk("one")
    review_data.save_to_disk("two", num_shards={"train": 3, "dev": 1})
    assert hub("one").fingerprint == hub("two").fingerprint
    review_data["train"] = review_data["train"].select([0, 1, 2, 3, 3])
    review_data.save_to_disk("three")
    assert hub("three").fingerprint != hub("one").fingerprint


def test_a_folder_laid_out_like_a_hub_repository_is_read_by_configuration():
    os.makedirs("repo/data")
    for part in ("train", "validation"):
        datasets.Dataset.from_dict({"text": ["a", part]}).to_parquet(f"repo/data/{part}-00000-of-00001.parquet")
    card = "configs:\n- config_name: small\n  data_files:\n"
    card += "  - {split: train, path: data/train-*}\n  - {split: validation, path: data/validation-*}\n"
    card += "- config_name: other\n  data_files:\n  - {split: validation_matched, path: data/validation-*}\n"
    write("repo/README.md", f"---\n{card}---\n")
    split = hub("./repo", "val", name="small")
    assert split.rows["text"][:] == ["a", "validation"]
    assert split.locate(1) == "./repo/small[validation]:2"
    assert [row["text"] for row in hub("./repo", name="small", streaming=True).rows] == ["a", "train"]
    assert hub("./repo", "test", name="small") is None
    with pytest.raises(DataError, match=r"no configuration 'smal'; there are \['small', 'other'\]"):
        hub("./repo", name="smal")
    with pytest.raises(DataError, match="several configurations"):
        hub("./repo")
    with pytest.raises(DataError, match="has no split 'validation' but validation_matched"):
        hub("./repo", "val", name="other")
    with pytest.raises(DataError, match=r"Fix: data.dataset: \./repo"):
        hub("./rpeo")


def test_words_for_missing_values_stay_words_in_a_csv_repository():
    os.mkdir("repo")
    write("repo/train.csv", "text,label\nNA,None\n")
    assert hub("./repo").rows.to_list() == [{"text": "NA", "label": "None"}]


# --- the Hub, played by a server on this machine -----------------------------------------------------------------


class _Hub(BaseHTTPRequestHandler):
    """The four addresses of the Hub that reading a public data set needs, for one repository."""

    files: ClassVar[dict[str, bytes]] = {}
    commit = "c" * 40

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def entries(self):
        return [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in self.files.items()
        ]

    def do_GET(self):
        path = self.path.split("?")[0]
        if "gated" in path:
            return self.answer(403, X_Error_Code="GatedRepo")
        if "org/tiny" not in path:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if "/resolve/" in path:
            content = self.files.get(path.split("/resolve/")[1].split("/", 1)[1])
            if content is None:
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=self.commit)
            return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=self.commit)
        if "/tree/" in path:
            folder = path.split("/tree/")[1].partition("/")[2]
            found = [e for e in self.entries() if not folder]
            return self.answer(200, json.dumps(found).encode(), Content_Type="application/json")
        info = {"id": "org/tiny", "sha": self.commit, "siblings": [], "tags": [], "private": False, "gated": False}
        return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")

    do_HEAD = do_GET  # noqa: N815 - the name http.server calls


def in_new_process(code, tmp_path, **environment):
    """The Hub's address and offline mode are read once per process."""
    settings = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "HF_HUB_OFFLINE": "0",
    }
    settings |= {**environment, "PYTHONPATH": os.pathsep.join(sys.path), "no_proxy": "127.0.0.1"}
    settings.pop("HF_DATASETS_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=settings, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


HUB_CODE = """
from lit_tune.data.sources import load_hub
from lit_tune.errors import DataError
for dataset, streaming in (("org/tiny", False), ("org/tiny", True), ("org/gated", False), ("org/missing", False)):
    try:
        split = load_hub("val", dataset, name=None, revision=None, split_name=None, streaming=streaming)
        print(split.locate(0), [row["text"] for row in split.rows])
    except DataError as error:
        print(str(error).replace(chr(10), " | "))
"""


@pytest.mark.slow
def test_the_hub_is_read_and_not_found_gated_and_offline_are_told_apart(tmp_path):
    for part in ("train", "validation"):
        datasets.Dataset.from_dict({"text": ["a", part]}).to_parquet("part.parquet")
        with open("part.parquet", "rb") as file:
            _Hub.files[f"{part}-00000-of-00001.parquet"] = file.read()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        tiny, stream, gated, missing = in_new_process(HUB_CODE, tmp_path, HF_ENDPOINT=endpoint).splitlines()
    finally:
        server.shutdown()
        server.server_close()
    assert tiny == "org/tiny[validation]:1 ['a', 'validation']"
    assert stream == tiny
    assert "org/gated is gated" in gated
    assert "hf auth login" in gated
    assert "there is no data set org/missing on the Hub" in missing
    cached, _, _, offline = in_new_process(HUB_CODE, tmp_path, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="1").splitlines()
    assert cached == tiny
    assert "org/missing is not cached here and the Hub cannot be reached (offline mode" in offline


def test_rows_of_a_txt_file_are_lines_paragraphs_or_the_file(tmp_path):
    content = "\n to be\r\nor not \n \t\n\nthat is\n"
    for name in ("a.txt", "b.txt.gz"):
        opened = gzip.open if name.endswith(".gz") else open
        with opened(tmp_path / name, "wb") as file:
            file.write(content.encode())
        wanted = {
            "line": ["", " to be", "or not ", " \t", "", "that is"],
            "paragraph": [" to be\nor not ", "that is"],
            "file": ["\n to be\nor not \n \t\n\nthat is\n"],
        }
        for rows, texts in wanted.items():
            read = load(str(tmp_path / name), txt_rows=rows)
            assert read.rows["text"][:] == texts
            stream = load(str(tmp_path / name), txt_rows=rows, streaming=True)
            assert [row["text"] for row in stream.rows] == texts
        assert load(str(tmp_path / name), txt_rows="paragraph").locate(1) == f"{tmp_path / name}:6"
    (tmp_path / "c.txt").write_text(" \n\n")
    with pytest.raises(DataError):
        load(str(tmp_path / "c.txt"), txt_rows="file")
