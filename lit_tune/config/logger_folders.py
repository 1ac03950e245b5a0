"""Loggers that are named without a folder write into the run, not into the working folder."""

import inspect
from typing import Any

from jsonargparse import Namespace

from lit_tune.imports import import_class


def use_run_dir(loggers: Any, run_dir: str) -> None:
    """Give each logger whose ``save_dir`` is its class's default (``.``, ``./mlruns``) the run's folder instead.

    Args:
        loggers: Parsed ``trainer.logger``: one class with its arguments, several, or none.
        run_dir: The run's folder.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        arguments = logger.get("init_args") if isinstance(logger, Namespace) else None
        if not isinstance(arguments, Namespace) or not isinstance(arguments.get("save_dir"), str):
            continue
        signature = inspect.signature(import_class(logger.class_path, where="trainer.logger"))
        parameter = signature.parameters.get("save_dir")
        if parameter is not None and arguments.save_dir == parameter.default:
            arguments.save_dir = run_dir
