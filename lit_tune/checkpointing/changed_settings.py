"""A run that goes on with another config: learning rate, weight decay, betas and length are those of the config."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch.optim.lr_scheduler import LambdaLR


class ChangedSettings(Callback):
    """Puts the config's settings back after a checkpoint has overruled them.

    The state of an optimizer holds its hyper-parameters, that of a schedule the rates it starts from: without this the
    new values of a run that goes on would be accepted and have no effect.

    Args:
        is_changed: Whether the config may differ from the checkpoint's; rank zero's answer counts.
    """

    def __init__(self, is_changed: bool) -> None:
        self.is_changed = is_changed
        self._fresh: list[dict[str, Any]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The optimizer is built from the config, the checkpoint's state is not loaded yet."""
        groups = (g for optimizer in trainer.optimizers for g in optimizer.param_groups)
        self._fresh = [{k: v for k, v in group.items() if k != "params"} for group in groups]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The checkpoint's state is loaded."""
        if trainer.ckpt_path is None or not trainer.strategy.broadcast(self.is_changed):
            return
        schedule: Any = next((c.scheduler for c in trainer.lr_scheduler_configs), None)
        groups = [g for optimizer in trainer.optimizers for g in optimizer.param_groups]
        for i, (group, fresh) in enumerate(zip(groups, self._fresh, strict=True)):
            was, now = group.get("initial_lr", group["lr"]), fresh.get("initial_lr", fresh["lr"])
            rate = group["lr"] * now / was if was else now
            if isinstance(schedule, LambdaLR):  # by its own formula, which knows the new length too
                rate = now * schedule.lr_lambdas[i](schedule.last_epoch)
            group.update({**fresh, "lr": rate})
            if schedule is not None and hasattr(schedule, "base_lrs"):
                schedule.base_lrs[i] = now
