"""A type hint in three languages: short for ``--help``, in words for a message, as JSON schema for an editor."""

import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "a mapping",
    Path: "a path",
}
_SHORT = {Path: "path", dict: "mapping"}
_JSON = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", Path: "string"}


def is_none_allowed(hint: Any) -> bool:
    """Whether ``null`` is a value of this type."""
    return hint is None or hint is type(None) or type(None) in members(hint)


def members(hint: Any) -> list[Any]:
    """The alternatives of a union, or the type itself.

    >>> members(int | None)
    [<class 'int'>, <class 'NoneType'>]
    """
    return list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]


def choices(hint: Any) -> list[Any]:
    """The values of a Literal, through unions, numbers and their spelling as text counted once.

    >>> choices(Literal[16, 32] | Literal["16", "bf16"] | None)
    ['16', 'bf16', 32]
    """
    values = [v for m in members(hint) if get_origin(m) is Literal for v in get_args(m)]
    first: dict[str, Any] = {}
    for value in sorted(
        values, key=lambda v: isinstance(v, int)
    ):  # names first: of 16 and 16-mixed, the latter is modern
        first.setdefault(str(value), value)
    return list(first.values())


def classes(hint: Any) -> list[type]:
    """Classes of which an instance may be given, through unions and lists: what is written as ``class_path``."""
    found: list[type] = []
    for member in members(hint):
        inner = get_args(member)[0] if get_origin(member) in (list, Iterable, _ITERABLE) else member
        if inner is not member:
            found += classes(inner)
        elif isinstance(inner, type) and inner.__module__.split(".")[0] not in ("builtins", "pathlib", "datetime"):
            found.append(inner)
    return list(dict.fromkeys(found))


_ITERABLE = get_origin(Iterable[int])


def takes_keys(hint: Any) -> bool:
    """Whether deeper keys make sense: a mapping, or an instance with its init arguments."""
    return bool(classes(hint)) or any((get_origin(m) or m) is dict for m in members(hint)) or hint is Any


def short(hint: Any) -> str:
    """As in ``--help``: no module paths, null not mentioned.

    >>> short(list[str] | None), short(float), short(Literal["linear", "cosine"])
    ('list[str]', 'float', 'linear|cosine')
    """
    parts: list[str] = [str(c) for c in choices(hint)]
    for member in members(hint):
        origin, args = get_origin(member), get_args(member)
        if member is type(None) or origin is Literal:
            continue
        if origin is tuple:
            parts.append("[" + ", ".join(short(a) for a in args if a is not Ellipsis) + "]")
        elif origin in (list, _ITERABLE):
            parts.append(f"list[{short(args[0])}]")
        elif origin is dict:
            parts.append("mapping")
        else:
            parts.append(
                _SHORT.get(member, getattr(member, "__name__", str(member)).lower() if member is Any else _name(member))
            )
    return "|".join(dict.fromkeys(parts))


def words(hint: Any) -> str:
    """As in a message, after "expected"; null is not mentioned, nobody gives it by mistake.

    >>> words(int | None), words(list[str] | str | None), words(Literal["a", "b"])
    ('a whole number', 'a text or a list of texts', 'one of a, b')
    """
    values = choices(hint)
    parts = ["one of " + ", ".join(str(v) for v in values)] if values else []
    rest = [m for m in members(hint) if get_origin(m) is not Literal and m is not type(None)]
    rest.sort(key=lambda m: get_origin(m) is not None)  # a text before a list of texts
    parts += [_words_of_one(m) for m in rest]
    parts = list(dict.fromkeys(parts))
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " or " + parts[-1]


def json_schema(hint: Any) -> dict[str, Any]:
    """As JSON schema (draft 2020-12). Where instances are taken, anything is: their arguments are not ours to know.

    >>> json_schema(int | None)
    {'type': ['integer', 'null']}
    >>> json_schema(Literal["a", "b"] | None)
    {'enum': ['a', 'b', None]}
    """
    if hint is Any or classes(hint):
        return {}
    values = [v for m in members(hint) if get_origin(m) is Literal for v in get_args(m)]
    rest = [m for m in members(hint) if get_origin(m) is not Literal]
    if values and all(m is type(None) for m in rest):
        return {"enum": values + [None for _ in rest]}
    alternatives = [_schema_of_one(m) for m in rest] + ([{"enum": values}] if values else [])
    if len(alternatives) == 1:
        return alternatives[0]
    if all(set(a) == {"type"} for a in alternatives):
        return {"type": [a["type"] for a in alternatives]}
    return {"anyOf": alternatives}


def _name(member: Any) -> str:
    return getattr(member, "__name__", str(member).rsplit(".", 1)[-1])


def _words_of_one(member: Any) -> str:
    origin, args = get_origin(member), get_args(member)
    if member is type(None):
        return "null"
    if origin in (list, _ITERABLE):
        inner = words(args[0])
        plural = {"a whole number": "whole numbers", "a number": "numbers", "a text": "texts"}
        classes_of = f"{inner[2:]}es" if inner.endswith(" class") else inner
        return f"a list of {plural.get(inner, classes_of)}"
    if origin is tuple:
        return "[" + ", ".join(words(a) for a in args if a is not Ellipsis) + "]"
    plain = origin or member
    return _WORDS.get(plain) or ("any value" if plain is Any else f"a {_name(plain)} class")


def _schema_of_one(member: Any) -> dict[str, Any]:
    origin, args = get_origin(member), get_args(member)
    if member is type(None):
        return {"type": "null"}
    if origin in (list, _ITERABLE):
        return {"type": "array", "items": json_schema(args[0])}
    if origin is tuple and Ellipsis not in args:
        return {
            "type": "array",
            "prefixItems": [json_schema(a) for a in args],
            "minItems": len(args),
            "maxItems": len(args),
        }
    name = _JSON.get(origin or member)
    return {"type": name} if name else {}
