"""A run that is told to end, or one of whose processes dies: every rank ends, with the right code, and nothing is lost.

Time bounds here are only those of ``rank_cases``: a deadlock fails, a busy machine does not.
"""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
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
        count = {"class_path": "rank_cases.CollectiveCount", "init_args": {"folder": str(folder)}}
        callback = json.dumps([count if phase == "counted" else pause])
        task = ["--task", "rank_cases.PausedTask", "--task.init_args.folder", str(folder)]
        arguments = [
            *("fit", "--allow-import", "rank_cases"),
            *("--data.train", str(files / "train.csv"), "--data.val", str(files / "val.csv")),
            *("--data.train_batch_size", "8", "--logger", "none"),
            *("--model.model_name_or_path", str(tiny_model_dir), "--run_dir", str(folder / "run")),
            *("--trainer.accelerator", "cpu", "--trainer.devices", str(ranks), "--trainer.max_epochs", "2"),
            *("--trainer.callbacks", callback, *(task if phase == "tokenizing" else [])),
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


def test_sigterm_while_rows_are_tokenized_ends_at_once(start):
    run = start("tokenizing")
    send(run, TERM, "0", run.at("tokenizing", 1))
    assert run.code() == 143, run.output()
    assert manifest(run)["status"] == "interrupted"
    assert run.output().endswith("lit-tune: ended by SIGTERM\n")


def test_ctrl_c_in_a_validation_leaves_it_and_it_is_due_again(start):
    run = start("validation", 2, "--data.num_workers", "1", "--data.eval_batch_size", "1")
    send(run, INT, "group", run.at("validation", 2))
    assert run.codes() == [130, 130], run.output()
    assert run.orphans() == []
    assert steps_kept(run) == 4
    choice = newest_verified(RunDir(run.folder / "run"))
    assert choice is not None
    checkpoint = torch.load(choice.path, weights_only=True)
    assert checkpoint["lit_tune"]["position"]["is_validation_due"] is True


def test_sigterm_during_a_save_lets_it_finish_and_stops_after_the_next_step(start):
    run = start("save", 1, "--checkpoint.every_n_steps", "1")
    send(run, TERM, "0", run.at("save", 1))
    assert run.code() == 143, run.output()
    assert steps_kept(run) == 2


def test_sigterm_during_the_export_keeps_the_trained_run(start):
    run = start("export")
    send(run, TERM, "0", run.at("export", 1))
    assert run.code() == 143, run.output()
    assert manifest(run)["status"] == "interrupted"
    assert steps_kept(run) == 16
    assert not (run.folder / "run" / "best").exists()


def test_a_killed_rank_is_named_and_ends_the_run(start):
    run = start("step", 2)
    pids = run.at("step", 2)
    send(run, KILL, "1", pids)
    assert run.code() == 5, run.output()
    assert run.orphans() == []
    assert f"rank 1 (pid {pids[1]}) was killed by SIGKILL" in run.output()
    assert "Traceback" not in run.output()
    assert manifest(run)["status"] == "failed"


def test_no_rank_outlives_rank_zero(start):
    run = start("step", 2)
    pids = run.at("step", 2)
    send(run, KILL, "0", pids)
    assert run.code() == -KILL
    assert run.orphans() == []
    assert f"rank 1 ends: rank 0 (pid {pids[0]}) is gone" in run.output()


def test_a_rank_that_hangs_ends_the_run_with_the_stacks_of_all(start):
    run = start("step", 2, "--hang_timeout_seconds", "5")
    run.at("step", 2)  # and no word to go on
    assert run.code() == 5, run.output()
    assert run.orphans() == []
    assert "s without progress after optimizer step 2; the stacks above show where" in run.output()
    assert "in wait_for" in run.output()
    assert "in wait_for" in (run.folder / "run" / "run.log").read_text()


def test_a_killed_worker_is_exit_5_and_shared_memory_is_named(start):
    run = start("step", 1, "--data.num_workers", "1")
    run.at("step", 1)
    (worker,) = [p for p in run.family if p.pid != run.pid]
    worker.kill()
    run.go_on()
    assert run.code() == 5, run.output()
    assert f"a data worker (process {worker.pid}) was killed by signal Killed; /dev/shm has" in run.output()
    assert "--shm-size" in run.output()
    assert "Traceback" not in run.output()


def test_ranks_talk_once_per_optimizer_step_and_not_at_all_between(start):
    """Lightning 2.6.6 broadcasts a flag before each micro-batch, and waits for all ranks before each of its sums."""
    micro = ("--data.train_batch_size", "2", "--trainer.accumulate_grad_batches", "2", "--trainer.max_epochs", "1")
    run = start("counted", 2, *micro)
    assert run.codes() == [0, 0], run.output()
    for rank in range(2):
        counts = json.loads((run.folder / f"collectives.{rank}.json").read_text())
        # four steps: DDP's sum of the gradients and our totals; DDP repeats the model's constants once per step
        assert counts == {"gloo:all_reduce": 4 + 4, "gloo:broadcast": 4}
