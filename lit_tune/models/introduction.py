"""The lines that say what is trained, when a run begins."""

import logging
from collections.abc import Sequence

import torch
from torch import nn

from lit_tune.models.adapters import is_adapted, trainable_line
from lit_tune.models.load import describe_model
from lit_tune.models.unfreezing import Stage, describe_plan

log = logging.getLogger("lit_tune")
_SHOWN = 6


def introduce(model: nn.Module, name: str, new: Sequence[str], stages: Sequence[Stage], how: str) -> None:
    """What is random, how large the model is, what of it is trained, and what will be.

    Args:
        model: As it is trained.
        name: Where its weights come from.
        new: Parameters that are random, since they were in no weights.
        stages: What is unfrozen later.
        how: Precision and device.
    """
    if new:
        log.info("new weights: %s (not in %s, random)", ", ".join(new[:_SHOWN]), name)
    log.info("model    %s, %s", describe_model(model), how)  # type: ignore[arg-type]
    if is_adapted(model):
        log.info("adapter  %s", trainable_line(model))
    if stages:
        log.info("unfreeze %s", describe_plan(stages, model))
    if torch.cuda.is_available() and next(model.parameters()).device.type == "cpu":
        log.warning("this run uses the CPU although there is a GPU. Fix: trainer.accelerator: gpu")
    log.debug("%s", model)
