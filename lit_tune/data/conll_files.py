"""Files of one word per line and sentences apart by empty lines, as CoNLL's shared tasks wrote them."""

import re
from typing import Any

from lit_tune.data.file_content import opened_text
from lit_tune.errors import DataError

WORDS, TAGS = "tokens", "ner_tags"
"""Columns of the first and of the last field of a line; those between are ``column_2``, ``column_3`` ..."""
LINE = "line"
"""Column with the line on which a sentence begins; taken out before anybody sees the rows."""
_SEPARATORS = re.compile(r"[ \t]+")  # not str.split(), which also splits words at a no-break space


def parse_conll(path: str, encoding: str) -> list[dict[str, Any]]:
    """Read a file.

    Fields stand apart by tabs where the first line has one, else by white space. ``-DOCSTART-`` lines are left out. A
    file of one field per line has words only.

    Returns:
        One row per sentence: ``tokens``, ``ner_tags``, what stands between, and ``line``.

    Raises:
        DataError: A line with more or fewer fields than the first, or with an empty one; no sentence at all.
    """
    rows: list[dict[str, Any]] = []
    sentence: list[list[str]] = []
    names: list[str] = []
    by_tabs = False
    with opened_text(path, encoding) as text:
        for number, raw in enumerate(text, 1):
            line = raw.strip(" \t\r\n")
            if not line:
                sentence = []
                continue
            if line.startswith("-DOCSTART-"):
                continue
            if not names:
                by_tabs = "\t" in line
            fields = [f.strip() for f in raw.strip("\r\n").split("\t")] if by_tabs else _SEPARATORS.split(line)
            names = names or column_names(len(fields))
            if len(fields) != len(names) or "" in fields:
                raise _bad_line(path, number, fields, len(names), by_tabs)
            if not sentence:
                sentence = [[] for _ in names]
                rows.append({**dict(zip(names, sentence, strict=True)), LINE: number})
            for column, value in zip(sentence, fields, strict=True):
                column.append(value)
    if not rows:
        raise DataError("file has no sentences", where=path, fix="export it again")
    return rows


def column_names(count: int) -> list[str]:
    """Names of the fields of a line.

    >>> column_names(4), column_names(1)
    (['tokens', 'column_2', 'column_3', 'ner_tags'], ['tokens'])
    """
    between = [f"column_{i}" for i in range(2, count)]
    return [WORDS, *between, TAGS][:count] if count > 1 else [WORDS]


def _bad_line(path: str, number: int, fields: list[str], expected: int, by_tabs: bool) -> DataError:
    how = "tabs" if by_tabs else "white space"
    if len(fields) == expected:
        what = f"field {fields.index('') + 1} of {expected} is empty"
    else:
        what = f"{len(fields)} fields apart by {how}, the first line has {expected}: {' '.join(fields)[:60]}"
    return DataError(what, where=f"{path}:{number}", fix="correct this line; an empty line ends a sentence")
