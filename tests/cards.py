"""The lines that a model card shows, as a person runs them; shared by several tests."""

from pathlib import Path
from typing import Any


def lines_of_card(folder: Path) -> str:
    """The Python that the model card shows, for this folder."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    return code.replace("PATH_OF_FOLDER", str(folder)).replace("PATH_OR_ID", str(folder))


def run_card(folder: Path, text: str = "your text") -> dict[str, Any]:
    """The names that those lines leave behind, for a text in place of the example's."""
    names: dict[str, Any] = {}
    exec(compile(lines_of_card(folder).replace("your text", text), "card", "exec"), names)
    return names
