"""What written texts are scored by: names of ours, or a user's own classes."""

import re
from collections.abc import Sequence

from lit_tune.errors import ConfigError
from lit_tune.metrics.texts import Scorer, exact_match
from lit_tune.tasks.own_pieces import Given, build_piece, path_of, snake_name

KNOWN: dict[str, Scorer] = {"exact_match": exact_match}


class Extracted:
    r"""A scorer that looks at a part of both texts.

    Args:
        scorer: What scores it.
        pattern: Regular expression; its last match counts, or the first group of it.

    >>> Extracted(exact_match, "#### (.+)")("so it is\n#### 7", "3 + 4\n#### 7")
    1.0
    """

    def __init__(self, scorer: Scorer, pattern: str) -> None:
        self.scorer, self.pattern = scorer, re.compile(pattern)

    def part(self, text: str) -> str | None:
        """What is looked at; None where nothing matches."""
        found = list(self.pattern.finditer(text))
        return found[-1].group(1 if self.pattern.groups else 0) if found else None

    def __call__(self, written: str, reference: str) -> float:
        """The score; 0 where the pattern is not in what was written, the whole reference where it is not in that."""
        given, wanted = self.part(written), self.part(reference)
        return 0.0 if given is None else self.scorer(given, reference if wanted is None else wanted)


def build_scorers(given: Sequence[Given], pattern: str | None, key: str) -> dict[str, Scorer]:
    """Scorers by the names under which they are logged.

    Args:
        given: Names, class paths, or ``{class_path: ..., init_args: {...}}``.
        pattern: The part of the texts that is scored.
        key: Beginning of the config keys.

    Raises:
        ConfigError: No such name or class, or a pattern that is none.
    """
    found = dict(_scorer(one, f"{key}scorers") for one in given)
    if pattern is None:
        return found
    try:
        return {name: Extracted(scorer, pattern) for name, scorer in found.items()}
    except re.error as error:
        raise ConfigError(
            f"{pattern!r} is no regular expression: {error}", where=f"{key}answer_pattern", fix="'#### (.+)'"
        ) from error


def _scorer(given: Given, where: str) -> tuple[str, Scorer]:
    example = "my_package.MyScorer"
    path = path_of(given, where, example)
    if path in KNOWN:
        return path, KNOWN[path]
    if "." not in path:
        raise ConfigError(
            f"there is no scorer {path!r}", where=where, fix=f"{', '.join(KNOWN)}, or a class path: {example}"
        )
    built = build_piece(given, where, example)
    if not callable(built):
        raise ConfigError(f"{path} cannot be called", where=where, fix="a class with __call__(written, reference)")
    return snake_name(built), built
