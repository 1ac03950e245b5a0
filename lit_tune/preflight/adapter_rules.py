"""The adapter before any weights are loaded: its files and its base model, on a skeleton without numbers."""

from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from lit_tune.errors import ModelError
from lit_tune.models.adapter_folders import WEIGHTS
from lit_tune.models.adapters import attach, make_config, wrap
from lit_tune.models.assembly import Recipe
from lit_tune.models.positions import num_positions
from lit_tune.models.vocabulary import NewTokens
from lit_tune.models.weight_files import WeightFiles, find_weights, verify
from lit_tune.preflight.run_hashes import hashes_of_run


def find_base(recipe: Recipe) -> WeightFiles:
    """The weights of the model, or of the base model of an adapter, compared with the hashes that are known.

    Args:
        recipe: Which model.

    Raises:
        ModelError: A file is missing or damaged.
    """
    name, revision, folder = recipe.name, recipe.revision, recipe.folder()
    if folder is not None:
        verify(WeightFiles([folder.path / WEIGHTS]), hashes_of_run(folder.path))
        name, revision = folder.base, folder.revision
    weights = find_weights(name, revision)
    verify(weights, hashes_of_run(Path(name)))
    return weights


def adapt(recipe: Recipe, skeleton: PreTrainedModel, auto_class: Any, tokens: NewTokens) -> PreTrainedModel:
    """Put the adapter on the skeleton, as a run does on the model; no random number of the run is drawn.

    Args:
        recipe: How the model is put together.
        skeleton: Changed by it.
        auto_class: HF Auto class of the task.
        tokens: That were added to the vocabulary.

    Raises:
        LitTuneError: What a run would raise.
    """
    folder = recipe.folder()
    recipe.check_training(folder)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        if folder is not None:
            return wrap(skeleton, folder.config(trainable=True), folder.base, folder.revision)
        if recipe.adapter is not None:
            return attach(skeleton, recipe.adapter, auto_class, recipe.name, recipe.revision, (), tokens)
    return skeleton


def check_prompt(recipe: Recipe, config: PretrainedConfig, max_length: int) -> None:
    """Virtual tokens take positions that texts then lack.

    Args:
        recipe: How the model is put together.
        config: The model's.
        max_length: Tokens at which texts are cut.

    Raises:
        ModelError: There are too few positions for both.
    """
    folder = recipe.folder()
    made = folder.config(True) if folder is not None else make_config(recipe.adapter) if recipe.adapter else None
    virtual, positions = getattr(made, "num_virtual_tokens", None) or 0, num_positions(config)
    if virtual and positions is not None and max_length + virtual > positions:
        raise ModelError(
            f"{max_length} tokens of text and {virtual} virtual ones are more than the model's {positions} positions",
            where="data.max_length",
            fix=f"data.max_length: {positions - virtual}",
        )
