"""Pieces that a user brings along, named by class path in a config: losses, scorers, metrics."""

import copy
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lit_tune.errors import ConfigError
from lit_tune.imports import import_class
from lit_tune.metrics.own_metric import OwnMetric

Given = str | dict[str, Any]
"""A class path, or ``{class_path: ..., init_args: {...}}``."""


def path_of(given: Given, where: str, example: str) -> str:
    """The class path.

    Args:
        given: As in a config.
        where: The key.
        example: A class path to show.

    Raises:
        ConfigError: There is none.
    """
    path = given if isinstance(given, str) else given.get("class_path")
    if not isinstance(path, str):
        raise ConfigError("has no class_path", where=where, fix=f"{{class_path: {example}, init_args: {{...}}}}")
    return path


def build_piece(
    given: Given, where: str, example: str, search: Sequence[str] = (), always: dict[str, dict[str, Any]] | None = None
) -> Any:
    """An instance of the class that a config names.

    Args:
        given: As in a config.
        where: The key.
        example: A class path to show.
        search: Modules in which a bare name is looked up.
        always: Beginning of a module's name -> arguments that its classes are always given.

    Raises:
        ConfigError: Not allowed, not there, or not to be made with these arguments.
    """
    path = path_of(given, where, example)
    cls = import_class(path, where=where, search=search)
    arguments = dict(given.get("init_args") or {}) if isinstance(given, dict) else {}
    for module, extra in (always or {}).items():
        if cls.__module__.startswith(module):
            arguments |= extra
    try:
        return cls(**arguments)
    except Exception as error:  # it is somebody else's code
        raise ConfigError(
            f"{path}: {type(error).__name__}: {error}", where=where, fix="arguments that the class takes"
        ) from error


def snake_name(piece: Any) -> str:
    """The name under which a piece is logged.

    >>> from torchmetrics.classification import BinaryF1Score
    >>> snake_name(BinaryF1Score())
    'binary_f1_score'
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(piece).__name__).lower()


def build_own_loss(loss: Given) -> Any:
    """An instance of the user's loss class.

    Raises:
        ConfigError: There is none to be had, or it cannot be called.
    """
    where, example = "task.init_args.loss", "my_package.MyLoss"
    plain = {"torch.nn": {"reduction": "none"}}  # a mean would hide the number of targets
    built = build_piece(loss, where, example, search=("torch.nn",), always=plain)
    if not callable(built):
        raise ConfigError(f"{path_of(loss, where, example)} cannot be called", where=where, fix="a class with __call__")
    return built


def build_own_metrics(given: Sequence[Given]) -> dict[str, Metric]:
    """The user's metrics by the names under which they are logged.

    Raises:
        ConfigError: One is no metric of torchmetrics, says not what is better, or shares its name.
    """
    where, found = "task.init_args.metrics", dict[str, Metric]()
    for one in given:
        example = "my_package.MyMetric"
        path, metric = path_of(one, where, example), build_piece(one, where, example)
        if not isinstance(metric, Metric):
            raise ConfigError(f"{path} is no torchmetrics.Metric", where=where, fix="derive it from that")
        if metric.higher_is_better is None:
            raise ConfigError(
                f"{path} does not say whether higher is better", where=where, fix="higher_is_better = True in its class"
            )
        if snake_name(metric) in found:
            raise ConfigError(
                f"two metrics would be logged as {snake_name(metric)}", where=where, fix="a class for each of them"
            )
        found[snake_name(metric)] = metric
    return found


def directions(own: dict[str, Metric], ours: dict[str, bool]) -> dict[str, bool]:
    """All metrics, and whether higher is better.

    Args:
        own: From :func:`build_own_metrics`.
        ours: Those of the task.

    Raises:
        ConfigError: One has the name of one of ours.
    """
    refuse_taken(own, ours)
    return ours | {name: bool(metric.higher_is_better) for name, metric in own.items()}


def refuse_taken(own: Collection[str], ours: Collection[str]) -> None:
    """Refuse names that a metric of the task has.

    Raises:
        ConfigError: One has.
    """
    if taken := sorted(set(own) & set(ours)):
        raise ConfigError(
            f"a metric of lit-tune is called {taken[0]}, too",
            where="task.init_args.metrics",
            fix="another name for the class",
        )


def fresh(own: dict[str, Metric], answer: Callable[[Tensor], Tensor]) -> dict[str, Metric | MetricCollection]:
    """A new set of the metrics, for one split.

    Args:
        own: From :func:`build_own_metrics`; nothing is counted in these.
        answer: Makes of logits what the metrics are given.
    """
    return {name: OwnMetric(name, copy.deepcopy(metric), answer) for name, metric in own.items()}
