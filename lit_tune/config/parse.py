"""Settings -> one checked config, or every problem at once.

jsonargparse stops at the first error. In the good case it parses once (50 ms). Where it refuses, the setting whose key
it names is put aside and the rest is parsed again, until nothing is refused; where it names none, they are parsed
one more at a time. So each refusal belongs to one key with one place, and the rest is checked for contradictions.
"""

import contextlib
import json
import os
import re
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lit_tune.config.logger_folders import use_run_dir
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
from lit_tune.config.secrets import without_secrets
from lit_tune.config.sections import DEFAULT_TASK, parameter_at
from lit_tune.config.sources import Setting
from lit_tune.config.types import is_none_allowed
from lit_tune.errors import LitTuneError, raise_problems
from lit_tune.models import text_cnn

PLACEHOLDER = "placeholder"

_DEFAULT_TASK = Setting("task.class_path", DEFAULT_TASK, "default")

Rules = Callable[[dict[str, Any]], list[LitTuneError]]


def parse_settings(
    parser: LightningArgumentParser, settings: list[Setting], problems: list[LitTuneError], rules: Rules
) -> tuple[Namespace, list[LitTuneError], list[LitTuneError]]:
    """Parse and check.

    Args:
        parser: With all sections, and ``exit_on_error=False``.
        settings: In the order in which they overlay each other.
        problems: What could not even be read; reported together with the rest.
        rules: Contradictions of a parsed config, given as nested plain dicts.

    Returns:
        The config; settings that could not be read, which are left out of it; numbers out of range and contradictions.

    Raises:
        LitTuneError: So much is wrong that there is no config.
    """
    settings, secret = without_secrets(settings)
    problems = [*secret, *problems]
    task = _task_in_use(settings)
    settings = [*_defaults_of_model(settings), task, *(s for s in settings if s is not task)]
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
    config, known, found = _parse_what_is_right(parser, stand_ins, known, keys)
    problems += found
    if config is None:
        raise_problems(problems)
    assert config is not None
    _derive(config, known)
    return config, problems, _after_parsing(config, settings, keys, rules, problems)


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


def _defaults_of_model(settings: list[Setting]) -> list[Setting]:
    """What a model has other defaults for, ahead of everything that is given."""
    names = [s.value for s in settings if s.key == "model.model_name_or_path"]
    if not (names and isinstance(names[-1], str) and text_cnn.is_new(names[-1])):
        return []
    defaults = {"model.from_scratch": True, "optimizer.lr": text_cnn.USUAL_LR}
    return [Setting(key, value, f"the default of {names[-1]}") for key, value in defaults.items()]


def _parse(parser: LightningArgumentParser, stand_ins: list[str], settings: list[Setting]) -> Namespace:
    # jsonargparse prints a hint about abstract classes and the like on the way to its error
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), _without_working_folder():
        return parser.parse_args([*stand_ins, *arguments_of(settings)])


@contextlib.contextmanager
def _without_working_folder() -> Iterator[None]:
    """Python processes that are started meanwhile import nothing from the working folder, which may be anybody's.

    jsonargparse looks for type stubs where ``python -c "import sys, json; ..."`` says (typeshed_client 2.12): a json.py
    in the working folder would run.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


def _parse_what_is_right(
    parser: LightningArgumentParser, stand_ins: list[str], settings: list[Setting], keys: dict[str, Parameter]
) -> tuple[Namespace | None, list[Setting], list[LitTuneError]]:
    """The config without what is refused, the settings it is made of, and the problems of the others.

    The config is None where settings that are right one by one do not go together.
    """
    problems: dict[int, LitTuneError] = {}
    place = {id(setting): number for number, setting in enumerate(settings)}
    while True:
        in_order = [problems[i] for i in sorted(problems)]
        try:
            return _parse(parser, stand_ins, settings), settings, in_order
        except (ArgumentError, RecursionError) as error:  # the latter: a text of a thousand brackets
            message = str(error)
        suspects = _suspects(message, settings)
        if len(suspects) == 1:
            wrong = [(suspects[0], _problem(suspects[0], keys, message))]
        else:
            wrong = _one_by_one(parser, stand_ins, settings, suspects, keys)
        if not wrong:
            return None, settings, [*in_order, whole_config(message)]
        problems |= {place[id(setting)]: problem for setting, problem in wrong}
        refused = {id(setting) for setting, _ in wrong}
        settings = [s for s in settings if id(s) not in refused]
        if any(s.key == "task.class_path" for s, _ in wrong):  # its arguments are nobody's; the rest is still checked
            settings = [_DEFAULT_TASK, *(s for s in settings if s.section != "task")]


def _suspects(message: str, settings: list[Setting]) -> list[Setting]:
    """The settings that jsonargparse's message may be about: those of the key it names, else all."""
    named = [key for key in re.findall(r'Parser key "([^"]+)"', message) if key != "config"]
    if named[:1] == ["task"]:
        named = [f"task.init_args.{key}" for key in named[1:2]] or named
    return [s for s in settings if named and _overlap(s.key, named[0])] or settings


