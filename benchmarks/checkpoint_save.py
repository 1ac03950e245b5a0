"""What a save costs: how long training waits, and how much memory it takes besides the weights.

    python benchmarks/checkpoint_save.py [--megabytes 300]
        [--repeats 5] [--folder .] [--json FILE] [--markdown] [--quick]

One checkpoint (a random BERT after a step of AdamW) is saved by lit-tune's CheckpointIO, by Lightning's own (TMPDIR on
the same file system, and on another one where there is one), and as HF Trainer does it; each save in a forked process,
in turns, the median of the repeats. The yardstick is the shortest way that survives a power cut: write the same bytes,
fsync. Extra memory is the peak of resident memory less what was resident before. "On disk" says whether the way
waits for the disk (fsync) before it returns, "verified" whether it reads back what it wrote; the ways that do neither
are quick because the work is still to be done. Linux only. A minute.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from exactness import aligned, quiet
from lightning.pytorch.plugins.io import TorchCheckpointIO
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from lit_tune.checkpointing.durable_io import DurableCheckpointIO
from lit_tune.run_dir import RunDir

RAW = "write and fsync"
SHARED_MEMORY = Path("/dev/shm")
Save = Callable[[Path], None]


def trained_model(megabytes: float) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A BERT whose checkpoint has about this size, and its AdamW with both moments."""
    hidden = 768 if megabytes >= 200 else 256
    per_layer = 12 * hidden * hidden
    layers = max(1, round(megabytes * 1e6 / 12 / per_layer))  # 4 bytes each for weight and two moments
    config = BertConfig(
        vocab_size=1000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )
    model = BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def hf_trainer(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """A Trainer that could save model, optimizer, schedule and random states now."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = tempfile.mkdtemp()
        arguments = TrainingArguments(folder, report_to=[], use_cpu=True, save_only_model=False)
        trainer: Any = Trainer(model, arguments, train_dataset=[{"x": 1}], optimizers=(optimizer, None))
        trainer.create_scheduler(10, optimizer)
        trainer.state.global_step = 1
    shutil.rmtree(folder)
    return trainer


def hf_save(trainer: Any, folder: Path) -> None:
    """What HF Trainer does when a save is due: a folder below ``folder``."""
    trainer.args.output_dir = str(folder)
    trainer._save_checkpoint(trainer.model, trial=None)


def raw_write(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Save:
    """The bytes of all tensors, one write each, and fsync."""
    moments = [t for state in optimizer.state.values() for t in state.values()]
    tensors = [*(p.detach() for p in model.parameters()), *moments]
    arrays = [memoryview(t.reshape(-1).view(torch.uint8).numpy()) for t in tensors]

    def save(target: Path) -> None:
        file = os.open(target / "raw", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for array in arrays:
            rest = array
            while rest:
                rest = rest[os.write(file, rest) :]
        os.fsync(file)
        os.close(file)

    return save


def ways(megabytes: float) -> dict[str, tuple[Save, str, str]]:
    """Name -> how to save into a folder, is it on disk when it returns, is it verified."""
    model, optimizer = trained_model(megabytes)
    content = {
        "epoch": 0,
        "global_step": 1,
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "optimizer_states": [optimizer.state_dict()],
    }

    def elsewhere(target: Path) -> None:
        tempfile.tempdir = str(SHARED_MEMORY)
        TorchCheckpointIO().save_checkpoint(content, target / "x.ckpt")

    def lightning(target: Path) -> None:
        tempfile.tempdir = str(target)
        TorchCheckpointIO().save_checkpoint(content, target / "x.ckpt")

    def lit_tune(target: Path) -> None:
        run_dir = RunDir(target)
        DurableCheckpointIO(run_dir).save_checkpoint(content, run_dir.checkpoints / "x.ckpt")

    return {
        RAW: (raw_write(model, optimizer), "yes", "no"),
        "lit-tune": (lit_tune, "yes", "yes"),
        "plain Lightning": (lightning, "no", "no"),
        "plain Lightning, TMPDIR on another file system": (elsewhere, "no", "no"),
        "HF Trainer": (partial(hf_save, hf_trainer(model, optimizer)), "no", "no"),
    }


def resident(name: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(1024 * int(words[1]) for words in lines if words[0] == f"{name}:")


def measured(save: Save, folder: Path) -> dict[str, float]:
    """One save in a forked process: seconds, those on the CPU, extra bytes of memory, bytes of the files."""
    target = Path(tempfile.mkdtemp(dir=folder))
    come, go = os.pipe()
    number = os.fork()
    if number == 0:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        before = resident("VmRSS")
        started, busy = time.perf_counter(), time.process_time()
        save(target)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        os.write(go, json.dumps({"seconds": seconds, "cpu": busy, "memory": resident("VmHWM") - before}).encode())
        os._exit(0)
    os.close(go)
    with os.fdopen(come) as answer:
        text = answer.read()
    os.waitpid(number, 0)
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    shutil.rmtree(target)
    os.sync()  # what one way has left in the page cache is not for the next to wait for
    return {**json.loads(text), "size": size}


def measure(megabytes: float, repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Medians of each way."""
    chosen = ways(megabytes)
    if SHARED_MEMORY.stat().st_dev == folder.stat().st_dev:
        chosen = {name: way for name, way in chosen.items() if "another" not in name}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    for repeat in range(repeats + 1):
        for name, (save, _, _) in chosen.items():
            once = measured(save, folder)
            if repeat:  # the first round warms up
                found[name].append(once)
    middle = {
        name: {key: statistics.median(x[key] for x in rounds) for key in rounds[0]} for name, rounds in found.items()
    }
    return [
        {
            "way": name,
            **middle[name],
            "times_raw": middle[name]["seconds"] / middle[RAW]["seconds"],
            "all_seconds": [x["seconds"] for x in found[name]],
            "on_disk": on_disk,
            "verified": verified,
        }
        for name, (_, on_disk, verified) in chosen.items()
    ]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--markdown", action="store_true", help="table as Markdown")
    parser.add_argument("--quick", action="store_true", help="20 MB, once")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    megabytes, repeats = (20.0, 1) if options.quick else (options.megabytes, options.repeats)
    lines = measure(megabytes, repeats, options.folder.resolve())
    if options.json:
        options.json.write_text(json.dumps({"repeats": repeats, "lines": lines}, indent=1) + "\n")
    header = [
        "way",
        "files, MB",
        "seconds",
        "x raw",
        "CPU s",
        "extra memory, MB",
        "of the files",
        "on disk",
        "verified",
    ]
    cells = [
        [
            line["way"],
            f"{line['size'] / 1e6:.0f}",
            f"{line['seconds']:.2f}",
            f"{line['times_raw']:.2f}",
            f"{line['cpu']:.2f}",
            f"{line['memory'] / 1e6:.1f}",
            f"{line['memory'] / line['size']:.0%}",
            line["on_disk"],
            line["verified"],
        ]
        for line in lines
    ]
    print(aligned([header, *cells], options.markdown))


if __name__ == "__main__":
    main()
