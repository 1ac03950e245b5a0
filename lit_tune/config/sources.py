"""Where settings come from: YAML files, the command line, a dict. Each setting remembers its place for messages."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_tune.config.yaml_text import MAX_CONFIG_BYTES, check_plain, read_yaml
from lit_tune.errors import ConfigError, LitTuneError, nearest, raise_problems

COMMAND_LINE = "command line"
CONFIG_OPTIONS = ("--config", "-c")


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
    tree, lines = read_yaml(_text_of(path), str(path))
    if not isinstance(tree, dict):
        raise ConfigError(
            f"expected `key: value` lines, found {_kind(tree)}",
            where=str(path),
            fix="see `lit-tune fit --help` for the keys",
        )

    def place(key: str) -> str:
        return f"{path}:{lines[key]}" if key in lines else str(path)

    return list(settings_of(tree, sections, place))


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise ConfigError(
                "the file is over 1 MB: not a config", where=str(path), fix="give a lit-tune config in YAML"
            )
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("the file is not UTF-8 text", where=str(path), fix="save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", where=str(path), fix="check the file's permissions"
        ) from error


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
        elif key == "task" and isinstance(value, str):
            yield Setting("task.class_path", check_plain(value, where(key)), where(key))
        else:
            yield Setting(key, check_plain(value, where(key)), where(key))


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
    check_plain(value, name)
    if key in sections and value.lstrip().startswith("{"):
        tree = read_yaml(value, name)[0]
        return list(settings_of({key: tree}, sections, lambda _: COMMAND_LINE))
    if key == "task":
        return [Setting("task.class_path", value, COMMAND_LINE, f"--task.class_path={value}")]
    return [Setting(_with_init_args(key), value, COMMAND_LINE, f"{name}={_as_json(value, name)}")]


def _as_json(value: str, where: str) -> str:
    """Lists and mappings as JSON, read as in a file; other texts as they are, for a name may look like a number."""
    if not value.lstrip().startswith(("[", "{")):
        return value
    try:
        tree, _ = read_yaml(value, where)
    except ConfigError:
        return value  # a file may be called [a].csv; what takes no text says so
    return json.dumps(check_plain(tree, where))


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


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "nothing"}.get(type(value), f"a {type(value).__name__}")


def _is_number(token: str) -> bool:
    return re.fullmatch(r"-[0-9.]+([eE][-+]?[0-9]+)?", token) is not None