def _overlap(key: str, other: str) -> bool:
    """Whether two keys are one, or one is a part of the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def arguments_of(settings: list[Setting]) -> list[str]:
    """Settings as jsonargparse takes them, in order: options as they are, those of files joined, as each costs 5 ms.

    >>> arguments_of([Setting("a.b", 1, "x.yaml"), Setting("a.c", 2, "x.yaml"), Setting("a.b", 3, "y.yaml")])
    ['--config={"a": {"b": 1, "c": 2}}', '--config={"a": {"b": 3}}']
    """
    arguments: list[str] = []
    joined: list[Setting] = []

    def flush() -> None:
        if joined:
            arguments.append(f"--config={json.dumps(_tree(joined), default=str)}")
            joined.clear()

    for setting in settings:
        if setting.option is not None or any(_overlap(setting.key, s.key) for s in joined):
            flush()
        if setting.option is not None:
            arguments.append(setting.option)
        else:
            joined.append(setting)
    flush()
    return arguments


def _tree(settings: list[Setting]) -> dict[str, Any]:
    """Settings of which none is a part of another, as one nested mapping."""
    tree: dict[str, Any] = {}
    for setting in settings:
        *parents, last = setting.key.split(".")
        branch = tree
        for part in parents:
            branch = branch.setdefault(part, {})
        branch[last] = setting.value
    return tree


def _one_by_one(
    parser: LightningArgumentParser,
    stand_ins: list[str],
    settings: list[Setting],
    suspects: list[Setting],
    keys: dict[str, Parameter],
) -> list[tuple[Setting, LitTuneError]]:
    """Which of the suspects do not parse on top of the others, and why."""
    good = [s for s in settings if s.key == "task.class_path" and s not in suspects][-1:]
    wrong: list[tuple[Setting, LitTuneError]] = []
    for setting in suspects:
        if setting.section == "task" and any(s.key == "task.class_path" for s, _ in wrong):
            continue  # arguments of a class that is not there
        try:
            _parse(parser, stand_ins, [*good, setting])
            good.append(setting)
        except (ArgumentError, RecursionError) as error:
            if _is_completed_later(setting, settings, str(error)):
                good.append(setting)
                continue
            wrong.append((setting, _problem(setting, keys, str(error))))
            if setting.key == "task.class_path":
                good.append(_DEFAULT_TASK)
    return wrong


def _problem(setting: Setting, keys: dict[str, Parameter], message: str) -> LitTuneError:
    parameter = parameter_at(setting.key, keys) or Parameter(setting.key, Any, None, "")
    return wrong_value(setting, parameter, message)


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
    use_run_dir(config.trainer.get("logger"), config.run_dir)


def _after_parsing(
    config: Namespace,
    settings: list[Setting],
    keys: dict[str, Parameter],
    rules: Rules,
    earlier: list[LitTuneError],
) -> list[LitTuneError]:
    """Nulls and ranges, then contradictions; none about a key, or a section for contradictions, already reported."""
    last = {s.key: s for s in settings}
    reported = {p.where for p in earlier}
    # jsonargparse lets null pass for any type
    nulls = [s for s in last.values() if s.key not in reported and _is_wrong_null(config, s, keys)]
    ranges: list[LitTuneError] = [_problem(s, keys, "null") for s in nulls]
    reported |= {s.key for s in nulls}
    sections = {(where or "").split(".")[0] for where in reported}
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


def _is_wrong_null(config: Namespace, setting: Setting, keys: dict[str, Parameter]) -> bool:
    """Whether a setting is null where its type has no null."""
    parameter = keys.get(setting.key)
    if parameter is None or parameter.hint is Any or is_none_allowed(parameter.hint):
        return False
    return setting.value is None and _value(config, setting.key) is None


def _located(problem: LitTuneError, setting: Setting | None) -> LitTuneError:
    if setting is None:
        return problem
    return type(problem)(f"{problem.what} ({setting.where})", where=problem.where, fix=problem.fix)


def _value(config: Namespace, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Namespace | dict) else None
    return value
