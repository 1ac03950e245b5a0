"""``lit-tune prepare``."""

from lit_tune.cli import parse


def prepare(options: list[str]) -> None:
    """Read, check and tokenize the data, cache it, and say what is in it; no weights are loaded.

    Args:
        options: The config: files and single keys.
    """
    datamodule = parse(options, "prepare").build().datamodule
    datamodule.prepare("fit")
