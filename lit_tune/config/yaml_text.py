"""YAML as anybody may have written it: plain values only, and a file of a few hundred bytes stays a few hundred values.

What a config may not hold: tags that make objects, a key given twice, aliases that multiply, texts that no file system
or terminal takes, numbers that are not finite. All of it is refused with the file and the line.
"""

import math
import re
from typing import Any

import yaml

from lit_tune.errors import ConfigError

MAX_CONFIG_BYTES = 1_000_000
MAX_NODES = 100_000  # after aliases are followed; a "billion laughs" file is a few hundred bytes
MAX_DEPTH = 40  # Python gives up at about 300; a config has 6
MAX_DIGITS = 30  # Python refuses to print more than 4300, and no key takes more than 20

# jsonargparse reads texts as YAML once more where a number is expected (4.53), and follows their aliases.
_ANCHOR = re.compile(r"(?<![^\s,:\[{])&([^\s,\[\]{}]+)")
_ALIAS = re.compile(r"(?<![^\s,:\[{])\*([^\s,\[\]{}]+)")
_PLAIN = (str, int, float, bool, type(None))


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: ``2e-5`` is a number; ``no``, ``on``, ``12:30`` and ``2024-01-01`` are texts."""

    yaml_implicit_resolvers: dict[Any, Any] = {}
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """At most 40 deep: what is open is looked through at each further token, 2,000 brackets took 0.5 s."""
        self.depth += 1
        if self.depth > MAX_DEPTH + 1:
            raise RecursionError  # as Python itself would at about 300
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_yaml_int(self, node: Any) -> int:
        """``010`` is ten; SafeLoader's YAML 1.1 reads it as eight, and fails at ``09``."""
        text = str(self.construct_scalar(node)).lower()
        if len(text) > MAX_DIGITS:
            raise yaml.constructor.ConstructorError(None, None, "a number of that many digits", node.start_mark)
        return int(text, 16 if "x" in text else 10)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", "<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(text: str, where: str) -> tuple[Any, dict[str, int]]:
    """A document, and the line of each of its keys by dotted name.

    Args:
        text: At most :data:`MAX_CONFIG_BYTES`.
        where: Its place, for messages.

    Raises:
        ConfigError: Not YAML, a key given twice, or more than a config holds.
    """
    lines: dict[str, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        _read_lines(node, "", lines, where, [0], 0)  # before aliases and merges are followed
        tree = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _not_yaml(where, error) from error
    except RecursionError:
        raise _too_deep(where) from None
    except (ValueError, TypeError, AttributeError) as error:  # what a tag such as !!int "x" comes to
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"not valid YAML: {error}", where=where, fix="check the values and tags (!!...)") from error
    if not is_plain(tree):
        raise ConfigError("a tag makes a date, a set or bytes", where=where, fix="write the plain value without a tag")
    return tree, lines


def check_plain(value: Any, where: str, depth: int = 0) -> Any:
    """The value, if it is made of plain types.

    Raises:
        ConfigError: A date, a set, bytes; a number that is not finite; a text that cannot be written down.
    """
    if depth > MAX_DEPTH:
        raise _too_deep(where)
    if isinstance(value, dict):
        for key, inner in value.items():
            check_plain(key, where, depth + 1)
            check_plain(inner, where, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_plain(inner, where, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{value} is not a value any key takes", where=where, fix="give a finite number")
    elif isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        raise ConfigError("a number of that many digits is no key's value", where=where, fix="give a smaller number")
    return value


def is_plain(value: Any) -> bool:
    """Whether a value of a file is of YAML's core types.

    >>> is_plain({"a": [1, "b"]}), is_plain({1, 2})
    (True, False)
    """
    if isinstance(value, dict):
        return all(is_plain(k) and is_plain(v) for k, v in value.items())
    return all(is_plain(v) for v in value) if isinstance(value, list) else isinstance(value, _PLAIN)


def _check_text(text: str, where: str) -> None:
    wrong = next((c for c in text if c == "\0" or "\ud800" <= c <= "\udfff"), None)
    if wrong is not None:
        name = "a NUL character" if wrong == "\0" else "half of a surrogate pair, no character"
        raise ConfigError(f"the text holds {name}", where=where, fix="remove it")
    if set(_ANCHOR.findall(text)) & set(_ALIAS.findall(text)):
        raise ConfigError("the text holds YAML aliases (&a ... *a)", where=where, fix="write the value, without quotes")


def _read_lines(node: yaml.Node, prefix: str, lines: dict[str, int], where: str, count: list[int], depth: int) -> None:
    """Line of every key, by dotted name; a key given twice is an error, because YAML would drop the first silently."""
    count[0] += 1
    if count[0] > MAX_NODES:
        raise ConfigError(
            f"more than {MAX_NODES} values: not a config", where=where, fix="remove nested aliases (*name)"
        )
    if depth > MAX_DEPTH:
        raise _too_deep(where)
    children = node.value if isinstance(node, yaml.MappingNode | yaml.SequenceNode) else []
    seen: dict[str, int] = {}
    for child in children:
        if not isinstance(child, tuple):
            _read_lines(child, prefix + "[].", {}, where, count, depth + 1)
            continue
        name, line = str(child[0].value), child[0].start_mark.line + 1
        if name in seen:
            raise ConfigError(
                f"the key {prefix}{name} is given twice, in lines {seen[name]} and {line}",
                where=where,
                fix="keep one of them",
            )
        seen[name] = lines[prefix + name] = line
        _read_lines(child[1], f"{prefix}{name}.", lines, where, count, depth + 1)


def _too_deep(where: str) -> ConfigError:
    return ConfigError("nested too deeply for a config", where=where, fix="remove brackets, or an alias of itself")


def _not_yaml(where: str, error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    fix = "check indentation, colons and quotes in this line and the one above"
    if "'\\t'" in problem:
        fix = "indent with spaces, not tabs"
    elif "constructor for the tag" in problem:
        fix = "write the plain value, without a tag (!!...)"
    return ConfigError(f"not valid YAML: {problem[:200]}", where=f"{where}:{mark.line + 1}" if mark else where, fix=fix)
