"""What a task reads off the data."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spec:
    """What a task reads off the train split; plain data, so that it can live in a checkpoint, a cache and a manifest.

    Args:
        problem_type: What kind of problem it is; of classifiers of texts transformers' ``config.problem_type``.
        label_names: Class names in the order of their ids; empty for regression.
        label_counts: Units per class in the train split, same order; empty where unknown (streaming, regression).
        num_rows: Rows of the train split; 0 where unknown (streaming).
        baseline: What a model that ignores its input scores on train, by metric name (``accuracy``, ``loss``, ...).
        unit: What has a label: ``row``, or ``word``.
        num_units: Units of the train split, where they are not the rows.
        score_range: Least and greatest score that a row can have, where rows have scores.
    """

    problem_type: str
    label_names: list[str] = field(default_factory=list)
    label_counts: list[int] = field(default_factory=list)
    num_rows: int = 0
    baseline: dict[str, float] = field(default_factory=dict)
    unit: str = "row"
    num_units: int = 0
    score_range: list[float] = field(default_factory=list)

    @property
    def total(self) -> int:
        """What ``label_counts`` are shares of."""
        return self.num_units or self.num_rows

    @property
    def num_labels(self) -> int:
        """Outputs of the head: classes, or 1 for regression."""
        return max(1, len(self.label_names))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``Spec(**d)`` is the way back."""
        return asdict(self)
