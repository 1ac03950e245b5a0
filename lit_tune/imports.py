"""The import allow-list: what a config may name.

A class path in a YAML file is code that somebody else chose: importing its module already runs it, and an innocent
module leads to any other through its attributes (``torch.optim.lr_scheduler.partial``). So every path a config names is
checked against a list of narrow prefixes before anything is imported, and what it finds must be a public class that is
also *defined* under the list. The list is widened from the command line only (``--allow-import my_package``), never by
a file.

The command line gives the same list to jsonargparse, whose check has the same two halves::

    set_parsing_settings(import_path_denylist=["*", *refused_imports()], import_path_allowlist=allowed_imports())
"""

import importlib
import inspect
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from lit_tune.errors import ConfigError, nearest

_LOSSES = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CosineEmbeddingLoss",
    "CrossEntropyLoss",
    "GaussianNLLLoss",
    "HingeEmbeddingLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "MarginRankingLoss",
    "MSELoss",
    "MultiLabelMarginLoss",
    "MultiLabelSoftMarginLoss",
    "MultiMarginLoss",
    "NLLLoss",
    "PoissonNLLLoss",
    "SmoothL1Loss",
    "SoftMarginLoss",
]

PEFT_CONFIGS = {
    "lora": "LoraConfig",
    "ia3": "IA3Config",
    "prompt_tuning": "PromptTuningConfig",
    "c3a": "C3AConfig",
    "delora": "DeloraConfig",
    "fourierft": "FourierFTConfig",
    "gralora": "GraloraConfig",
    "hra": "HRAConfig",
    "ln_tuning": "LNTuningConfig",
    "loha": "LoHaConfig",
    "lokr": "LoKrConfig",
    "miss": "MissConfig",
    "oft": "OFTConfig",
    "p_tuning": "PromptEncoderConfig",
    "prefix_tuning": "PrefixTuningConfig",
    "randlora": "RandLoraConfig",
    "road": "RoadConfig",
    "shira": "ShiraConfig",
    "vblora": "VBLoRAConfig",
    "vera": "VeraConfig",
    "waveft": "WaveFTConfig",
}
"""Module of ``peft.tuners`` -> its config, plain data. Not: those that name further models (xlora, shadow), read files,
want to be called in the training loop (adalora), or compile an extension when they are made (boft)."""

ALLOWED: tuple[str, ...] = (
    # Not `lit_tune` as a whole: a config that can name `lit_tune.imports.allow_import` can widen this list. Nor
    # `lit_tune.callbacks`: every run has those that a config may set, and others write where they are told.
    "lit_tune.tasks",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    # `lightning.pytorch.plugins.environments` re-exports these; SLURM and torchelastic users name them.
    "lightning.fabric.plugins.environments",
    # Optimizers, schedules, losses. Not `torch`: it has `torch.load`, `torch.hub.load`, `torch.ops.load_library`.
    "torch.optim",
    "torch.nn.modules.loss",
    *(f"torch.nn.{name}" for name in _LOSSES),
    # Not `transformers`: its pipelines and Auto classes download.
    "transformers.optimization.Adafactor",
    "bitsandbytes.optim",
    *(f"peft.{name}" for name in PEFT_CONFIGS.values()),
    *(f"peft.tuners.{module}.config.{name}" for module, name in PEFT_CONFIGS.items()),
)
"""Dotted prefixes a config may name; a prefix covers itself and everything under it."""

REFUSED: tuple[str, ...] = (
    "lightning.pytorch.callbacks.lambda_function",  # LambdaCallback calls whatever function a config names
    "lightning.pytorch.strategies.launchers",  # they start processes, and unpickle what those send
)
"""Exceptions from :data:`ALLOWED`: of two prefixes the longer one decides."""

_HOLDS_THE_LIST = ("jsonargparse", "lit_tune")
_EXTRAS = {"bitsandbytes": "lit-tune[8bit]", "wandb": "lit-tune[wandb]"}

_added: list[str] = []
_remote_code = False


def allow_import(prefix: str) -> None:
    """Widen the list for this process; for ``--allow-import`` and Python users.

    Args:
        prefix: A package, module or class: ``my_package.losses``.

    Raises:
        ConfigError: Not a dotted name, or ``jsonargparse``, through which a config could change the list itself.
    """
    if not all(part.isidentifier() for part in prefix.split(".")):
        raise ConfigError(
            f"{prefix!r} is not the dotted name of a package or module",
            where="--allow-import",
            fix="give a name as in an import statement, e.g. --allow-import my_package.losses",
        )
    if prefix in (*_HOLDS_THE_LIST, "lit_tune.imports") or prefix.startswith("jsonargparse."):
        raise ConfigError(
            f"{prefix} can change the list of allowed imports, so no config may name it", where="--allow-import"
        )
    if prefix not in _added:
        _added.append(prefix)


def allow_remote_code() -> None:
    """Let models bring code of their own in this process; for ``--allow-remote-code`` and Python users.

    What may run then is decided in :mod:`lit_tune.models.remote_code`.
    """
    global _remote_code
    _remote_code = True


def is_remote_code_allowed() -> bool:
    """Whether somebody has said so on the command line; no config can."""
    return _remote_code


