"""Knowledge distillation: a model learns from the labels and from what a larger one says of the same rows.

    loss = (1 - alpha) * sum of the labels' losses / N + alpha * sum of T^2 KL(teacher || model) / N

N is the number of targets, of both terms: with class weights the first one is divided by it, too, and not by the sum of
weights, so that both parts add up over any cut of a step. (Hinton et al. 2015, https://arxiv.org/abs/1503.02531.)

Shapes: B rows, N targets, C classes.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor

from lit_tune import losses
from lit_tune.data.cache import digest, tokenizer_fingerprint
from lit_tune.data.truncation import COUNT
from lit_tune.durable import temporary_of
from lit_tune.errors import ConfigError, LitTuneError, ModelError
from lit_tune.losses import LossParts
from lit_tune.models import load
from lit_tune.models.assembly import Recipe, assemble
from lit_tune.models.base_reference import reference_of
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.base import Batch, Spec, Task
from lit_tune.tasks.batching import padding_of
from lit_tune.tasks.classification_head import head_labels
from lit_tune.tasks.encoding import class_labels, encode_batch

log = logging.getLogger("lit_tune")
KEY = "distillation.teacher"
Logits = Callable[[Batch], Tensor]
"""A batch -> (N, C) what the teacher says of its targets."""


@dataclass(frozen=True)
class DistillationSettings:
    """The ``distillation`` section.

    Args:
        teacher: Hub id or folder of a model that was trained for the same labels; or of an adapter.
        revision: Branch, tag or commit of the teacher.
        temperature: Both models' logits are divided by it, so that more than the likeliest class tells something.
        alpha: Weight of the teacher's answers; the labels have the rest.
        cache: Ask the teacher once for each row before training and keep its answers in ``data.cache_dir``, instead of
            in each step. Done where it has another tokenizer, which is possible for whole texts only.
    """

    teacher: str | None = None
    revision: str | None = None
    temperature: float = 2.0
    alpha: float = 0.5
    cache: bool = False


class Distillation:
    """The loss of a step, with a teacher's answers where there is a teacher.

    No module: the teacher is in no checkpoint, in no optimizer, and stays in eval mode.

    Args:
        task: Whose targets.
        settings: The section.
    """

    def __init__(self, task: Task, settings: DistillationSettings) -> None:
        self.task, self.settings = task, settings
        self.answers: Logits | None = None

    def start(self, module: Any) -> None:
        """Make the teacher ready, before the first step.

        Args:
            module: That learns, attached to its trainer.

        Raises:
            ConfigError: The task has nothing that could be imitated, or nothing that could be kept.
            ModelError: The teacher cannot be read, or knows other labels or other tokens.
        """
        settings, datamodule = self.settings, module.trainer.datamodule
        if settings.teacher is None:
            return
        if type(self.task).imitated is Task.imitated:
            what = f"{type(self.task).__name__} has no logits that two models could be compared by"
            raise ConfigError(what, where=KEY, fix="leave it out")
        teacher = Teacher(self.task, settings, module.spec, datamodule.tokenizer)
        move(teacher.model, module.device, module.model.dtype)
        if settings.cache or not teacher.reads_the_same:
            answers = kept_answers(teacher, datamodule, module)
            self.answers = lambda batch: torch.from_numpy(answers[batch["example_ids"]]).to(module.device)
            move(teacher.model, torch.device("cpu"), teacher.model.dtype)
        else:
            self.answers = teacher.answers
        said = load.describe_model(teacher.model)
        log.info("teacher  %s, temperature %g, alpha %g", said, settings.temperature, settings.alpha)

    def loss(self, outputs: Any, batch: Batch, spec: Spec) -> LossParts:
        """(Summed loss, denominator) of what the model has computed."""
        if self.answers is None:
            return self.task.loss(outputs, batch, spec)
        logits = self.task.imitated(outputs, batch)  # first: language modelling then takes the loss of these, too
        assert logits is not None
        hard_sum, _ = self.task.loss(outputs, batch, spec)
        wanted = self.answers(batch)
        logits = logits[:, : wanted.shape[1]]  # a vocabulary may be padded
        soft_sum, count = measure(spec, self.settings.temperature)(logits, wanted)
        alpha = self.settings.alpha
        return (1 - alpha) * hard_sum + alpha * soft_sum, count


def move(model: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Put a model there; transformers' own ``to`` is typed for models of one kind."""
    model.to(device, dtype)


def measure(spec: Spec, temperature: float) -> Callable[[Tensor, Tensor], LossParts]:
    """How far two models' logits are from each other."""
    if spec.problem_type == "regression":
        return losses.mean_squared_error
    kind = losses.binary_imitation if spec.problem_type == "multi_label_classification" else losses.imitation
    return partial(kind, temperature=temperature)


