"""A verb's own flags: read from the signature of its function, taken out of the command line before the config is."""

from pathlib import Path
from typing import Any

from lit_tune.config.parameters import Parameter
from lit_tune.config.types import choices
from lit_tune.errors import ConfigError, nearest


def take_flags(tokens: list[str], parameters: list[Parameter]) -> tuple[dict[str, Any], list[str]]:
    """Split a command line into a verb's flags and the rest.

    Args:
        tokens: What follows the verb.
        parameters: The flags; a bool is a switch, a str, Path or Literal takes a value, a list[str] may be given
            several times.

    Returns:
        Values by parameter name, only those given; the other tokens in order.

    Raises:
        ConfigError: A value is missing or none of those there are, or a switch has one.
    """
    by_option = {option_of(p): p for p in parameters}
    values: dict[str, Any] = {}
    rest: list[str] = []
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        option, equals, text = token.partition("=")
        parameter = by_option.get(option)
        if parameter is None:
            rest.append(token)
            continue
        if parameter.hint is bool:
            if equals:
                raise ConfigError(f"takes no value, got {text!r}", where=option, fix=f"{option} alone switches it on")
            values[parameter.name] = True
            continue
        if not equals:
            if position == len(tokens) or tokens[position].startswith("--"):
                raise ConfigError("a value is missing", where=option, fix=f"{option} <value>")
            text = tokens[position]
            position += 1
        check_choice(option, text, choices(parameter.hint))
        if parameter.hint == list[str]:
            values.setdefault(parameter.name, []).append(text)
        else:
            values[parameter.name] = Path(text) if parameter.hint in (Path, Path | None) else text
    return values, rest


def check_choice(option: str, text: str, known: list[Any]) -> None:
    """Refuse a value that is none of a Literal's.

    Raises:
        ConfigError: It is none of them.
    """
    if known and text not in known:
        listed = " or ".join(known)
        raise ConfigError(
            f"takes {listed}, not {text!r}", where=option, fix=f"{option} {nearest(text, known) or known[0]}"
        )


def option_of(parameter: Parameter) -> str:
    """How a flag is written: ``--allow-import``."""
    return "--" + parameter.name.replace("_", "-")
