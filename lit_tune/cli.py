"""LightningCLI with lit-tune's sections; and ``build``, the way in for Python users."""

import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_tune import __version__
from lit_tune.config.parse import as_plain, parse_settings
from lit_tune.config.problems import cannot_be_made
from lit_tune.config.sections import LINKS, SECTIONS, TRAINER_DEFAULTS, RunSettings, section_names, tasks
from lit_tune.config.sources import Setting, parse_options, read_config, settings_of
from lit_tune.datamodule import TokenizedDataModule
from lit_tune.errors import LitTuneError, is_out_of_memory, raise_problems
from lit_tune.imports import allow_import, allowed_imports, import_class, refused_imports
from lit_tune.models.adapter_settings import adapter_settings
from lit_tune.models.own_class import own_config
from lit_tune.models.unfreeze_settings import unfreeze_settings
from lit_tune.module import FineTuneModule
from lit_tune.optim.optimizers import CLASSES, OptimizerSettings
from lit_tune.optim.schedules import NAMES, ScheduleSettings
from lit_tune.optim.torch_schedules import scheduler_class
from lit_tune.preflight.config_rules import contradictions
from lit_tune.preflight.finished_run import run_of_config
from lit_tune.preflight.rank_environment import check_environment, check_number
from lit_tune.preflight.situation import Situation
from lit_tune.preflight.start import FROM_THE_BEGINNING, Start
from lit_tune.run_dir import RunDir
from lit_tune.supervision import supervise
from lit_tune.tasks.base import Task
from lit_tune.training import build_trainer


class Built(NamedTuple):
    """What a config describes, ready for ``trainer.fit(module, datamodule=datamodule)``."""

    trainer: Trainer
    module: FineTuneModule
    datamodule: TokenizedDataModule


