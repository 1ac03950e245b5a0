"""Texts that the model wrote at a validation, to be read: in the log, in ``samples.jsonl`` and in TensorBoard."""

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from lit_tune.durable import write_durably

log = logging.getLogger("lit_tune")
SHOWN = 200
"""Characters of a text on the console."""


class SampleLog(Callback):
    """Shows the first rows of val after each validation of a fit, for tasks that write texts.

    Args:
        path: ``samples.jsonl`` of the run, one line per row and validation.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Show them."""
        samples = pl_module.evaluation.samples.get("val", [])
        if trainer.sanity_checking or not samples or not trainer.is_global_zero:
            return
        step = trainer.global_step
        for sample in samples:
            log.info("sample   step %d, val row %d", step, sample["row"])
            for name, text in sample.items():
                if name != "row":
                    log.info("  %-9s %s", name, one_line(text))
        self.write(step, samples)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                with suppress(OSError, RuntimeError):  # a full disk: the file above has them
                    logger.experiment.add_text("val/samples", as_table(samples), step)

    def write(self, step: int, samples: list[dict[str, Any]]) -> None:
        """Add a validation; what a run that was interrupted had written from this step on is left out."""
        try:
            lines = self.path.read_text("utf-8").splitlines(keepends=True) if self.path.is_file() else []
            earlier = [line for line in lines if json.loads(line)["step"] < step]
            new = [json.dumps({"step": step, **sample}, ensure_ascii=False) + "\n" for sample in samples]
            write_durably(self.path, "".join(earlier + new).encode())
        except (OSError, ValueError, KeyError) as error:
            log.warning("%s cannot be written (%s); training goes on", self.path, error)


def one_line(text: str) -> str:
    r"""The beginning of a text.

    >>> one_line("a\nb " + "x" * 300)[:8]
    'a b xxxx'
    """
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def as_table(samples: list[dict[str, Any]]) -> str:
    r"""Rows as a Markdown table.

    >>> print(as_table([{"row": 0, "written": "a|b"}]))
    | row | written |
    |---|---|
    | 0 | a\|b |
    """
    names = list(samples[0])
    cells = [[str(s[name]).replace("|", "\\|").replace("\n", "<br>") for name in names] for s in samples]
    lines = [names, ["---"] * len(names), *cells]
    return "\n".join(f"|{'|'.join(line)}|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines)
