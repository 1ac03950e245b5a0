"""``data.auto_batch``: where memory is exhausted, the run is left so that it can go on with less, at the same step."""

import logging
from typing import Any

from lightning.pytorch.callbacks import Callback

from lit_tune.callbacks.checkpoints import LastCheckpoint
from lit_tune.errors import OutOfMemory, StorageError
from lit_tune.memory import halved

log = logging.getLogger("lit_tune")


class AutoBatch(Callback):
    """Saves the state before the step that failed, and says with which batch sizes to go on.

    ``lit-tune fit`` then starts again from that checkpoint. A trainer cannot repeat a step in place: a failed backward
    pass leaves half a gradient, and its loops and loaders count micro-batches.
    """

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Only where memory was exhausted, in a step that all ranks have left together."""
        data = trainer.datamodule
        if not (isinstance(exception, OutOfMemory) and data.auto_batch and trainer.state.fn == "fit"):
            return
        if trainer.world_size > 1 and not (trainer.training and pl_module.sums_gradients):
            return  # the other ranks do not know
        sizes = {
            "train_batch_size": data.train_batch_size,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "eval_batch_size": data.eval_batch_size,
        }
        if trainer.training:
            cut = halved(data.train_batch_size, trainer.accumulate_grad_batches, data.together)
            less = dict(zip(sizes, cut, strict=False)) if cut else {}
            rewind(trainer)
        else:
            less = {"eval_batch_size": data.eval_batch_size // 2} if data.eval_batch_size > data.together else {}
        if not less:
            return
        exception.retry_with = {**sizes, **less}
        last = next((c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), None)
        if last is None or trainer.global_step == 0:
            return
        try:
            last.save(trainer)
        except StorageError as error:
            log.warning("step %d was not saved: %s", trainer.global_step, error)


def rewind(trainer: Any) -> None:
    """Lightning's counters as they were after the last optimizer step: the micro-batches since then do not count."""
    loop = trainer.fit_loop.epoch_loop
    counts, optimizer = loop.batch_progress.current, loop.automatic_optimization.optim_progress.optimizer.step
    done = counts.processed - counts.processed % trainer.accumulate_grad_batches
    counts.ready = counts.started = counts.processed = counts.completed = done
    loop.batch_progress.is_last_batch = False
    for count in (optimizer.total, optimizer.current):
        count.ready = count.completed
    trainer.val_check_batch = float("inf")  # the validation after that step is done
