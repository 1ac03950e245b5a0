"""Checking a csv file: what pandas passes over in silence or calls "Error tokenizing data", as file, line and remedy.

pandas fills up rows that are too short, renames a duplicate column, and takes the first column for an index where the
first row is one column longer than the header.
"""

import csv
import itertools
import sys

from lit_tune.data.file_content import opened_text
from lit_tune.errors import DataError

DELIMITERS = {",": "','", ";": "';'", "\t": r'"\t"', "|": "'|'"}
"""Column separators a csv may have -> as they are written in YAML."""


def check_csv(path: str, delimiter: str, encoding: str, max_rows: int | None = None) -> list[str]:
    """Read a csv once with Python's own reader (about 100 MB/s), which sees what pandas passes over.

    Args:
        path: The file.
        delimiter: One character.
        encoding: ``data.encoding``.
        max_rows: Look at so many rows only.

    Returns:
        Column names; a blank one is called ``Unnamed: <number>``, as pandas does.

    Raises:
        DataError: No rows, duplicate columns, another delimiter, ragged rows, an unclosed quote, undecodable bytes.
    """
    old_limit = csv.field_size_limit(sys.maxsize)  # Python's own limit is 131072 characters per cell
    try:
        # strict knows an unclosed quote, but also refuses `"Great" film,1`, which pandas reads well enough
        header = _scan(path, delimiter, encoding, max_rows, strict=True)
        header = header or _scan(path, delimiter, encoding, max_rows, strict=False)
    finally:
        csv.field_size_limit(old_limit)
    return [name if name.strip() else f"Unnamed: {i}" for i, name in enumerate(header or [])]


def _scan(path: str, delimiter: str, encoding: str, max_rows: int | None, strict: bool) -> list[str] | None:
    """The header of a csv without faults; None if ``strict`` stumbled over something that is no fault."""
    last_line = num_rows = 0
    with opened_text(path, encoding) as text:
        reader = csv.reader(text, delimiter=delimiter, strict=strict)
        try:
            header = next((row for row in reader if not _is_blank(row)), [])
            _check_header(path, header, delimiter)
            last_line = reader.line_num
            for row in itertools.islice(reader, max_rows):
                if len(row) == len(header):
                    num_rows += 1
                elif not _is_blank(row):
                    raise _ragged(path, last_line + 1, reader.line_num, row, len(header))
                last_line = reader.line_num
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise unclosed_quote(path, last_line + 1, reader.line_num) from None
            if strict:
                return None
            where = f"{path}:{reader.line_num}"
            raise DataError(f"is not a csv file ({error})", where=where, fix="correct the line") from None
    if num_rows == 0:
        raise DataError("file has a header but no rows", where=path, fix="export it again")
    return header


def _is_blank(row: list[str]) -> bool:
    """A blank line, which is no row to pandas either."""
    return len(row) == 0 or (len(row) == 1 and not row[0].strip())


def _check_header(path: str, header: list[str], delimiter: str) -> None:
    twice = sorted({name for name in header if name.strip() and header.count(name) > 1})
    if twice:
        raise DataError(f"column {twice[0]!r} stands twice in the header", where=f"{path}:1", fix="rename one of them")
    if len(header) == 1:
        other = max((d for d in DELIMITERS if d != delimiter), key=header[0].count)
        if other in header[0]:
            used = DELIMITERS.get(delimiter, delimiter)
            raise DataError(
                f"there is one column, named {header[0][:80]!r}: the delimiter is not {used}",
                where=f"{path}:1",
                fix=f"data.delimiter: {DELIMITERS[other]}",
            )


def _ragged(path: str, first_line: int, last_line: int, row: list[str], num_columns: int) -> DataError:
    if last_line > first_line:  # usually a quote that swallowed the lines below it
        return unclosed_quote(path, first_line, last_line)
    shown = ", ".join(repr(cell[:30]) for cell in row[:4])
    return DataError(
        f"{len(row)} columns where the header has {num_columns}: {shown}",
        where=f"{path}:{first_line}",
        fix='put cells that hold the delimiter in double quotes ("), and write "" for a quote in them',
    )


def unclosed_quote(path: str, first_line: int, last_line: int) -> DataError:
    """The error for a row that swallowed the lines below it."""
    return DataError(
        f'a double quote (") is never closed: the row reaches from line {first_line} to line {last_line}',
        where=f"{path}:{first_line}",
        fix='close it, or write "" for a quote in a cell',
    )
