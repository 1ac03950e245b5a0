"""What of a folder may leave this machine: the files of a model, whole, without its paths and secrets."""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lit_tune.errors import ModelError, holds_secret
from lit_tune.models.adapter_folders import BASE, CONFIG, WEIGHTS

CARD, GRAPH = "README.md", "model.onnx"
OF_WEIGHTS = (
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", CONFIG, WEIGHTS, BASE),
    *(GRAPH, f"{GRAPH}.data", "export.json"),
)
"""Files by which a loader decides what the folder holds: of an earlier push, none may stay beside the new ones."""
KNOWN = (
    *OF_WEIGHTS,
    *(CARD, "LICENSE*", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    *("[0-9]_*/config.json", "[0-9]_*/model.safetensors"),
)
"""Names of a model's files, as transformers, peft and sentence-transformers write them. Nothing else is uploaded."""
OF_A_RUN = ("manifest.json", "checkpoints", "metrics.jsonl")
VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json", BASE)
_IS_PATH = re.compile(r"(?:/|~/|\.{1,2}/|[A-Za-z]:[\\/])[^\s/\\]+")


def files_to_publish(folder: Path, own: Collection[str] = ()) -> tuple[dict[str, Path], list[str]]:
    """The files of a model, by their names in the repository, and what stays here.

    Args:
        folder: ``best/`` of a run, or what ``lit-tune export`` wrote.
        own: Names that the run is known to have written, besides those of :data:`KNOWN`.

    Raises:
        ModelError: It holds no model, a damaged one, or something that nobody else could or should read.
    """
    if all((folder / name).exists() for name in OF_A_RUN[:1]) or (folder / OF_A_RUN[1]).is_dir():
        raise ModelError(
            f"{folder} holds a run, not a model", where="--folder", fix=f"--config {folder}/config.yaml instead"
        )
    files: dict[str, Path] = {}
    left = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        is_known = name in own or any(Path(f"/{name}").match(f"/{pattern}") for pattern in KNOWN)
        if is_known:
            files[name] = path
        else:
            left.append(name)
    check_whole(folder, files)
    for name, path in files.items():
        check_text(name, path, folder)
    return files, left


def check_whole(folder: Path, files: dict[str, Path]) -> None:
    """Refuse a folder that is no model.

    Raises:
        ModelError: It lacks config or weights, or weights are cut short.
    """
    has_weights = {"model.safetensors", "model.safetensors.index.json", WEIGHTS, GRAPH} & files.keys()
    if "config.json" not in files or not has_weights:
        raise ModelError(
            f"{folder} has no {'weights' if 'config.json' in files else 'config.json'}",
            where="--folder",
            fix="a folder written by `lit-tune export`, or --config runs/my_run/config.yaml",
        )
    for name, path in files.items():
        if name.endswith(".safetensors"):
            try:
                with safe_open(path, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path} is damaged or cut short", where="--folder", fix="export it again") from error


def check_text(name: str, path: Path, folder: Path) -> None:
    """Refuse what names a place of this machine or holds a secret.

    Raises:
        ModelError: It does.
    """
    if name in VOCABULARIES or path.suffix not in (".json", ".md", ".jinja"):
        return
    text = path.read_text("utf-8", errors="replace")
    if holds_secret(text):
        raise ModelError("holds what looks like an access token or a password", where=str(path), fix="take it out")
    if name == CARD:
        private = next((p for p in (f"{Path.home()}/", str(Path.cwd()), str(folder.resolve())) if p in text), None)
        if private is not None and len(private) > 2:
            raise ModelError(f"names {private}, a place on this machine", where=str(path), fix="edit the card")
    if path.suffix != ".json":
        return
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise ModelError("is no JSON", where=str(path), fix="export it again") from error
    for key, value in texts_of(settings):
        is_base = name == CONFIG and key == "base_model_name_or_path"
        if is_base and (_IS_PATH.match(value) or Path(value).exists()):
            raise ModelError(
                f"the adapter's base model is {value}, a folder on this machine that nobody else has",
                where=str(path),
                fix="`lit-tune export --merge --output my_model`, then `lit-tune push --folder my_model`; or push the "
                "base model first and write its id there",
            )
        if _IS_PATH.match(value) and Path(value).is_absolute():
            raise ModelError(f"{key} is {value}, a path on this machine", where=str(path), fix=f"edit {key}")


def texts_of(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value with the key it stands under.

    >>> list(texts_of({"a": "x", "b": [{"c": "y"}, 3]}))
    [('a', 'x'), ('c', 'y')]
    """
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from texts_of(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from texts_of(inner, key)
