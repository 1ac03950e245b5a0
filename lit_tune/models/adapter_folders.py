"""An adapter, a folder or on the Hub: adapter_config.json, adapter_model.safetensors, and the name of a base model."""

import inspect
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_tune.errors import ConfigError, ModelError
from lit_tune.imports import PEFT_CONFIGS, import_class
from lit_tune.models.adapter_settings import LEADS_ELSEWHERE, SET_BY_US
from lit_tune.models.base_reference import Reference
from lit_tune.models.hub_adapters import BASE, CONFIG, WEIGHTS, config_on_hub, snapshot_of
from lit_tune.models.load_errors import KEY

MAX_CONFIG_BYTES = 1_000_000
_HARMLESS_DEFAULTS = {"megatron_core": ("megatron.core",)}


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter on the disk. Nothing but its config has been read.

    Args:
        path: The folder; of one on the Hub, that of the cache.
        fields: What adapter_config.json holds.
        name: What it is called: the folder, or the Hub id.
    """

    path: Path
    fields: dict[str, Any]
    name: str

    @property
    def base(self) -> str:
        """The base model: a Hub id or a folder."""
        return str(self.fields["base_model_name_or_path"])

    @property
    def revision(self) -> str | None:
        """Branch, tag or commit of the base model."""
        return self.fields.get("revision")

    @property
    def kind(self) -> str:
        """``lora``, ``ia3`` ..."""
        return str(self.fields["peft_type"]).lower()

    @cached_property
    def reference(self) -> Reference:
        """Hashes of the base model's weights; empty for an adapter that lit-tune did not write.

        Raises:
            ModelError: They are damaged.
        """
        path = self.path / BASE
        if not path.is_file():
            return {}
        try:
            weights = json.loads(path.read_text("utf-8"))["weights"]
            return {str(name): [str(dtype), str(digest)] for name, (dtype, digest) in weights.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path} is damaged", where=KEY, fix="copy the adapter again") from error

    def config(self, trainable: bool) -> Any:
        """The peft config.

        Args:
            trainable: The adapter is trained on.

        Raises:
            ModelError: Of a kind that is not read, or one that names modules or files for peft to read.
        """
        config_class = config_class_of(self.kind, self.path)
        harmless = {k: v for k, v in self.fields.items() if v and v not in _HARMLESS_DEFAULTS.get(k, ())}
        if elsewhere := sorted(harmless.keys() & set(LEADS_ELSEWHERE) - {"auto_mapping"}):
            raise ModelError(
                f"{self.path / CONFIG} sets {elsewhere[0]}, which names modules or files that peft would read",
                where=KEY,
                fix=f"remove {elsewhere[0]} from it",
            )
        known = inspect.signature(config_class).parameters.keys() - {*SET_BY_US, *LEADS_ELSEWHERE}
        try:
            made = config_class(**{k: v for k, v in self.fields.items() if k in known})
        except (TypeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise ModelError(f"{self.path / CONFIG}: {said}", where=KEY, fix="copy the adapter again") from error
        made.task_type, made.inference_mode = self.fields.get("task_type"), not trainable
        return made


def adapter_folder(name: str, revision: str | None = None) -> AdapterFolder | None:
    """The adapter in a folder or on the Hub; None where there is none.

    Args:
        name: Hub id or folder.
        revision: Branch, tag or commit of the Hub repository.

    Raises:
        ModelError: Its config cannot be read, it names no base model, or its weights are a pickle or missing.
    """
    folder = Path(name) if Path(name).is_dir() else snapshot_of(name, revision)
    if folder is None or not (folder / CONFIG).is_file():
        return None
    path = folder / CONFIG
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt") for p in folder.glob(pattern))
        held = f"its weights as a pickle ({pickled[0]}), which can run code when read" if pickled else "no weights"
        raise ModelError(f"{folder} is an adapter with {held}", where=KEY, fix=f"save it with peft, as {WEIGHTS}")
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError
        fields = json.loads(path.read_text("utf-8"))
        base, kind, revision = fields["base_model_name_or_path"], fields["peft_type"], fields.get("revision")
        if not (isinstance(base, str) and base and isinstance(kind, str) and isinstance(revision, str | None)):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{path} is no adapter's config that names its kind and base model", where=KEY, fix="copy it again"
        ) from error
    found = AdapterFolder(folder, fields, name)
    check_place(found)
    return found


def check_place(adapter: AdapterFolder) -> None:
    """Refuse a base model that is no folder here and cannot be a Hub id, or is an adapter itself.

    Raises:
        ModelError: It is.
    """
    base = Path(adapter.base)
    if (base / CONFIG).is_file() or config_on_hub(adapter.base, adapter.revision):
        raise ModelError(
            f"the base model of {adapter.name} is an adapter itself: {base}",
            where=KEY,
            fix=f"merge {base} with `lit-tune export --merge` and train on that",
        )
    if not base.is_dir() and (base.is_absolute() or adapter.base.startswith(".") or adapter.base.count("/") > 1):
        raise ModelError(
            f"the base model of {adapter.name} is not there: {base}",
            where=KEY,
            fix="put it back in that place, or name the right one in adapter_config.json",
        )


def config_class_of(kind: str, folder: Path) -> Any:
    """The config class of peft for a kind of adapter.

    Raises:
        ModelError: None that is read.
    """
    for module, name in PEFT_CONFIGS.items():
        if module == kind:
            return import_class(f"peft.{name}", where=KEY)
    raise ModelError(
        f"{folder} holds an adapter of kind {kind[:40]!r}, which is not read here",
        where=KEY,
        fix=f"one of {', '.join(PEFT_CONFIGS)}",
    )


def whose_config(name: str, revision: str | None) -> tuple[str, str | None]:
    """Where the model's config stands: an adapter that came without one has its base model's.

    Raises:
        ModelError: As :func:`adapter_folder`.
    """
    adapter = adapter_folder(name, revision)
    if adapter is None or (adapter.path / "config.json").is_file():
        return name, revision
    return adapter.base, adapter.revision


def whose_tokenizer(name: str, revision: str | None) -> tuple[str, str | None]:
    """Where the tokenizer stands: an adapter that came without one has its base model's.

    Raises:
        ModelError: As :func:`adapter_folder`.
    """
    adapter = adapter_folder(name, revision)
    if adapter is None or (adapter.path / "tokenizer_config.json").is_file():
        return name, revision
    return adapter.base, adapter.revision


def check_settings(adapter: AdapterFolder, given: dict[str, Any]) -> None:
    """Refuse settings that contradict the adapter that is trained on.

    Args:
        adapter: The adapter.
        given: Fields of peft's config that were asked for.

    Raises:
        ConfigError: They differ.
    """
    for name, value in given.items():
        have = adapter.fields.get(name)
        same = set(value) == set(have or ()) if isinstance(value, list) else value == have
        if not same:
            raise ConfigError(
                f"{adapter.name} holds an adapter with {name}: {have}, and {value} is asked for",
                where="model.adapter",
                fix="leave model.adapter out to train that adapter on; or merge it first (`lit-tune export --merge`)",
            )
