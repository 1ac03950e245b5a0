"""Does evaluation's memory grow with the number of rows? Peak of resident memory, each run in a process of its own.

    python benchmarks/eval_memory.py [--rows 1000 50000] [--markdown] [--json eval_memory.json] [--quick]

A tiny random BERT (20 classes, or a number) evaluates the same rows with lit-tune (all its metrics, AUROC and Spearman
among them) and with HF Trainer (``compute_metrics`` with scikit-learn's AUROC, or Spearman); and predicts: lit-tune to
a jsonl file, HF Trainer with ``predict`` and a loop that writes it. Measured is anonymous resident memory less what was
there before the first batch: its peak, and what is held when the last batch is through and metrics are not yet
computed. Data were tokenized by an earlier process. Memory freed goes back to the system before the first batch and
after the last. File pages (the memory-mapped rows) do not count: the system takes them back. Growth is the difference
between many and few rows. The design keeps 4 bytes per example and class and 4 per label for AUROC, 8 per example for
Spearman, nothing for predict; the peak holds besides what sorting one class takes for a moment. Linux only. Four
minutes.

About 0.6 MiB of growth is no row's: in the first 2,000 batches Python's small objects spread over the pages of their
arenas (malloc's count of bytes in use stays, and so does all memory from 2,000 batches to 4,000 in predict), and at
most 0.25 MiB is the free part of the newest block of scores.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import scipy.stats
import transformers
from exactness import aligned, quiet
from lightning.pytorch.callbacks import Callback
from peers import Cut, LitTune, write_jsonl
from problems import Problem, tiny_tokenizer
from sklearn.metrics import accuracy_score, roc_auc_score
from transformers import AutoModelForSequenceClassification

import lit_tune
from lit_tune.callbacks.prediction_writer import PredictionWriter

NUM_CLASSES, BATCH = 20, 50  # divides both numbers of rows: a shorter last batch of another length took MKL 4 MiB once
NAMES = tuple(f"c{i:02}" for i in range(NUM_CLASSES))
PROBLEMS = {
    "single-label": Problem("single-label", "single_label_classification", NAMES),
    "regression": Problem("regression", "regression"),
}
STAGES = {
    "evaluate single-label": ("single-label", "validate", 4 * NUM_CLASSES + 4),
    "evaluate regression": ("regression", "validate", 8),
    "predict single-label": ("single-label", "predict", 0),
}
"""Stage -> problem, verb, bytes per example that the design keeps."""
MIB = 2**20
Numbers = dict[str, int]


def status() -> dict[str, int]:
    """Memory of this process in bytes, by the names of ``/proc/self/status``."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[-1:] == ["kB"]}


def give_back() -> None:
    """Freed memory goes back to the system."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


class Meter(Callback):
    """Anonymous memory added since ``start``, in bytes: ``held`` after the last batch, and its peak."""

    held = 0

    def start(self) -> None:
        """Forget the peak so far."""
        give_back()
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident now
        self.before = status()["RssAnon"]

    def last_batch_done(self) -> None:
        """Nothing is computed yet."""
        give_back()
        self.held = status()["RssAnon"] - self.before

    def read(self) -> dict[str, int]:
        """Both; file pages only grow, so that their last count fits the peak."""
        now = status()
        return {"held": self.held, "peak": now["VmHWM"] - now["RssFile"] - now["RssShmem"] - self.before}

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Data and model are ready."""
        self.start()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Callbacks come before the module, which computes."""
        self.last_batch_done()

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Data and model are ready."""
        self.start()

    def on_predict_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """All records are written."""
        self.last_batch_done()


def lit_tune_stage(verb: str, problem: Problem, folder: Path, measure: bool) -> Numbers:
    """Evaluate, or predict to a file; only tokenize where nothing is measured."""
    config = LitTune(problem, folder.parent / problem.name, folder).config(folder / "rows.jsonl", Cut(BATCH, 1), verb)
    trainer, module, datamodule = lit_tune.build(config, {"trainer.precision": "32-true"}, verb=verb)
    datamodule.prepare(verb)
    meter = Meter()
    trainer.callbacks.append(meter)  # type: ignore[attr-defined]
    if measure and verb == "validate":
        trainer.validate(module, datamodule=datamodule, verbose=False)
    elif measure:
        trainer.callbacks.append(PredictionWriter(folder / "lit_tune.jsonl"))  # type: ignore[attr-defined]
        trainer.predict(module, datamodule=datamodule, return_predictions=False)
    return meter.read() if measure else {}


