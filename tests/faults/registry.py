"""The table of faults: one row per case, written down with its number and what should happen.

A file ``<kind>_faults.py`` in this folder that calls :func:`fault` is found by ``test_faults.py``. Numbers are those of
the catalogue of 75 faults that this project is held to.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toy import toy_rows

Options = dict[str, Any]
"""Key of a config -> value."""


class Scene:
    """A folder with a model and whatever a case writes beside it.

    Args:
        folder: Empty.
        model: The tiny model; a copy, to be damaged.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model

    def text(self, name: str, content: str | bytes) -> str:
        """A file with this content; returns its path."""
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def csv(self, name: str, rows: Sequence[dict]) -> str:
        """Rows as csv."""
        with (self.folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return str(self.folder / name)

    def jsonl(self, name: str, rows: Sequence[dict]) -> str:
        """Rows as json lines; NaN stays NaN."""
        return self.text(name, "".join(json.dumps(row) + "\n" for row in rows))

    def good(self, name: str = "good.csv", count: int = 40, seed: int = 0) -> str:
        """Rows without a fault, no text twice."""
        return self.csv(
            name,
            [{"text": f"{r['text']} {seed}x{i}", "label": r["label"]} for i, r in enumerate(toy_rows(count, seed))],
        )

    def change(self, name: str, **fields: Any) -> None:
        """Change fields of a json file of the model; None removes one."""
        path = self.model / name
        content = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@dataclass(frozen=True)
class Fault:
    """One row.

    Args:
        number: Of the fault in the table.
        name: What it is.
        write: Writes the files of the case, and gives the config.
        code: The exit code; 0 where the fault is dealt with, or worth a warning only.
        says: Parts of the message, or of the warning.
        place: Key or file that the message begins with.
        verb: The verb that is run: ``fit``, where nothing else is said and the fault ends it, else ``check``.
    """

    number: int
    name: str
    write: Callable[[Scene], Options]
    code: int
    says: tuple[str, ...]
    place: str
    verb: str


FAULTS: list[Fault] = []

NOT_HERE: dict[int, str] = {}
"""Number -> why the fault cannot be produced in this project, or here."""


def fault(
    number: int, name: str, code: int, *says: str, place: str = "", verb: str | None = None
) -> Callable[[Callable[[Scene], Options]], Callable[[Scene], Options]]:
    """Register the function below as a case; see :class:`Fault`."""

    def register(write: Callable[[Scene], Options]) -> Callable[[Scene], Options]:
        if name not in {f.name for f in FAULTS}:  # pytest imports the file once more, for doctests
            FAULTS.append(Fault(number, name, write, code, says, place, verb or ("fit" if code else "check")))
        return write

    return register
