"""Instruction tuning of a small Llama: lit-tune's packed rows, HF Trainer's padded ones, TRL's packed ones.

    python benchmarks/packing.py --data DATA/gsm8k [--conversations 1500] [--rounds 3] [--json packing.json]

The same conversations once, the same first weights, hyper-parameters and precision, loss on the same answers; a step
has 16 conversations, or as many blocks of 512 tokens as hold about 16. `hf_trainer` pads each batch to its longest row,
in random order; `hf_grouped` first sorts rows by length (`train_sampling_strategy`); `trl` is SFTTrainer with
`packing=True` (best fit decreasing) without its defaults bf16 and gradient checkpointing, and only there where `trl` is
installed; it puts a step's blocks into one long row, which is made for kernels of GPUs. Timed is what lies between the
begin of the first step and the end of the last one: no preparation, no export; the peers take turns. Tokens are those
of conversations, padding is none. Test loss is taken by one plain loop, and shows that the work was the same. Prints a
table of medians, writes JSON.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from decoders import load_texts, make_model, masked, test_loss, tokens_of
from lightning.pytorch.callbacks import Callback
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

import lit_tune

LENGTH, BATCH, BLOCKS, LR, SEED = 512, 16, 5, 2e-3, 1
Row = dict[str, list[int]]


class Clock:
    """Seconds from the first begin of a step to the last end of one, and how many there were."""

    def __init__(self) -> None:
        self.first = self.last = 0.0
        self.num_steps = 0

    def begin(self) -> None:
        """A step begins."""
        self.first = self.first or time.perf_counter()

    def end(self) -> None:
        """A step has ended."""
        self.last = time.perf_counter()
        self.num_steps += 1


class OfLightning(Callback):
    """Tells a clock of lit-tune's steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *given: Any) -> None:
        self.clock.begin()

    def on_train_batch_end(self, *given: Any) -> None:
        self.clock.end()


class OfTrainer(transformers.TrainerCallback):
    """Tells a clock of HF Trainer's steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_begin(self, *given: Any, **more: Any) -> None:
        self.clock.begin()

    def on_step_end(self, *given: Any, **more: Any) -> None:
        self.clock.end()


def run_lit_tune(rows: list[Row], model: Path, out: Path, clock: Clock, train: str) -> Path:
    """One epoch; returns the export."""
    config = {
        "run_dir": str(out / "run"),
        "seed_everything": SEED,
        "task": {"class_path": "InstructionTuning"},
        "model": {"model_name_or_path": str(model)},
        "data": {"train": train, "val_fraction": 0, "max_length": LENGTH, "train_batch_size": BLOCKS},
        "optimizer": {"lr": LR},
        "checkpoint": {"keep_best": 0},
        "logger": "none",
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    trainer, module, datamodule = lit_tune.build(config)
    trainer.callbacks.append(OfLightning(clock))  # type: ignore[attr-defined]
    trainer.fit(module, datamodule=datamodule)
    return out / "run" / "best"


def arguments_of(out: Path, **more: Any) -> dict[str, Any]:
    """Hyper-parameters that both Trainers are given: lit-tune's defaults."""
    return {
        "output_dir": str(out / "hf"),
        "num_train_epochs": 1,
        "learning_rate": LR,
        "weight_decay": 0.01,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "linear",
        "save_strategy": "no",
        "seed": SEED,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        **more,
    }


def trained(trainer: Trainer, clock: Clock, out: Path) -> Path:
    """Train and save."""
    trainer.add_callback(OfTrainer(clock))
    trainer.train()
    trainer.save_model(str(out / "model"))
    return out / "model"


def run_hf_trainer(rows: list[Row], model: Path, out: Path, clock: Clock, train: str, sampling: str = "random") -> Path:
    """One epoch of padded rows."""
    arguments = arguments_of(out, per_device_train_batch_size=BATCH, train_sampling_strategy=sampling)
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=TrainingArguments(**arguments),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(model)),
    )
    return trained(trainer, clock, out)


