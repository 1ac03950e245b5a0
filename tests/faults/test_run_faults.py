"""Faults of a run, rows 51 to 75 of the table: each ends with the right exit code and a message that helps.

Silent success counts as a failure. Every case is the command line in a process of its own, met by the fault itself: a
second process, a signal, a small disk, a spoilt file, a variable of an old job.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import datasets
import pytest
import torch
from checkpointing.faults import Board, Fault, inject, small_disk
from checkpointing.resume_matrix import differences, final_state
from faults.runs import Outcome, ended, joined, nothing, start
from rank_cases import Run, wait_for
from toy import make_tiny_model, toy_rows, write_csv

from lit_tune import console
from lit_tune.checkpointing import durable_io
from lit_tune.run_dir import RunDir
from lit_tune.run_lock import RunLock

slow = pytest.mark.slow

STEPS = 8
"""Two epochs of four steps; a validation and a checkpoint after each."""

NOT_HERE = {
    "70 bf16 that is not supported": "torch computes bf16 on every CPU, and on GPUs older than Ampere by emulation: "
    "no device at hand refuses it",
    "72 locks of a real NFS": "no such file system can be mounted here: flock answers ENOSYS, as it does there",
}
"""What cannot be produced here, and why."""


def test_every_row_from_51_to_75_is_here():
    tested = {int(n) for name in globals() for n in re.findall(r"(?<=_)\d\d(?=_)", name)}
    assert tested == set(range(51, 76))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    make_tiny_model(folder / "model")
    write_csv(folder / "train.csv", toy_rows(64, seed=1))
    write_csv(folder / "val.csv", toy_rows(20, seed=2))
    return folder


class Place:
    """Where the cases of one test run.

    Args:
        files: Model and data.
        folder: Empty.
    """

    def __init__(self, files: Path, folder: Path) -> None:
        self.files, self.folder = files, folder
        self.run = RunDir(folder / "run")

    def command(self, *more: str, **keys: object) -> list[str]:
        settings = {
            "run_dir": self.run,
            "model.model_name_or_path": self.files / "model",
            "data.train": self.files / "train.csv",
            "data.val": self.files / "val.csv",
            "trainer.accelerator": "cpu",
            "trainer.max_epochs": 2,
            "trainer.enable_progress_bar": "false",
            "checkpoint.keep_last": 2,
            "overfit.enabled": "false",
            "optimizer.lr": 0.01,
            "logger": "none",
            **{key.replace("__", "."): value for key, value in keys.items()},
        }
        packages = ["--allow-import", "faulty", "--allow-import", "faults", "--allow-import", "rank_cases"]
        return ["fit", *packages, *more, *(str(x) for key, value in settings.items() for x in (f"--{key}", value))]

    def fit(self, *more: str, before=nothing, **keys: object) -> Outcome:
        output = self.folder / "output"
        code = ended(start(self.command(*more, **keys), output, before))
        return Outcome(code, output.read_text(), self.run)

    def paused(self, phase: str, **keys: object) -> Run:
        """A run that pauses at a phase, in a process group of its own."""
        pause = {"class_path": "rank_cases.Pause", "init_args": {"folder": str(self.folder), "phase": phase}}
        return Run(self.command(trainer__callbacks=json.dumps([pause]), **keys), self.folder)

    def outcome(self, run: Run) -> Outcome:
        """How a paused run ended."""
        code = run.code()
        assert run.orphans() == []
        return Outcome(code, run.output(), self.run)

    def checkpoints(self) -> list[Path]:
        return sorted(self.run.checkpoints.glob("last-*.ckpt"))


@pytest.fixture
def place(files, tmp_path) -> Place:
    return Place(files, tmp_path)


@pytest.fixture(scope="module")
def complete(files, tmp_path_factory) -> Path:
    """A complete run that nobody changes."""
    place = Place(files, tmp_path_factory.mktemp("complete"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_TUNE_CACHE", str(place.folder / "cache"))
        place.fit().goes_on()
    return place.run.path


@pytest.fixture
def finished(place, complete) -> Place:
    """The place with a copy of the complete run in it."""
    shutil.copytree(complete, place.run.path)
    return place


def faulty_loss(**init_args: object) -> str:
    return json.dumps({"class_path": "faulty.FaultyLoss", "init_args": init_args})


def callbacks(class_path: str, **init_args: object) -> str:
    return json.dumps([{"class_path": class_path, "init_args": init_args}])


# ---- the run directory: 51, 52, 53 -----------------------------------------------------------------------------------


def test_51_a_changed_learning_rate_is_told_in_a_table_and_needs_allow_changed(finished):
    outcome = finished.fit(optimizer__lr=0.5, logger="csv")
    outcome.ends(7, f"{finished.run}: the config has changed: optimizer.lr", "--allow-changed")
    assert "optimizer.lr 0.01 -> 0.5 needs --allow-changed" in joined([outcome.said])
    assert "logger none -> csv no effect on the weights" in joined([outcome.said])


@slow
def test_51_what_was_allowed_is_used(finished):
    longer = finished.fit("--allow-changed", optimizer__lr=0.5, trainer__max_epochs=3)
    longer.goes_on("optimizer.lr")
    assert longer.manifest["steps"] == STEPS // 2 * 3


def test_51_a_harmless_change_is_accepted(finished):
    finished.fit(logger="csv", early_stopping__patience=9).goes_on("no effect on the weights", "is complete: 8 steps")


def test_51_another_number_of_ranks_is_refused(finished):
    outcome = finished.fit(trainer__devices=2)
    outcome.ends(7, f"{finished.run}: the config has changed: trainer.devices", "--allow-changed")


@pytest.mark.parametrize("allowed", [pytest.param([], marks=slow), ["--allow-changed"]], ids=["", "allowed"])
def test_51_another_model_is_refused_whatever_is_allowed(finished, allowed):
    outcome = finished.fit(*allowed, model__freeze="backbone")
    outcome.ends(7, f"{finished.run}: the config has changed: model.freeze", "--run_dir NEW")


@slow
def test_51_other_rows_behind_the_same_path_are_noticed(finished, tmp_path):
    """The config is the same; labels of another class have come into the file."""
    train = shutil.copy(finished.files / "train.csv", tmp_path / "train.csv")
    fresh = Place(finished.files, tmp_path / "own")
    fresh.folder.mkdir()
    fresh.fit(data__train=train).goes_on()
    write_csv(tmp_path / "train.csv", [*toy_rows(64, seed=1), {"text": "mud", "label": "odd", "score": 1}])
    outcome = fresh.fit(data__train=train, trainer__max_epochs=3)
    outcome.ends(7, "run_dir: the data changed since the run was started", "--allow-changed")


def test_52_a_complete_run_is_left_alone(finished):
    before = {p: p.read_bytes() for p in finished.run.path.rglob("*") if p.is_file()}
    finished.fit().goes_on("is complete: 8 steps", "nothing to do", "--overwrite")
    outcome = finished.fit(resume="never")
    outcome.ends(7, f"run_dir: {finished.run} holds a run with status 'complete'", "--overwrite", "--run_dir NEW")
    assert {p: p.read_bytes() for p in finished.run.path.rglob("*") if p.is_file()} == before


def test_53_a_run_in_use_is_refused_and_its_owner_named(finished):
    come, go = os.pipe()
    owner = os.fork()
    if not owner:
        lock = RunLock(finished.run.path)
        lock.acquire()
        os.write(go, b"x")
        signal.pause()
    try:
        os.read(come, 1)
        for more in ([], ["--overwrite"]):
            outcome = finished.fit(*more, trainer__max_epochs=3)
            outcome.ends(7, f"run_dir: {finished.run} is in use by process {owner} on {socket.gethostname()}")
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    assert (finished.run.path / ".lock").exists()
    finished.fit().goes_on("is complete")  # the lock of the dead does not count


# ---- numbers and memory: 54, 55, 56 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["loss", pytest.param("inf", marks=slow), pytest.param("gradient", marks=slow)])
def test_54_a_loss_or_gradient_that_is_no_number_never_reaches_the_weights(place, fault):
    outcome = place.fit(task__init_args__loss=faulty_loss(calls=[5], fault=fault))
    outcome.ends(6, "step 6: loss ", "gradient norm ", "lr ", "rows of train: ", "The weights were not changed")
    assert f"Last good checkpoint: {place.checkpoints()[-1]}" in " ".join(outcome.said.split())
    kept = torch.load(place.checkpoints()[-1], weights_only=True)
    assert kept["global_step"] == 4
    assert all(torch.isfinite(v).all() for v in kept["state_dict"].values())
    assert outcome.manifest["status"] == "failed"


@slow
def test_54_steps_that_may_be_skipped_are_counted(place):
    outcome = place.fit(task__init_args__loss=faulty_loss(calls=[5]), optimizer__skip_nonfinite=2)
    outcome.goes_on("step 6 is left out (1 of 2): loss nan")
    assert outcome.manifest["skipped_steps"] == 1


def test_55_a_validation_that_is_no_number_ends_the_run_and_best_stays(place):
    loss = faulty_loss(calls=[2, 3, 4], while_training=False)
    outcome = place.fit(task__init_args__loss=loss, trainer__num_sanity_val_steps=0, data__eval_batch_size=10)
    best = place.run.checkpoints / "best-0000004.ckpt"
    outcome.ends(6, "step 8: val/loss is nan: training has diverged", f"the best checkpoint stays {best}")
    assert [p.name for p in place.run.checkpoints.glob("best-*")] == [best.name]


@slow
def test_55_divergence_is_never_exported(place):
    outcome = place.fit(optimizer__name="sgd", optimizer__lr=1e30, trainer__gradient_clip_val=0)
    outcome.ends(6, "step ", "a smaller optimizer.lr")
    assert not place.run.best.exists()


def test_56_exhausted_memory_names_shape_peak_and_three_settings(place):
    outcome = place.fit(task__init_args__loss=faulty_loss(calls=[5], fault="memory in backward"))
    outcome.ends(8, "data.train_batch_size: out of memory in training: a batch of 16 x ", "peak ", ", or ")
    assert outcome.said.count(", or") == 2
    assert torch.load(place.checkpoints()[-1], weights_only=True)["global_step"] == 4


@slow
def test_56_auto_batch_halves_and_goes_on(place):
    loss = faulty_loss(calls=list(range(99)), fault="memory", above_rows=8)
    outcome = place.fit(task__init_args__loss=loss, data__auto_batch="true")
    outcome.goes_on("Trying again with less")
    assert outcome.manifest["decisions"]["train_batch_size"] == 8
    assert outcome.manifest["steps"] == STEPS


# ---- signals and death: 57, 58, 59, 65, 66, 67 -----------------------------------------------------------------------


@pytest.fixture
def paused(place):
    """Starts runs that pause; nothing of them is left behind."""
    runs = []

    def pause(phase: str, **keys: object) -> Run:
        runs.append(place.paused(phase, **keys))
        return runs[-1]

    yield pause
    for run in runs:
        run.kill()


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=slow)],
    ids=["57 sigterm", "58 sigint"],
)
def test_57_58_one_signal_ends_after_the_step_with_a_save(place, paused, signum, code):
    run = paused("step")
    run.at("step", 1)
    os.kill(run.pid, signum)
    run.go_on()
    outcome = place.outcome(run)
    assert outcome.code == code, outcome.said
    name = signal.Signals(signum).name
    assert outcome.said.endswith(f"lit-tune: ended by {name} after step 3: the same command continues there\n")
    assert "Traceback" not in outcome.said
    assert place.checkpoints()[-1].name == "last-0000003.ckpt"
    assert outcome.manifest["status"] == "interrupted"


@slow
@pytest.mark.ddp
@pytest.mark.parametrize("rank", [0, 1])
def test_57_sigterm_to_any_rank_ends_both(place, paused, rank):
    run = paused("step", trainer__devices=2, data__train_batch_size=8)
    os.kill(run.at("step", 2)[rank], signal.SIGTERM)
    run.go_on()
    assert place.outcome(run).code == 143
    assert run.codes() == [143, 143]
    assert place.checkpoints()[-1].name == "last-0000003.ckpt"


def test_58_the_second_ctrl_c_quits_at_once(place, paused):
    run = paused("step")
    run.at("step", 1)
    # and no word to go on; pressed until it is gone, for two that come together may be one
    wait_for(lambda: os.kill(run.pid, signal.SIGINT) or run.poll() is not None, "the end")
    outcome = place.outcome(run)
    assert outcome.code == 130, outcome.said
    assert "Traceback" not in outcome.said
    assert not place.checkpoints()


@slow
def test_59_kill_minus_nine_inside_a_save_and_the_same_command_ends_as_if_nothing_had_been(place, paused, complete):
    run = paused("save", checkpoint__every_n_steps=3)
    run.at("save", 1)
    os.kill(run.pid, signal.SIGKILL)
    assert place.outcome(run).code == -signal.SIGKILL
    place.fit().goes_on()
    assert differences(final_state(RunDir(complete)), final_state(place.run)) == []


@slow
def test_65_a_worker_killed_by_full_shared_memory_is_named_with_what_helps(place, paused):
    run = paused("step", data__num_workers=1)
    run.at("step", 1)
    (worker,) = [p for p in run.family if p.pid != run.pid]
    os.kill(worker.pid, signal.SIGBUS)  # what the kernel sends where /dev/shm is full
    run.go_on()
    outcome = place.outcome(run)
    first = f"data.num_workers: a data worker (process {worker.pid}) was killed by signal Bus error"
    outcome.ends(5, first, "/dev/shm has ", "--shm-size=2g", "data.num_workers: 0")


@slow
def test_66_a_run_that_hangs_ends_with_the_stacks(place, paused):
    run = paused("step", hang_timeout_seconds=5)
    run.at("step", 1)
    outcome = place.outcome(run)
    assert outcome.code == 5, outcome.said
    assert "in wait_for" in outcome.said
    message = outcome.said[outcome.said.index("hang_timeout_seconds: rank 0: ") :]
    assert "s without progress after optimizer step 2; the stacks above show where" in message
    assert "Fix: " in message
    assert len(message.strip().splitlines()) <= 6


@slow
@pytest.mark.ddp
def test_67_a_dead_rank_is_named_and_all_end(place, paused):
    run = paused("step", trainer__devices=2, data__train_batch_size=8)
    pids = run.at("step", 2)
    began = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    run.go_on()
    outcome = place.outcome(run)
    assert time.monotonic() - began < 30
    outcome.ends(5, f"rank 1 (pid {pids[1]}) was killed by SIGKILL", "the same command continues the run")


# ---- storage: 60, 61, 62, 63, 64, 71 ---------------------------------------------------------------------------------


def disk_fault(place: Place, effect: str, lasts: bool = False, kind: str = "fsync"):
    """In the run's own process a call on a file in checkpoints fails."""

    def before() -> None:
        durable_io.PAUSES_SECONDS = (0.0, 0.0)
        inject(RunDir(place.run.checkpoints), Board(), Fault(kind, 1, effect, lasts))

    return before


