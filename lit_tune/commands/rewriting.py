"""A run's best weights written anew: merged, in another data type, as an ONNX graph; verified before it is told."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import is_bitsandbytes_available

from lit_tune.callbacks.hf_export import TOLERANCE
from lit_tune.callbacks.model_card import onnx_usage, usage
from lit_tune.errors import ConfigError, ModelError, StorageError
from lit_tune.models.adapter_folders import BASE, CONFIG, WEIGHTS, adapter_folder
from lit_tune.models.adapters import is_adapted, merged
from lit_tune.models.assembly import assemble, load_as_anyone
from lit_tune.models.load import load_tokenizer
from lit_tune.models.onnx_graph import check_packages, write_graph
from lit_tune.models.own_class import module_to_import
from lit_tune.models.precision import cast, check_cast, name_of
from lit_tune.models.probing import numbers_of
from lit_tune.module import FineTuneModule
from lit_tune.preflight.finished_run import check_export
from lit_tune.run_dir import EXPORT_HASHES, RunDir

CARD = "README.md"
OF_WEIGHTS = (CONFIG, WEIGHTS, BASE, "model.safetensors", "model.safetensors.index.json", "model-*.safetensors", CARD)
"""Files of ``best/`` that a rewritten folder does not get as they are."""


@dataclass(frozen=True)
class Rewriting:
    """What is to differ from ``best/``.

    Args:
        merge: An adapter is added to its base model's weights.
        dtype: Data type of the weights; None: as they are.
        onnx: A graph instead of weights.
    """

    merge: bool
    dtype: torch.dtype | None
    onnx: bool

    def __bool__(self) -> bool:
        return self.merge or self.dtype is not None or self.onnx

    def check(self, is_adapter: bool, best: Path) -> None:
        """Refuse what contradicts itself or the run.

        Raises:
            ConfigError: The first of it.
        """
        if self.merge and not is_adapter:
            raise ConfigError(f"nothing to merge: {best} is a whole model", where="--merge", fix="leave --merge out")
        if self.onnx and self.dtype not in (None, torch.float32):
            raise ConfigError(
                f"an ONNX graph is written in float32, not in {name_of(self.dtype)}",
                where="--dtype",
                fix="leave --dtype out; onnxruntime.transformers converts a graph to float16",
            )
        if is_adapter and not self.merge and self.dtype is not None and not self.onnx:
            raise ConfigError(
                f"{best} is an adapter, whose type is that of its base model",
                where="--dtype",
                fix="add --merge; or load the base model with another dtype",
            )
        if self.onnx:
            check_packages()


def rewrite(module: FineTuneModule, run_dir: RunDir, folder: Path, how: Rewriting) -> str:
    """Load, change, save, reload as anyone would, and compare.

    Args:
        module: Of the run, with its spec; no weights loaded.
        run_dir: The run.
        folder: Where to.
        how: What is changed.

    Returns:
        What was done and found, in words.

    Raises:
        LitTuneError: The model cannot be changed so, or gives other numbers then.
    """
    assert module.spec is not None
    auto_class = module.task.auto_class
    config, unused = module.build_config(module.spec), module.task.unused_modules
    # packed weights cannot take the adapter in without being rounded again
    model, *_ = assemble(auto_class, replace(module.recipe, quantization=None), config, fitting=False, unused=unused)
    tokenizer, has_choices = load_tokenizer(str(run_dir.best)), module.task.pipeline == "multiple-choice"
    module.task.prepare_model(model, tokenizer)  # how texts are written is saved with the model
    expected = numbers_of(model, tokenizer, has_choices)
    check_export(run_dir, run_dir.read().get(EXPORT_HASHES, {}))  # what was read just now is what the run wrote
    said = [rounding(module, expected, tokenizer, has_choices)] if module.recipe.quantization else []
    whole: Any = model
    if is_adapted(model):
        whole = whole_model(model, how)
        said.append("merged")
    if how.onnx:
        compare(numbers_of(whole, tokenizer, has_choices), expected, whole.dtype)
        difference = write_graph(whole.float(), tokenizer, folder, has_choices)
        said.append(f"ONNX, at most {difference:.0e} from the model's own numbers")
    else:
        if how.dtype is not None:
            cast(whole, how.dtype)
        whole.save_pretrained(folder)
        logits = numbers_of(load_as_anyone(auto_class, folder, whole.dtype), tokenizer, has_choices)
        if how.dtype is not None:
            difference = check_cast(logits, expected, how.dtype)
            said.append(f"{name_of(how.dtype)}, logits differ by {difference:.0e} of their size")
        else:
            compare(logits, expected, whole.dtype)
    tokenizer.save_pretrained(folder)
    copy_rest(run_dir.best, folder)
    write_card(module, run_dir.best / CARD, folder, how, said, whole)
    return "; ".join(said)


def rounding(module: FineTuneModule, expected: torch.Tensor, tokenizer: Any, has_choices: bool) -> str:
    """What the full-precision base model changes in the logits of an adapter that was trained on a quantized one.

    Args:
        module: Of the run.
        expected: Logits on the base model in full precision.
        tokenizer: The run's.
        has_choices: Of a multiple-choice model.
    """
    kind, before = module.quantization, f"base model in full precision, not the {module.quantization} it was trained on"
    if not is_bitsandbytes_available():
        return f"{before} (the difference is not measured without bitsandbytes)"
    assert module.spec is not None
    config, unused = module.build_config(module.spec), module.task.unused_modules
    packed, *_ = assemble(module.task.auto_class, module.recipe, config, fitting=False, unused=unused)
    difference = float(
        (numbers_of(packed, tokenizer, has_choices) - expected).norm() / expected.norm().clamp_min(1e-12)
    )
    return f"{before}: logits differ from those with {kind} by {difference:.0e} of their size"


def whole_model(model: Any, how: Rewriting) -> Any:
    """The adapted model as a plain one.

    Raises:
        ModelError: The adapter cannot be merged.
    """
    try:
        return merged(model)
    except ModelError as error:
        if how.merge:
            raise
        raise ModelError(
            f"an ONNX graph holds a whole model: {error.what}", where="--format", fix="--format hf"
        ) from error


def compare(logits: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Compare logits before and after a merge.

    Raises:
        StorageError: They differ.
    """
    difference = float((logits - expected).norm() / expected.norm().clamp_min(1e-12))
    if not difference <= TOLERANCE.get(dtype, 1e-2):
        raise StorageError(
            f"the merged model gives other logits (relative difference {difference:.2e})",
            where="--merge",
            fix="model.dtype: float32",
        )


