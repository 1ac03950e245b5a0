"""Can a run go on after a fault in the middle of a save? Kills and full disks at many points of the same saves.

    python benchmarks/checkpoint_faults.py [--points 24] [--folder .] [--markdown] [--json FILE] [--quick]

A forked process saves a tiny model three times, as each system does it: lit-tune's CheckpointIO (new file, then the old
one is deleted), Lightning's ``save_last`` (last.ckpt is replaced; TMPDIR lies on another file system than the output,
as in a container with a mounted folder), HF Trainer's folders with ``save_total_limit: 1``. strace kills the process,
or makes a system call fail with ENOSPC, at calls that write, copy, rename or sync, spread over the whole. Then the
system is asked what it would resume from: ``newest_verified``, ``last.ckpt``, ``get_last_checkpoint``; and that is
loaded. "Cannot go on" counts the faults after which nothing was there or what was there did not load, once a first save
had been finished. Needs strace, and /dev/shm on another file system than the folder. Some minutes.
"""

import argparse
import json
import mmap
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from checkpoint_save import hf_save, hf_trainer, trained_model
from exactness import aligned, quiet
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

from lit_tune.checkpointing.durable_io import DurableCheckpointIO
from lit_tune.checkpointing.verified import newest_verified
from lit_tune.durable import sweep_temporaries
from lit_tune.errors import StorageError
from lit_tune.run_dir import RunDir

SAVES = 3
CALLS = "write,pwrite64,sendfile,copy_file_range,rename,renameat,renameat2,fsync"
SHARED_MEMORY = Path("/dev/shm")


class LitTune:
    """A new file each time; the old one goes when the new one is verified."""

    name = "lit-tune"

    def __init__(self, content: dict[str, Any], model: Any, optimizer: Any) -> None:
        self.content = content

    def save(self, folder: Path, step: int) -> None:
        durable = DurableCheckpointIO(RunDir(folder))
        paths = [folder / "checkpoints" / f"last-{s}.ckpt" for s in (step - 1, step)]
        durable.save_checkpoint({**self.content, "global_step": step}, paths[1])
        durable.remove_checkpoint(paths[0])

    def load(self, folder: Path) -> int:
        sweep_temporaries(folder)
        choice = newest_verified(RunDir(folder))
        assert choice is not None
        return DurableCheckpointIO(RunDir(folder)).load_checkpoint(choice.path)["global_step"]


class Lightning:
    """last.ckpt is replaced; by a copy, where TMPDIR lies elsewhere."""

    name = "plain Lightning"

    def __init__(self, content: dict[str, Any], model: Any, optimizer: Any) -> None:
        self.content = content

    def save(self, folder: Path, step: int) -> None:
        TorchCheckpointIO().save_checkpoint({**self.content, "global_step": step}, folder / "last.ckpt")

    def load(self, folder: Path) -> int:
        return torch.load(folder / "last.ckpt", weights_only=True)["global_step"]


class HFTrainer:
    """A folder per save, files written in place; the oldest folder goes."""

    name = "HF Trainer"

    def __init__(self, content: dict[str, Any], model: Any, optimizer: Any) -> None:
        self.trainer = hf_trainer(model, optimizer)
        self.trainer.args.save_total_limit = 1

    def save(self, folder: Path, step: int) -> None:
        self.trainer.state.global_step = step
        hf_save(self.trainer, folder)

    def load(self, folder: Path) -> int:
        last = Path(get_last_checkpoint(str(folder)) or "nothing")
        load_file(last / "model.safetensors")
        torch.load(last / "optimizer.pt", weights_only=True)
        torch.load(last / "scheduler.pt", weights_only=True)
        return json.loads((last / "trainer_state.json").read_text())["global_step"]


def attempt(system: Any, folder: Path, fault: str | None) -> tuple[list[str], int]:
    """Three saves in a forked process under strace: names of the calls it made, number of saves it finished."""
    board = mmap.mmap(-1, 16)
    go, come = os.pipe()
    number = os.fork()
    if number == 0:
        os.close(come)
        os.read(go, 1)
        quietly = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quietly, 2)
        try:
            for step in range(1, SAVES + 1):
                system.save(folder, step)
                board[0] = step
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(go)
    log = Path(tempfile.gettempdir()) / f"trace.{number}"
    inject = ["-e", f"inject={fault}"] if fault else []
    command = ["strace", "-f", "-e", f"trace={CALLS}", *inject, "-o", str(log), "-p", str(number)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        assert "attached" in tracer.stderr.readline()
        os.close(come)
        os.waitpid(number, 0)
    lines = [line.split(maxsplit=1) for line in log.read_text().splitlines()]
    log.unlink()
    return [text.partition("(")[0] for thread, text in lines if thread == str(number) and "(" in text], board[0]


def outcome(system: Any, folder: Path) -> int | None:
    """The step the system would go on from; None where it cannot."""
    try:
        return system.load(folder)
    except (AssertionError, StorageError, OSError, RuntimeError, ValueError, EOFError, KeyError):
        return None
    except Exception as error:  # each library has its own
        if type(error).__name__ in ("SafetensorError", "UnpicklingError"):
            return None
        raise


def measure(points: int, folder: Path) -> list[dict[str, Any]]:
    """Each system, each effect, each point."""
    model, optimizer = trained_model(4)
    content = {
        "epoch": 0,
        "state_dict": dict(model.state_dict()),
        "optimizer_states": [optimizer.state_dict()],
    }
    lines = []
    for system in (kind(content, model, optimizer) for kind in (LitTune, Lightning, HFTrainer)):
        whole = Path(tempfile.mkdtemp(dir=folder))
        calls, finished = attempt(system, whole, None)
        assert (finished, outcome(system, whole)) == (SAVES, SAVES)
        shutil.rmtree(whole)
        # strace counts the calls of each name by themselves
        places = [f"{name}:{{}}:when={1 + calls[:i].count(name)}" for i, name in enumerate(calls)]
        for effect, code in (("killed", "signal=SIGKILL"), ("disk full", "error=ENOSPC")):
            cases = stuck = older = 0
            for point in range(points):
                place = Path(tempfile.mkdtemp(dir=folder))
                _, finished = attempt(system, place, places[point * len(places) // points].format(code))
                kept = outcome(system, place)
                if finished:  # before the first save is finished there is nothing to go on from
                    cases += 1
                    stuck += kept is None
                    older += kept is not None and kept < finished
                shutil.rmtree(place)
            lines.append({"system": system.name, "effect": effect, "cases": cases, "stuck": stuck, "older": older})
    return lines


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=24)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--markdown", action="store_true", help="table as Markdown")
    parser.add_argument("--quick", action="store_true", help="4 points")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    tempfile.tempdir = str(SHARED_MEMORY)
    lines = measure(4 if options.quick else options.points, options.folder.resolve())
    if options.json:
        options.json.write_text(json.dumps({"lines": lines}, indent=1) + "\n")
    header = ["system", "fault", "faults after a first save", "cannot go on", "goes on from an older save"]
    cells = [[line["system"], line["effect"], *(str(line[k]) for k in ("cases", "stuck", "older"))] for line in lines]
    print(aligned([header, *cells], options.markdown))


if __name__ == "__main__":
    main()
