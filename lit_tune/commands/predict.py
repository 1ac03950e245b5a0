"""``lit-tune predict``."""

from pathlib import Path

from lit_tune.callbacks.prediction_writer import PredictionWriter, check_output
from lit_tune.cli import parse_for_run
from lit_tune.console import configure_logging, is_rank_zero
from lit_tune.preflight.finished_run import use_best_weights


def predict(options: list[str], output: Path | None = None) -> None:
    """Label the rows of data.predict with the run's best weights.

    Args:
        options: The config: files and single keys; ``--config runs/x/config.yaml --data.predict new.csv``.
        output: File to write: .jsonl, .csv or .parquet; default: predictions.jsonl in run_dir.
    """
    configure_logging()
    if output is not None:
        check_output(output)
    cli = parse_for_run(options, "predict")
    path = output or cli.run_dir.predictions
    trainer, module, datamodule = cli.build()
    use_best_weights(cli.run_dir, module, datamodule)
    datamodule.prepare("predict")
    trainer.callbacks.append(PredictionWriter(path))  # type: ignore[attr-defined]
    trainer.predict(module, datamodule=datamodule, return_predictions=False)
    if is_rank_zero():
        print(f"{len(datamodule.encoded['predict']):,} predictions in {path}")
