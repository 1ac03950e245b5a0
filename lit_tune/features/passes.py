"""Forward passes over the rows of a run, and which part of its model need not be run again for them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_tune.data.features import from_entries, layout_of, to_entries
from lit_tune.data.loader import collate
from lit_tune.data.units import Chosen, list_lengths
from lit_tune.errors import is_out_of_memory
from lit_tune.models.freezing import train_mode
from lit_tune.models.frozen_part import FrozenPart, NoFrozenPartError, find_parts
from lit_tune.models.probing import real

Batch = dict[str, Any]
SAME = 1e-6
"""Largest relative difference of a batch's loss and scores with what was put back and without."""
_FEW = 8


class Passes:
    """Forward passes over rows of train and val, as in training, without gradients.

    Rows are numbered through: those of train, then those of val.

    Args:
        trainer: Of the run.
        pl_module: Its module.
    """

    def __init__(self, trainer: Any, pl_module: Any) -> None:
        self.trainer, self.module, self.model, self.data = trainer, pl_module, pl_module.model, trainer.datamodule
        self.splits = [self.data.encoded[name] for name in ("train", "val") if name in self.data.encoded]
        self.num_train = len(self.splits[0])
        self.collator = self.data.collator()
        lengths = np.concatenate([list_lengths(rows, "input_ids") for rows in self.splits])
        self.order = np.argsort(-lengths, kind="stable")
        """(N,) the longest row first: rows of about the same length waste no padding."""

    def places(self) -> dict[str, np.ndarray]:
        """Stage -> our number of each of its rows."""
        found = {"train": np.arange(self.num_train)}
        if len(self.splits) > 1:
            found["val"] = self.num_train + np.arange(len(self.splits[1]))
            probe = self.data.probe()
            found |= {"probe": probe.numbers} if isinstance(probe, Chosen) else {}
        return found

    def batch(self, rows: np.ndarray) -> Batch:
        """Some rows, on the device."""
        ids: list[int] = rows.tolist()
        features = [self.splits[0][i] if i < self.num_train else self.splits[1][i - self.num_train] for i in ids]
        batch = self.trainer.precision_plugin.convert_input(collate(features, ids, self.collator))
        return self.trainer.strategy.batch_to_device(batch)

    def run(self, batch: Batch, seed: int = 0) -> Any:
        """What the model gives for a batch."""
        torch.manual_seed(seed)
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            return self.module.task.forward(self.model, batch)

    def features(self, part: FrozenPart, batch: Batch, seed: int = 0) -> Tensor:
        """What the frozen part gives for it."""
        return part.given(lambda: self.run(batch, seed))

    def numbers(self, batch: Batch) -> Tensor:
        """The loss of a batch, and the scores of its rows or tokens."""
        outputs, task = self.run(batch), self.module.task
        scores = task.scores(outputs)
        loss, _ = task.loss(outputs, batch, self.module.spec)
        return torch.cat([loss.double().reshape(1), scores[real(batch, scores)].double().flatten()])

    def sample(self) -> Batch:
        """A few rows of all lengths."""
        return self.batch(self.order[:: -(-len(self.order) // _FEW)])


def choose_part(passes: Passes) -> FrozenPart:
    """The frozen part, with the place behind it where least has to be kept.

    Raises:
        NoFrozenPartError: There is no such place.
    """
    few = passes.order[:_FEW]
    batches = [passes.batch(few), passes.batch(passes.order[-max(1, len(few) // 2) :])]
    reason = NoFrozenPartError("nothing takes its outputs")
    for part in find_parts(passes.model, lambda: passes.run(batches[0])):
        try:
            part.learn([lambda b=batch: passes.run(b) for batch in batches])  # type: ignore[misc]
            for batch in batches:
                compare(passes, part, batch)
            return part
        except NoFrozenPartError as error:
            reason = error
        except Exception as error:  # a model may do anything with what its own parts give
            if is_out_of_memory(error):
                raise
            reason = NoFrozenPartError(f"{type(error).__name__}: {str(error).partition(chr(10))[0][:100]}")
    raise reason


def compare(passes: Passes, part: FrozenPart, batch: Batch) -> None:
    """Put back what was given, in training and in eval mode, and compare with a pass in which everything runs.

    Raises:
        NoFrozenPartError: What is given is random, or the model computes something else.
    """
    features = passes.features(part, batch)
    if not difference(passes.features(part, batch, seed=1), features) <= SAME:
        raise NoFrozenPartError(f"what {part.taker} is given is random")
    layout = layout_of(features, batch)
    if layout is None:
        raise NoFrozenPartError(f"{part.taker} is given {tuple(features.shape)}: neither rows nor tokens")
    kept = from_entries(to_entries(features, batch, layout), batch, layout)
    try:
        for is_training in (True, False):
            if not is_training:
                passes.model.eval()
            if not difference(with_features(passes, part, batch, kept), passes.numbers(batch)) <= SAME:  # NaN, too
                raise NoFrozenPartError(f"more than {part.taker} reads what the frozen part gives")
    finally:
        train_mode(passes.model, tell=False)


def with_features(passes: Passes, part: FrozenPart, batch: Batch, features: Tensor) -> Tensor:
    """:meth:`Passes.numbers` while the frozen part does not run."""
    with part.put_back(features):
        return passes.numbers(batch)


def difference(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm of the whole."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-12))
