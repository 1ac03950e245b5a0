"""A run that is told to end, or one of whose processes dies: every rank ends, with the right code, and nothing is lost.

Time bounds here are only those of ``rank_cases``: a deadlock fails, a busy machine does not.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rank_cases import Run, wait_for
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
    if not (target == "1" and (run.folder / "export.0").exists()):  # rank zero would be done before it hears of it
        run.go_on()


def manifest(run: Run) -> dict:
    return json.loads((run.folder / "run" / "manifest.json").read_text())


def steps_kept(run: Run) -> int:
    """Optimizer steps in the newest checkpoint that verifies."""
    choice = newest_verified(RunDir(run.folder / "run"))
    return choice.step if choice is not None else 0


def importing(folder: Path, rank: int, *arguments: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that pauses on one rank where torch is imported, and the file that says so."""
    marker = folder / "import"
    program = folder / "program.py"
    program.write_text(f"""
import os, pathlib, sys, time
class Pause:
    def find_spec(self, name, *more):
        if name == "torch" and int(os.environ.get("LOCAL_RANK", 0)) == {rank}:
            pathlib.Path({str(marker)!r}).write_text(str(os.getpid()))
            time.sleep(60)
sys.meta_path.insert(0, Pause())
from lit_tune.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
""")
    command = [sys.executable, str(program), "fit", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True), marker


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


@pytest.mark.slow
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


def test_an_error_of_one_rank_ends_the_run_with_its_code_and_its_words(start):
    """Lightning 2.6.6 kills all processes, itself included, and says nothing."""
    run = start("error", 2)
    assert run.codes() == [3, 3], run.output()
    assert "train.csv:7: no label" in run.output()
    assert "rank 1 (pid " in run.output()
    assert "Traceback" not in run.output()
    assert "no label" in manifest(run)["error"]


def test_a_signal_while_torch_is_imported_ends_at_once(tmp_path):
    process, marker = importing(tmp_path, 0)
    wait_for(marker.exists, "the import")
    process.send_signal(TERM)
    assert process.communicate(timeout=60)[1] == "lit-tune: ended by SIGTERM\n"
    assert process.returncode == 143


@pytest.mark.slow
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
    # torch tells the signal only where its SIGCHLD handler is in force; after many fits in one process it may not be
    assert f"a data worker (process {worker.pid}) " in run.output()
    assert "/dev/shm has" in run.output()
    assert "--shm-size" in run.output()
    assert "Traceback" not in run.output()


def test_ranks_talk_once_per_optimizer_step_and_not_at_all_between(start):
    """Lightning 2.6.6 broadcasts a flag before each micro-batch, and waits for all ranks before each of its sums."""
    micro = ("--data.train_batch_size", "2", "--trainer.accumulate_grad_batches", "2", "--trainer.max_epochs", "1")
    run = start("counted", 2, *micro)
    assert run.codes() == [0, 0], run.output()
    for rank in range(2):
        # four steps: DDP's sum of the gradients, our totals; DDP repeats the model's constants once per step
        assert int((run.folder / f"collectives.{rank}").read_text()) == 4 + 4 + 4


@pytest.mark.slow
def test_a_worker_that_hangs_ends_the_run_with_its_stack(start):
    run = start("none", 1, "--data.num_workers", "1", "--hang_timeout_seconds", "5", "--task", "rank_cases.StuckTask")
    run.meet(2)
    assert run.code() == 5, run.output()
    assert run.orphans() == []
    assert " in stuck" in run.output()
    assert "Traceback" not in run.output()


STEPS_KEPT = {"tokenizing": 0, "setup": 0, "step": 3, "validation": 4, "save": 5, "export": 8}
PHASES = [phase for phase in STEPS_KEPT if phase != "tokenizing"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["0", "1", "all", "group"])
@pytest.mark.parametrize("signum", [TERM, INT])
@pytest.mark.parametrize("phase", PHASES)
def test_any_signal_to_any_rank_in_any_phase_ends_all_and_the_same_command_goes_on(start, phase, signum, target):
    run = start(phase, 2, "--data.num_workers", "1", "--data.eval_batch_size", "1")
    send(run, signum, target, run.at(phase, 2))
    assert run.codes() == [128 + signum, 128 + signum], run.output()
    assert run.orphans() == []
    assert manifest(run)["status"] == "interrupted"
    assert steps_kept(run) == STEPS_KEPT[phase]
    assert "Traceback" not in run.output()
    run.go_on()
    again = Run(run.arguments, run.folder)
    assert set(again.codes()) == {0}, again.output()
    assert manifest(run)["status"] == "complete"
    assert manifest(run)["steps"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("target", ["0", "1"])
@pytest.mark.parametrize("phase", PHASES)
def test_the_death_of_any_rank_in_any_phase_ends_all(start, phase, target):
    run = start(phase, 2, "--data.num_workers", "1", "--data.eval_batch_size", "1")
    pids = run.at(phase, 2)
    send(run, KILL, target, pids)
    assert run.code() == (-KILL if target == "0" else 5), run.output()
    assert run.orphans() == []
    gone = f"rank 0 (pid {pids[0]}) is gone" if target == "0" else f"rank 1 (pid {pids[1]}) was killed by SIGKILL"
    assert gone in run.output()
    run.go_on()
    again = Run(run.arguments, run.folder)
    assert set(again.codes()) == {0}, again.output()
    assert manifest(run)["steps"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["step", "save"])
def test_a_second_ctrl_c_quits_at_once(start, phase):
    run = start(phase, 2)
    run.at(phase, 2)

    def press() -> bool:
        os.killpg(run.pid, INT)  # the same signal twice at once is one; and no word to go on
        return run.poll() is not None

    wait_for(press, "the end")
    assert run.code() == 130, run.output()
    assert run.orphans() == []


@pytest.mark.slow
@pytest.mark.parametrize("signum", [TERM, INT])
def test_a_signal_to_a_rank_that_imports_ends_all(files, tiny_model_dir, tmp_path, signum):
    """Two real processes."""
    process, marker = importing(
        tmp_path,
        1,
        *("--data.train", str(files / "train.csv"), "--model.model_name_or_path", str(tiny_model_dir)),
        *("--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu", "--trainer.devices", "2"),
    )
    wait_for(lambda: marker.exists() and marker.read_text(), "the import")
    rank_one = int(marker.read_text())
    os.kill(rank_one, signum)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    with pytest.raises(ProcessLookupError):
        os.kill(rank_one, 0)