def test_60_a_disk_without_room_for_two_checkpoints_is_refused_before_training(place):
    class Usage:
        total, used, free = 2**40, 2**40 - 2**20, 2**20

    def full() -> None:
        shutil.disk_usage = lambda path: Usage

    outcome = place.fit(before=full)
    outcome.ends(7, f"{place.run.checkpoints}: ", "MB are needed, 1.0 MB are free", "free some space")
    assert not place.checkpoints()
    assert outcome.manifest.get("trained") is not True


@slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_60_a_small_disk_is_refused_before_training(place):
    with small_disk(place.folder / "disk", "size=2m") as disk:
        place.run = RunDir(disk / "run")
        place.fit().ends(7, f"{place.run.checkpoints}: ", "MB are needed", "MB are free", "free some space")


@slow
def test_60_one_failed_save_is_survived(place):
    place.fit(before=disk_fault(place, "ENOSPC")).goes_on("was not saved, training goes on", "No space left on device")


@slow
def test_60_a_disk_that_stays_full_ends_the_run(place):
    outcome = place.fit(before=disk_fault(place, "ENOSPC", lasts=True))
    outcome.ends(7, str(place.run.checkpoints), "No space left on device", "free some space")
    assert not list(place.run.path.rglob(".*.tmp"))


def test_61_a_folder_that_cannot_be_written_is_refused_before_the_model_loads(place):
    if os.geteuid() == 0:  # whom no permission stops
        disk = small_disk(place.folder / "disk", "ro")
    else:
        (place.folder / "disk").mkdir(mode=0o500)
        disk = nullcontext(place.folder / "disk")
    with disk as folder:
        place.run = RunDir(folder / "run")
        outcome = place.fit()
    outcome.ends(7, f"run_dir: cannot write {place.run}: ", "a folder you can write to")
    assert "new weights" not in outcome.said


