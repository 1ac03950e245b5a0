"""The model before its weights are loaded: files, tokenizer, and a rehearsal on a skeleton without numbers.

The skeleton is the model on torch's ``meta`` device: every module and shape, no memory, no randomness drawn.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_tune.checkpointing.free_space import STATES_PER_PARAMETER
from lit_tune.errors import ConfigError, LitTuneError, ModelError, collected
from lit_tune.models.assembly import grown_base
from lit_tune.models.freezing import freeze
from lit_tune.models.layers import head_parameter_names
from lit_tune.models.load import recompute_activations, refuse_other_shapes
from lit_tune.models.load_errors import KEY
from lit_tune.models.remote_code import code_options, code_options_of_config
from lit_tune.models.unfreezing import Stage, plan_stages
from lit_tune.models.vocabulary import NO_TOKENS, NewTokens, embed
from lit_tune.models.weight_files import WeightFiles
from lit_tune.module import FineTuneModule
from lit_tune.optim.optimizers import build_optimizer
from lit_tune.optim.schedules import build_schedule, monitor_mode
from lit_tune.preflight.adapter_rules import adapt
from lit_tune.preflight.findings import Finding, warning
from lit_tune.preflight.step_rules import Plan
from lit_tune.tasks.base import Spec, Task


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Args:
        parameters: Numbers in it.
        trained: Numbers that are trained, some time or other.
        states: Numbers the optimizer keeps for each trained one; Adam two.
        is_adapted: ``best/`` holds what is trained and not the rest.
        stages: What is trained later.
    """

    parameters: int
    trained: int
    states: int = 2
    is_adapted: bool = False
    stages: tuple[Stage, ...] = ()

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint, in float32; what is frozen is not written again."""
        return 4 * self.trained * (1 + self.states) + (1 << 20)

    @property
    def export_bytes(self) -> int:
        """Size of ``best/``."""
        return 4 * (self.trained if self.is_adapted else self.parameters)


def tokenizer_findings(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    """A tokenizer that is slow.

    Raises:
        ModelError: It lacks what the task reads.
    """
    if tokenizer.is_fast:
        return []
    kind = type(tokenizer).__name__
    if task.needs_offsets:
        raise ModelError(
            f"{kind} is written in Python and does not know where its tokens stand in the text",
            where="data.tokenizer",
            fix="a model with a fast tokenizer (tokenizer.json)",
        )
    return [
        warning(
            f"{kind} is written in Python: tokenizing takes 10 to 100 times as long",
            where="data.tokenizer",
            fix="a model with tokenizer.json; data.num_workers tokenizes in several processes",
        )
    ]


def skeleton_of(module: FineTuneModule, spec: Spec) -> PreTrainedModel | None:
    """The model without numbers; None where its architecture cannot be made so.

    Raises:
        ModelError: An attention kernel that the architecture lacks.
    """
    config, folder = module.build_config(spec), module.recipe.folder()
    if folder is not None:
        grown_base(config, folder)
    attention = module.attn_implementation
    options = {"attn_implementation": attention} if attention else {}
    auto_class = module.task.auto_class
    code = code_options_of_config(auto_class, config, code_options(module.model_name, module.revision, KEY))
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class.from_config(config, **code, **options)
    except Exception as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if attention and ("attention" in said.lower() or "attn" in said.lower()):
            raise ModelError(
                f"{type(config).__name__} cannot use {attention!r} here: {said}",
                where="model.attn_implementation",
                fix="sdpa or eager",
            ) from error
        return None
    return model


def rehearse(
    module: FineTuneModule,
    skeleton: PreTrainedModel,
    plan: Plan,
    problems: list[LitTuneError],
    tokens: NewTokens = NO_TOKENS,
) -> Size:
    """Freeze, group, build optimizer and schedule on the skeleton, as a run does on the model.

    Args:
        module: The settings.
        skeleton: Changed by it.
        plan: Steps of the run.
        problems: Receives what a run would raise.
        tokens: That are added to the vocabulary.
    """
    with collected(problems):
        embed(skeleton, tokens)
    if module.gradient_checkpointing:
        with collected(problems):
            recompute_activations(skeleton)
    recipe, is_adapted, stages = module.recipe, False, list[Stage]()
    with collected(problems):
        adapted = adapt(recipe, skeleton, module.task.auto_class, tokens)
        skeleton, is_adapted = adapted, adapted is not skeleton
    if module.freeze_patterns:
        with collected(problems):
            freeze(skeleton, module.freeze_patterns)
            stages = plan_stages(skeleton, module.unfreeze_settings)
    states = 2
    settings = copy(module.optimizer_settings)
    settings.fused = None  # kernels depend on the device, and this is none
    if settings.name.lower() != "adamw_8bit":  # its class registers parameters when it is made
        with collected(problems), _silent():
            optimizer = build_optimizer(settings, skeleton, False, stages, plan.steps_per_epoch)
            states = STATES_PER_PARAMETER.get(type(optimizer).__name__, states)
            higher = module.task.metric_names(module.spec) if module.spec else {}
            monitor = (module.schedule_settings.monitor or "").removeprefix("val/")
            if monitor and monitor not in higher:
                raise ConfigError(
                    f"{module.schedule_settings.monitor!r} is never logged; there are: "
                    f"{', '.join(f'val/{n}' for n in higher if '/' not in n)}",
                    where="lr_schedule.monitor",
                    fix="lr_schedule.monitor: val/loss",
                )
            mode = monitor_mode(module.schedule_settings, higher)
            build_schedule(module.schedule_settings, optimizer, plan.steps, mode)
    later = {name for stage in stages for name in stage.names}
    return Size(
        sum(p.numel() for p in skeleton.parameters()),
        sum(p.numel() for name, p in skeleton.named_parameters() if p.requires_grad or name in later),
        states,
        is_adapted,
        tuple(stages),
    )


def check_shapes(module: FineTuneModule, skeleton: PreTrainedModel, weights: WeightFiles) -> None:
    """Compare the shapes in the files with those of the model.

    Raises:
        ModelError: Weights of another shape.
    """
    stored, head = weights.shapes(), head_parameter_names(skeleton)
    prefix = f"{skeleton.base_model_prefix}."  # weights of a model without a head have names without it
    mismatched = []
    for name, parameter in skeleton.named_parameters():
        shape, found = tuple(parameter.shape), stored.get(name) or stored.get(name.removeprefix(prefix))
        if found and found != shape:
            mismatched.append((name, found, shape))
    refuse_other_shapes(mismatched, head if module.new_head else set(), head, module.model_name)


def require_head(name: str, skeleton: PreTrainedModel, weights: WeightFiles) -> None:
    """Refuse a model that would be measured with random numbers in its head.

    Raises:
        ModelError: Parameters of the head are not in the files.
    """
    missing = sorted(head_parameter_names(skeleton) - weights.shapes().keys()) if weights.files else []
    if missing:
        raise ModelError(
            f"{name} has no trained head ({missing[0]} is missing)",
            where="model.model_name_or_path",
            fix="train it first with `lit-tune fit`, or give the config.yaml of a finished run",
        )


@contextmanager
def _silent() -> Iterator[None]:
    """What a run says of its optimizer it will say itself."""
    was = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(was)
