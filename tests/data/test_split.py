"""Raw rows keep their place: selections, several files, streams."""

import datasets
import numpy as np
import pytest

from lit_tune.data.raw_data import RawData
from lit_tune.data.split import READ_ROWS, Split
from lit_tune.errors import DataError


def split_of(count: int, files: list[tuple[str, int]]) -> Split:
    return Split(datasets.Dataset.from_dict({"n": list(range(count))}), "train", files, "f", "org/data[train]")


def test_a_row_is_named_by_file_and_number_through_any_selection():
    split = split_of(6, [("a.csv", 2), ("b.csv", 4)])
    assert [split.locate(i) for i in range(6)] == ["a.csv:1", "a.csv:2", "b.csv:1", "b.csv:2", "b.csv:3", "b.csv:4"]
    part = split.select(np.array([1, 3, 5])).select(np.array([0, 2])).renamed("val")
    assert part.name == "val"
    assert part.column("n") == [1, 5]
    assert [part.locate(i) for i in range(2)] == ["a.csv:2", "b.csv:4"]


def test_a_data_set_without_files_is_named_by_its_source():
    split = split_of(3, [])
    assert (split.title, split.locate(2)) == ("org/data[train]", "org/data[train]:3")
    assert split_of(3, [("a.csv", 3)]).title == "a.csv"
    assert split_of(3, [("a.csv", 1), ("b.csv", 2)]).title == "train (2 files)"


def test_an_empty_split_is_still_a_split():
    assert split_of(0, [])


def stream_of(tmp_path, text: str, name: str = "a.jsonl") -> Split:
    (tmp_path / name).write_text(text)
    found = RawData({"train": str(tmp_path / name)}).load("train", streaming=True)
    assert found is not None
    return found


def test_a_stream_is_read_whole_and_its_first_rows_keep_their_place(tmp_path):
    count = 2 * READ_ROWS + 3
    stream = stream_of(tmp_path, "".join(f'{{"text": "t{i}", "label": {i % 2}}}\n' for i in range(count)))
    assert stream.is_streamed
    assert [row["text"] for row in stream.read()] == [f"t{i}" for i in range(count)]
    assert stream.column_names == ["text", "label"]
    first = stream.take(3)
    assert first.rows.to_list() == [{"text": f"t{i}", "label": i % 2} for i in range(3)]
    assert first.locate(2) == f"{tmp_path}/a.jsonl:3"
    assert stream.table([{"text": "x", "label": 0}], np.array([40])).locate(0) == f"{tmp_path}/a.jsonl:41"


BROKEN = {
    "a.jsonl": ('{"text": "ok", "label": 1}\n' * 5000 + '{"text": "broken, "label": 1}\n', ":5001"),
    "a.csv": ("text,label\n" + "ok,1\n" * 12_000 + "too,many,cells\n", ":12002"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_far_down_a_stream_is_named(tmp_path, name):
    text, place = BROKEN[name]
    with pytest.raises(DataError) as caught:
        list(stream_of(tmp_path, text, name).read())
    assert str(caught.value).startswith(f"{tmp_path}/{name}{place}: ")
    assert caught.value.fix


def test_a_saved_split_without_rows_is_an_error(tmp_path):
    empty = datasets.Dataset.from_dict({"text": [], "label": []})
    datasets.DatasetDict({"train": empty}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="a split in it has no rows"):
        RawData({}, dataset=str(tmp_path / "saved")).load("train")


def test_distinct_values_of_a_selection_are_those_of_its_rows():
    values = [2.5, None, 1.0, 2.5, float("nan"), 7.0]
    for column in (values, ["b", None, "a", "b", "", "c"], [["x"], [], ["x", "y"], ["x"], [], ["z"]]):
        split = Split(datasets.Dataset.from_dict({"n": column}), "train", [], "f", "s")
        chosen = [5, 3, 1, 0, 4]
        part = split.select(np.array(chosen)).select(np.array([1, 2, 3]))
        for found, expected in ((split, column), (part, [column[i] for i in chosen[1:4]])):
            assert repr(found.distinct("n").rows()) == repr(list(expected))
            first_seen = list(dict.fromkeys(map(repr, expected)))
            assert list(map(repr, found.distinct("n").values)) == first_seen
