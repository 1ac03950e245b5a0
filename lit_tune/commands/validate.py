"""``lit-tune validate``."""

from lit_tune.commands.evaluation import set_up
from lit_tune.console import is_rank_zero


def validate(options: list[str]) -> None:
    """Measure the run's best weights on the validation split.

    Args:
        options: The config: files and single keys; ``--config runs/x/config.yaml`` is enough.
    """
    run = set_up(options, "validate")
    run.trainer.validate(run.module, datamodule=run.datamodule, verbose=False)
    if is_rank_zero():
        print(run.report("val"))
