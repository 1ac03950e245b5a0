"""The files beside a model by which ``SentenceTransformer(folder)`` makes embeddings with it.

``modules.json`` lists what a text goes through, ``1_Pooling/config.json`` says how tokens become one vector. Format of
sentence-transformers 2 to 6.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import PretrainedConfig

from lit_tune.errors import ModelError
from lit_tune.models.load_errors import first_line
from lit_tune.models.pooling import Pooling

MODULES, POOLING, SETTINGS, VERSIONS = (
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}
"""Keys of the pooling's file that are one of ours."""
NEWER: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last", "max": "max"}
"""Values of ``pooling_mode``, which sentence-transformers writes since version 5."""
KNOWN = ("Transformer", "Pooling", "Normalize")
KEY = "task.init_args.pooling"


def pooling_of_model(config: PretrainedConfig) -> Pooling:
    """How the model was trained to pool: as its ``1_Pooling/config.json`` says, mean where it has none.

    Args:
        config: As it was loaded, with the name of the folder or repository, and the commit.

    Raises:
        ModelError: It is no sum of what is known here, or cannot be read.
    """
    name, commit = str(config.name_or_path), getattr(config, "_commit_hash", None)
    modules = _read(name, commit, MODULES)
    if modules is None:
        return "mean"
    kinds = [m["type"].rpartition(".")[2] for m in modules]
    strange = [kind for kind in kinds if kind not in KNOWN]
    if strange:
        raise _unknown(name, f"ends in a {strange[0]} layer")
    found = _read(name, commit, POOLING) or {}
    newer = found.get("pooling_mode")
    modes: list[Any] = [NEWER.get(m, m) for m in ([newer] if isinstance(newer, str) else newer or [])]
    modes = modes or [MODES.get(k, k) for k, on in found.items() if k.startswith("pooling_mode_") and on is True]
    if len(modes) > 1 or any(m not in NEWER.values() for m in modes):
        raise _unknown(name, f"pools by {' and '.join(modes)}")
    return modes[0] if modes else "mean"


def files(hidden_size: int, pooling: Pooling, normalize: bool, max_length: int) -> dict[str, str]:
    """Path in the folder -> content.

    Args:
        hidden_size: H.
        pooling: How tokens become one vector.
        normalize: Embeddings have length 1.
        max_length: Tokens at which a text is cut.
    """
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    modes = {key: mode == pooling for key, mode in MODES.items()}
    contents: dict[str, Any] = {
        MODULES: modules,
        POOLING: {"word_embedding_dimension": hidden_size, **modes, "include_prompt": True},
        SETTINGS: {"max_seq_length": max_length, "do_lower_case": False},
        VERSIONS: {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    }
    return {path: json.dumps(content, indent=2) + "\n" for path, content in contents.items()}


def _read(name: str, commit: str | None, path: str) -> Any:
    """A json file of a folder or a Hub repository; None where it is known not to be there."""
    try:
        found = str(Path(name) / path) if Path(name).is_dir() else _downloaded(name, commit, path)
        return json.loads(Path(found).read_text("utf-8")) if found and Path(found).is_file() else None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} of {name} cannot be read, which would say how it pools: {first_line(str(error))}",
            where="model.model_name_or_path",
            fix=f"{KEY}: mean (or cls, last, max)",
        ) from error


def _downloaded(name: str, commit: str | None, path: str) -> str | None:
    """Where the file lies; None where the repository has none.

    Raises:
        OSError: The Hub cannot be asked.
    """
    known = try_to_load_from_cache(name, path, revision=commit)
    if known is not None:
        return known if isinstance(known, str) else None  # else it was asked for before, and was not there
    try:
        return hf_hub_download(name, path, revision=commit)
    except LocalEntryNotFoundError as error:
        raise OSError("not in the cache, and the Hub does not answer") from error
    except EntryNotFoundError:
        return None


def _unknown(name: str, what: str) -> ModelError:
    return ModelError(f"{name} {what}, which cannot be trained here", where=KEY, fix=f"{KEY}: mean trains it without")
