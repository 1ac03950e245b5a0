"""Code that a model's repository brings along runs only where a person allowed it, at the commit they named."""

import re
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from lit_tune.errors import ConfigError, ModelError
from lit_tune.imports import is_remote_code_allowed

COMMIT = re.compile("[0-9a-f]{40}")


def code_options(name: str, revision: str | None, key: str) -> dict[str, Any]:
    """What to tell ``from_pretrained`` about code in a repository.

    Without ``--allow-remote-code`` none is run. With it, the code of a folder runs as it lies there, that of a Hub
    repository at a commit: a branch or tag may mean other code tomorrow.

    Args:
        name: Hub id or folder.
        revision: Of a Hub id.
        key: Config key that holds the name.

    Raises:
        ConfigError: No commit is named.
        ModelError: The code lies in a third repository, for which no commit is named.
    """
    if not is_remote_code_allowed():
        return {"trust_remote_code": False}
    is_folder = Path(name).is_dir()
    if not is_folder and not COMMIT.fullmatch(revision or ""):
        raise ConfigError(
            f"--allow-remote-code runs the code of {name} at a commit that you name, not at {revision or 'main'!r}",
            where="model.revision",
            fix="model.revision: the 40 digits of the commit whose code you have read",
        )
    elsewhere = sorted(repo for repo in repositories_of_code(name, revision) if repo != name)
    if elsewhere:
        raise ModelError(
            f"the code of {name} lies in another repository, {elsewhere[0]}, at whatever commit is there",
            where=key,
            fix="copy both into a folder, and name that",
        )
    return {"trust_remote_code": True} | ({} if is_folder else {"code_revision": revision})


def code_options_of_config(auto_class: Any, config: PretrainedConfig, options: dict[str, Any]) -> dict[str, Any]:
    """The same for ``from_config``, which takes ``code_revision`` only where it runs code (transformers 5.23)."""
    if auto_class.__name__ in (getattr(config, "auto_map", None) or {}):
        return options
    return {"trust_remote_code": False}


def repositories_of_code(name: str, revision: str | None) -> set[str]:
    """Repositories that config.json and tokenizer_config.json name for their classes (``owner/name--file.Class``).

    Args:
        name: Hub id or folder.
        revision: Of a Hub id.
    """
    try:
        config, _ = PretrainedConfig.get_config_dict(name, revision=revision)
        tokenizer = get_tokenizer_config(name, revision=revision)
    except (OSError, ValueError):
        return set()  # said by what loads it
    found: set[str] = set()
    for part in (config, tokenizer):
        classes = part.get("auto_map")
        for value in classes.values() if isinstance(classes, dict) else []:
            for text in value if isinstance(value, list | tuple) else [value]:
                found |= {str(text).rpartition("--")[0]} - {""}
    return found
