"""Settings -> one checked config, or every problem at once.

jsonargparse stops at the first error. In the good case it parses once (30 ms). Where it refuses, the settings are
parsed again, one more at a time, so that each refusal belongs to one key with one place; the rest is still checked for
contradictions.
"""

import contextlib
import os
from argparse import ArgumentError
from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lit_tune.config.parameters import Parameter
from lit_tune.config.problems import (
    keys_for,
    missing_keys,
    no_value,
    out_of_range,
    task_class,
    unknown_key,
    whole_config,
    wrong_value,
)
from lit_tune.config.ranges import RANGES
from lit_tune.config.run_name import run_dir_of
from lit_tune.config.sections import DEFAULT_TASK, parameter_at
from lit_tune.config.sources import Setting
from lit_tune.errors import LitTuneError, raise_problems

PLACEHOLDER = "placeholder"

_DEFAULT_TASK = Setting("task.class_path", DEFAULT_TASK, "default")

Rules = Callable[[dict[str, Any]], list[LitTuneError]]


def parse_settings(
    parser: LightningArgumentParser, settings: list[Setting], problems: list[LitTuneError], rules: Rules
) -> Namespace:
    """Parse and check.

    Args:
        parser: With all sections, and ``exit_on_error=False``.
        settings: In the order in which they overlay each other.
        problems: What could not even be read; reported together with the rest.
        rules: Contradictions of a parsed config, given as nested plain dicts.

    Raises:
        LitTuneError: One problem, or all of them as a ``ProblemList``.
    """
    settings = [_task_in_use(settings), *settings]
    keys = keys_for(settings)
    unknown = {id(s): problem for s in settings if (problem := unknown_key(s, keys))}
    missing = missing_keys(settings, keys)
    if task_class(settings) is None:  # somebody else's class, or a wrong name: jsonargparse knows
        unknown = {i: p for i, p in unknown.items() if not (p.where or "").startswith("task.init_args.")}
    problems = [*problems, *unknown.values(), *missing]
    known = [s for s in settings if id(s) not in unknown]
    stand_ins = [f"--{k}={PLACEHOLDER}" for k, p in keys.items() if p.required and not k.startswith("task.")]
    without_value = [s for s in known if s.option is not None and s.value is None]
    problems += [no_value(s, parameter_at(s.key, keys)) for s in without_value]
    known = [s for s in known if s not in without_value]
    try:
        config = _parse(parser, stand_ins, known)
    except ArgumentError as error:
        known, found = _one_by_one(parser, stand_ins, known, keys)
        if not (problems or found):
            raise whole_config(str(error)) from error
        problems += found
        config = _parse(parser, stand_ins, known)
    _derive(config, known)
    problems += _after_parsing(config, settings, keys, rules, problems)
    raise_problems(problems)
    return config


def as_plain(value: Any) -> Any:
    """A parsed value as nested dicts and lists."""
    if isinstance(value, Namespace):
        return {k: as_plain(v) for k, v in vars(value).items()}
    if isinstance(value, dict):
        return {k: as_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(v) for v in value]
    return value


def _task_in_use(settings: list[Setting]) -> Setting:
    """The task's class, ahead of its arguments wherever they stand.

    Not a default of the parser: jsonargparse would hand the default task's arguments on to a class chosen instead.
    """
    chosen = [s for s in settings if s.key == "task.class_path" and s.value is not None]
    return chosen[-1] if chosen else _DEFAULT_TASK


def _parse(parser: LightningArgumentParser, stand_ins: list[str], settings: list[Setting]) -> Namespace:
    # jsonargparse prints a hint about abstract classes and the like on the way to its error
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        return parser.parse_args([*stand_ins, *(a for s in settings for a in s.arguments())])


def _one_by_one(
    parser: LightningArgumentParser, stand_ins: list[str], settings: list[Setting], keys: dict[str, Parameter]
) -> tuple[list[Setting], list[LitTuneError]]:
    """The settings that parse, and the problems of those that do not."""
    good: list[Setting] = []
    problems: list[LitTuneError] = []
    task_is_wrong = False
    for setting in settings:
        if task_is_wrong and setting.section == "task":
            continue  # arguments of a class that is not there
        try:
            _parse(parser, stand_ins, [*good, setting])
            good.append(setting)
        except ArgumentError as error:
            if _is_completed_later(setting, settings, str(error)):
                good.append(setting)
                continue
            if setting.key == "task.class_path":
                task_is_wrong = True
                good.append(_DEFAULT_TASK)  # so that the other sections can still be checked
            parameter = parameter_at(setting.key, keys) or Parameter(setting.key, Any, None, "")
            problems.append(wrong_value(setting, parameter, str(error)))
    return good, problems


def _is_completed_later(setting: Setting, settings: list[Setting], message: str) -> bool:
    """A task whose required arguments stand in the next lines is not wrong."""
    has_arguments = any(s.key.startswith("task.init_args.") for s in settings)
    return setting.key == "task.class_path" and has_arguments and "required" in message


def _derive(config: Namespace, settings: list[Setting]) -> None:
    """Defaults that depend on other keys."""
    config.pop("config", None)  # the list of config files, which is no setting
    given = {s.key for s in settings}
    if config.trainer.max_steps not in (None, -1) and "trainer.max_epochs" not in given:
        config.trainer.max_epochs = -1  # else our default of 3 epochs would cut the asked-for steps short
    if config.run_dir is None:
        config.run_dir = run_dir_of(as_plain(config.data), config.model.model_name_or_path)
    config.trainer.default_root_dir = config.run_dir


def _after_parsing(
    config: Namespace,
    settings: list[Setting],
    keys: dict[str, Parameter],
    rules: Rules,
    earlier: list[LitTuneError],
) -> list[LitTuneError]:
    """Ranges, then contradictions; none about a key, or a section for contradictions, that is already reported."""
    last = {s.key: s for s in settings}
    reported = {p.where for p in earlier}
    sections = {(where or "").split(".")[0] for where in reported}
    ranges: list[LitTuneError] = []
    for key in RANGES:
        problem = out_of_range(key, _value(config, key), last.get(key), keys.get(key))
        if problem and key not in reported:
            ranges.append(problem)
    reported |= {p.where for p in ranges}
    found = []
    for contradiction in rules(as_plain(config)):
        where = contradiction.where or ""
        if where.split(".")[0] not in sections and where not in reported:
            found.append(_located(contradiction, last.get(where)))
    return ranges + found


def _located(problem: LitTuneError, setting: Setting | None) -> LitTuneError:
    if setting is None:
        return problem
    return type(problem)(f"{problem.what} ({setting.where})", where=problem.where, fix=problem.fix)


def _value(config: Namespace, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Namespace | dict) else None
    return value
