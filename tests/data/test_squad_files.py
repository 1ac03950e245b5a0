"""Files in the layout of SQuAD, read directly."""

import json

import pytest

from lit_tune.data.sources import load_files
from lit_tune.errors import DataError

ANSWERED = {"id": "a", "question": "Where?", "answers": [{"text": "lake", "answer_start": 2}]}
NONE = {"id": "b", "question": "Why?", "answers": [], "is_impossible": True}


def squad(*questions: dict, context: str = "a lake", title: str = "Lakes") -> dict:
    return {"version": "v2.0", "data": [{"title": title, "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def read(tmp_path, content, **options):
    file = tmp_path / "train.json"
    file.write_text(json.dumps(content, indent=options.pop("indent", None)))
    settings = {"delimiter": None, "encoding": "utf-8", "field": None, "streaming": False, **options}
    return load_files("train", str(file), **settings)


@pytest.mark.parametrize("options", [{}, {"indent": 1}, {"field": "data"}])
def test_a_file_gives_the_rows_of_the_hubs_data_set(tmp_path, options):
    found = read(tmp_path, squad(ANSWERED, NONE), **options)
    assert found.rows.to_list() == [
        {
            "id": "a",
            "title": "Lakes",
            "context": "a lake",
            "question": "Where?",
            "answers": {"text": ["lake"], "answer_start": [2]},
        },
        {
            "id": "b",
            "title": "Lakes",
            "context": "a lake",
            "question": "Why?",
            "answers": {"text": [], "answer_start": []},
        },
    ]
    assert found.locate(1).endswith("train.json:2")


def test_a_stream_of_a_file_gives_the_same_rows(tmp_path):
    content = squad(ANSWERED, NONE)
    assert list(read(tmp_path, content, streaming=True).read()) == read(tmp_path, content).rows.to_list()


def test_several_articles_and_files_follow_each_other(tmp_path):
    content = squad(ANSWERED, NONE)
    content["data"] += squad(ANSWERED, context="the lake", title="")["data"]
    other = tmp_path / "more.json"
    other.write_text(json.dumps(squad(NONE)))
    found = read(tmp_path, content)
    assert found.rows["context"][:] == ["a lake", "a lake", "the lake"]
    both = load_files(
        "train",
        [str(tmp_path / "train.json"), str(other)],
        delimiter=None,
        encoding="utf-8",
        field=None,
        streaming=False,
    )
    assert both.rows["id"][:] == ["a", "b", "a", "b"]


def test_a_file_without_answers_is_one_to_predict(tmp_path):
    assert read(tmp_path, squad({"id": "a", "question": "Where?"})).column_names == [
        "id",
        "title",
        "context",
        "question",
    ]


BAD = {
    "impossible": ([ANSWERED | {"is_impossible": True}], "is_impossible and has an answer"),
    "no answers": ([ANSWERED, {"question": "Why?"}], "lacks 'answers', others have them"),
    "no question": ([{"answers": []}], r"data\[0\].paragraphs\[0\].qas\[0\] has no text 'question'"),
    "a start that is text": (
        [{"question": "Where?", "answers": [{"text": "lake", "answer_start": "2"}]}],
        "answers is no list of",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_the_layout_is_named(tmp_path, case):
    questions, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, squad(*questions))
    assert caught.value.where.endswith(f"train.json:{len(questions)}")
    assert caught.value.fix


def test_parts_that_are_missing_and_files_without_questions_are_told(tmp_path):
    for content, message in (
        ({"data": [{"paragraphs": [{"context": "a"}]}]}, "has no list 'qas'"),
        ({"data": [{"paragraphs": [{"qas": [ANSWERED]}]}]}, "has no text 'context'"),
        (squad(), "file has no questions"),
    ):
        with pytest.raises(DataError, match=message):
            read(tmp_path, content)


def test_another_object_with_data_is_read_as_before(tmp_path):
    with pytest.raises(DataError, match="rows may stand under 'data'"):
        read(tmp_path, {"data": [{"text": "a"}]})
    assert read(tmp_path, {"data": [{"text": "a"}]}, field="data").rows.to_list() == [{"text": "a"}]
