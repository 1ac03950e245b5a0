"""Where a run stands, as four numbers, and Lightning's loop counters written from them.

Lightning guesses from its counters in which hook a checkpoint was written, and differs between its guesses (research:
an epoch-end checkpoint trains nothing, a validation is skipped or repeated). A checkpoint of ours is written in one of
three situations only, and its counters are rewritten to say so.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from lightning.pytorch import Trainer


@dataclass(frozen=True)
class Position:
    """The next thing to do.

    Args:
        epoch: Epoch to go on in, from 0.
        batch: Micro-batches of it that each rank has trained on.
        step: Optimizer steps taken.
        is_validation_due: Whether the validation that follows this step is still to be done.
    """

    epoch: int
    batch: int
    step: int
    is_validation_due: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From :meth:`to_dict`."""
        return cls(**values)


@dataclass(frozen=True)
class Cut:
    """How the rows of an optimizer step are cut: rows per rank and micro-batch, ranks, micro-batches."""

    batch_size: int
    num_ranks: int
    accumulate: int

    def recut(self, position: Position, new: "Cut") -> Position:
        """The same place in the epoch for another cut: whole windows whose rows were all trained on.

        With the same effective batch it is exactly the same place.

        >>> Cut(8, 1, 2).recut(Position(0, 6, 3), Cut(4, 1, 4))
        Position(epoch=0, batch=12, step=3, is_validation_due=False)
        """
        rows = position.batch * self.batch_size * self.num_ranks
        windows = rows // (new.batch_size * new.num_ranks * new.accumulate)
        return replace(position, batch=windows * new.accumulate)


def position_of(trainer: Trainer, is_validation_due: bool) -> Position:
    """Where a run stands; called from a hook at the end of a batch, validation, epoch or of training.

    Args:
        trainer: In ``fit``.
        is_validation_due: Known to the caller.
    """
    loop: Any = trainer.fit_loop
    epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress
    epoch, batch = epochs.ready - 1, batches.current.processed
    if batch == 0 and epochs.processed == epochs.ready:  # resumed at the end of an epoch, nothing done since
        epoch += 1
    is_last = batches.is_last_batch or batch == trainer.num_training_batches
    if is_last and not is_validation_due:
        epoch, batch = epoch + 1, 0
    return Position(epoch, batch, trainer.global_step, is_validation_due)


def write_loops(loops: dict[str, Any], position: Position, is_last_batch: bool) -> None:
    """Rewrite the loop state of a checkpoint, in place, so that Lightning goes on exactly at ``position``.

    Args:
        loops: ``checkpoint["loops"]["fit_loop"]``.
        position: Where the run stands.
        is_last_batch: Whether no batch follows in the epoch (only with a validation due).
    """
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    between_epochs = position.batch == 0
    for count in epochs.values():
        done = dict.fromkeys(("ready", "started"), position.epoch + (0 if between_epochs else 1))
        count.update(done | dict.fromkeys(("processed", "completed"), position.epoch))
    trained = batches["total"]["processed"]
    batches["total"].update(dict.fromkeys(("ready", "started", "processed", "completed"), trained))
    batches["current"].update(dict.fromkeys(("ready", "started", "processed", "completed"), position.batch))
    batches["is_last_batch"] = is_last_batch and position.is_validation_due
    # a validation that had started and done nothing is what Lightning goes back to
    started = int(position.is_validation_due)
    for count in (loops["epoch_loop.val_loop.batch_progress"][name] for name in ("total", "current")):
        count.update({"ready": started, "started": started, "processed": 0, "completed": 0})
    if between_epochs:  # as after Lightning's own reset at the beginning of an epoch
        optimizer = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        for progress in (loops["epoch_loop.scheduler_progress"], optimizer["step"], optimizer["zero_grad"]):
            progress["current"].update(dict.fromkeys(progress["current"], 0))
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = position.step
    loops["state_dict"]["combined_loader"] = [{"epoch": position.epoch, "batch": position.batch}]