@slow
@pytest.mark.parametrize("effect", ["EDQUOT", "EIO"])
def test_62_trouble_of_a_moment_is_tried_again(place, effect):
    said = os.strerror(getattr(errno, effect))
    outcome = place.fit(before=disk_fault(place, effect))
    outcome.goes_on(f"{said}; trying again")
    assert "was not saved" not in outcome.said


@slow
@pytest.mark.parametrize("effect", ["EDQUOT", "EIO"])
def test_62_trouble_that_lasts_ends_the_run_and_what_was_saved_stays(finished, effect):
    outcome = finished.fit(before=disk_fault(finished, effect, lasts=True), trainer__max_epochs=4)
    said = os.strerror(getattr(errno, effect))
    outcome.ends(7, f"{finished.run.checkpoints}", f"the checkpoint cannot be written: {said}")
    assert outcome.said.count("trying again") >= 4
    finished.fit(trainer__max_epochs=4).goes_on("resume", "step 8")


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_63_a_damaged_last_checkpoint_is_passed_over_and_the_loss_told(finished):
    newest = finished.checkpoints()[-1]
    spoil(newest)
    outcome = finished.fit(trainer__max_epochs=3)
    outcome.goes_on(f"not used {newest.name}: it is damaged", "last-0000004.ckpt, step 4; 4 steps are lost")
    assert outcome.manifest["steps"] == STEPS // 2 * 3


