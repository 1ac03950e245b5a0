"""What a run has noted of the files it exported."""

import json
from pathlib import Path

from lit_tune.run_dir import EXPORT_HASHES


def hashes_of_run(folder: Path) -> dict[str, str]:
    """Hashes of a folder that is a run's ``best/``, from the run's manifest."""
    try:
        manifest = json.loads((folder.parent / "manifest.json").read_text("utf-8"))
        return {name: found[1] for name, found in manifest[EXPORT_HASHES].items()} if folder.name == "best" else {}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {}
