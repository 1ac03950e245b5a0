"""Why a model does not load, in words a person can act on."""

import json
from pathlib import Path

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from lit_tune.errors import ModelError, nearest

KEY = "model.model_name_or_path"


def explain(error: BaseException, name: str, revision: str | None, key: str = KEY) -> ModelError:
    """Turn what transformers raises into what is wrong and what to do.

    Args:
        error: What was raised.
        name: Hub id or folder.
        revision: Branch, tag or commit.
        key: Config key that holds the name.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(c) for c in chain)
    if any(isinstance(c, GatedRepoError) for c in chain):
        return ModelError(
            f"{name} is gated: its licence must be accepted first",
            where=key,
            fix=f"open https://huggingface.co/{name}, accept, then run `hf auth login`",
        )
    if any(isinstance(c, RevisionNotFoundError) for c in chain):
        return ModelError(
            f"{name} has no revision {revision!r}", where="model.revision", fix="an existing branch, tag or commit"
        )
    if "trust_remote_code" in text or "custom code" in text:
        return ModelError(
            f"{name} needs code of its own repository, which is not run unasked",
            where=key,
            fix="a model of transformers; or read that code, set model.revision to its commit, and --allow-remote-code",
        )
    if "Weights only load failed" in text:
        return ModelError(
            f"{name} leads to pickled weights, which can run code when read", where=key, fix="weights in safetensors"
        )
    if Path(name).exists():
        return explain_folder(Path(name), text, key)
    return explain_hub(name, chain, text, key)


def explain_hub(name: str, chain: list[BaseException], text: str, key: str) -> ModelError:
    """Why a name that is no folder does not load."""
    near = nearest_folder(Path(name))
    if any(isinstance(c, HFValidationError) for c in chain) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return ModelError(
            f"there is no folder {name!r} and it is not a Hub id",
            where=key,
            fix=f"{key}: {near}" if near else "a folder or a Hub id",
        )
    or_folder = f"; or {near}, a folder" if near else ""
    if any(isinstance(c, RepositoryNotFoundError) for c in chain):
        return ModelError(
            f"no model {name!r} on the Hub (or it is private)",
            where=key,
            fix=f"check the spelling, or `hf auth login`{or_folder}",
        )
    if any(isinstance(c, OfflineModeIsEnabled) for c in chain) or "connect" in text or "offline" in text.lower():
        return ModelError(
            f"{name} is not in the local cache and the Hub cannot be reached",
            where=key,
            fix=f"connect once to download it, or give a folder with the model's files{or_folder}",
        )
    broken = next((c for c in chain if isinstance(c, HfHubHTTPError)), None)
    if broken is not None:
        return ModelError(f"the Hub refused {name}: {first_line(str(broken))}", where=key, fix="try again later")
    if "safetensors" in text:
        return ModelError(
            f"{name} has no safetensors weights; pickled ones can run code when read",
            where=key,
            fix="model.revision: refs/pr/1, if a pull request there adds them; or another model",
        )
    return ModelError(f"{name}: {first_line(text)}", where=key, fix="a model that transformers loads")


def nearest_folder(folder: Path) -> Path | None:
    """The folder that a misspelt path most probably means."""
    parent = folder.parent if folder.parent.is_dir() else Path()
    close = nearest(folder.name, (p.name for p in parent.iterdir() if p.is_dir()))
    return parent / close if close else None


def first_line(text: str) -> str:
    """As much of a foreign message as fits."""
    return (text.strip().splitlines() or ["no reason given"])[0][:300]


def explain_folder(folder: Path, text: str, key: str = KEY) -> ModelError:
    """Why a local folder does not load."""
    if not folder.is_dir():
        return ModelError(f"{folder} is a file", where=key, fix=f"{key}: {folder.parent}, the folder around it")
    if not (folder / "config.json").is_file():
        return ModelError(f"{folder} has no config.json", where=key, fix="a folder written by save_pretrained")
    problem = check_folder(folder, key)
    # a tokenizer or a config alone may be what was asked for
    if problem is not None and ("has no weights" not in problem.what or "safetensors" in text):
        return problem
    return ModelError(f"{folder}: {first_line(text)}", where=key, fix="a folder that transformers loads")


def check_folder(folder: Path, key: str = KEY) -> ModelError | None:
    """What is wrong with the weights in a folder, from their names, sizes and headers; None where they can be read."""
    files = sorted(p.name for p in folder.iterdir())
    broken = [p.name for p in folder.glob("*.safetensors") if not reads(p)]
    if broken:
        return ModelError(f"{folder / broken[0]} is damaged or cut short", where=key, fix="copy or download it again")
    if missing := missing_shards(folder):
        return ModelError(f"{folder / missing[0]} is missing", where=key, fix="copy or download all shards")
    if any(f.endswith(".safetensors") for f in files):
        return None
    if any(f.endswith((".bin", ".pt", ".ckpt")) for f in files):
        return ModelError(
            f"{folder} holds pickled weights only, which can run code when read",
            where=key,
            fix="load it once with transformers and save_pretrained(), which writes model.safetensors",
        )
    return ModelError(f"{folder} has no weights", where=key, fix="add model.safetensors, or model.from_scratch: true")


def missing_shards(folder: Path) -> list[str]:
    """Weight files that an index names and that are not there."""
    named: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named |= set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            return [index.name]
    return sorted(n for n in named if not (folder / n).is_file())


def reads(path: Path) -> bool:
    """Whether the header of a safetensors file agrees with its size."""
    try:
        with safe_open(str(path), framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False
