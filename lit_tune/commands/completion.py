"""``lit-tune completion``."""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lit_tune.commands
from lit_tune.config.completion import Shell, completion_script
from lit_tune.errors import StorageError
from lit_tune.preflight.trainer_rules import NOT_OFFERED


def completion(shell: Shell = "bash", output: Path | None = None) -> None:
    """Print a script that lets bash or zsh complete verbs, options and keys, at once.

    The script starts no Python; make it again after an update of lit-tune.

    Args:
        shell: Which shell: bash or zsh.
        output: File to write; default: standard output.
    """
    script = completion_script(verbs(), shell, NOT_OFFERED)
    if output is None:
        print(script)
        return
    try:
        output.write_text(script + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror}", where="--output", fix="another path") from error


def verbs() -> dict[str, Callable[..., Any]]:
    """Every verb's function: the one that has the name of its file."""
    modules = {info.name for info in pkgutil.iter_modules(lit_tune.commands.__path__)}
    found = {name: importlib.import_module(f"lit_tune.commands.{name}") for name in sorted(modules)}
    return {name: getattr(module, name) for name, module in found.items() if hasattr(module, name)}
