"""What the environment says about other processes of the run: torchrun, SLURM, or variables that an old job has left.

Lightning believes every one of these variables, and then waits for processes that never come, or lets each of several
processes train alone into the same directory.
"""

import logging
from collections.abc import Mapping

from lit_tune.errors import HardwareError
from lit_tune.ranks import RANK_ZERO

log = logging.getLogger("lit_tune")

NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_PORT", "SLURM_NTASKS", "SLURM_PROCID")
LEFT_OVER = "unset it if an earlier job has left it there"


def launcher_of(environment: Mapping[str, str]) -> str | None:
    """Who starts the processes: ``torchrun``, ``srun``, ``lit-tune``, ``you``; None for a process that runs alone.

    >>> launcher_of({"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"})
    'you'
    >>> launcher_of({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "bash"}) is None
    True
    """
    if RANK_ZERO in environment:
        return "lit-tune"
    if "TORCHELASTIC_RUN_ID" in environment:
        return "torchrun"
    if "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return "srun"
    return "you" if "LOCAL_RANK" in environment else None


def check_environment(environment: Mapping[str, str]) -> None:
    """Refuse variables that contradict each other, before Lightning reads them.

    Args:
        environment: ``os.environ``.

    Raises:
        HardwareError: Names the variables.
    """
    for name in NUMBERS:
        value = environment.get(name)
        if value is not None and not value.isdigit():
            raise HardwareError(f"{value!r} is not a number", where=name, fix=LEFT_OVER)
    launcher = launcher_of(environment)
    if launcher == "srun":
        _check_slurm(environment)
        return
    needed = {"torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"), "you": ("WORLD_SIZE",)}
    missing = [name for name in needed.get(launcher or "", ()) if name not in environment]
    if missing:
        known = "TORCHELASTIC_RUN_ID" if launcher == "torchrun" else "LOCAL_RANK"
        raise HardwareError(
            f"is set, {', '.join(missing)} not: it is unclear which other processes belong to the run",
            where=known,
            fix=f"{LEFT_OVER}; or set all of them, as torchrun does",
        )
    size = int(environment.get("WORLD_SIZE", 1))
    for name in ("RANK", "LOCAL_RANK"):
        if int(environment.get(name, 0)) >= size:
            raise HardwareError(f"{environment[name]} of {size} processes (WORLD_SIZE)", where=name, fix=LEFT_OVER)
    if launcher is None and size > 1:
        raise HardwareError(f"{size}, but LOCAL_RANK is not set", where="WORLD_SIZE", fix=LEFT_OVER)


def _check_slurm(environment: Mapping[str, str]) -> None:
    tasks = int(environment["SLURM_NTASKS"])
    missing = [n for n in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID") if n not in environment]
    if missing or (tasks > 1 and "SLURM_STEP_ID" not in environment):
        raise HardwareError(
            f"{tasks} tasks, but this process was not started by srun",
            where="SLURM_NTASKS",
            fix="srun lit-tune ...; in a shell inside a job: SLURM_JOB_NAME=bash lit-tune ...",
        )
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in environment:
        raise HardwareError(
            f"{tasks} tasks, and it is unclear how many on each node",
            where="SLURM_NTASKS",
            fix=f"sbatch --ntasks-per-node instead of --ntasks={tasks}",
        )


def check_number(environment: Mapping[str, str], num_devices: int, num_nodes: int) -> None:
    """Refuse another number of processes than the trainer counts on; say who starts them, where there are several.

    Args:
        environment: ``os.environ``.
        num_devices: Per node.
        num_nodes: Machines.

    Raises:
        HardwareError: They differ: some would be waited for in vain, or each would train alone.
    """
    launcher = launcher_of(environment)
    if num_devices * num_nodes > 1:
        count = f"{num_devices} processes" + (f" on each of {num_nodes} machines" if num_nodes > 1 else "")
        log.info("ranks    %s, started by %s", count, launcher or "lit-tune")
    if launcher in (None, "lit-tune"):
        return
    name = "SLURM_NTASKS" if launcher == "srun" else "WORLD_SIZE"
    size = int(environment[name])
    if size != num_devices * num_nodes:
        raise HardwareError(
            f"{size}, but trainer.devices x trainer.num_nodes is {num_devices} x {num_nodes}",
            where=name,
            fix=f"--trainer.devices {size // num_nodes}, or {LEFT_OVER}",
        )
