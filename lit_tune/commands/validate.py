"""``lit-tune validate``."""

import logging

from lit_tune.cli import parse_for_run
from lit_tune.console import configure_logging, is_rank_zero
from lit_tune.preflight.finished_run import use_best_weights

log = logging.getLogger("lit_tune")


def validate(options: list[str]) -> None:
    """Measure the run's best weights on the validation split.

    Args:
        options: The config: files and single keys; ``--config runs/x/config.yaml`` is enough.
    """
    configure_logging()
    cli = parse_for_run(options, "validate")
    trainer, module, datamodule = cli.build()
    use_best_weights(cli.run_dir, module, datamodule)
    datamodule.prepare("validate")
    trainer.validate(module, datamodule=datamodule, verbose=False)
    if is_rank_zero():
        assert module.spec is not None
        print(module.task.report(module.evaluated["val"], module.spec))
