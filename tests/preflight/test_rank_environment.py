"""Variables that tell of other processes: complete sets pass, contradictions and left-overs are named."""

import pytest

from lit_tune.errors import HardwareError
from lit_tune.preflight.rank_environment import check_environment, check_number, launcher_of
from lit_tune.ranks import RANK_ZERO

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_NAME": "train",
}
BY_HAND = {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1234"}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {k: v for k, v in environment.items() if k not in names}


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        (TORCHRUN, "torchrun"),
        (SRUN, "srun"),
        (BY_HAND, "you"),
        (BY_HAND | {RANK_ZERO: "17"}, "lit-tune"),
        ({"SLURM_JOB_NAME": "bash", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "5"}, None),  # a shell inside a job
        (without(SRUN, "SLURM_STEP_ID", "SLURM_NTASKS_PER_NODE") | {"SLURM_NTASKS": "1"}, "srun"),  # sbatch alone
    ],
)
def test_what_a_launcher_sets_passes(environment, launcher):
    check_environment(environment)
    assert launcher_of(environment) == launcher


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE"),
        ({"RANK": "1"}, "RANK"),  # lit-tune would be silent: it takes itself for another rank
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"LOCAL_RANK": "2", "WORLD_SIZE": "2"}, "LOCAL_RANK"),
        (TORCHRUN | {"RANK": "2"}, "RANK"),
        (without(TORCHRUN, "MASTER_PORT"), "TORCHELASTIC_RUN_ID"),
        ({"MASTER_PORT": "tcp://1"}, "MASTER_PORT"),
        (without(SRUN, "SLURM_PROCID"), "SLURM_NTASKS"),
        (without(SRUN, "SLURM_STEP_ID"), "SLURM_NTASKS"),
        (without(SRUN, "SLURM_NTASKS_PER_NODE"), "SLURM_NTASKS"),
    ],
)
def test_contradictions_are_exit_5_and_name_the_variable(environment, place):
    with pytest.raises(HardwareError) as caught:
        check_environment(environment)
    assert caught.value.where == place
    assert caught.value.fix


@pytest.mark.parametrize("environment", [TORCHRUN, BY_HAND, SRUN])
def test_another_number_of_processes_than_the_trainers_is_refused(environment):
    size = int(environment.get("WORLD_SIZE") or environment["SLURM_NTASKS"])
    check_number(environment, size, 1)
    check_number(environment, size // 2, 2)
    with pytest.raises(HardwareError, match=r"trainer.devices x trainer.num_nodes is 1 x 1") as caught:
        check_number(environment, 1, 1)
    assert f"--trainer.devices {size}" in str(caught.value)


def test_a_run_alone_and_ranks_of_ours_count_themselves():
    check_number({}, 2, 1)
    check_number(BY_HAND | {RANK_ZERO: "17"}, 3, 1)
