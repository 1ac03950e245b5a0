"""``lit-tune export``."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from lit_tune.callbacks.hf_export import TOLERANCE
from lit_tune.callbacks.model_card import usage
from lit_tune.cli import parse_for_run
from lit_tune.console import configure_logging
from lit_tune.durable import discard, fingerprints, sync_folder, sync_tree, temporary_of
from lit_tune.errors import ConfigError, StorageError
from lit_tune.models.adapter_folders import adapter_folder
from lit_tune.models.adapters import merged
from lit_tune.models.assembly import assemble, load_as_anyone
from lit_tune.models.load import load_tokenizer
from lit_tune.module import FineTuneModule
from lit_tune.preflight.finished_run import check_export, use_best_weights
from lit_tune.run_dir import EXPORT_HASHES, RunDir

CARD = "README.md"
PROBE_TOKENS = 16
"""Length of the two texts of random tokens that two models are compared on."""


def export(options: list[str], output: Path | None = None, merge: bool = False) -> None:
    """Copy the run's verified best weights to a folder; --merge adds an adapter to its base model.

    Args:
        options: The config: files and single keys; ``--config runs/x/config.yaml`` is enough.
        output: Folder to write; it must not exist yet, or be empty.
        merge: Write a plain transformers model that computes what the base model with the adapter does.
    """
    configure_logging()
    if output is None:
        raise ConfigError("a folder is needed", where="--output", fix="--output my_model")
    check_free(output)
    cli = parse_for_run(options, "export")
    module, datamodule = cli.parts(())
    if not use_best_weights(cli.run_dir, module, datamodule):
        raise StorageError(f"{cli.run_dir} holds no run", where="run_dir", fix="--config runs/my_run/config.yaml")
    if merge and adapter_folder(module.model_name) is None:
        raise ConfigError(
            f"nothing to merge: {cli.run_dir.best} is a whole model", where="--merge", fix="leave --merge out"
        )
    temporary = temporary_of(output)
    try:
        if merge:
            module.spec = datamodule.spec
            write_merged(module, cli.run_dir, temporary)
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
    print(f"written  {output}  ({'a plain model, merged' if merge else 'a copy of best/, verified'})")


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


def write_merged(module: FineTuneModule, run_dir: RunDir, folder: Path) -> None:
    """Merge, save, reload as anyone would, and compare logits.

    Args:
        module: Of the run, with its spec; no weights loaded.
        run_dir: The run.
        folder: Where to.

    Raises:
        StorageError: The merged model gives other logits.
        ModelError: The base model is missing or changed, or the adapter cannot be merged.
    """
    auto_class = module.task.auto_class
    assert module.spec is not None
    model, *_ = assemble(
        auto_class, module.recipe, module.build_config(module.spec), fitting=False, unused=module.task.unused_modules
    )
    expected = probe_logits(module, model)
    check_export(run_dir, run_dir.read().get(EXPORT_HASHES, {}))  # what was read just now is what the run wrote
    whole = merged(model)
    whole.save_pretrained(folder)
    load_tokenizer(str(run_dir.best)).save_pretrained(folder)
    for name in module.task.files(whole.config, 0):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(run_dir.best / name, folder / name)
    card = run_dir.best / CARD
    if card.is_file():
        text = card.read_text("utf-8").replace(usage(module.task, adapted=True), usage(module.task, adapted=False))
        (folder / CARD).write_text(text.replace("library_name: peft", f"library_name: {module.task.library}"), "utf-8")
    logits = probe_logits(module, load_as_anyone(auto_class, folder, whole.dtype))
    difference = float((logits - expected).norm() / expected.norm().clamp_min(1e-12))
    if not difference <= TOLERANCE.get(whole.dtype, 1e-2):
        raise StorageError(
            f"the merged model gives other logits (relative difference {difference:.2e})",
            where="--merge",
            fix="model.dtype: float32",
        )


@torch.inference_mode()
def probe_logits(module: FineTuneModule, model: Any) -> torch.Tensor:
    """Logits of two texts of random tokens, in float64."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    size = int(model.get_input_embeddings().num_embeddings)
    tokens = torch.randint(0, size, (2, PROBE_TOKENS), generator=generator)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return module.task.scores(module.task.forward(model, batch)).double()