class Teacher:
    """A trained model that is asked.

    Args:
        task: Whose targets.
        settings: Where it is.
        spec: The labels of the model that learns.
        tokenizer: Of the model that learns.

    Raises:
        ModelError: It cannot be read, has no trained head, or knows other labels.
    """

    def __init__(self, task: Task, settings: DistillationSettings, spec: Spec, tokenizer: Any) -> None:
        assert settings.teacher is not None
        self.task, self.spec, self.name = task, spec, settings.teacher
        config = load.load_config(settings.teacher, settings.revision)
        self.reader = TextReader(settings.teacher, settings.revision, prepare=task.prepare_tokenizer)
        self.reads_the_same = tokenizer_fingerprint(self.reader.tokenizer) == tokenizer_fingerprint(tokenizer)
        try:
            recipe = Recipe(settings.teacher, settings.revision)
            self.model, *_ = assemble(task.auto_class, recipe, config, fitting=False)
        except ModelError as error:
            raise ModelError(error.what, where=KEY, fix="a teacher that was trained for this task") from error
        self.model.eval().requires_grad_(False)
        self.order = label_order(spec, config, settings.teacher)
        self.width = None if spec.label_names else len(tokenizer)

    @torch.no_grad()
    def answers(self, batch: Batch) -> Tensor:
        """(N, C) what it says of the targets of a batch."""
        logits = self.task.imitated(self.task.forward(self.model, batch), batch)
        assert logits is not None
        return logits[:, : self.width] if self.order is None else logits[:, self.order]


def kept_answers(teacher: Teacher, datamodule: Any, module: Any) -> np.ndarray:
    """(rows of train, C) what a teacher says of each row, read by its own tokenizer; kept in the cache.

    Args:
        teacher: On its device.
        datamodule: Of the run.
        module: That learns.

    Raises:
        ConfigError: Targets are no rows, or train is a stream.
        ModelError: The teacher has another tokenizer, and its answers are about tokens.
    """
    if datamodule.streaming:
        raise ConfigError("the rows of a stream are not kept", where="distillation.cache", fix="data.streaming: false")
    reference = reference_of(teacher.model, ())
    key = digest(datamodule.fingerprint, reference, teacher.order, teacher.reader.max_length)
    path: Path = datamodule.preparation.cache_dir / f"teacher-{key}.npy"
    if not path.is_file() and module.trainer.is_global_zero:
        found = np.concatenate(list(ask(teacher, datamodule, module.device)))
        temporary = temporary_of(path)
        with temporary.open("wb") as file:
            np.save(file, found)
        temporary.replace(path)
    module.trainer.strategy.barrier("teacher asked")
    return np.load(path, mmap_mode="r")


def ask(teacher: Teacher, datamodule: Any, device: torch.device) -> Iterator[np.ndarray]:
    """What a teacher says of the rows of train, batch after batch."""
    task, reader = teacher.task, teacher.reader
    raw = copy.copy(datamodule.preparation).read(("train", "val"))["train"]
    collator = task.collator(padding_of(task, reader, "longest", None, 0, 1), teacher.spec)
    for rows in raw.rows.iter(batch_size=datamodule.eval_batch_size):
        features = encode_batch(rows, task, reader.tokenizer, teacher.spec, reader.max_length, class_labels(raw))
        names = [name for name in features if not name.startswith(COUNT)]
        listed = [dict(zip(names, values, strict=True)) for values in zip(*(features[n] for n in names), strict=True)]
        if getattr(collator, "is_random", False):
            raise _not_rows(teacher)
        answers = teacher.answers(move_data_to_device(collator(listed), device)).float().cpu().numpy()
        if len(answers) != len(listed):
            raise _not_rows(teacher)
        yield answers


def _not_rows(teacher: Teacher) -> LitTuneError:
    """Answers that do not belong to a row as a whole."""
    if teacher.reads_the_same:
        what = f"the targets of {type(teacher.task).__name__} are tokens, not rows: their answers are not kept"
        return ConfigError(what, where="distillation.cache", fix="false")
    what = f"the tokens of {teacher.name} are others than the model's: what both say of them cannot be compared"
    return ModelError(what, where=KEY, fix="a teacher with the same tokenizer")


def label_order(spec: Spec, config: Any, name: str) -> list[int] | None:
    """For each label of the spec the teacher's output for it; None where they are the same.

    Raises:
        ModelError: The teacher knows other labels.
    """
    if not spec.label_names:
        return None
    theirs = head_labels(config)
    if theirs == spec.label_names or theirs == [f"LABEL_{i}" for i in range(spec.num_labels)]:
        return None
    if sorted(theirs) != sorted(spec.label_names):
        raise ModelError(
            f"{name} knows {', '.join(theirs[:5])}{' ...' if len(theirs) > 5 else ''}, the data has "
            f"{', '.join(spec.label_names[:5])}{' ...' if spec.num_labels > 5 else ''}",
            where=KEY,
            fix="a teacher that was trained for the same labels",
        )
    return [theirs.index(label) for label in spec.label_names]