def test_63_a_damaged_checkpoint_that_was_named_is_refused(finished):
    newest = finished.checkpoints()[-1]
    spoil(newest)
    outcome = finished.fit(trainer__max_epochs=3, resume=newest)
    outcome.ends(7, f"{newest}: it is damaged", "resume: auto takes the newest checkpoint that is whole")


@pytest.mark.parametrize("resume", ["auto", "named"])
def test_64_a_checkpoint_of_another_version_is_refused_with_a_table(finished, resume):
    entries = finished.run.read()["checkpoints"]
    older = [{**e, "versions": {**e["versions"], "lightning": "2.5.1", "lit-tune": "0.0.1"}} for e in entries]
    finished.run.update({"checkpoints": older})
    newest = finished.checkpoints()[-1]
    outcome = finished.fit(trainer__max_epochs=3, resume=newest if resume == "named" else "auto")
    outcome.ends(7, f"{newest}: it was written by other versions", "lightning 2.5.1", "lit-tune 0.0.1")
    if resume == "auto":
        finished.fit("--allow-changed", trainer__max_epochs=3).goes_on("was written by", "lightning 2.5.1")


@slow
def test_71_the_order_is_that_of_steps_not_of_a_clock(finished):
    first, newest = finished.checkpoints()
    os.utime(first, (4e9, 4e9))  # in 2096
    os.utime(newest, (1, 1))

    def another_time() -> None:
        now = time.time
        time.time = lambda: now() - 1e8

    finished.fit(before=another_time, trainer__max_epochs=3).goes_on(f"resume {newest}, step 8")


