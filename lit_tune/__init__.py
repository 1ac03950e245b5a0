"""lit-tune: fine-tune Hugging Face models on Lightning from one YAML file."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "build"]

if TYPE_CHECKING:
    from lit_tune.cli import build


def __getattr__(name: str) -> Any:
    """Import :func:`build` only when asked: ``lit-tune --help`` must not import torch."""
    if name == "build":
        from lit_tune.preflight.versions import refuse_malware

        refuse_malware()
        from lit_tune.cli import build

        return build
    raise AttributeError(f"module 'lit_tune' has no attribute {name!r}")
