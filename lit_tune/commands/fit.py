"""``lit-tune fit``."""

from lit_tune.cli import parse


def fit(options: list[str], overwrite: bool = False, verbose: bool = False) -> None:
    """Train a model, keep its best weights, and write them to run_dir/best.

    Args:
        options: The config: files and single keys.
        overwrite: Delete what an earlier run left in run_dir.
        verbose: Show the module tree and the devices.
    """
    cli = parse(options, "fit")
    cli.run_dir.claim(overwrite)
    cli.run_dir.config.write_text(cli.to_yaml(), encoding="utf-8")
    trainer, module, datamodule = cli.build()
    trainer.fit(module, datamodule=datamodule)
