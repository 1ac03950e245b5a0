"""``lit-tune test``."""

from lit_tune.cli import parse


def test(options: list[str]) -> None:
    """Measure the run's best weights on the test split and write test_metrics.json.

    Args:
        options: The config: files and single keys; ``--config runs/x/config.yaml`` is enough.
    """
    trainer, module, datamodule = parse(options, "test").build()
    trainer.test(module, datamodule=datamodule)
