"""Where a streamed file is broken: looked for when reading breaks off, so that a good stream pays nothing."""

import json
from collections.abc import Sequence

from lit_tune.data.csv_files import check_csv
from lit_tune.data.file_content import explain_read_error, opened_text
from lit_tune.data.file_paths import common_kind
from lit_tune.errors import DataError, LitTuneError


def explain_stream_fault(error: Exception, paths: Sequence[str], delimiter: str, encoding: str) -> LitTuneError:
    """The error for the person, with file and line where the format has lines.

    Args:
        error: What reading the stream raised; pandas and pyarrow count rows from the start of a block, if at all.
        paths: The files of the stream.
        delimiter: Column separator of csv files.
        encoding: What text files are read with.
    """
    kind = common_kind(list(paths), "data.train")
    try:
        for path in paths:
            if kind in ("csv", "tsv"):
                check_csv(path, delimiter, encoding)
            elif kind == "jsonl":
                check_json_lines(path, encoding)
    except LitTuneError as fault:
        return fault
    return explain_read_error(error, paths[0] if len(paths) == 1 else "data.train", kind, encoding)


def check_json_lines(path: str, encoding: str) -> None:
    """Read json lines without keeping them.

    Raises:
        DataError: The first broken line.
    """
    with opened_text(path, encoding) as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"line is not json ({error.msg}): {line.strip()[:80]}",
                    where=f"{path}:{number}",
                    fix="correct or remove this line",
                ) from None
