"""``lit-tune schema``."""

import json
from pathlib import Path

from lit_tune.config.schema import config_schema
from lit_tune.errors import StorageError


def schema(output: Path | None = None) -> None:
    """Print the JSON schema of a config, for editors that complete and check YAML.

    Args:
        output: File to write; default: standard output.
    """
    text = json.dumps(config_schema(), indent=2) + "\n"
    if output is None:
        print(text, end="")
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror}", where="--output", fix="another path") from error
