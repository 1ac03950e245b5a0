"""Where settings come from: YAML files, the command line, a dict. Each setting remembers its place for messages."""

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_tune.errors import ConfigError, LitTuneError, nearest, raise_problems

COMMAND_LINE = "command line"
CONFIG_OPTIONS = ("--config", "-c")
MAX_CONFIG_BYTES = 1_000_000
MAX_NODES = 100_000  # after aliases are followed; a "billion laughs" file is a few hundred bytes


@dataclass(frozen=True)
class Setting:
    """One key and its value.

    Args:
        key: Dotted: ``optimizer.lr``, ``task.init_args.threshold``.
        value: As given; a text where it comes from the command line.
        where: ``mrpc.yaml:9``, ``command line`` or ``overrides``.
        option: The command line's token ``--key=value``, for what comes from there.
    """

    key: str
    value: Any
    where: str
    option: str | None = None

    @property
    def section(self) -> str:
        """The top-level key."""
        return self.key.split(".")[0]

    def arguments(self) -> list[str]:
        """As jsonargparse takes it."""
        if self.option is not None:
            return [self.option]
        tree: Any = self.value
        for part in reversed(self.key.split(".")):
            tree = {part: tree}
        return [f"--config={json.dumps(tree, default=str)}"]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: ``2e-5`` is a number; ``no``, ``on``, ``12:30`` and ``2024-01-01`` are texts."""

    yaml_implicit_resolvers: dict[Any, Any] = {}


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


def read_config(path: str | Path, sections: Collection[str]) -> list[Setting]:
    """Settings of a YAML file.

    Args:
        path: The file.
        sections: Top-level keys whose values are taken apart into single settings.

    Raises:
        ConfigError: No such file, not YAML, a key given twice, or not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise _missing_file(path)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError("the file is over 1 MB: not a config", where=str(path), fix="give a lit-tune config in YAML")
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        tree = loader.construct_document(node) if node is not None else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _not_yaml(path, error) from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"expected `key: value` lines, found {_kind(tree)}",
            where=str(path),
            fix="see `lit-tune fit --help` for the keys",
        )
    lines: dict[str, int] = {}
    if node is not None:
        _read_lines(node, "", lines, str(path), [0])
    return list(settings_of(tree, sections, lambda key: f"{path}:{lines[key]}" if key in lines else str(path)))


def settings_of(tree: Mapping[str, Any], sections: Collection[str], where: Any) -> Iterable[Setting]:
    """Take a nested mapping apart: one setting per key of a section, dotted keys allowed.

    Args:
        tree: The mapping.
        sections: Keys to look into. ``task.init_args`` is looked into as well.
        where: Key -> its place.
    """
    for name, value in tree.items():
        key = str(name)
        inside = key in sections or key == "task.init_args"
        if inside and isinstance(value, Mapping):
            yield from settings_of({f"{key}.{k}": v for k, v in value.items()}, sections, where)
        else:
            yield Setting(key, _checked(value, where(key)), where(key))


def parse_options(tokens: list[str], sections: Collection[str]) -> tuple[list[Setting], list[LitTuneError]]:
    """Settings of a command line, config files among them in their place, and what could not be understood.

    Args:
        tokens: ``--config a.yaml``, ``--key value``, ``--key=value``, ``--key+=value``.
        sections: As for :func:`read_config`.

    Raises:
        LitTuneError: Files that cannot be read; without them nothing can be said about the rest.
    """
    settings: list[Setting] = []
    unreadable: list[LitTuneError] = []
    problems: list[LitTuneError] = []
    position = 0
    while position < len(tokens):
        token, value = tokens[position], None
        position += 1
        if not token.startswith("-") or _is_number(token):
            problems.append(
                ConfigError(f"unexpected argument {token!r}", where=COMMAND_LINE, fix="options look like --key value")
            )
            continue
        name, equals, text = token.partition("=")
        if equals:
            value = text
        elif position < len(tokens) and not (tokens[position].startswith("--") or tokens[position] == "-c"):
            value = tokens[position]
            position += 1
        try:
            settings += _settings_of_option(name, value, sections)
        except LitTuneError as error:
            (unreadable if name in CONFIG_OPTIONS else problems).append(error)
    raise_problems(unreadable)
    return settings, problems


