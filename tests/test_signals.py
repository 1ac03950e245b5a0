"""A run that is told to end, or one of whose processes dies: every rank ends, with the right code, and nothing is lost.

Time bounds here are only those of ``rank_cases``: a deadlock fails, a busy machine does not.
"""

import json
import os
import signal
from pathlib import Path

import pytest
from rank_cases import Run
from toy import toy_rows, write_csv

from lit_tune.checkpointing.verified import newest_verified
from lit_tune.run_dir import RunDir

TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Data of all tests here."""
    folder = tmp_path_factory.mktemp("files")
    write_csv(folder / "train.csv", toy_rows(64, seed=1))
    write_csv(folder / "val.csv", toy_rows(40, seed=2))
    return folder


@pytest.fixture
def start(files, tiny_model_dir, tmp_path):
    """Starts runs that pause at a phase, and ends what is left of them."""
    runs = []

    def at(phase: str, ranks: int = 1, *more: str) -> Run:
        folder = tmp_path / f"run{len(runs)}"
        folder.mkdir()
        pause = {"class_path": "rank_cases.Pause", "init_args": {"folder": str(folder), "phase": phase}}
        task = ["--task", "rank_cases.PausedTask", "--task.init_args.folder", str(folder)]
        arguments = [
            *("fit", "--allow-import", "rank_cases"),
            *("--data.train", str(files / "train.csv"), "--data.val", str(files / "val.csv")),
            *("--data.train_batch_size", "8", "--data.eval_batch_size", "1", "--logger", "none"),
            *("--model.model_name_or_path", str(tiny_model_dir), "--run_dir", str(folder / "run")),
            *("--trainer.accelerator", "cpu", "--trainer.devices", str(ranks), "--trainer.max_epochs", "2"),
            *("--trainer.callbacks", json.dumps([pause]), *(task if phase == "tokenizing" else [])),
            *more,
        ]
        runs.append(Run(arguments, folder))
        return runs[-1]

    yield at
    for run in runs:
        run.kill()


def send(run: Run, signum: int, target: str, pids: list[int]) -> None:
    """One signal to a rank, to each rank, or to the group."""
    if target == "group":
        os.killpg(run.pid, signum)
    else:
        for pid in pids if target == "all" else [pids[int(target)]]:
            os.kill(pid, signum)
    run.go_on()


def manifest(run: Run) -> dict:
    return json.loads((run.folder / "run" / "manifest.json").read_text())


def steps_kept(run: Run) -> int:
    """Optimizer steps in the newest checkpoint that verifies."""
    choice = newest_verified(RunDir(run.folder / "run"))
    return choice.step if choice is not None else 0


def test_sigterm_to_rank_one_alone_ends_both_after_the_step_and_saves(start):
    """Lightning 2.6.6 waits for ever: rank one is in a broadcast that rank zero does not join."""
    run = start("step", 2)
    send(run, TERM, "1", run.at("step", 2))
    assert run.codes() == [143, 143], run.output()
    assert run.orphans() == []
    assert manifest(run)["status"] == "interrupted"
    assert steps_kept(run) == 3
    assert "ended by SIGTERM after step 3: the same command continues there" in run.output()
    assert "Traceback" not in run.output()