class LitTuneCLI(LightningCLI):
    """One parser for all verbs, so that a run's config.yaml serves fit, validate, test and predict alike.

    Parsing and building are two steps: a verb looks at the run directory in between.

    Args:
        settings: What the config files and the command line say, in order.
        verb: The verb the config is checked for.
        problems: What could not be read; reported with the rest.
        lenient: Keep the problems, for somebody who looks for more of them.

    Raises:
        LitTuneError: All problems of the config together.
    """

    _shared_parser: ClassVar[LightningArgumentParser | None] = None

    def __init__(
        self,
        settings: list[Setting],
        verb: str = "fit",
        problems: Sequence[LitTuneError] = (),
        lenient: bool = False,
    ) -> None:
        self.settings, self.verb, self.problems, self.lenient = settings, verb, list(problems), lenient
        set_parsing_settings(
            import_path_denylist=["*", *refused_imports()],
            import_path_allowlist=allowed_imports(),
            # a {class_path: ...} under config_overrides or init_args stays the mapping it is
            instantiate_subclass_spec_in_any=False,
            # LightningCLI switches it on: a class given as http://... would be fetched and read as a config
            config_read_mode_fsspec_enabled=False,
        )
        super().__init__(
            FineTuneModule,
            TokenizedDataModule,
            save_config_callback=None,
            seed_everything_default=42,
            # texts from files were read as YAML already; read as YAML again, ten of its aliases make a billion values
            parser_kwargs={"exit_on_error": False, "parser_mode": "json"},
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @property
    def situation(self) -> Situation:
        """What the rules look at."""
        return Situation(as_plain(self.config), self.verb, *_hardware())

    @property
    def run_dir(self) -> RunDir:
        """The directory of the run."""
        return RunDir(self.config.run_dir)

    def build(self, start: Start = FROM_THE_BEGINNING) -> Built:
        """Seed, then make trainer, module and datamodule. No weights are loaded and no data is read yet.

        Args:
            start: How fit starts in the run directory.

        Raises:
            LitTuneError: A class in the config that cannot be made with these arguments.
        """
        check_environment(os.environ)
        with _lightning_quiet():
            seed_everything(self.config.seed_everything, workers=True, verbose=False)
            try:
                made = self.parser.instantiate(self.config)
                self.trainer = build_trainer(made, self.verb, self.to_yaml(), start)
            except Exception as error:
                if isinstance(error, LitTuneError) or is_out_of_memory(error) or _is_of_ours(error):
                    raise
                raise cannot_be_made(error) from error
        check_number(os.environ, self.trainer.num_devices, self.trainer.num_nodes)
        supervise(self.trainer)
        self.model, self.datamodule = made.model, made.data
        return Built(self.trainer, self.model, self.datamodule)

    def parts(self, without: Collection[str]) -> tuple[FineTuneModule, TokenizedDataModule]:
        """Module and datamodule of a config that is wrong elsewhere.

        Args:
            without: Sections of the module that are put back to their defaults, because they are wrong.
        """
        config = self.config.clone()
        for section in {"optimizer", "lr_schedule"} & set(without):
            config[f"model.{section}"] = {}
        config.trainer.callbacks = config.trainer.logger = config.trainer.plugins = None
        made = self.parser.instantiate(config)
        return made.model, made.data

    def to_yaml(self) -> str:
        """The resolved config, which gives the same run again: every key, none that follows another one."""
        config = json.loads(self.parser.dump(self.config, skip_unset=False, format="json"))
        config["task"]["class_path"] = _short_name(config["task"]["class_path"])
        return f"# lit-tune {__version__}\n" + yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)

    # ---- LightningCLI's hooks ----------------------------------------------------------------------------------------

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """One parser serves the process: making it takes longer than a parse, and no parse changes it."""
        if LitTuneCLI._shared_parser is None:
            super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
            LitTuneCLI._shared_parser = self.parser
        self.parser = LitTuneCLI._shared_parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The keys at the top, ``seed_everything`` among them."""
        parser.add_class_arguments(RunSettings, None)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Trainer, model and data; unlike LightningCLI's, no value of theirs may name a further file to read."""
        for name, target in (("trainer", Trainer), ("model", FineTuneModule), ("data", TokenizedDataModule)):
            parser.add_class_arguments(target, name, fail_untyped=False, instantiate=target is not Trainer)
        parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The task, our sections, and the keys that follow others."""
        tasks()  # imports all of ours, so that jsonargparse knows their short names
        parser.add_subclass_arguments(Task, "task", required=False)
        for section in SECTIONS:
            if section.name in ("model", "data", "trainer"):
                continue  # LightningCLI adds these itself
            if isinstance(section.target, type):
                parser.add_class_arguments(section.target, section.name, instantiate=False, skip=set(section.skip))
            else:
                parser.add_function_arguments(section.target, section.name, skip=set(section.skip))
        for source, target in LINKS:
            is_section = source in ("optimizer", "lr_schedule", "distillation")
            parser.link_arguments(source, target, compute_fn=as_plain if is_section else None)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse ``self.settings``; ``args`` and ``sys.argv`` are not looked at."""
        rules = partial(_rules, verb=self.verb)
        self.config, unread, wrong = parse_settings(parser, self.settings, self.problems, rules)
        self.problems, self.unread = [*unread, *wrong], {problem.where or "" for problem in unread}
        if not self.lenient:
            raise_problems(self.problems)

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning's lets a checkpoint overrule the config and import the module it names."""

    def _set_seed(self) -> None:
        """Not while parsing; see :meth:`build`."""

    def instantiate_classes(self) -> None:
        """Not while parsing; see :meth:`build`."""


def parse(options: list[str], verb: str = "fit", lenient: bool = False) -> LitTuneCLI:
    """A verb's command line, parsed and checked; nothing is built yet.

    Args:
        options: ``--config a.yaml``, ``--key value`` ...
        verb: The verb.
        lenient: Keep the problems in ``problems`` instead of raising them.

    Raises:
        LitTuneError: All problems together.
    """
    settings, problems = parse_options(options, section_names())
    return LitTuneCLI(settings, verb, problems, lenient)


