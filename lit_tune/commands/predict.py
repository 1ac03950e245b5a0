"""``lit-tune predict``."""

from pathlib import Path

from lit_tune.callbacks.prediction_writer import PredictionWriter, check_output
from lit_tune.commands.evaluation import set_up
from lit_tune.console import is_rank_zero


def predict(options: list[str], output: Path | None = None) -> None:
    """Label the rows of data.predict with the run's best weights.

    Args:
        options: The config: files and single keys; ``--config runs/x/config.yaml --data.predict new.csv``.
        output: File to write: .jsonl, .csv or .parquet; default: predictions.jsonl in run_dir.
    """
    if output is not None:
        check_output(output)
    run = set_up(options, "predict")
    path = output or run.run_dir.predictions
    run.trainer.callbacks.append(PredictionWriter(path))  # type: ignore[attr-defined]
    run.trainer.predict(run.module, datamodule=run.datamodule, return_predictions=False)
    if is_rank_zero():
        print(f"{len(run.datamodule.encoded['predict']):,} predictions in {path}")
