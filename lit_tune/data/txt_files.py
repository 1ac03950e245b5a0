"""Text files of which a row is more than a line: a paragraph, or the whole file."""

import re
from typing import Any, Literal

from lit_tune.data.conll_files import LINE
from lit_tune.data.file_content import opened_text
from lit_tune.errors import DataError

TxtRows = Literal["line", "paragraph", "file"]
"""What is a row of a txt file. A ``paragraph`` ends with a line of nothing but white space."""

PARAGRAPH, FILE = "txt paragraph", "txt file"
"""Formats of these files, beside ``text``, of which a row is a line."""
MAX_CHARS = 2**29
"""A text of Arrow holds 2 GiB, a character up to 4 bytes."""
_BETWEEN = re.compile(r"\n(?:[^\S\n]*\n)+")


def parse_txt(path: str, encoding: str, kind: str) -> list[dict[str, Any]]:
    r"""Read a file.

    Args:
        path: The file.
        encoding: Of its text.
        kind: ``PARAGRAPH`` or ``FILE``.

    Returns:
        Rows with ``text``, and for paragraphs the line on which each begins. Line ends are ``\n``.

    Raises:
        DataError: A text that is too long to be one row; no text at all.
    """
    with opened_text(path, encoding) as file:
        content = file.read().replace("\r\n", "\n").replace("\r", "\n")
    rows = paragraphs(content) if kind == PARAGRAPH else [{"text": content}]
    if not any(row["text"].strip() for row in rows):
        raise DataError("there is no text in the file", where=path, fix="export it again")
    if max(len(row["text"]) for row in rows) > MAX_CHARS:
        raise DataError("a text is too long to be one row", where=path, fix="data.txt_rows: line, or smaller files")
    return rows


def paragraphs(content: str) -> list[dict[str, Any]]:
    r"""Texts between blank lines, with their first lines.

    >>> paragraphs("\n a\nb \n  \n\nc")
    [{'text': ' a\nb ', 'line': 2}, {'text': 'c', 'line': 6}]
    """
    rows, start, line = [], 0, 1
    ends = [*((m.start(), m.end()) for m in _BETWEEN.finditer(content)), (len(content), len(content))]
    for end, after in ends:
        text = content[start:end]
        if text.strip():
            kept = text.lstrip("\n")
            rows.append({"text": kept.rstrip("\n"), LINE: line + len(text) - len(kept)})
        line += content.count("\n", start, after)
        start = after
    return rows
