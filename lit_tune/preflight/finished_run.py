"""validate, test and predict from a run alone: its best weights and its labels, nothing retyped."""

import logging
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from lit_tune.datamodule import TokenizedDataModule
from lit_tune.durable import fingerprints
from lit_tune.errors import ConfigError, StorageError
from lit_tune.module import FineTuneModule
from lit_tune.run_dir import EXPORT_HASHES, RunDir
from lit_tune.tasks.base import Spec

log = logging.getLogger("lit_tune")


def run_of_config(options: list[str]) -> str | None:
    """The run directory a config file lies in, where ``--run_dir`` does not say otherwise.

    A run that was moved or copied is found by its config.yaml, not by the path it once had.

    Args:
        options: The command line after the verb.
    """
    if any(o == "--run_dir" or o.startswith("--run_dir=") for o in options):
        return None
    for flag, value in zip_longest(options, options[1:], fillvalue=""):
        name, _, inline = flag.partition("=")
        if name in ("--config", "-c"):
            path = Path(inline or value)
            if path.name == "config.yaml" and (path.parent / "manifest.json").is_file():
                return str(path.parent)
    return None


def use_best_weights(run_dir: RunDir, module: FineTuneModule, datamodule: TokenizedDataModule) -> bool:
    """Point module and datamodule at ``best/``; False without a run: the config's own model is measured.

    Raises:
        StorageError: The run is there but was not finished, or ``best/`` is damaged.
        ConfigError: Another model than the run's was asked for.
    """
    manifest = run_dir.read()
    if not manifest:
        return False
    if not (run_dir.best / "config.json").is_file():
        raise StorageError(
            f"{run_dir} holds a run with status {manifest.get('status')!r}, without best/",
            where="run_dir",
            fix="finish it with `lit-tune fit`, or another run_dir",
        )
    check_export(run_dir, manifest.get(EXPORT_HASHES, {}))
    of_run = trained_model(run_dir)
    if of_run not in (None, module.model_name):
        raise ConfigError(
            f"{module.model_name} has no effect: {run_dir} holds a trained {of_run}, and that is what is measured",
            where="model.model_name_or_path",
            fix="leave it out, or give another run_dir",
        )
    best = str(run_dir.best)
    module.model_name, module.revision, module.config_overrides = best, None, {}
    module.from_scratch, module.new_head, module.freeze_patterns, module.adapter = False, False, [], None
    module.unfreeze_settings = None  # and no tokens are added: they are in the tokenizer of best/
    datamodule.use_model(best)
    if "spec" in manifest:
        known = {field.name for field in fields(Spec)}
        datamodule.spec = Spec(**{name: value for name, value in manifest["spec"].items() if name in known})
    log.info("weights  %s (%s)", best, manifest.get("exported", "best"))
    return True


def check_export(run_dir: RunDir, hashes: dict[str, list[Any]]) -> None:
    """Compare ``best/`` with what the run wrote. The model card may be edited.

    Raises:
        StorageError: A file is damaged or missing, or the manifest knows none.
    """
    try:
        there = fingerprints(run_dir.best)
    except OSError as e:
        raise StorageError(f"cannot be read: {e.strerror}", where=str(run_dir.best), fix="check the disk") from e
    wrong = [name for name, found in hashes.items() if list(there.get(name, ())) != found]
    if wrong or not hashes:
        raise StorageError(
            f"not what the run wrote: {', '.join(wrong[:4]) or 'the manifest has no hashes of it'}",
            where=str(run_dir.best),
            fix="restore best/ from a copy, or train again with `lit-tune fit --overwrite`",
        )


def trained_model(run_dir: RunDir) -> str | None:
    """The model that the run was given, or None where its config.yaml does not say."""
    if not run_dir.config.is_file():
        return None
    config = yaml.safe_load(run_dir.config.read_text("utf-8")) or {}
    return (config.get("model") or {}).get("model_name_or_path")