def copy_rest(best: Path, folder: Path) -> None:
    """Copy what ``best/`` holds besides weights, config, tokenizer and card."""
    for path in sorted(best.rglob("*")):
        there = folder / path.relative_to(best)
        if path.is_file() and not there.exists() and not any(path.match(pattern) for pattern in OF_WEIGHTS):
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, there)


def write_card(
    module: FineTuneModule, card: Path, folder: Path, how: Rewriting, said: list[str], model: torch.nn.Module
) -> None:
    """The run's model card, with the lines that run this folder and a word on what was changed."""
    if not card.is_file():
        return
    needed = module_to_import(model)
    text = card.read_text("utf-8")
    now = onnx_usage(module.task, needed) if how.onnx else usage(module.task, adapted=False, module=needed)
    adapted = adapter_folder(module.model_name) is not None
    known = [usage(module.task, adapted, needed, has_new_tokens=grown) for grown in (False, True)]
    before = next((lines for lines in known if lines in text), None)
    text = f"{text}\n{now}\n" if before is None else text.replace(before, now)
    library = "onnx" if how.onnx else module.task.library
    for earlier in ("peft", "transformers", module.task.library):
        text = text.replace(f"library_name: {earlier}\n", f"library_name: {library}\n")
    if said:
        text = text.replace(now, f"{now}\n\nExported by `lit-tune export`: {'; '.join(said)}.")
    (folder / CARD).write_text(text, "utf-8")
