"""``lit-tune export``."""

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from lit_tune.cli import parse_for_run
from lit_tune.commands.rewriting import Rewriting, rewrite
from lit_tune.console import configure_logging
from lit_tune.durable import discard, fingerprints, sync_folder, sync_tree, temporary_of
from lit_tune.errors import ConfigError, StorageError
from lit_tune.models.adapter_folders import adapter_folder
from lit_tune.preflight.finished_run import use_best_weights
from lit_tune.run_dir import EXPORT_HASHES, RunDir


def export(
    options: list[str],
    output: Path | None = None,
    format: Literal["hf", "onnx"] = "hf",
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    merge: bool = False,
) -> None:
    """Write the run's verified best weights to a folder: as they are, merged, in half precision, or as ONNX.

    Args:
        options: The config: files and single keys; ``--config runs/x/config.yaml`` is enough.
        output: Folder to write; it must not exist yet, or be empty.
        format: ``hf`` for ``from_pretrained``; ``onnx`` for onnxruntime: model.onnx in float32, an adapter merged into
            it, whose numbers are compared with the model's on several sizes of batches (1e-4). A language model's graph
            reads whole texts and keeps no cache. Needs the extra ``lit-tune[onnx]``.
        dtype: Data type of the weights; default: as they were trained. What rounding changes is measured and said.
        merge: Add an adapter to its base model: a plain transformers model that computes what both do.
    """
    configure_logging()
    if output is None:
        raise ConfigError("a folder is needed", where="--output", fix="--output my_model")
    check_free(output)
    cli = parse_for_run(options, "export")
    module, datamodule = cli.parts(())
    if not use_best_weights(cli.run_dir, module, datamodule):
        raise StorageError(f"{cli.run_dir} holds no run", where="run_dir", fix="--config runs/my_run/config.yaml")
    how = Rewriting(merge, getattr(torch, dtype) if dtype else None, format == "onnx")
    how.check(adapter_folder(module.model_name) is not None, cli.run_dir.best)
    temporary = temporary_of(output)
    try:
        said = "a copy of best/, verified"
        if how:
            module.spec = datamodule.spec
            said = rewrite(module, cli.run_dir, temporary, how)
        else:
            shutil.copytree(cli.run_dir.best, temporary)
            check_copy(cli.run_dir, temporary)
        sync_tree(temporary)
        if output.is_dir():
            output.rmdir()  # it is empty
        os.replace(temporary, output)
        sync_folder(output.parent)
    except OSError as error:
        raise StorageError(
            f"cannot be written: {error.strerror or error}", where="--output", fix="free some space, or another folder"
        ) from error
    finally:
        discard(temporary)
    print(f"written  {output}  ({said})")


def check_free(output: Path) -> None:
    """Refuse a place where something is.

    Raises:
        StorageError: It is.
    """
    try:
        taken = output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir())))
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{output}: {error.strerror}", where="--output", fix="another folder") from error
    if taken:
        raise StorageError(f"{output} is not empty", where="--output", fix="a new folder; nothing is overwritten")


def check_copy(run_dir: RunDir, copy: Path) -> None:
    """Compare the copy with what the run wrote.

    Raises:
        StorageError: It differs.
    """
    there = {name: list(found) for name, found in fingerprints(copy).items()}
    hashes: dict[str, list[Any]] = run_dir.read().get(EXPORT_HASHES, {})
    wrong = [name for name, found in hashes.items() if there.get(name) != list(found)]
    if wrong:
        raise StorageError(f"the copy differs: {', '.join(wrong[:4])}", where="--output", fix="check the disk")
