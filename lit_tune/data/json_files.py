"""Reading json with Python's own parser: arrays of rows, and the line of a fault.

``datasets`` passes arrays through pandas' ujson, which cuts numbers to 10 digits (0.12345678901234567 came back as
0.123456789 with datasets 5.2), and turns columns of dates into timestamps.
"""

import json
from typing import Any

from lit_tune.data.file_content import opened_text
from lit_tune.errors import DataError, nearest


def read_json(path: str, encoding: str) -> Any:
    """The content of a json file.

    Raises:
        DataError: Broken json, with the line.
    """
    with opened_text(path, encoding) as text:
        content = text.read()
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise _broken_json(path, error.lineno, error.msg, content[max(0, error.pos - 40) : error.pos + 40]) from None
    except RecursionError:
        raise DataError("json is nested too deeply", where=path, fix="save the rows as jsonl") from None


def rows_of_json(data: Any, path: str, field: str | None) -> list[dict[str, Any]]:
    """The rows of a json file that holds an array of objects, at the top or under ``field``.

    Args:
        data: Its content.
        path: The file, for messages.
        field: ``data.field``.

    Raises:
        DataError: No array of objects there (with the keys that hold one); an empty array.
    """
    candidates = _keys_with_rows(data)
    if field is not None:
        if not isinstance(data, dict) or field not in data:
            has = ", ".join(map(repr, data)) if isinstance(data, dict) else "an array at the top"
            similar = nearest(field, data) if isinstance(data, dict) else None
            fix = f"data.field: {similar or candidates[0]}" if similar or candidates else "remove data.field"
            raise DataError(f"there is no key {field!r}; there is {has[:200]}", where=path, fix=fix)
        data = data[field]
    if isinstance(data, dict):
        fix = f"data.field: {candidates[0]}" if candidates else "save the rows as an array, or one per line as .jsonl"
        hold = f"; rows may stand under {', '.join(map(repr, candidates))}" if candidates else ""
        raise DataError(f"json is one object, not an array of rows{hold}", where=path, fix=fix)
    return _checked_rows(path, data)


def parse_json_lines(path: str, encoding: str) -> list[dict[str, Any]]:
    """Read json lines with Python's own parser: slow, but it keeps every type and knows the line of a fault.

    Raises:
        DataError: A broken line, or one that is no object.
    """
    rows = []
    with opened_text(path, encoding) as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except RecursionError:
                raise DataError("json is nested too deeply", where=f"{path}:{number}", fix="remove this line") from None
            except json.JSONDecodeError as error:
                raise _broken_json(path, number, error.msg, line[max(0, error.pos - 40) : error.pos + 40]) from None
            if not isinstance(row, dict):
                raise DataError(
                    f"line is {_json_type(row)}, not an object: {line.strip()[:80]}",
                    where=f"{path}:{number}",
                    fix='write rows as {"text": ..., "label": ...}',
                )
            rows.append(row)
    return rows


def json_layout(path: str, encoding: str) -> str:
    """``array``, ``object`` or ``lines``, from the beginning of the file."""
    with opened_text(path, encoding) as text:
        first = next((line.strip() for line in text if line.strip()), "")
        second = next((line.strip() for line in text if line.strip()), "")
    if first.startswith("["):
        return "array"
    try:
        json.loads(first)
    except RecursionError:
        return "lines"  # said by what reads them
    except json.JSONDecodeError:
        # an object printed over several lines begins with a lone brace, or with its first key but no end
        return "lines" if second.startswith("{") or first.endswith("}") else "object"
    return "lines" if second else "object"


def _checked_rows(path: str, data: Any) -> list[dict[str, Any]]:
    if not isinstance(data, list):
        raise DataError(f"there is {_json_type(data)} instead of an array of rows", where=path, fix="check data.field")
    if not data:
        raise DataError("the array of rows is empty", where=path, fix="export it again")
    for i, row in enumerate(data, 1):
        if not isinstance(row, dict):
            shown = json.dumps(row, ensure_ascii=False)[:80]
            fix = 'write rows as {"text": ..., "label": ...}'
            raise DataError(f"row is {_json_type(row)}, not an object: {shown}", where=f"{path}:{i}", fix=fix)
    return data


def _keys_with_rows(data: Any) -> list[str]:
    """Keys of an object that hold a list of objects."""
    if not isinstance(data, dict):
        return []
    return [k for k, v in data.items() if isinstance(v, list) and v and all(isinstance(row, dict) for row in v)]


def _json_type(value: Any) -> str:
    for kind, name in (
        (bool, "true/false"),
        (str, "a string"),
        (list, "an array"),
        (dict, "an object"),
        (int, "a number"),
    ):
        if isinstance(value, kind):
            return name
    return "null" if value is None else "a number"


def _broken_json(path: str, line: int, said: str, around: str) -> DataError:
    return DataError(
        f"broken json ({said}) near: {' '.join(around.split())}",
        where=f"{path}:{line}",
        fix="correct or remove this line",
    )
