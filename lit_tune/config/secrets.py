"""No secret stands in a config: it is copied into the run directory, into loggers and model cards.

Tokens come from the environment or from ``hf auth login``; no key of lit-tune takes one. What looks like one is refused
before anything else is said about it, and without being repeated.
"""

import re
from collections.abc import Iterator
from typing import Any

from lit_tune.config.sources import Setting
from lit_tune.errors import ConfigError, LitTuneError, holds_secret

_NAMES = re.compile(r"(^|[._-])(token|api_?key|secret|password|passwd|passphrase|credentials?|auth)s?$", re.IGNORECASE)
_VOCABULARY = ("model.add_tokens", "model.add_special_tokens")
"""Keys whose tokens are words; a value that is a secret by its own look is refused there too."""
_KEY_LIKE = re.compile(r"[A-Za-z0-9+/=_.~-]{8,}")
"""A value under such a name: no spaces, and too long for a setting such as ``auth: none``."""


def without_secrets(settings: list[Setting]) -> tuple[list[Setting], list[LitTuneError]]:
    """The settings that hold none, and a problem for each of the others."""
    clean: list[Setting] = []
    problems: list[LitTuneError] = []
    for setting in settings:
        found = next(_secrets(setting.value, setting.key), None)
        if found is None and not holds_secret(setting.key):
            clean.append(setting)
        else:
            problems.append(_refused(found or setting.section, setting.where))
    return clean, problems


def _secrets(value: Any, key: str) -> Iterator[str]:
    """The dotted keys under which something looks like a secret."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from [key] if holds_secret(str(name)) else _secrets(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _secrets(inner, key)
    elif isinstance(value, str) and (holds_secret(value) or _is_key(key, value)):
        yield key


def _is_key(key: str, value: str) -> bool:
    return key not in _VOCABULARY and bool(_NAMES.search(key) and _KEY_LIKE.fullmatch(value))


def _refused(key: str, where: str) -> ConfigError:
    return ConfigError(
        f"the value looks like a secret, and a config is copied into the run ({where})",
        where=key,
        fix="remove it here; give it as an environment variable (HF_TOKEN, WANDB_API_KEY), or `hf auth login`",
    )