def run_hf_grouped(rows: list[Row], model: Path, out: Path, clock: Clock, train: str) -> Path:
    """The same, rows of like length together."""
    return run_hf_trainer(rows, model, out, clock, train, "group_by_length")


def run_trl(rows: list[Row], model: Path, out: Path, clock: Clock, train: str) -> Path:
    """One epoch of packed rows by SFTTrainer."""
    from trl import SFTConfig, SFTTrainer

    columns = [{"input_ids": r["input_ids"], "completion_mask": [int(t >= 0) for t in r["labels"]]} for r in rows]
    more = {"per_device_train_batch_size": BLOCKS, "max_length": LENGTH, "gradient_checkpointing": False}
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=SFTConfig(**arguments_of(out, packing=True, packing_strategy="bfd", completion_only_loss=True, **more)),
        train_dataset=Dataset.from_list(columns),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    return trained(trainer, clock, out)


PEERS: dict[str, Callable[[list[Row], Path, Path, Clock, str], Path]] = {
    "lit_tune": run_lit_tune,
    "hf_trainer": run_hf_trainer,
    "hf_grouped": run_hf_grouped,
    "trl": run_trl,
}


def rows_of(train: list[str], tokenizer: Any) -> list[Row]:
    """Conversations as tokens, with the prompt masked out of the labels."""
    pairs = [tokens_of(tokenizer, json.loads(line)["messages"]) for line in train]
    return [{"input_ids": whole[:LENGTH], "labels": masked(prompt, whole)[:LENGTH]} for prompt, whole in pairs]


def measure(data: Path, conversations: int, rounds: int, peers: list[str]) -> dict[str, Any]:
    """Runs of all peers, in turn; the first round is a warm-up and does not count."""
    found: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
    for turn in range(rounds + 1):
        for peer in peers:
            with tempfile.TemporaryDirectory() as folder:
                scratch, clock = Path(folder), Clock()
                files, train, test = load_texts("gsm8k", data, scratch)
                train = train[:conversations] if turn else train[: min(conversations, 100)]
                Path(files["train"]).write_text("\n".join(train), encoding="utf-8")
                model = make_model(train, 4000, scratch / "model", SEED)
                tokenizer = AutoTokenizer.from_pretrained(model)
                rows = rows_of(train, tokenizer)
                export = PEERS[peer](rows, model, scratch, clock, files["train"])
                loss = test_loss(export, tokenizer, "gsm8k", test, LENGTH)
            seconds = clock.last - clock.first
            tokens = sum(len(row["input_ids"]) for row in rows)
            run = {"seconds": seconds, "tokens_per_second": tokens / seconds, "steps": clock.num_steps}
            if turn:
                found[peer].append({**run, "examples_per_second": len(rows) / seconds, "test_loss": loss})
    return {"conversations": conversations, "runs": found}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--conversations", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=None)
    parser.add_argument("--json", type=Path, default=Path("packing.json"))
    options = parser.parse_args()
    peers = options.peers or [name for name in PEERS if name != "trl" or importlib.util.find_spec("trl")]
    found = measure(options.data, options.conversations, options.rounds, peers)
    found["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"gsm8k, {options.conversations} conversations: torch {torch.__version__}, {platform.machine()}")
    print(f"  {'':<12}{'tokens/s':>10}{'examples/s':>12}{'lit-tune is':>13}{'steps':>7}{'test loss':>11}")
    middle = {p: statistics.median(run["tokens_per_second"] for run in runs) for p, runs in found["runs"].items()}
    for peer, runs in found["runs"].items():
        examples = statistics.median(run["examples_per_second"] for run in runs)
        ratio = f"{middle['lit_tune'] / middle[peer]:.2f} x" if "lit_tune" in middle else ""
        line = (
            f"{middle[peer]:>10,.0f}{examples:>12.1f}{ratio:>13}{runs[0]['steps']:>7.0f}{runs[0]['test_loss']:>11.4f}"
        )
        print(f"  {peer:<12}{line}")


if __name__ == "__main__":
    main()