def _settings_of_option(name: str, value: str | None, sections: Collection[str]) -> list[Setting]:
    key = name.lstrip("-").removesuffix("+")
    if name in CONFIG_OPTIONS:
        if value is None:
            raise ConfigError("a file is missing", where=name, fix=f"{name} my.yaml")
        return read_config(value, sections)
    if value is None:  # said later, when it is known whether there is such a key
        return [Setting(_with_init_args(key), None, COMMAND_LINE, name)]
    if key in sections and value.lstrip().startswith("{"):
        try:
            tree = yaml.load(value, _Loader)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"cannot be read: {error}".replace("\n", " "), where=name, fix=f"{name}.key value"
            ) from error
        return list(settings_of({key: tree}, sections, lambda _: COMMAND_LINE))
    text = _as_json(value)
    if key == "task":
        return [Setting("task.class_path", value, COMMAND_LINE, f"{name}={value}")]
    return [Setting(_with_init_args(key), value, COMMAND_LINE, f"{name}={text}")]


def _as_json(value: str) -> str:
    """Lists and mappings read as in a file, because jsonargparse's own YAML turns ``[no, yes]`` into booleans."""
    if not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.dumps(yaml.load(value, _Loader))
    except (yaml.YAMLError, TypeError):
        return value  # jsonargparse says what is wrong with it


def _with_init_args(key: str) -> str:
    """``--task.threshold`` is short for ``--task.init_args.threshold``."""
    if key.startswith("task.") and not key.startswith(("task.init_args.", "task.class_path")):
        return "task.init_args." + key.removeprefix("task.")
    return key


def _missing_file(path: Path) -> ConfigError:
    if path.is_dir():
        inside = path / "config.yaml"
        hint = f"--config {inside}" if inside.is_file() else "name a YAML file"
        return ConfigError(f"{path} is a folder, not a config file", where="--config", fix=hint)
    folder = path.parent if path.parent.is_dir() else Path("configs")
    names = {p.name: p for pattern in ("*.yaml", "*.yml", "*/*.yaml") for p in sorted(folder.glob(pattern))}
    guess = nearest(path.name, names)
    return ConfigError(
        f"there is no file {path}",
        where="--config",
        fix=f"--config {names[guess]}" if guess else "check the path; it is relative to the folder you are in",
    )


def _not_yaml(path: Path, error: Exception) -> ConfigError:
    if isinstance(error, UnicodeDecodeError):
        return ConfigError("the file is not UTF-8 text", where=str(path), fix="save it as UTF-8")
    mark = getattr(error, "problem_mark", None)
    place = f"{path}:{mark.line + 1}" if mark else str(path)
    problem = getattr(error, "problem", None) or str(error)
    tab = "'\\t'" in problem
    return ConfigError(
        f"not valid YAML: {problem}",
        where=place,
        fix="indent with spaces, not tabs"
        if tab
        else "check indentation, colons and quotes in this line and the one above",
    )


def _read_lines(node: yaml.Node, prefix: str, lines: dict[str, int], path: str, count: list[int]) -> None:
    """Line of every key, by dotted name; a key given twice is an error, because YAML would drop the first silently."""
    count[0] += 1
    if count[0] > MAX_NODES:
        raise ConfigError(
            f"more than {MAX_NODES} values: not a config", where=path, fix="remove nested aliases (*name)"
        )
    children = node.value if isinstance(node, yaml.MappingNode | yaml.SequenceNode) else []
    seen: dict[str, int] = {}
    for child in children:
        if not isinstance(child, tuple):
            _read_lines(child, prefix + "[].", {}, path, count)
            continue
        name, line = str(child[0].value), child[0].start_mark.line + 1
        if name in seen:
            raise ConfigError(
                f"the key {prefix}{name} is given twice, in lines {seen[name]} and {line}",
                where=path,
                fix="keep one of them",
            )
        seen[name] = lines[prefix + name] = line
        _read_lines(child[1], f"{prefix}{name}.", lines, path, count)


def _checked(value: Any, where: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{value} is not a value any key takes", where=where, fix="give a finite number")
    return value


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "nothing"}.get(type(value), f"a {type(value).__name__}")


def _is_number(token: str) -> bool:
    return re.fullmatch(r"-[0-9.]+([eE][-+]?[0-9]+)?", token) is not None
