"""A model as an ONNX graph, run in onnxruntime against the model itself before anybody sees it.

Written by transformers' own exporter (``transformers.exporters``). optimum-onnx 0.1 asks for transformers below 4.58;
plain ``torch.onnx.export`` (2.13) answers rows that are all padding with other numbers (0.49 off, where this is 3e-7).

Shapes: B rows, N choices, T tokens.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_tune.errors import ConfigError, ModelError, is_out_of_memory
from lit_tune.models.positions import max_positions
from lit_tune.models.probing import fitting, flags, probe, real

GRAPH = "model.onnx"
WHERE = "--format"
TOLERANCE = 1e-4
"""Largest difference of any number the graph gives, from what torch gives; times the largest of those above 1."""

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TRACED = (3, 9)
SHAPES = ((1, 4), (2, 33), (5, 128), (4, 7))
"""Rows and tokens that the graph is tried with; it was traced with neither."""


def check_packages() -> None:
    """Refuse what could not be written or not be tried.

    Raises:
        ConfigError: A package is missing.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ConfigError(
            f"onnx needs {', '.join(missing)}, which is not installed", where=WHERE, fix="pip install 'lit-tune[onnx]'"
        )
    if find_spec("transformers.exporters") is None:
        raise ConfigError(
            "this version of transformers has no exporters", where=WHERE, fix="pip install 'transformers>=5.23'"
        )


def write_graph(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, has_choices: bool = False
) -> float:
    """Write ``model.onnx``, its weights beside it (``model.onnx.data``: no limit of 2 GB) and the config; try it.

    Args:
        model: On the CPU, in float32; it is left in eval mode.
        tokenizer: Says what the model is given, and on which side rows are padded.
        folder: Where to.
        has_choices: Inputs are (B, N, T) instead of (B, T).

    Returns:
        The largest difference of any number from torch's.

    Raises:
        ModelError: The architecture cannot be exported, or the graph gives other numbers.
    """
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    if model.config.is_encoder_decoder and model.can_generate():
        raise ModelError(
            f"{type(model).__name__} writes text with an encoder and a decoder, which one graph cannot hold",
            where=WHERE,
            fix="--format hf; OnnxExporter().export_for_generation of transformers writes one graph for each part",
        )
    model.eval()
    limit = max_positions(model.config, tokenizer)
    sample = probe(model, tokenizer, *fitting(TRACED, limit), has_choices)
    axes = dict.fromkeys(range(sample["input_ids"].ndim), torch.export.Dim.DYNAMIC)
    settings = OnnxConfig(dynamic=True, dynamic_shapes=dict.fromkeys(sample, axes))
    try:
        with quiet_exporter():
            given: dict[str, Any] = {**sample, **flags(model)}
            exported = OnnxExporter().export(model, given, config=settings)
            exported.save_pretrained(folder)
    except Exception as error:  # each operator that has no counterpart has its own class of error
        if is_out_of_memory(error) or isinstance(error, OSError):
            raise
        raise ModelError(
            f"{type(model).__name__} cannot be written as an ONNX graph: {reason_of(error)}",
            where=WHERE,
            fix="model.attn_implementation: eager, which some need; else --format hf",
        ) from error
    shapes = [fitting(shape, limit) for shape in SHAPES]
    return check_graph(model, folder, [probe(model, tokenizer, *shape, has_choices) for shape in shapes])


@torch.inference_mode()
def check_graph(model: PreTrainedModel, folder: Path, batches: list[dict[str, Tensor]]) -> float:
    """Run the graph and the model on the same tokens.

    Args:
        model: The model, in eval mode.
        folder: With the graph.
        batches: What both are given.

    Returns:
        The largest difference.

    Raises:
        ModelError: onnxruntime cannot run it, or a number differs by more than :data:`TOLERANCE`.
    """
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4
    session: Any = None
    largest = 0.0
    for batch in batches:
        try:
            session = session or onnxruntime.InferenceSession(folder / GRAPH, quiet, providers=["CPUExecutionProvider"])
            taken = {i.name: batch[i.name].numpy() for i in session.get_inputs()}
            names = [o.name for o in session.get_outputs()]
            given = dict(zip(names, session.run(names, taken), strict=True))
        except Exception as error:  # onnxruntime's classes are not public
            raise ModelError(
                f"onnxruntime cannot run the graph: {reason_of(error)}", where=WHERE, fix="--format hf"
            ) from error
        outputs = model(**batch, **flags(model))
        if strange := [name for name in given if name not in outputs]:
            raise ModelError(
                f"{type(model).__name__} gives {strange[0]} besides its scores, for the next call",
                where=WHERE,
                fix="--format hf; a graph keeps no state",
            )
        for name, found in given.items():
            expected = outputs[name].float()
            difference = float((torch.from_numpy(found).float() - expected)[real(batch, expected)].abs().max())
            if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
                shape = "x".join(str(n) for n in batch["input_ids"].shape)
                raise ModelError(
                    f"the graph's {name} of {shape} tokens differ from the model's by {difference:.2g}",
                    where=WHERE,
                    fix="model.attn_implementation: eager, which some need; else --format hf",
                )
            largest = max(largest, difference)
    return largest


def reason_of(error: Exception) -> str:
    """Class and first line of the error that all began with."""
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    return f"{type(first).__name__}: {lines[0][:200] if lines else ''}"


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporters tell of torchvision, versions and each of their stages."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "transformers", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
