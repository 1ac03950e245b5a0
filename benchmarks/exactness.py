"""Is the gradient right? lit-tune, HF Trainer and plain Lightning against one plain torch batch of the same rows.

    python benchmarks/exactness.py [--markdown] [--json exactness.json] [--quick]

The same tiny random BERT, the same ragged rows in the same order, dropout 0, no clipping, float64, learning rate
1e-30. Each column of the first table asks for the same optimizer step over the same 16 rows, cut differently into
batch x accumulation; the last column for the last step of an epoch of 21 rows. A cell is

    norm(gradient the optimizer used - true gradient) / norm(true gradient), logged training loss

where the truth is ``backward()`` of torch's own mean loss over the rows in one batch. The second table is the
validation loss of 21 rows. Cells that are off are bold (or end in ``*``): a gradient by more than 1e-10, a loss by
more than 1e-6 (HF Trainer's training log and Lightning's ``self.log``, which lit-tune's validation losses pass
through, are float32). "flags" are ``loss_is_scaled_for_ga = False`` and ``average_tokens_across_devices=False``.
Regression targets are exact in float32, to which lit-tune rounds them (1e-8 in the gradient otherwise). About a
minute.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import transformers
from peers import PEERS, WINDOW, Cut, Truth
from problems import PROBLEMS, Problem

import lit_tune

ROWS = 21
GRADIENT_TOLERANCE, LOSS_TOLERANCE = 1e-10, 1e-6
CUTS = {
    "1x16": Cut(1, 16),
    "2x8": Cut(2, 8),
    "4x4": Cut(4, 4),
    "16x1": Cut(16, 1),
    "8x1, 2 ranks": Cut(8, 1, ranks=2),
    "4x4, last 5 rows": Cut(4, 4, rows=ROWS),
}
"""Column -> batch x accumulation (x ranks)."""
EVAL_CUTS = {
    "1": Cut(1, 1, rows=ROWS),
    "4": Cut(4, 1, rows=ROWS),
    "16": Cut(16, 1, rows=ROWS),
    "64": Cut(64, 1, rows=ROWS),
    "4, 2 ranks": Cut(4, 1, ranks=2, rows=ROWS),
}
"""Column -> eval batch (x ranks)."""
NOTES = (
    "- HF Trainer takes the loss of any model whose forward has **kwargs as divided by the targets of the whole step; "
    "these heads return the mean of a micro-batch, so loss and gradient grow with accumulation and ranks. AdamW "
    "forgives a constant factor; clipping, SGD and the logs do not. Without accumulation, on one rank, it is right.",
    "- Means of means are right where all micro-batches weigh the same: not with class weights, nor in a short window.",
    "- Lightning's self.log shows the newest micro-batch of rank zero, by design. On two ranks both peers evaluate "
    "some rows twice.",
    "- Regression targets are exact in float32: lit-tune rounds them to float32, in float64 runs too (1e-8 in the "
    "gradient otherwise, the same for every cut).",
)
"""What the numbers come from; printed below them."""
QUICK = ("4x4", "4x4, last 5 rows", "4")
Cell = dict[str, Any]


def measure(problem: Problem, stage: str, columns: dict[str, Cut], root: Path) -> Iterable[Cell]:
    """One cell after another, as plain data.

    Args:
        problem: The problem.
        stage: ``train`` or ``eval``.
        columns: Columns to measure.
        root: Scratch folder, the same on all ranks.
    """
    model = root / problem.name
    if not model.exists():
        problem.save_model(model)
    for column, cut in columns.items():
        rows = problem.rows(cut.rows)
        for name, peer in PEERS.items():
            scratch = root / "_".join((problem.name, stage, column, name)).replace(" ", "_").replace(",", "")
            scratch.mkdir(exist_ok=True)
            truth = Truth(problem, model, scratch)
            cell: Cell = {"stage": stage, "problem": problem.name, "peer": name, "column": column}
            if stage == "train":
                true, step = truth.fit(rows, cut), peer(problem, model, scratch).fit(rows, cut)
                error = float((step.gradient - true.gradient).norm() / true.gradient.norm())
                cell |= {"gradient_error": error, "loss": step.loss, "true_loss": true.loss}
            else:
                cell |= {
                    "loss": peer(problem, model, scratch).evaluate(rows, cut),
                    "true_loss": truth.evaluate(rows, cut),
                }
            yield cell


def all_cells(problems: Iterable[Problem], ranks: int, only: tuple[str, ...], root: Path) -> Iterable[Cell]:
    """Cells of both tables that need ``ranks`` processes; ``only`` names columns, empty for all."""
    for problem in problems:
        for stage, table in (("train", CUTS), ("eval", EVAL_CUTS)):
            columns = {c: cut for c, cut in table.items() if cut.ranks == ranks and (not only or c in only)}
            yield from measure(problem, stage, columns, root)


def two_ranks(root: Path) -> tuple[list[Cell], str]:
    """The cells of two gloo processes, started as torchrun does; and why some are missing, if so."""
    out = root / "two_ranks.jsonl"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(Path(__file__).resolve())]
    ran = subprocess.run([sys.executable, *command, "--worker", str(root)], capture_output=True, text=True, check=False)
    cells = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    errors = [line.strip() for line in ran.stderr.splitlines() if "Error" in line]
    return cells, "" if ran.returncode == 0 else (errors or ran.stderr.splitlines() or ["no message"])[0]


def worker(root: Path) -> None:
    """One of the two processes; rank zero writes the cells."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=3))
    for cell in all_cells(PROBLEMS, 2, (), root):
        if torch.distributed.get_rank() == 0:
            with (root / "two_ranks.jsonl").open("a") as file:
                file.write(json.dumps(cell) + "\n")
    torch.distributed.destroy_process_group()