# ---- what the machine is like: 68, 69, 70 ----------------------------------------------------------------------------


def test_68_a_port_in_use_is_named_with_its_owner(place, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        outcome = place.fit(before=taken.close, trainer__devices=2)
    outcome.ends(5, f"MASTER_PORT: port {port} is in use by process {os.getpid()}", "unset MASTER_PORT")


@pytest.mark.parametrize(
    ("left", "first"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE: 2, but LOCAL_RANK is not set"),
        ({"RANK": "1"}, "RANK: 1 of 1 processes"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK: is set, WORLD_SIZE not"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, "SLURM_NTASKS: 4 tasks, but this process was not started by srun"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "4"}, "WORLD_SIZE: 4, but trainer.devices x trainer.num_nodes is 1 x 1"),
        ({"MASTER_PORT": "tcp://10.0.0.1"}, "MASTER_PORT: 'tcp://10.0.0.1' is not a number"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_69_variables_of_an_old_job_are_refused(place, monkeypatch, left, first):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    place.fit().ends(5, first)
    assert not place.run.manifest.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize("accelerator", ["gpu", pytest.param("cuda", marks=slow)])
def test_70_a_gpu_that_is_not_there_is_exit_5(place, accelerator):
    place.fit(trainer__accelerator=accelerator).ends(5, f"trainer.accelerator: {accelerator} was asked for")


@pytest.mark.parametrize("precision", ["16-mixed", pytest.param("16-true", marks=slow)])
def test_70_fp16_on_the_cpu_is_exit_2(place, precision):
    place.fit(trainer__precision=precision).ends(2, f"trainer.precision: {precision} needs a GPU", "bf16-mixed")


# ---- what stands around a run: 72, 73, 74, 75 ------------------------------------------------------------------------


@pytest.fixture
def locked(place, monkeypatch) -> tuple[list[str], list[Path]]:
    """A command that reads a folder laid out like a Hub repository, and the lock files of the cache that it needs."""
    folder = place.folder / "repository"
    folder.mkdir()
    shutil.copy(place.files / "train.csv", folder / "train.csv")
    cache = place.folder / "datasets"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    command = place.command(data__dataset=folder, trainer__max_epochs=1)
    for key in ("--data.train", "--data.val"):
        at = command.index(key)
        del command[at : at + 2]
    command[0] = "prepare"
    assert ended(start(command, place.folder / "first")) == 0, (place.folder / "first").read_text()
    return command, [Path(f"{p.parent}_builder.lock") for p in cache.rglob("dataset_info.json")]


def impatient() -> None:
    console.TOLD_AFTER_SECONDS, console.ENDED_AFTER_SECONDS = 0.1, 0.3


def test_72_a_lock_that_another_process_holds_is_named_and_waited_for(place, locked):
    command, locks = locked
    assert locks
    come, go = os.pipe()
    owner = os.fork()
    if not owner:
        held = [path.open("w") for path in locks]
        for file in held:
            fcntl.flock(file, fcntl.LOCK_EX)
        os.write(go, b"x")
        signal.pause()
    os.read(come, 1)
    output = place.folder / "output"
    output.touch()
    pid = start(command, output, impatient)
    try:
        wait_for(lambda: "waiting for" in output.read_text(), "a word about the lock")
        time.sleep(0.5)  # longer than it waits for the locks of the dead
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    assert ended(pid) == 0, output.read_text()
    assert f"warning: waiting for {locks[0]}" in output.read_text()


def test_72_a_lock_left_on_a_file_system_without_locks_is_named(place, locked):
    command, locks = locked
    for path in locks:
        path.write_text("1\nanother.host\n")

    def as_on_nfs() -> None:
        impatient()
        warnings.simplefilter("ignore")  # filelock says that it falls back; here warnings are errors

        def flock(file, operation):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        fcntl.flock = flock

    output = place.folder / "output"
    code = ended(start(command, output, as_on_nfs))
    outcome = Outcome(code, output.read_text(), place.run)
    outcome.ends(7, str(place.folder / "datasets"), ".lock: this lock was waited for", "delete the file")


@pytest.mark.parametrize("from_step", [0, pytest.param(3, marks=slow)], ids=["from the start", "later"])
def test_73_a_tracker_that_cannot_be_reached_does_not_end_training(place, from_step):
    tracker = [{"class_path": "faults.broken_parts.LostTracker", "init_args": {"from_step": from_step}}]
    outcome = place.fit(trainer__logger=json.dumps(tracker), trainer__log_every_n_steps=1)
    outcome.goes_on("LostTracker", "Name or service not known", "training goes on")
    assert outcome.said.count("Name or service not known") == 1, "told once"
    logged = [json.loads(line) for line in place.run.metrics.read_text().splitlines()]
    assert [x["step"] for x in logged if "val/loss" in x] == [4, 8]


def test_74_workers_forked_after_the_tokenizer_ran_make_no_noise(place, monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    outcome = place.fit(data__num_workers=1, trainer__max_epochs=1)
    outcome.goes_on()
    assert "parallelism" not in outcome.said.lower(), outcome.said


@slow
def test_75_a_run_whose_steps_were_all_left_out_is_no_success(place):
    loss = faulty_loss(calls=list(range(99)))
    outcome = place.fit(task__init_args__loss=loss, optimizer__skip_nonfinite=99)
    outcome.ends(6, "optimizer.skip_nonfinite: all 8 optimizer steps were left out")
    assert outcome.manifest["status"] == "failed"
    assert not place.run.best.exists()


@slow
def test_75_a_run_without_any_step_is_no_success(place):
    outcome = place.fit(trainer__max_time="00:00:00:00")
    outcome.ends(7, "run_dir: no optimizer step was taken", "trainer.max_time")
    assert outcome.manifest["status"] == "failed"
    assert not place.run.best.exists()


@pytest.mark.parametrize(
    ("how", "first"),
    [
        pytest.param("cut", "the export does not load", marks=slow),
        ("other", "the reloaded export gives other logits"),
    ],
)
def test_75_an_export_that_is_not_what_was_trained_is_no_success(place, how, first):
    outcome = place.fit(trainer__callbacks=callbacks("faults.broken_parts.SpoiltExport", how=how))
    outcome.ends(7, f"{place.run}: {first}")
    assert outcome.manifest["status"] == "failed"
    assert not place.run.best.exists()
