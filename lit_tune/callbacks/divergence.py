"""A validation loss that is not a number ends the run: there is nothing to wait for."""

import math
from typing import Any

from lightning.pytorch.callbacks import Callback

from lit_tune.callbacks.checkpoints import BestCheckpoint
from lit_tune.errors import NumericsError


class Divergence(Callback):
    """Ends a run whose validation loss is not a number, after it was logged and before it is saved.

    Stands behind the callbacks that log. Lightning calls those that write checkpoints last, so that the newest
    checkpoint is one that was not followed by such a validation; the best one stays what it was.
    """

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Look at ``val/loss``, which is equal on all ranks.

        Raises:
            NumericsError: It is not a number.
        """
        loss = trainer.callback_metrics.get("val/loss")
        if trainer.sanity_checking or trainer.state.fn != "fit" or loss is None or math.isfinite(loss):
            return
        best = next((c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), "")
        kept = f"the best checkpoint stays {best}" if best else "there is no best checkpoint yet"
        where = f"step {trainer.global_step:,}"
        if not pl_module.evaluation.num_targets["val"]:
            raise NumericsError(
                f"0 targets of val count, so that val/loss is undefined; {kept}",
                where=where,
                fix="labels of -100 and classes of weight 0 do not count: mask less, or other rows in data.val",
            )
        raise NumericsError(
            f"val/loss is {float(loss):.4g}: training has diverged, or a row of val is beyond the model; {kept}",
            where=where,
            fix="a smaller optimizer.lr, a longer lr_schedule.warmup, or bf16-mixed instead of 16-mixed",
        )
