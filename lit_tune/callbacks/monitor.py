"""Which number decides what is best: known to the task, checked before weights load."""

import lightning as L

from lit_tune.errors import ConfigError, nearest


def resolve_monitor(trainer: L.Trainer, monitor: str | None, where: str) -> tuple[str, bool]:
    """The full name of a monitored metric and whether higher is better.

    Called in ``setup``: the datamodule has read the labels by then, and the weights are not loaded yet.

    Args:
        trainer: Its datamodule has ``task`` and ``spec``.
        monitor: ``val/f1``, or None for the task's primary metric.
        where: The config key, for messages.

    Raises:
        ConfigError: The task never logs this metric.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    directions = data.task.metric_names(data.spec)
    if monitor is None:
        name = data.task.primary_metric(data.spec)
        return f"val/{name}", directions[name]
    stage, _, name = monitor.partition("/")
    if stage == "val" and name in directions:
        return monitor, directions[name]
    if name in directions:
        raise ConfigError(
            f"{monitor!r} is not a validation metric, and only those are measured on rows that are not trained on",
            where=where,
            fix=f"{where}: val/{name}",
        )
    known = [f"val/{n}" for n in directions]
    totals = [n for n in known if n.count("/") == 1]
    close = nearest(monitor, known) or nearest(f"val/{monitor.rsplit('/', 1)[-1]}", known)
    raise ConfigError(
        f"{monitor!r} is never logged by {type(data.task).__name__} on {data.spec.problem_type}; "
        f"there are: {', '.join(totals[:6])}{' ...' if len(totals) > 6 else ''}",
        where=where,
        fix=f"{where}: {close or totals[0]}",
    )


def mode_of(higher_is_better: bool) -> str:
    """Lightning's word for the direction."""
    return "max" if higher_is_better else "min"