def parse_for_run(options: list[str], verb: str) -> LitTuneCLI:
    """Like :func:`parse`; a config.yaml inside a run directory means that run, wherever it lies now."""
    found = run_of_config(options)
    return parse([*options, "--run_dir", found] if found else options, verb)


def build(
    config: str | Path | Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]] | None = None,
    overrides: Mapping[str, Any] | list[str] | None = None,
    *,
    verb: str = "fit",
    allow: Sequence[str] = (),
) -> Built:
    """Trainer, module and datamodule of a config; for notebooks and scripts.

    Args:
        config: A YAML file, a nested dict, or several of them that overlay each other.
        overrides: ``{"optimizer.lr": 3e-5}`` (nested dicts work too), or as on the command line:
            ``["--optimizer.lr", "3e-5"]``.
        verb: What it is for: ``fit``, ``validate``, ``test`` or ``predict``; decides which data must be there.
        allow: Packages whose classes the config may name, besides the built-in list.

    Returns:
        ``(trainer, module, datamodule)``; go on with ``trainer.fit(module, datamodule=datamodule)``.

    Raises:
        LitTuneError: All problems of the config together. Nothing is printed and nothing exits.
    """
    for package in allow:
        allow_import(package)
    several = isinstance(config, Sequence) and not isinstance(config, str)
    sources: Sequence[Any] = config if several else [] if config is None else [config]  # type: ignore[assignment]
    settings: list[Setting] = []
    problems: list[LitTuneError] = []
    for source in sources:
        if isinstance(source, Mapping):
            settings += settings_of(source, section_names(), lambda _: "config")
        else:
            settings += read_config(source, section_names())
    if isinstance(overrides, Mapping):
        settings += settings_of(overrides, section_names(), lambda _: "overrides")
    elif overrides:
        found, problems = parse_options(list(overrides), section_names())
        settings += found
    return LitTuneCLI(settings, verb, problems).build()


def _rules(config: dict[str, Any], verb: str) -> list[LitTuneError]:
    """Contradictions, and what task, optimizer and schedule say of their own arguments before anything is loaded."""
    problems = contradictions(Situation(config, verb, *_hardware()))
    optimizer, schedule, task = config["optimizer"], config["lr_schedule"], config["task"]
    checks: list[Callable[[], Any]] = [
        lambda: OptimizerSettings(**optimizer),
        lambda: import_class(
            CLASSES.get(optimizer["name"], optimizer["name"]),
            where="optimizer.name",
            search=("torch.optim",),
            aliases=CLASSES,
        ),
        lambda: ScheduleSettings(**schedule),
        lambda: adapter_settings(config["model"]["adapter"]),
        lambda: unfreeze_settings(config["model"]["unfreeze"]),
        lambda: None if schedule["name"] in NAMES else scheduler_class(schedule["name"], NAMES),
        lambda: _task_and_model(task, config["model"]["model_class"]),
    ]
    for check in checks:
        try:
            check()
        except LitTuneError as error:
            problems += getattr(error, "problems", [error])
    return problems


def _task_and_model(task: dict[str, Any], model_class: str | None) -> None:
    """The task with its own pieces, and a model class of the user's that is made for it."""
    made = import_class(task["class_path"], where="task.class_path")(**task["init_args"])
    own_config(model_class, made.auto_class)


def _is_of_ours(error: BaseException) -> bool:
    """Whether an exception was raised in this package: then it is a bug, and no answer to the config."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent)


def _hardware() -> tuple[list[str], int]:
    if torch.cuda.is_available():
        return ["cuda"], torch.cuda.device_count()
    return (["mps"], 1) if torch.backends.mps.is_available() else ([], 0)


def _short_name(class_path: str) -> str:
    return class_path.rsplit(".", 1)[-1] if class_path.startswith("lit_tune.tasks.") else class_path


@contextmanager
def _lightning_quiet() -> Iterator[None]:
    """No "GPU available" lines and tips: verbs say what matters themselves, Python users hear nothing."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
