"""An optimizer and schedule that come from a checkpoint, with the settings of the config in use.

``load_state_dict`` puts the checkpoint's learning rate, weight decay and betas over the config's. Where both are the
same nothing changes, not by a bit.
"""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def settings_of_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What the config says of each parameter group: all but the parameters and the rate of this very step."""
    return [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]


def adopt_settings(optimizer: Optimizer, scheduler: LRScheduler, configured: list[dict[str, Any]]) -> list[str]:
    """Put the config's settings over the checkpoint's.

    Rates of multipliers (``LambdaLR``, all named schedules) become those of the config's schedule at this step, so that
    a run that was made longer goes on with the rate of the longer run. Other schedules keep their position and scale.

    Args:
        optimizer: Restored.
        scheduler: Restored.
        configured: From :func:`settings_of_groups`, before the checkpoint was loaded.

    Returns:
        Names of settings that differed.
    """
    changed: set[str] = set()
    for group, config in zip(optimizer.param_groups, configured, strict=True):
        before = {k: group.get(k) for k in config}
        changed |= {k for k in config if before[k] != config[k]}
        rate, was = config.get("initial_lr"), before.get("initial_lr")
        if rate != was and was:
            group["lr"] *= rate / was
        group.update(config)
    if "initial_lr" in changed:
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    if isinstance(scheduler, LambdaLR):
        for group, base, multiplier in zip(
            optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * multiplier(scheduler.last_epoch)
    return sorted(changed)
