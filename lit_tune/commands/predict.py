"""``lit-tune predict``."""

from pathlib import Path

from lit_tune.cli import parse


def predict(options: list[str], output: Path | None = None) -> None:
    """Label the rows of data.predict with the run's best weights.

    Args:
        options: The config: files and single keys; ``--config runs/x/config.yaml --data.predict new.csv``.
        output: File to write: .jsonl, .csv or .parquet; default: predictions.jsonl in run_dir.
    """
    trainer, module, datamodule = parse(options, "predict").build()
    trainer.predict(module, datamodule=datamodule, return_predictions=False)
