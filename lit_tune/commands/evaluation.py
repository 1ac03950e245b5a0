"""What ``validate``, ``test`` and ``predict`` start with: a run's best weights, and the rows to put through them."""

from typing import NamedTuple

from lightning import Trainer

from lit_tune.cli import parse_for_run
from lit_tune.console import configure_logging
from lit_tune.datamodule import TokenizedDataModule
from lit_tune.module import FineTuneModule
from lit_tune.preflight.examine import check_before_evaluation
from lit_tune.preflight.finished_run import use_best_weights
from lit_tune.run_dir import RunDir


class Evaluation(NamedTuple):
    """Model and prepared rows.

    ``of_run``: the model is the best of the run in ``run_dir``; False: there is no run, it is the config's own.
    """

    run_dir: RunDir
    trainer: Trainer
    module: FineTuneModule
    datamodule: TokenizedDataModule
    of_run: bool

    def report(self, split: str) -> str:
        """What was measured on ``val`` or ``test``, for a person."""
        assert self.module.spec is not None
        return self.module.task.report(self.module.evaluated[split], self.module.spec)


def set_up(options: list[str], verb: str) -> Evaluation:
    """Read the config, take the run's weights and labels, prepare the rows that the verb needs.

    Args:
        options: The config: files and single keys.
        verb: ``validate``, ``test`` or ``predict``.
    """
    configure_logging()
    cli = parse_for_run(options, verb)
    trainer, module, datamodule = cli.build()
    of_run = use_best_weights(cli.run_dir, module, datamodule)
    if not of_run:
        check_before_evaluation(module, datamodule)
    datamodule.prepare(verb)
    return Evaluation(cli.run_dir, trainer, module, datamodule, of_run)
