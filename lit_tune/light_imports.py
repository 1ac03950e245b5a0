"""Packages that Lightning imports whole for one or two names, cut down to these until somebody asks for more.

``import torchmetrics`` runs its ``__init__``: every metric there is, and with them scipy.signal; 2 to 3 of the 9 CPU
seconds that a config error took and of the 10 until the first step. Lightning and lit-tune need two base classes of it.
So the package is put into ``sys.modules`` with these, and its ``__init__`` runs when another name or
submodule is asked for: by a metric of the user's, say. Nothing is replaced; the classes are torchmetrics' own.

Only the command line does this. Who imports lit-tune in a program of their own finds torchmetrics as it is.
"""

import importlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "torchmetrics"
LIGHT = ("__about__", "utilities", "metric", "collections")
"""Submodules that need nothing else of the package, in an order in which they can be imported."""

_NAMES = {"Metric": "metric", "MetricCollection": "collections", "__version__": "__about__"}


def import_torchmetrics_lightly() -> None:
    """Import two classes of torchmetrics, the rest on demand; where they need the rest already, nothing is changed."""
    spec = None if PACKAGE in sys.modules else importlib.util.find_spec(PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        return
    package = _LightPackage(PACKAGE, spec)
    sys.modules[PACKAGE] = package
    try:
        for name in LIGHT:
            setattr(package, name, importlib.import_module(f"{PACKAGE}.{name}"))
        for name, submodule in _NAMES.items():
            setattr(package, name, getattr(sys.modules[f"{PACKAGE}.{submodule}"], name))
    except (ImportError, AttributeError):  # another version: import it as anybody does
        for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
    else:
        sys.meta_path.insert(0, _OtherSubmodules())


class _LightPackage(ModuleType):
    """A package whose ``__init__`` has not run.

    Args:
        name: Its name.
        spec: Where it is.
    """

    def __init__(self, name: str, spec: ModuleSpec) -> None:
        super().__init__(name)
        self.__spec__, self.__loader__, self.__file__ = spec, spec.loader, spec.origin
        self.__package__, self.__path__ = name, list(spec.submodule_search_locations or [])

    def __getattr__(self, name: str) -> Any:
        if name == "_logger":  # what torchmetrics.utilities asks of its package: the logger that __init__ makes, too
            return logging.getLogger(PACKAGE)
        if name.startswith("__"):
            raise AttributeError(name)
        whole(self)
        return getattr(self, name)


class _OtherSubmodules:
    """Before any other submodule is imported, the package is."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        """Find nothing; the finders that follow do."""
        package, _, submodule = name.partition(".")
        if package == PACKAGE and submodule.partition(".")[0] not in ("", *LIGHT):
            whole(sys.modules[PACKAGE])


def whole(package: ModuleType) -> None:
    """Run the ``__init__`` of a package that was imported lightly; once."""
    if isinstance(package, _LightPackage):
        package.__class__ = ModuleType
        assert package.__spec__ is not None
        assert package.__spec__.loader is not None
        package.__spec__.loader.exec_module(package)
