"""What a config consists of: one table of sections, each the signature of the class or function that takes it.

The parser, the help, the schema and the check for unknown keys all read this table.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer

import lit_tune.tasks
from lit_tune.callbacks.checkpoints import build_checkpoint_callbacks
from lit_tune.callbacks.early_stopping import build_early_stopping
from lit_tune.callbacks.loggers import LoggerName, build_loggers
from lit_tune.callbacks.overfit_detector import OverfitCallback
from lit_tune.config.parameters import Parameter, parameters_of
from lit_tune.config.types import takes_keys
from lit_tune.datamodule import TokenizedDataModule
from lit_tune.module import FineTuneModule
from lit_tune.optim.optimizers import OptimizerSettings
from lit_tune.optim.schedules import ScheduleSettings
from lit_tune.tasks.base import Task
from lit_tune.tasks.distillation import DistillationSettings


class RunSettings:
    """Keys that stand at the top of a config, outside the sections.

    Args:
        run_dir: Folder of the run; default: ``runs/<data>_<model>``, so that the same command finds its run again.
        resume: ``auto`` goes on where the run in run_dir stopped; ``never``; or the path of a checkpoint.
        seed_everything: Seed of all randomness: weights, dropout, order, splits.
        eval_every_steps: Validate every n optimizer steps; default: after each epoch.
        logger: ``tensorboard``, ``csv``, ``wandb``, a list of them, or ``none``; metrics.jsonl is always written.
        hang_timeout_seconds: End the run, with the stacks of all threads, when no batch has ended for so long and for
            ten usual pauses; 0 waits for ever.
    """

    def __init__(
        self,
        run_dir: str | None = None,
        resume: str = "auto",
        seed_everything: int = 42,
        eval_every_steps: int | None = None,
        logger: LoggerName | list[LoggerName] = "tensorboard",
        hang_timeout_seconds: float = 300.0,
    ) -> None:
        self.run_dir, self.resume, self.seed_everything = run_dir, resume, seed_everything
        self.eval_every_steps, self.logger = eval_every_steps, logger
        self.hang_timeout_seconds = hang_timeout_seconds


@dataclass(frozen=True)
class Section:
    """A top-level key with keys under it.

    Args:
        name: The key.
        target: The class or function whose signature gives the keys.
        title: One line for ``--help``.
        skip: Parameters that are not keys: set by the program.
    """

    name: str
    target: Callable[..., Any]
    title: str
    skip: tuple[str, ...] = ()

    def parameters(self) -> list[Parameter]:
        """The keys a person may set, in order, with the defaults that hold in a config."""
        linked = {target.split(".", 1)[1] for _, target in LINKS if target.startswith(self.name + ".")}
        found = parameters_of(self.target, skip={*self.skip, *linked})
        if self.name != "trainer":
            return found
        return [Parameter(p.name, p.hint, TRAINER_DEFAULTS.get(p.name, p.default), p.help) for p in found]


LINKS: tuple[tuple[str, str], ...] = (
    # both sides build their own equal Task: an object linked at instantiation would be pickled into the checkpoint
    ("task", "model.task"),
    ("task", "data.task"),
    ("optimizer", "model.optimizer"),
    ("lr_schedule", "model.lr_schedule"),
    ("distillation", "model.distillation"),
    ("model.model_name_or_path", "data.model_name_or_path"),
    ("model.revision", "data.model_revision"),
    ("model.model_class", "data.model_class"),
    ("model.new_head", "data.new_head"),
    ("model.from_scratch", "data.from_scratch"),
    ("model.config_overrides", "data.config_overrides"),
    ("model.add_tokens", "data.add_tokens"),
    ("model.add_special_tokens", "data.add_special_tokens"),
    ("overfit.probe_size", "data.probe_size"),
    ("seed_everything", "data.default_seed"),
    ("run_dir", "trainer.default_root_dir"),
)
"""(Key a person sets, key that follows it)."""

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 3,
    "gradient_clip_val": 1.0,  # HF Trainer's default; the comparison with it depends on this
    "use_distributed_sampler": False,  # data.samplers cuts each global batch itself
    "num_sanity_val_steps": 0,  # preflight checks more, without touching the metrics
    "log_every_n_steps": 10,
    "enable_model_summary": False,  # one line of ours says what is trained; `fit --verbose` prints the tree
}
"""Where our defaults differ from Lightning's."""

SECTIONS: tuple[Section, ...] = (
    Section("model", FineTuneModule, "which model, and how it is loaded"),
    Section("data", TokenizedDataModule, "which rows, how they are tokenized and batched"),
    Section("optimizer", OptimizerSettings, "the update rule and which parameters get which settings"),
    Section("lr_schedule", ScheduleSettings, "the learning rate over the steps"),
    Section(
        "distillation", DistillationSettings, "learn from another model's answers too; off until there is a teacher"
    ),
    Section("checkpoint", build_checkpoint_callbacks, "which weights are kept, and which are best", skip=("dirpath",)),
    Section("early_stopping", build_early_stopping, "stop when nothing improves; off until patience is given"),
    Section("overfit", OverfitCallback, "train against val in eval mode at each validation: the verdict"),
    Section(
        "wandb",
        build_loggers,
        "Weights & Biases, where logger names wandb",
        skip=("run_dir", "names", "resume_step", "wandb_id"),
    ),
    Section("trainer", Trainer, "Lightning's Trainer"),
)

TOP_LEVEL: list[Parameter] = parameters_of(RunSettings)
DEFAULT_TASK = "SequenceClassification"
TASK_TITLE = "the problem: how rows become features, a loss, metrics and predictions"


def tasks() -> dict[str, type[Task]]:
    """Our tasks by short name: every concrete Task in ``lit_tune/tasks``, one file per task."""
    found: dict[str, type[Task]] = {}
    for info in pkgutil.iter_modules(lit_tune.tasks.__path__):
        module = importlib.import_module(f"lit_tune.tasks.{info.name}")
        for name, value in vars(module).items():
            concrete = inspect.isclass(value) and issubclass(value, Task) and not inspect.isabstract(value)
            if concrete and value.__module__ == module.__name__:
                found[name] = value
    return found


def section_names() -> list[str]:
    """The top-level keys that have keys under them."""
    return ["task", *(s.name for s in SECTIONS)]


def all_keys(task: type[Task] | None = None) -> dict[str, Parameter]:
    """Every key a config may have, dotted, in the order of the help.

    Args:
        task: The task whose init arguments stand under ``task.init_args``; without it they are left out.
    """
    keys = {p.name: p for p in TOP_LEVEL}
    keys["task.class_path"] = Parameter("class_path", str, DEFAULT_TASK, "The task, a class name.")
    if task is not None:
        keys |= {f"task.init_args.{p.name}": p for p in parameters_of(task)}
    for section in SECTIONS:
        keys |= {f"{section.name}.{p.name}": p for p in section.parameters()}
    return keys


def parameter_at(key: str, keys: dict[str, Parameter]) -> Parameter | None:
    """The parameter that a dotted key sets, wholly or, where its type has keys of its own, in part.

    Args:
        key: ``optimizer.lr``, or ``model.config_overrides.hidden_dropout_prob``.
        keys: From :func:`all_keys`.
    """
    if key in keys:
        return keys[key]
    parent = key
    while "." in parent:
        parent = parent.rsplit(".", 1)[0]
        if parent in keys:
            return keys[parent] if takes_keys(keys[parent].hint) else None
    return None
