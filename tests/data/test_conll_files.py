"""Files of one word per line: columns, sentences, and faults with their line."""

from pathlib import Path

import pytest

from lit_tune.data.sources import load_files
from lit_tune.data.split import Split
from lit_tune.errors import DataError

CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O


German JJ B-NP B-MISC
"""


def load(path: Path, *more: Path, **options) -> Split:
    settings = {"delimiter": None, "encoding": "utf-8", "field": None, "streaming": False} | options
    return load_files("train", [str(p) for p in (path, *more)], **settings)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_the_first_field_is_the_word_and_the_last_the_tag(tmp_path):
    split = load(write(tmp_path / "a.conll", CONLL_2003))
    assert split.rows[:] == {
        "tokens": [["EU", "rejects"], ["German"]],
        "column_2": [["NNP", "VBZ"], ["JJ"]],
        "column_3": [["B-NP", "B-VP"], ["B-NP"]],
        "ner_tags": [["B-ORG", "O"], ["B-MISC"]],
    }


@pytest.mark.parametrize(
    ("text", "tokens", "tags"),
    [
        ("New York\tB-LOC\n\n.\tO", [["New York"], ["."]], [["B-LOC"], ["O"]]),  # tabs: a word may hold a space
        ("a  O\r\nb\tO\r\n \r\nc O\r\n", [["a", "b"], ["c"]], [["O", "O"], ["O"]]),
        ("a\u00a0b O\n# O\n", [["a\u00a0b", "#"]], [["O", "O"]]),  # neither a separator nor a comment
        ("\ufeffa O\n", [["a"]], [["O"]]),
    ],
)
def test_fields_stand_apart_by_tabs_or_white_space(text, tokens, tags, tmp_path):
    rows = load(write(tmp_path / "a.bio", text)).rows[:]
    assert (rows["tokens"], rows["ner_tags"]) == (tokens, tags)


def test_a_file_of_words_has_no_tags(tmp_path):
    assert load(write(tmp_path / "a.conll", "a\nb\n\nc\n")).rows[:] == {"tokens": [["a", "b"], ["c"]]}


def test_a_sentence_is_placed_at_its_first_line(tmp_path):
    first, second = write(tmp_path / "a.conll", CONLL_2003), write(tmp_path / "b.conll", CONLL_2003[21:])
    split = load(first, second)
    assert [split.locate(i) for i in range(4)] == [f"{first}:3", f"{first}:7", f"{second}:2", f"{second}:6"]
    assert split.select([2]).locate(0) == f"{second}:2"
    assert load(first).locate(1) == f"{first}:7"


def test_a_stream_reads_the_same_rows(tmp_path):
    path = write(tmp_path / "a.conll", CONLL_2003)
    assert list(load(path, streaming=True).read()) == list(load(path).read())


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("a O\nb\n", "a.conll:2", "1 fields apart by white space, the first line has 2: b"),
        ("a\tO\n\nNew York O\n", "a.conll:3", "1 fields apart by tabs, the first line has 2"),
        ("a\tO\nb\t\n", "a.conll:2", "field 2 of 2 is empty"),
        ("-DOCSTART- O\n\n", "a.conll", "no sentences"),
        ("\n \n", "a.conll", "empty"),
    ],
)
def test_a_fault_is_named_with_its_line(text, where, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        load(write(tmp_path / "a.conll", text))
    assert caught.value.where.endswith(where)
    assert caught.value.fix
