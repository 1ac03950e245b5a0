"""What a config may not reach: folders outside of the run, code of the Hub, parts of a command."""

import os
from collections.abc import Iterator
from typing import Any

from lit_tune.errors import ConfigError, LitTuneError
from lit_tune.preflight.situation import Situation

CLASS_KEYS = ("callbacks", "logger", "profiler", "plugins", "strategy")
"""Keys of ``trainer`` whose values are classes with arguments of their own."""

FOLDERS = ("dirpath", "save_dir", "root_dir", "log_dir", "dir", "offline_directory", "exclude_batches_path")
"""Arguments of Lightning's callbacks, loggers and profilers that are paths which are written (2.6.6)."""

NAMES = ("filename", "name", "version", "prefix")
"""Arguments that become a part of a path that is written."""


def output_paths(s: Situation) -> Iterator[LitTuneError]:
    """Everything a run writes lies in its run_dir, wherever that is."""
    run_dir = str(s["run_dir"] or "runs")
    for where, arguments in _classes(s):
        for key, value in arguments.items():
            if not isinstance(value, str):
                continue
            if key in FOLDERS and not _is_inside(value, run_dir):
                yield ConfigError(
                    f"{value} is outside of the run directory",
                    where=f"{where}.{key}",
                    fix=f"{key}: {os.path.join(run_dir, os.path.basename(value.rstrip('/')) or key)}",
                )
            if key in NAMES and (os.path.isabs(value) or ".." in value.replace("\\", "/").split("/")):
                yield ConfigError(
                    f"{value} leads out of its folder", where=f"{where}.{key}", fix=f"{key}: a name without .. in it"
                )


def hub_code(s: Situation) -> Iterator[LitTuneError]:
    """A kernel named as owner/name is a program that transformers downloads and runs."""
    kernel = s["model.attn_implementation"]
    if isinstance(kernel, str) and "/" in kernel:
        yield ConfigError(
            f"{kernel} is code of the Hub, which lit-tune never runs",
            where="model.attn_implementation",
            fix="model.attn_implementation: sdpa, eager or flash_attention_2",
        )


def _classes(s: Situation) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and arguments of each class under ``trainer``."""
    for key in CLASS_KEYS:
        value = s[f"trainer.{key}"]
        for spec in value if isinstance(value, list | tuple) else [value]:
            arguments = spec.get("init_args") if isinstance(spec, dict) else None
            if isinstance(arguments, dict):
                yield f"trainer.{key}", {**arguments, **(spec.get("dict_kwargs") or {})}


def _is_inside(path: str, folder: str) -> bool:
    if "://" in path:
        return False
    real, root = os.path.realpath(os.path.expanduser(path)), os.path.realpath(folder)
    return os.path.commonpath([real, root]) == root
