"""What is added up while a split is evaluated: its loss and its metrics, one set per stage."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from lit_tune.metrics import RatioMetric, scalars
from lit_tune.tasks.base import Batch, Spec, Task

SAMPLES_KEPT = 3


class Evaluation(nn.Module):
    """Sums and metrics of each stage, every example once.

    Args:
        task: Whose loss and metrics.
        spec: What the task read off the labels.
        stages: Their names.
        tokenizer: Of the run, for tasks that write texts.
    """

    def __init__(self, task: Task, spec: Spec, stages: Sequence[str], tokenizer: Any = None) -> None:
        super().__init__()
        self.task, self.spec, self.tokenizer = task, spec, tokenizer
        self.metrics = nn.ModuleDict({stage: task.build_metrics(spec) for stage in stages})
        self.losses = nn.ModuleDict({stage: RatioMetric() for stage in stages})
        self.computed: dict[str, dict[str, Any]] = {}
        """Last computed metrics by stage, tensors and matrices included."""
        self.num_targets: dict[str, float] = {}
        """What the loss of each stage was last divided by, over all ranks."""
        self.samples: dict[str, list[dict[str, Any]]] = {}
        """What a person wants to read of each stage's last evaluation: this rank's first rows, with their numbers."""
        self._collected: dict[str, list[dict[str, Any]]] = {stage: [] for stage in stages}

    def add(self, stage: str, model: Any, batch: Batch) -> None:
        """Evaluate a batch and count it."""
        batch = {**batch, "stage": stage}
        outputs = self.task.evaluate(model, batch, self.tokenizer)
        loss_sum, denominator = self.task.loss(outputs, batch, self.spec)
        self.losses[stage].update(loss_sum, denominator)  # type: ignore[operator]
        self.task.update_metrics(self.metrics[stage], outputs, batch)  # type: ignore[arg-type]
        if len(self._collected[stage]) < SAMPLES_KEPT:
            rows = zip(batch["example_ids"], self.task.samples(outputs, batch), strict=False)
            self._collected[stage] += [{"row": row, **texts} for row, texts in rows]

    def records(self, model: Any, batch: Batch) -> list[dict[str, Any]]:
        """One record per row of a batch, with the row's number."""
        outputs = self.task.evaluate(model, batch, self.tokenizer)
        found = self.task.decode(outputs, batch, self.spec)
        return [{"row": row, **record} for row, record in zip(batch["example_ids"], found, strict=True)]

    def finish(self, stage: str) -> dict[str, float]:
        """Compute and reset a stage; scalars under ``stage/name``, NaN where undefined."""
        loss: Any = self.losses[stage]
        collection: Any = self.metrics[stage]
        self.computed[stage] = {"loss": loss.compute(), **collection.compute()}
        self.num_targets[stage] = loss.counted
        self.samples[stage] = sorted(self._collected[stage][:SAMPLES_KEPT], key=lambda sample: sample["row"])
        self.reset(stage)
        values = scalars(self.computed[stage])
        return {f"{stage}/{name}": math.nan if v is None else v for name, v in values.items()}

    def reset(self, stage: str) -> None:
        """Forget what was counted."""
        for metric in (self.losses[stage], self.metrics[stage]):
            metric.reset()  # type: ignore[operator]
        self._collected[stage] = []
