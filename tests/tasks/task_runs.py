"""Runs of a task that are compared step by step, and runs from a YAML file; shared by the tests of all tasks."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from parity.runs import Recorder, fit, relative

from lit_tune.__main__ import main
from lit_tune.tasks.base import Task

CUTS = [(1, 16, 1), (4, 4, 7)]
"""Batch, accumulation and evaluation batch of runs that must equal one of 16 rows at once."""


@dataclass(frozen=True)
class TaskRuns:
    """Recorded runs in float64, which differ only in what a call says.

    Args:
        model: Folder of a model without dropout.
        task: The task.
        data: Settings of the datamodule in all runs, ``train`` and ``val`` among them.
    """

    model: Path
    task: Task
    data: dict[str, Any]

    def __call__(
        self,
        batch: int,
        accumulate: int = 1,
        *,
        ranks: int = 1,
        eval_batch: int = 64,
        task: Task | None = None,
        data: dict[str, Any] | None = None,
        module: dict[str, Any] | None = None,
        trainer: dict[str, Any] | None = None,
        scratch: Path | None = None,
    ) -> Recorder:
        """Train, for one epoch unless ``trainer`` says more; ``data`` goes before that of all runs."""
        rows = {"eval_batch_size": eval_batch, **self.data, **(data or {})}
        return fit(
            self.model,
            as_text(rows),
            batch=batch,
            accumulate=accumulate,
            ranks=ranks,
            task=task or self.task,
            module={"config_overrides": {}, **(module or {})},
            scratch=scratch,
            **{"precision": "64-true", "max_epochs": 1, **(trainer or {})},
        )


def as_text(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with their paths as text, which is what a config holds."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}


def same(reference: Recorder, other: Recorder, num_steps: int | None = None) -> None:
    """The gradients, their norms and the losses of all steps, and all metrics, are equal.

    Args:
        reference: What is right.
        other: What must equal it.
        num_steps: Of how many steps both are; at least 2 where nothing is said.
    """
    assert len(other.losses) == (num_steps or len(reference.losses)) >= 2
    assert len(reference.gradients) == len(reference.losses)
    assert reference.val
    for a, b in zip(reference.gradients, other.gradients, strict=True):
        assert relative(b, a) < 1e-12
    assert other.losses == pytest.approx(reference.losses, rel=1e-12)
    assert other.norms == pytest.approx(reference.norms, rel=1e-12)  # gradients are clipped to a norm of 1
    assert other.val == [pytest.approx(v, rel=1e-6) for v in reference.val]


def same_from_a_stream(run: TaskRuns, batch: int, task: Task | None = None) -> None:
    """Two steps of all rows, in any order, are the same whether the file is read before or meanwhile."""
    trainer = {"max_epochs": -1, "max_steps": 2}
    stream, file = (
        run(batch, task=task, data={"probe_size": 0, "streaming": on}, trainer=trainer).losses for on in (True, False)
    )
    assert len(file) == 2
    assert stream == pytest.approx(file, rel=1e-9)


def finished_run(
    folder: Path,
    model: Path,
    task: str,
    data: dict[str, Any],
    *,
    lr: float,
    epochs: int,
    init_args: dict[str, Any] | None = None,
    sections: dict[str, Any] | None = None,
) -> Path:
    """The directory of a run of ``lit-tune fit``, made from a YAML file.

    Args:
        folder: Where run, cache and config lie.
        model: Folder of the model.
        task: Name of the task's class.
        data: The data section; ``val`` is tested on where it names no ``test``.
        lr: Learning rate.
        epochs: Number of epochs.
        init_args: Settings of the task.
        sections: What else the config says.
    """
    config = {
        "run_dir": str(folder / "run"),
        "task": {"class_path": task, "init_args": init_args or {}},
        "model": {"model_name_or_path": str(model)},
        "data": as_text({"test": data["val"], "cache_dir": folder / "cache", **data}),
        "optimizer": {"lr": lr},
        "trainer": {"accelerator": "cpu", "max_epochs": epochs},
        "logger": "none",
    }
    for name, keys in (sections or {}).items():
        config[name] = {**config.get(name, {}), **keys} if isinstance(keys, dict) else keys
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "my.yaml")]) == 0
    return folder / "run"


def report_of(run_dir: Path) -> dict[str, Any]:
    """What ``lit-tune test`` reports of a finished run."""
    assert main(["test", "--config", str(run_dir / "config.yaml")]) == 0
    report: dict[str, Any] = json.loads((run_dir / "test_metrics.json").read_text())
    return report


def predict(run_dir: Path, rows: Path | str, output: Path, *options: str) -> Path:
    """The file that ``lit-tune predict`` writes for new rows."""
    config = ["--config", str(run_dir / "config.yaml"), "--data.predict", str(rows)]
    assert main(["predict", *config, "--output", str(output), *options]) == 0
    return output