def hf_trainer_stage(verb: str, problem: Problem, folder: Path, measure: bool) -> Numbers:
    """The same; rows memory-mapped, as ``datasets`` gives them."""
    rows = datasets.Dataset.from_json(str(folder / "rows.jsonl"), cache_dir=str(folder / "datasets"))
    tokenizer = tiny_tokenizer()
    regression = problem.problem_type == "regression"

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        tokens = tokenizer([row["text"] for row in batch], padding=True, return_tensors="pt")
        targets = problem.targets(batch)
        return {**tokens, "labels": targets.float() if regression else targets}

    meter = Meter()

    def measures(pair: transformers.EvalPrediction) -> dict[str, float]:
        meter.last_batch_done()
        logits, labels = np.asarray(pair.predictions), np.asarray(pair.label_ids)
        if regression:
            return {"spearman": float(scipy.stats.spearmanr(logits[:, 0], labels).statistic)}
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        auroc = roc_auc_score(labels, odds / odds.sum(-1, keepdims=True), multi_class="ovr")
        return {"accuracy": float(accuracy_score(labels, logits.argmax(-1))), "auroc": float(auroc)}

    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "hf"),
        per_device_eval_batch_size=BATCH,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder.parent / problem.name)
    trainer = transformers.Trainer(model, arguments, collate, eval_dataset=rows, compute_metrics=measures)
    trainer.remove_callback(transformers.PrinterCallback)
    meter.start()
    if measure and verb == "validate":
        trainer.evaluate()
    elif measure:
        trainer.compute_metrics = None
        logits = trainer.predict(rows).predictions
        meter.last_batch_done()
        with (folder / "hf_trainer.jsonl").open("w") as file:
            file.writelines(json.dumps({"label": NAMES[row.argmax()], "logits": row.tolist()}) + "\n" for row in logits)
    return meter.read() if measure else {}


TRAINERS: dict[str, Callable[[str, Problem, Path, bool], Numbers]] = {
    f"lit-tune {lit_tune.__version__}": lit_tune_stage,
    f"HF Trainer {transformers.__version__}": hf_trainer_stage,
}


def prepare(stages: list[str], rows: int, root: Path) -> None:
    """Write rows and models, fill the caches."""
    for name, verb in dict.fromkeys(STAGES[stage][:2] for stage in stages):
        problem, folder = PROBLEMS[name], root / f"{name}_{rows}"
        if not (root / name).exists():
            problem.save_model(root / name)
        if not folder.exists():
            folder.mkdir()
            write_jsonl(problem.rows(rows), folder / "rows.jsonl")
        for trainer in TRAINERS.values():
            trainer(verb, problem, folder, False)


def in_a_process(work: dict[str, Any]) -> Any:
    """Run :func:`worker` in a fresh interpreter; returns what it prints last."""
    ran = subprocess.run([sys.executable, __file__, "--worker", json.dumps(work)], capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{work} failed:\n{ran.stderr[-3000:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def worker(work: dict[str, Any]) -> None:
    """Prepare, or measure one stage with one trainer."""
    root, rows = Path(work["root"]), work["rows"]
    if "stages" in work:
        prepare(work["stages"], rows, root)
        print("null")
        return
    name, verb, _ = STAGES[work["stage"]]
    print(json.dumps(TRAINERS[work["trainer"]](verb, PROBLEMS[name], root / f"{name}_{rows}", True)))


def measure(stages: list[str], sizes: tuple[int, int]) -> list[dict[str, Any]]:
    """All runs; one line of the table per stage and trainer."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in sizes:
            in_a_process({"stages": stages, "rows": rows, "root": folder})
        for stage in stages:
            for trainer in TRAINERS:
                work = {"stage": stage, "trainer": trainer, "root": folder}
                few, many = (in_a_process({**work, "rows": rows}) for rows in sizes)
                kept = STAGES[stage][2] * (sizes[1] - sizes[0])
                lines.append({"stage": stage, "trainer": trainer, "few": few, "many": many, "kept_by_design": kept})
    return lines


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=[1000, 50_000], metavar=("FEW", "MANY"))
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--markdown", action="store_true", help="table as Markdown")
    parser.add_argument("--quick", action="store_true", help="one stage, 200 and 4,000 rows")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    if options.worker:
        return worker(options.worker)
    started = time.perf_counter()
    few, many = sizes = (200, 4000) if options.quick else tuple(options.rows)
    lines = measure(["evaluate single-label"] if options.quick else list(STAGES), sizes)
    seconds = time.perf_counter() - started
    if options.json:
        report = {"rows": sizes, "classes": NUM_CLASSES, "seconds": seconds, "lines": lines}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    header = [
        "stage",
        "trainer",
        f"peak, {few:,} rows",
        f"peak, {many:,} rows",
        "growth",
        "growth of held",
        "design keeps",
    ]
    cells = [
        [
            line["stage"],
            line["trainer"],
            *(f"{line[size]['peak'] / MIB:.1f}" for size in ("few", "many")),
            *(f"{(line['many'][what] - line['few'][what]) / MIB:.1f}" for what in ("peak", "held")),
            f"{line['kept_by_design'] / MIB:.1f}" if line["trainer"].startswith("lit-tune") else "",
        ]
        for line in lines
    ]
    print(f"Memory that evaluation adds, in MiB; {NUM_CLASSES} classes, eval batch {BATCH}.\n")
    print(aligned([header, *cells], options.markdown))
    print(f"\n{seconds:.0f} s")
    return None


if __name__ == "__main__":
    main()
