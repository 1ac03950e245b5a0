"""``lit-tune test``."""

import logging
from typing import Any

import torch

from lit_tune import __version__
from lit_tune.commands.evaluation import set_up
from lit_tune.console import is_rank_zero
from lit_tune.metrics import scalars
from lit_tune.run_dir import write_json

log = logging.getLogger("lit_tune")


def test(options: list[str]) -> None:
    """Measure the run's best weights on the test split and write test_metrics.json.

    Args:
        options: The config: files and single keys; ``--config runs/x/config.yaml`` is enough.
    """
    run = set_up(options, "test")
    if "test" in run.datamodule.preparation.unlabelled:
        log.info("test     no row has a label, nothing to measure; `lit-tune predict --data.predict ...` labels them")
        return
    run.trainer.test(run.module, datamodule=run.datamodule, verbose=False)
    if not is_rank_zero():
        return
    print(run.report("test"))
    if run.of_run:
        write_json(run.run_dir.test_metrics, test_report(run.module.evaluated["test"], run.module, run.datamodule))
        print(f"\nwritten  {run.run_dir.test_metrics}")


def test_report(computed: dict[str, Any], module: Any, datamodule: Any) -> dict[str, Any]:
    """What test_metrics.json holds: scalars, matrices of counts by name, what was measured on what."""
    report: dict[str, Any] = {
        "metrics": scalars(computed),
        "baseline": module.spec.baseline,
        "label_names": module.spec.label_names,
        "num_rows": len(datamodule.encoded["test"]),
        "weights": module.model_name,
        "lit_tune": __version__,
    }
    matrices = {name: value for name, value in computed.items() if isinstance(value, torch.Tensor) and value.ndim > 0}
    return report | {name: value.int().tolist() for name, value in matrices.items()}


test.__test__ = False  # type: ignore[attr-defined]  # verbs, not tests, to pytest
test_report.__test__ = False  # type: ignore[attr-defined]
