"""Settings that fit each other and not the number of rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lit_tune.data.samplers import num_cuts
from lit_tune.data.step_count import batches_used, total_steps
from lit_tune.errors import ConfigError
from lit_tune.models.unfreezing import Stage
from lit_tune.preflight.findings import Finding, warning
from lit_tune.preflight.situation import Situation


@dataclass(frozen=True)
class Plan:
    """What a config comes to with so many rows.

    Args:
        rows: Rows of train that are used, or windows of them (``data.units``); None for a stream.
        ranks: Processes that train together.
        batches: Micro-batches per epoch and rank that are used; None for a stream.
        steps: Optimizer steps of the run; None where nothing says when it ends.
        steps_per_epoch: None for a stream.
    """

    rows: int | None
    ranks: int
    batches: int | None
    steps: int | None
    steps_per_epoch: int | None

    def validations(self, every: int | None) -> int | None:
        """How often the run is validated: each epoch, or every so many optimizer steps and at the end."""
        if self.steps is None:
            return None
        if every is not None:
            return -(-self.steps // every)
        return -(-self.steps // self.steps_per_epoch) if self.steps_per_epoch else None


def plan_of(s: Situation, rows: int | None) -> Plan:
    """Count batches and steps.

    Args:
        s: The config and the machine.
        rows: Rows of train that are used, or windows of them (``data.units``); None for a stream.
    """
    accumulate = s["trainer.accumulate_grad_batches"] or 1
    part = s["trainer.limit_train_batches"]
    if rows is None:
        batches = part if isinstance(part, int) else None
    else:
        batches = batches_used(num_cuts(rows, s["data.train_batch_size"], s.num_ranks, accumulate), part)
    epochs, steps = s["trainer.max_epochs"], s["trainer.max_steps"]
    per_epoch = None if batches is None else -(-batches // accumulate)
    return Plan(rows, s.num_ranks, batches, total_steps(batches, accumulate, epochs, steps), per_epoch)


def step_findings(s: Situation, plan: Plan) -> list[Finding]:
    """Everything about rows, batches and steps."""
    return [*too_few_rows(s, plan), *too_few_steps(s, plan)]


def too_few_rows(s: Situation, plan: Plan) -> Iterator[Finding]:
    """Batches that the rows do not fill."""
    if plan.rows is None or plan.batches is None:
        return
    size, accumulate = s["data.train_batch_size"], s["trainer.accumulate_grad_batches"] or 1
    if plan.batches == 0:
        yield _error(
            f"{s['trainer.limit_train_batches']} of an epoch of {plan.rows} rows is no batch: nothing is trained",
            "trainer.limit_train_batches",
            "leave it out, or data.limit_train for fewer rows",
        )
    elif plan.ranks > 1 and plan.rows < plan.ranks * size:
        yield _error(
            f"{plan.rows} train rows do not fill one batch of {size} on each of {plan.ranks} devices",
            "data.train_batch_size",
            f"data.train_batch_size: {max(1, plan.rows // plan.ranks)}, or fewer trainer.devices",
        )
    elif accumulate > 1 and accumulate > -(-plan.rows // (size * plan.ranks)):
        batches = -(-plan.rows // (size * plan.ranks))
        yield _error(
            f"{accumulate} batches make a step, and {plan.rows} rows are {batches} batches of {size * plan.ranks}",
            "trainer.accumulate_grad_batches",
            f"at most {batches}, or a smaller data.train_batch_size",
        )


def too_few_steps(s: Situation, plan: Plan) -> Iterator[Finding]:
    """Things that happen every so many steps, in a run that has fewer."""
    if plan.steps is None:
        return
    for key, what in (
        ("eval_every_steps", "the run is validated"),
        ("checkpoint.every_n_steps", "a checkpoint is kept"),
    ):
        if s[key] is not None and s[key] > plan.steps:
            yield warning(
                f"the run has {plan.steps:,} steps, so that {what} at its end only",
                where=key,
                fix=f"{key}: {max(1, plan.steps // 4)}",
            )
    patience, count = s["early_stopping.patience"], plan.validations(s["eval_every_steps"])
    if patience is not None and count is not None and patience >= count:
        yield warning(
            f"the run is validated {count} time(s), so that {patience} without improvement never come together",
            where="early_stopping.patience",
            fix="a smaller patience, eval_every_steps, or more trainer.max_epochs",
        )


def unfreezing_findings(stages: Sequence[Stage], plan: Plan) -> Iterator[Finding]:
    """Stages of ``model.unfreeze`` that the run never reaches, or that stand in another order than that of time."""
    firsts = [stage.first_step(plan.steps_per_epoch) for stage in stages]
    end = plan.steps
    late = [s for s, first in zip(stages, firsts, strict=True) if end and first is not None and first >= end]
    if late:
        yield warning(
            f"{', '.join(s.label for s in late)} stay frozen: the run ends before {late[0].when}, after {end:,} steps",
            where=late[0].where,
            fix="trainer.max_epochs, or stages that begin earlier",
        )
    for before, after, stage in zip(firsts, firsts[1:], stages[1:], strict=False):
        if before is not None and after is not None and after < before:
            yield _error(
                f"{stage.when} comes before the stage above it, which is due after {before} steps",
                stage.where,
                "write the stages in the order of time",
            )


def _error(what: str, where: str, fix: str) -> Finding:
    return Finding("error", ConfigError(what, where=where, fix=fix))
