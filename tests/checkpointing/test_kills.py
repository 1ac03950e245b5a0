"""kill -9 at any moment, the same command again: in the end the weights are those of a run nobody disturbed."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from checkpointing.resume_matrix import differences, final_state, logged
from toy import make_tiny_model, toy_rows, write_jsonl

from lit_tune.__main__ import main
from lit_tune.run_dir import RunDir


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    """40 steps with dropout, a validation every 5 steps, a checkpoint every 3."""
    folder = tmp_path_factory.mktemp("kills")
    model = make_tiny_model(folder / "model", dropout=0.3)
    train, val = write_jsonl(folder / "train.jsonl", toy_rows(80)), write_jsonl(folder / "val.jsonl", toy_rows(16, 1))
    options = {
        "model.model_name_or_path": model,
        "data.train": train,
        "data.val": val,
        "data.train_batch_size": 4,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "optimizer.lr": 0.01,
        "eval_every_steps": 5,
        "logger": "none",
        "checkpoint.every_n_steps": 3,
        "checkpoint.keep_last": 2,
    }
    return ["fit", *(text for key, value in options.items() for text in (f"--{key}", str(value)))]


def start(command: list[str], log: Path) -> int:
    """``lit-tune`` in a child that need not import anything; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = main(command)
    except BaseException:
        code = 99
    os._exit(code)


def run_until_done(command: list[str], run: Path, seed: int, usual: float) -> int:
    """Kill after a random time, start again, until it exits by itself; returns the number of kills.

    Args:
        command: Of the run.
        run: Its folder.
        seed: Of the times.
        usual: Seconds that a whole run takes here and now.
    """
    rng, kills, log = random.Random(seed), 0, run.with_suffix(".log")
    for _ in range(60):
        pid = start([*command, "--run_dir", str(run)], log)
        # from the first line of the verb to beyond the end of the whole run, all orders of magnitude alike
        deadline = time.monotonic() + usual * 10 ** rng.uniform(-2, 0.4)
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                assert os.waitstatus_to_exitcode(status) == 0, log.read_text()[-3000:]
                return kills
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
    pytest.fail(f"not done after {kills} kills: {log.read_text()[-3000:]}")


def undisturbed(command: list[str], folder: Path) -> tuple[RunDir, float]:
    """The run that nothing happens to, and the seconds it takes."""
    run, started = folder / "undisturbed", time.monotonic()
    pid = start([*command, "--run_dir", str(run)], folder / "undisturbed.log")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, (folder / "undisturbed.log").read_text()[-3000:]
    return RunDir(run), time.monotonic() - started


def compare(one: RunDir, other: RunDir) -> list[str]:
    """Weights, optimizer, callbacks, logs, and the exported files."""
    found = differences(final_state(one), final_state(other)) + differences(logged(one), logged(other), "logs")
    for name in ("model.safetensors", "config.json"):
        if (one.best / name).read_bytes() != (other.best / name).read_bytes():
            found.append(f"best/{name} differs")
    return found


def check_kills(command: list[str], folder: Path, wanted: int) -> int:
    """Runs until so many kills have happened; each ends as the undisturbed one did."""
    (expected, usual), kills, seed = undisturbed(command, folder), 0, 0
    while kills < wanted:
        run = RunDir(folder / f"run{seed}")
        kills += run_until_done(command, run.path, seed, usual)
        assert compare(expected, run) == [], f"seed {seed}"
        assert not [p.name for p in run.path.rglob("*.tmp*")]
        seed += 1
    return kills


def test_three_kills(command, tmp_path):
    torch.set_num_threads(1)
    assert check_kills(command, tmp_path, 3) >= 3


@pytest.mark.slow
def test_two_hundred_kills(command, tmp_path):
    torch.set_num_threads(1)
    assert check_kills(command, tmp_path, 200) >= 200
