"""A signature read as a table: name, type, default and the docstring's line of every parameter.

The signature is the schema and the docstring the help; both are written once, where the parameter is used.
"""

import inspect
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import docstring_parser

REQUIRED: Any = inspect.Parameter.empty
"""Default of a parameter that has none."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a class or function.

    Args:
        name: Name in the signature, which is the key in a config.
        hint: Its type.
        default: Its default, or :data:`REQUIRED`.
        help: What the docstring says about it, on one line.
    """

    name: str
    hint: Any
    default: Any
    help: str

    @property
    def required(self) -> bool:
        """Whether a config must give it."""
        return self.default is REQUIRED


def parameters_of(target: Callable[..., Any], skip: Collection[str] = ()) -> list[Parameter]:
    """Parameters of a function, or of a class's ``__init__``, in the order of the signature.

    Args:
        target: A class or a function with full type hints and a Google docstring.
        skip: Names to leave out.
    """
    hints = typing.get_type_hints(inspect.getattr_static(target, "__init__") if isinstance(target, type) else target)
    texts = _parameter_texts(target)
    return [
        Parameter(name, hints.get(name, Any), p.default, texts.get(name, ""))
        for name, p in inspect.signature(target).parameters.items()
        if name not in skip and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def summary_of(target: Callable[..., Any]) -> str:
    """The first sentence of the docstring, without its final dot.

    >>> summary_of(summary_of)
    'The first sentence of the docstring, without its final dot'
    """
    parsed = _parse(target.__doc__)
    return _one_line(parsed.short_description or "").removesuffix(".")


def _parameter_texts(target: Callable[..., Any]) -> dict[str, str]:
    docs = [target.__doc__] + ([inspect.getattr_static(target, "__init__").__doc__] if isinstance(target, type) else [])
    return {p.arg_name: _one_line(p.description or "") for doc in docs for p in _parse(doc).params}


def _parse(doc: str | None) -> docstring_parser.Docstring:
    return docstring_parser.parse(inspect.cleandoc(doc or ""), style=docstring_parser.DocstringStyle.GOOGLE)


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "").split())
