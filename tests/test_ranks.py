"""Ranks that are no more than sleeping processes: who notices whose death, what is said, which code is left."""

import subprocess
import sys
import textwrap

import pytest

from lit_tune.errors import HardwareError
from lit_tune.interrupts import Interruption
from lit_tune.ranks import CONNECTION_LOST, Death, rank_of_process

SETUP = """
import os, signal, subprocess, sys, threading, time
from lit_tune import interrupts, ranks
from lit_tune.ranks import LAST_WORDS, RANK_ZERO, Ranks
ranks.POLL_SECONDS = 0.02
ranks.SETTLE_SECONDS = ranks.UNWIND_SECONDS = ranks.GRACE_SECONDS = 0.5
interrupts.install()

READY = f"import os; os.write(int(os.environ['{LAST_WORDS}']), b'x'); "

def start(*codes):
    processes, words = {}, {}
    for rank, code in enumerate(codes, 1):
        words[rank], pipe = os.pipe()
        own = {"LOCAL_RANK": str(rank), RANK_ZERO: str(os.getpid()), LAST_WORDS: str(pipe)}
        processes[rank] = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **own}, pass_fds=(pipe,))
        os.close(pipe)
    return Ranks(processes, words)

def work(others):
    try:
        time.sleep(60)
    except BaseException as error:
        found = others.settle(error)
        print(type(found).__name__, getattr(found, "exit_code", None), found, flush=True)
        sys.exit(getattr(found, "exit_code", getattr(found, "code", 99)))
"""
TELL = "from lit_tune.ranks import tell_rank_zero; import sys, time; "


def run(code: str) -> subprocess.CompletedProcess:
    """Rank zero as a process of its own."""
    whole = SETUP + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, timeout=120, check=False)


def test_a_rank_that_dies_interrupts_rank_zero_with_its_last_words_and_its_code():
    done = run(
        f"""work(start("{TELL} tell_rank_zero('train.csv:7: no label'); sys.exit(3)", "import time; time.sleep(60)"))"""
    )
    assert done.returncode == 3
    assert "rank 1 (pid " in done.stdout
    assert "train.csv:7: no label" in done.stdout


@pytest.mark.slow
def test_of_several_the_one_that_the_others_died_of_is_named():
    lost = f"{TELL} tell_rank_zero('{CONNECTION_LOST}'); sys.exit(5)"
    done = run(f"""
        ranks.POLL_SECONDS = 3.0  # not looked at before both are gone
        work(start("{lost}", "import os; os.kill(os.getpid(), 9)"))
    """)
    assert done.returncode == 5
    assert "rank 2" in done.stdout
    assert "was killed by SIGKILL" in done.stdout


def test_a_rank_that_was_told_to_end_ends_the_run_in_the_same_way():
    done = run("""work(start("import sys; sys.exit(143)", "import time; time.sleep(60)"))""")
    assert done.returncode == 143
    assert "Interruption None SIGTERM to rank 1" in done.stdout


def test_rank_zero_in_native_code_is_ended_all_the_same():
    done = run("""
        others = start("import os; os.kill(os.getpid(), 9)")
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # no handler runs, as in a collective
        work(others)
    """)
    assert done.returncode == 5
    assert "was killed by SIGKILL" in done.stderr


def test_an_error_of_rank_zero_itself_ends_the_others_and_stays_the_reason():
    done = run("""
        deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); "
        others = start("import time; time.sleep(60)", deaf + READY + "time.sleep(60)")
        os.read(others.words[2], 1)
        error = interrupts.Interruption(15)
        assert others.settle(error) is error
        ranks.join_ranks()
        print([p.poll() for p in others.processes.values()])
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[-15, -9]\n"


def test_a_lost_connection_gives_way_to_the_death_behind_it():
    done = run("""
        others = start("import os, time; time.sleep(0.2); os.kill(os.getpid(), 9)")
        ranks.SETTLE_SECONDS = 30
        print(others.settle(RuntimeError("Connection closed by peer")))
    """)
    assert "was killed by SIGKILL" in done.stdout


def test_rank_zero_waits_for_the_others_before_it_exits():
    done = run("""
        ranks.GRACE_SECONDS = 30
        others = start("import time; time.sleep(1); print('done', flush=True)")
        others.settle(None)
    """)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_a_rank_ends_when_rank_zero_was_killed():
    done = run("""
        child = "from lit_tune import ranks; import time; ranks.watch_rank_zero(); "
        others = start(child + READY + "time.sleep(60)")
        os.read(others.words[1], 1)
        os.kill(os.getpid(), 9)
    """)
    assert done.returncode == -9
    assert "rank 1 ends: rank 0 (pid" in done.stderr


def test_a_program_that_a_rank_starts_is_not_taken_for_one():
    done = run("""
        os.environ[RANK_ZERO] = "1"  # alive, and not the parent of what follows
        code = "from lit_tune import ranks; import time; ranks.watch_rank_zero(); time.sleep(0.5); print('lives')"
        print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    """)
    assert "lives" in done.stdout


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (-9, 5),
        (-11, 5),
        (6, 6),
        (77, 5),
        (1, 1),
    ],
)
def test_the_code_of_a_death_is_the_runs_where_it_has_a_meaning(code, exit_code):
    error = Death(1, 77, code).error()
    assert isinstance(error, HardwareError)
    assert error.exit_code == exit_code
    assert "rank 1 (pid 77)" in str(error)


@pytest.mark.parametrize(("code", "exit_code"), [(143, 143), (-15, 143), (130, 130), (-2, 130)])
def test_a_rank_that_was_interrupted_interrupts_the_run(code, exit_code):
    error = Death(1, 77, code).error()
    assert isinstance(error, Interruption)
    assert error.code == exit_code


def test_the_rank_is_read_from_whoever_started_the_process(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert rank_of_process() == 0
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert rank_of_process() == 3
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert rank_of_process() == 2
    monkeypatch.setenv("RANK", "6")
    assert rank_of_process() == 6
