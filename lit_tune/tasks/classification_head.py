"""What a classifier may bring along: a head trained before, settings for its labels."""

from dataclasses import replace
from typing import Any

import torch

from lit_tune import losses
from lit_tune.errors import ConfigError, ModelError
from lit_tune.tasks.base import Spec

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
DEFAULT_THRESHOLD = 0.5


def head_labels(config: Any) -> list[str]:
    """Label names of a model's config, in the order of their ids."""
    return [config.id2label[i] for i in range(config.num_labels)]


def keep_head(spec: Spec, config: Any, kind: str) -> Spec:
    """Fit the labels to a head the model may already have.

    A config without ``id2label`` of its own (``LABEL_0`` ...) and without an architecture of this kind has no head.

    Args:
        spec: The labels of the data.
        config: The model's.
        kind: End of the names of the architectures with such a head, e.g. ``ForTokenClassification``.

    Raises:
        ModelError: The head was trained for other labels.
    """
    architectures = getattr(config, "architectures", None) or []
    if not any(a.endswith(kind) for a in architectures):
        return spec
    if spec.problem_type == REGRESSION:
        if config.num_labels == 1:
            return spec
    elif config.num_labels > 1:
        names = head_labels(config)
        if sorted(names) == sorted(spec.label_names):
            return replace(spec, label_names=names)  # the same labels in the head's order
        if spec.label_names == [str(i) for i in range(len(names))]:
            generic = all(n == f"LABEL_{i}" for i, n in enumerate(names))
            return spec if generic else replace(spec, label_names=names)  # integers are ids into the head's names
    have = "a number" if config.num_labels == 1 else ", ".join(head_labels(config))[:120]
    raise ModelError(
        f"the model has a head for other labels ({have}) than the data "
        f"({', '.join(spec.label_names)[:120] or 'a number'})",
        where="model.new_head",
        fix="model.new_head: true replaces the head; or data with the model's labels",
    )


def class_weights(setting: str | list[float] | None, spec: Spec, logits: torch.Tensor) -> torch.Tensor | None:
    """Class or positive weights as (C,) float32 beside the logits; float64 where those are.

    Args:
        setting: ``balanced``, a weight for each class, or None.
        spec: The labels and their counts.
        logits: What they are for.

    Raises:
        ConfigError: They cannot be balanced.
    """
    if setting is None:
        return None
    if isinstance(setting, str):
        if spec.problem_type == MULTI:
            setting = losses.balanced_pos_weight(spec.label_counts, spec.num_rows)
        else:
            setting = losses.balanced_class_weights(spec.label_counts)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return torch.tensor(setting, dtype=dtype, device=logits.device)


def check_settings(
    spec: Spec,
    label_names: list[str] | None,
    threshold: float,
    weights: dict[str, str | list[float] | None],
    shapes: dict[str, float | None],
) -> None:
    """Refuse settings that the problem would ignore, or that do not fit its number of classes.

    Args:
        spec: The problem, as the labels show it.
        label_names: Given class names.
        threshold: Of multi-label predictions.
        weights: ``class_weights`` and ``pos_weight``.
        shapes: ``label_smoothing`` and ``focal_gamma``, None where off.

    Raises:
        ConfigError: The first of them.
    """
    where = "task.init_args."
    belongs_to = {"class_weights": SINGLE, "pos_weight": MULTI}
    without_effect = [n for n, value in weights.items() if value is not None and spec.problem_type != belongs_to[n]]
    if threshold != DEFAULT_THRESHOLD and spec.problem_type != MULTI:
        without_effect.append("threshold")
    if spec.problem_type == REGRESSION:
        without_effect += [n for n, value in shapes.items() if value is not None]
        without_effect += ["label_names"] if label_names else []
    if without_effect:
        raise ConfigError(f"has no effect on {spec.problem_type}", where=where + without_effect[0], fix="leave it out")
    if shapes["focal_gamma"] is not None and shapes["label_smoothing"]:
        raise ConfigError("has no effect beside focal_gamma", where=where + "label_smoothing", fix="one of the two")
    for name, value in weights.items():
        if isinstance(value, list) and len(value) != spec.num_labels:
            raise ConfigError(
                f"{len(value)} numbers for {spec.num_labels} classes ({', '.join(spec.label_names[:8])})",
                where=where + name,
                fix="one number per class, in this order, or balanced",
            )
