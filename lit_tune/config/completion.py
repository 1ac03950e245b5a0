"""Completion of the command line by the shell: a script made once from the signatures, which starts no Python.

argcomplete, which jsonargparse offers too, asks the program at every press of Tab: seconds, where torch is imported.
"""

import argparse
import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from lit_tune.config.flags import option_of
from lit_tune.config.parameters import Parameter, parameters_of, summary_of
from lit_tune.config.sections import all_keys, section_names, tasks
from lit_tune.config.types import choices, members
from lit_tune.errors import ConfigError

Shell = Literal["bash", "zsh"]

SWITCHES = ("--print_config", "--allow-remote-code", "--debug")


def completion_script(verbs: Mapping[str, Callable[..., Any]], shell: Shell, hidden: Collection[str] = ()) -> str:
    """What a shell sources, to complete verbs, their options, all keys of a config, and values where they are few.

    Args:
        verbs: Verb -> its function.
        shell: Which shell.
        hidden: Dotted keys to leave out: those that a config may not set.

    Raises:
        ConfigError: The package that writes such scripts is not installed.
    """
    try:
        import shtab  # of the extra `completion`, not there for everybody
    except ImportError:
        raise ConfigError(
            "needs the package shtab, which is not installed",
            where="lit-tune completion",
            fix="pip install 'lit-tune[completion]'",
        ) from None
    parser = argparse.ArgumentParser(prog="lit-tune")
    places = parser.add_subparsers()
    keys = {key: parameter for key, parameter in _keys().items() if key not in hidden}
    for verb, function in verbs.items():
        own = places.add_parser(verb, help=_escaped(summary_of(function)), allow_abbrev=False)
        for parameter in parameters_of(function, skip=("options",)):
            _add(own, option_of(parameter), parameter, shtab.FILE)
        for switch in SWITCHES if _takes_config(function) else ("--debug",):
            own.add_argument(switch, action="store_true")
        if _takes_config(function):
            own.add_argument("-c", "--config").complete = shtab.FILE  # type: ignore[attr-defined]
            own.add_argument("--allow-import")
            for key, parameter in keys.items():
                _add(own, f"--{key}", parameter, shtab.FILE)
            own.add_argument("section", nargs="?", choices=section_names())
    return shtab.complete(parser, shell=shell)


def _keys() -> dict[str, Parameter]:
    """All keys, with the init arguments of all tasks; of those that several tasks have, the first one's."""
    found = all_keys()
    found["task.class_path"] = Parameter("class_path", Literal[tuple(tasks())], None, "The task.")
    for task in tasks().values():
        found = {**all_keys(task), **found}
    return found


def _add(parser: argparse.ArgumentParser, option: str, parameter: Parameter, files: Any) -> None:
    """An option: a switch, one of a few values, or a text, which may be the name of a file."""
    text = _escaped(parameter.help.split(";")[0])
    is_flag = option == option_of(parameter)
    if is_flag and parameter.hint is bool:
        parser.add_argument(option, action="store_true", help=text)
        return
    values = [str(value) for value in choices(parameter.hint)]
    if bool in members(parameter.hint):
        values += ["true", "false"]
    if values and not {str, Path} & set(members(parameter.hint)):
        parser.add_argument(option, choices=values, help=text)
        return
    argument = parser.add_argument(option, help=text)
    if {str, Path} & set(members(parameter.hint)):
        argument.complete = files  # type: ignore[attr-defined]


def _takes_config(function: Callable[..., Any]) -> bool:
    return "options" in inspect.signature(function).parameters


def _escaped(text: str) -> str:
    """Argparse formats the texts of its help with ``%``."""
    return text.replace("%", "%%")
