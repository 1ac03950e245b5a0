"""An adapter on the Hub, as a folder of the local cache.

A repository that holds none costs one request, and none any more where the cache knows it.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from lit_tune import hub_access
from lit_tune.errors import ModelError
from lit_tune.models import text_cnn
from lit_tune.models.load_errors import KEY, explain

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base_model.json"
_BESIDE = (BASE, "config.json", "tokenizer_config.json")
"""Files that an adapter may have or lack."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@cache
def config_on_hub(name: str, revision: str | None) -> Path | None:
    """The adapter's config of a repository, downloaded; None where there is none. The answer is kept for the process.

    Args:
        name: Hub id; a name that cannot be one is none.
        revision: Branch, tag or commit.

    Raises:
        ModelError: The Hub does not say: no such repository, gated, busy.
    """
    if not _HUB_ID.fullmatch(name) or text_cnn.is_new(name) or Path(name).exists():
        return None
    try:
        cached: Any = try_to_load_from_cache(name, CONFIG, revision=revision)
        if cached is not None and not isinstance(cached, str):
            return None  # the cache knows that the repository lacks it
        hub_access.is_reachable()
        return Path(hf_hub_download(name, CONFIG, revision=revision))
    except LocalEntryNotFoundError as error:
        in_cache = isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
        if in_cache or not isinstance(error.__cause__, HfHubHTTPError):
            return None  # nobody was asked: what the cache holds is used, as ever without a Hub
        raise explain(error, name, revision) from error
    except EntryNotFoundError:
        return None
    except Exception as error:  # both kinds of config may lie there: a model must not be trained for its adapter
        raise explain(error, name, revision) from error


@cache
def snapshot_of(name: str, revision: str | None) -> Path | None:
    """The folder of the cache with an adapter's files, all of one commit; None where the repository holds no adapter.

    Config and tokenizer of the model are read from the repository by their name, as those of any model.

    Args:
        name: Hub id.
        revision: Branch, tag or commit.

    Raises:
        ModelError: Its weights are not in safetensors, or cannot be downloaded.
    """
    config = config_on_hub(name, revision)
    if config is None:
        return None
    commit = config.parent.name
    try:
        hf_hub_download(name, WEIGHTS, revision=commit)
    except LocalEntryNotFoundError as error:
        raise explain(error, name, revision) from error
    except EntryNotFoundError as error:
        raise ModelError(
            f"{name} is an adapter without {WEIGHTS}; pickled weights can run code when read",
            where=KEY,
            fix="model.revision: refs/pr/1, if a pull request there adds it; or another adapter",
        ) from error
    except Exception as error:
        raise explain(error, name, revision) from error
    for file in _BESIDE:
        try:
            hf_hub_download(name, file, revision=commit)
        except EntryNotFoundError:
            continue
        except Exception as error:
            raise explain(error, name, revision) from error
    return config.parent