def judge(cell: Cell) -> Cell:
    """Add whether gradient and loss are right."""
    right = {"loss_right": abs(cell["loss"] - cell["true_loss"]) <= LOSS_TOLERANCE * abs(cell["true_loss"])}
    if "gradient_error" in cell:
        right["gradient_right"] = cell["gradient_error"] <= GRADIENT_TOLERANCE
    return cell | right


def text(cell: Cell | None, markdown: bool) -> str:
    """A cell as people read it."""
    if cell is None:
        return "not run"

    def mark(shown: str, right: bool) -> str:
        return shown if right else f"**{shown}**" if markdown else f"{shown}*"

    loss = mark(f"{cell['loss']:.4f}", cell["loss_right"])
    if "gradient_error" not in cell:
        return loss
    error = cell["gradient_error"]
    shown = "0" if error == 0 else f"{error:.0e}" if error < 1e-3 else f"{error:.3f}"
    return f"{mark(shown, cell['gradient_right'])}, {loss}"


def table(cells: list[Cell], stage: str, corner: str, markdown: bool) -> str:
    """One table, aligned."""
    cells = [c for c in cells if c["stage"] == stage]
    columns = [c for c in (CUTS if stage == "train" else EVAL_CUTS) if any(x["column"] == c for x in cells)]
    found = {(c["problem"], c["peer"], c["column"]): c for c in cells}
    lines = [["problem", corner, *columns]]
    for problem in dict.fromkeys(c["problem"] for c in cells):
        true = {c["column"]: c["true_loss"] for c in cells if c["problem"] == problem}
        lines.append([problem, "truth", *(f"{'0, ' if stage == 'train' else ''}{true[c]:.4f}" for c in columns)])
        peers = dict.fromkeys(c["peer"] for c in cells)
        lines += [["", peer, *(text(found.get((problem, peer, c)), markdown) for c in columns)] for peer in peers]
    return aligned(lines, markdown)


def aligned(lines: list[list[str]], markdown: bool) -> str:
    """Lines of cells, the first one the header, as a table."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in padded)
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    shown = ["| " + " | ".join(line) + " |" for line in padded]
    return "\n".join([shown[0], rule, *shown[1:]])


def tally(cells: list[Cell]) -> str:
    """Who is right how often."""
    lines = []
    for peer in dict.fromkeys(c["peer"] for c in cells):
        trained = [c for c in cells if c["peer"] == peer and c["stage"] == "train"]
        evaluated = [c for c in cells if c["peer"] == peer and c["stage"] == "eval"]
        counts = [
            ("gradients", trained, "gradient_right"),
            ("training losses", trained, "loss_right"),
            ("validation losses", evaluated, "loss_right"),
        ]
        right = ", ".join(f"{what} {sum(c[key] for c in some)} of {len(some)}" for what, some, key in counts)
        lines.append(f"- {peer}: right are {right}")
    return "\n".join([*lines, *NOTES])


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all cells there")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--quick", action="store_true", help="two problems, three columns, one rank")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    if options.worker:
        return worker(options.worker)
    started, missing = time.perf_counter(), ""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cells = list(all_cells(PROBLEMS[:2] if options.quick else PROBLEMS, 1, QUICK if options.quick else (), root))
        if not options.quick:
            more, missing = two_ranks(root)
            cells += more
    cells = [judge(cell) for cell in cells]
    seconds = time.perf_counter() - started
    if options.json:
        versions = {"lit_tune": lit_tune.__version__, "torch": torch.__version__, "peers": list(PEERS)}
        report = {"versions": versions, "seconds": seconds, "not_run": missing, "cells": cells}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"Relative error of the gradient, logged loss. Batch x accumulation, {WINDOW} rows per step.\n")
    print(table(cells, "train", "trainer", options.markdown))
    print(f"\nValidation loss of {ROWS} rows by eval batch.\n")
    print(table(cells, "eval", "trainer", options.markdown))
    print(f"\n{tally(cells)}")
    if missing:
        print(f"\nNot run on two ranks, where cells are missing: {missing}")
    print(f"\n{seconds:.0f} s")
    return None


def quiet() -> None:
    """One thread, and no remarks between the numbers."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lit_tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


if __name__ == "__main__":
    main()
