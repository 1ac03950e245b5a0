"""``lit-tune validate``."""

from lit_tune.cli import parse


def validate(options: list[str]) -> None:
    """Measure the run's best weights on the validation split.

    Args:
        options: The config: files and single keys; ``--config runs/x/config.yaml`` is enough.
    """
    trainer, module, datamodule = parse(options, "validate").build()
    trainer.validate(module, datamodule=datamodule)