def allowed_imports() -> list[str]:
    """The prefixes in force: the built-in ones, then those added by :func:`allow_import`."""
    return [*ALLOWED, *_added]


def added_flags() -> str:
    """What the command line must say again, in front of which a blank stands; empty where nothing was added."""
    return "".join(f" --allow-import {prefix}" for prefix in _added)


def refused_imports() -> list[str]:
    """The exceptions in force."""
    return [path for path in REFUSED if path not in _added]


def is_allowed(path: str) -> bool:
    """Whether a config may name ``path``.

    >>> is_allowed("torch.optim.RMSprop"), is_allowed("torch.optimizers.X"), is_allowed("os.system")
    (True, False, False)
    """
    return _longest(path, allowed_imports()) > _longest(path, refused_imports())


def _longest(path: str, prefixes: Iterable[str]) -> int:
    """Length of the longest prefix that covers the path; 0 where none does."""
    return max((len(prefix) for prefix in prefixes if f"{path}.".startswith(f"{prefix}.")), default=0)


def import_class(path: str, *, where: str, search: Sequence[str] = (), aliases: Iterable[str] = ()) -> Any:
    """The class a config names.

    Args:
        path: A dotted path (``torch.optim.RMSprop``), or a bare class name that is looked up in ``search``.
        where: The config key, for messages.
        search: Modules to look a bare name up in, in this order.
        aliases: Names the key accepts besides classes (``adamw``); used for the suggestion only.

    Raises:
        ConfigError: Not allowed (nothing was imported then), not importable, not there, or not a public class.
    """
    if "." not in path:
        return _find_bare_name(path, where, search, aliases)
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(f"{path!r} is not a class path", where=where, fix="write it as package.module.ClassName")
    if any(part.startswith("_") for part in parts):
        raise ConfigError(
            f"{path} is private: a name starts with an underscore", where=where, fix="name a public class"
        )
    if not is_allowed(path):
        raise _not_allowed(path, path, where)
    module_name, class_name = path.rsplit(".", 1)
    module = _import_module(module_name, path, where)
    if not hasattr(module, class_name):
        raise _unknown(f"{module_name} has no class {class_name}", class_name, _public_classes(module), where)
    return _checked(getattr(module, class_name), path, where)


def _find_bare_name(name: str, where: str, search: Sequence[str], aliases: Iterable[str]) -> Any:
    known = []
    for module_name in search:
        module = _import_module(module_name, name, where)
        classes = _public_classes(module)
        if name in classes:
            return _checked(getattr(module, name), f"{module_name}.{name}", where)
        known += classes
    places = f"no class of {' or '.join(search)}" if search else "not a class path"
    raise _unknown(f"{name!r} is {places}", name, [*known, *aliases], where)


def _unknown(what: str, name: str, known: list[str], where: str) -> ConfigError:
    guess = nearest(name, known)
    if guess:
        return ConfigError(
            f"{what}; did you mean {guess}?", where=where, fix=f"write {guess}, or a full path package.module.ClassName"
        )
    return ConfigError(what, where=where, fix="give the full path of a class: package.module.ClassName")


def remedy(path: str) -> str:
    """What a person may do who trusts a path that is not allowed."""
    package = next((p for p in REFUSED if f"{path}.".startswith(f"{p}.")), path.split(".")[0])
    if package in _HOLDS_THE_LIST:
        return "leave it out"
    return f"if you trust it, add --allow-import {package} to the command line (a config cannot)"


def _not_allowed(path: str, defined_in: str, where: str) -> ConfigError:
    origin = "" if path == defined_in else f" (it is {defined_in})"
    return ConfigError(
        f"{path}{origin} is not on the list of imports that a config may name", where=where, fix=remedy(defined_in)
    )


def _import_module(module_name: str, path: str, where: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        package = missing.split(".")[0]
        if sys.modules.get(package) is None:
            raise ConfigError(
                f"{path} needs the package {package}, which is not installed",
                where=where,
                fix=f"pip install '{_EXTRAS.get(package, package)}'",
            ) from error
        raise ConfigError(
            f"{path}: there is no module {missing}", where=where, fix="check the path for a typo"
        ) from error
    except Exception as error:  # a module of the user's may fail in any way at import; that is not a bug of ours
        raise ConfigError(
            f"importing {module_name} failed: {type(error).__name__}: {error}",
            where=where,
            fix=f"make `import {module_name}` work",
        ) from error


def _checked(found: Any, path: str, where: str) -> Any:
    """Refuse what an allowed module merely lets through: modules, functions, and classes defined elsewhere."""
    if not inspect.isclass(found):
        kind = "module" if inspect.ismodule(found) else type(found).__name__
        raise ConfigError(f"{path} is a {kind}, not a class", where=where, fix="name a class")
    defined_in = f"{found.__module__}.{found.__qualname__}"
    if not is_allowed(defined_in):
        raise _not_allowed(path, defined_in, where)
    return found


def _public_classes(module: Any) -> list[str]:
    """Names of the classes a person may mean, without what the module itself imported from elsewhere."""
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.isclass(value) and is_allowed(f"{value.__module__}.{name}")
    )
