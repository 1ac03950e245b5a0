"""What lit-tune takes over from a Lightning trainer so that a run ends well: its signals, its ranks, its waiting times.

Lightning 2.6.6 runs a collective inside its SIGTERM handler (a deadlock when one rank alone is signalled), broadcasts a
flag on every micro-batch to share it, kills everything with SIGKILL when a rank dies, and waits half an hour for one
that never starts.
"""

import logging
import os
import socket
import subprocess
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psutil
import torch
from lightning.fabric.strategies.launchers.subprocess_script import _basic_subprocess_cmd
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from lit_tune import interrupts
from lit_tune.errors import HardwareError
from lit_tune.ranks import LAST_WORDS, RANK_ZERO, Ranks, join_ranks, watch_rank_zero

log = logging.getLogger("lit_tune")

START_TIMEOUT = timedelta(seconds=300)
"""How long ranks that were started together wait for each other (torchtitan's init timeout, config/configs.py)."""
RUN_TIMEOUT = timedelta(minutes=30)
"""How long a collective may take after that, torch's own; the hang watchdog is faster and says more."""


def supervise(trainer: Trainer) -> None:
    """Take over a trainer that has just been made.

    Args:
        trainer: Any; what a strategy does not have is left alone.
    """
    trainer._signal_connector = OurSignals(trainer)
    # the one patch of Lightning: a broadcast and a device synchronisation before each micro-batch
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = nothing  # type: ignore[method-assign]
    strategy: Any = trainer.strategy
    launcher = strategy.launcher
    if (
        isinstance(launcher, _SubprocessScriptLauncher)
        and not launcher.cluster_environment.creates_processes_externally
    ):
        strategy._launcher = RankLauncher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
        if getattr(strategy, "_timeout", None) == RUN_TIMEOUT:
            strategy._timeout = START_TIMEOUT
    watch_rank_zero()


def nothing() -> None:
    """The stop flag rides on the one all-reduce per optimizer step (module.py)."""


def ranks_have_met(trainer: Trainer) -> None:
    """Called once the process group stands: a save or an export by rank zero may take longer than a start."""
    if torch.distributed.is_initialized() and getattr(trainer.strategy, "_timeout", None) == START_TIMEOUT:
        torch.distributed.distributed_c10d._set_pg_timeout(RUN_TIMEOUT)


class OurSignals(_SignalConnector):
    """Leaves the signals to :mod:`lit_tune.interrupts`; ``received_sigterm`` stays False."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.has_installed = False

    def register_signal_handlers(self) -> None:
        """Python users have no handlers of ours yet; the command line has had them from its first line."""
        if not interrupts.is_installed():
            interrupts.install()
            self.has_installed = True

    def teardown(self) -> None:
        """Give a Python user's handlers back."""
        if self.has_installed:
            interrupts.uninstall()
            self.has_installed = False


class RankLauncher(_SubprocessScriptLauncher):
    """Starts the other ranks of this machine, watches them, and ends them with this one."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Start the ranks, then call the function.

        Raises:
            RankFailure: Another rank has died.
            HardwareError: ``MASTER_PORT`` is taken.
        """
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        were_ours = interrupts.is_installed()
        interrupts.install()
        join_ranks()  # those of an earlier fit in this process
        ranks = self.start()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            reason = ranks.settle(error)
            if reason is None or reason is error:
                raise
            raise reason from error
        finally:
            if not were_ours:
                interrupts.uninstall()
        ranks.settle(None)
        return result

    def start(self) -> Ranks:
        """Start one process per further rank: the same command with another ``LOCAL_RANK``."""
        self._check_can_spawn_children()
        environment = self.cluster_environment
        if self.num_nodes == 1:
            os.environ["MASTER_ADDR"] = "127.0.0.1"  # a name left over from a cluster would be waited for
        address = environment.main_address
        port = environment.main_port
        if environment.node_rank() == 0:
            check_port(port)
        os.environ |= {
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            "NODE_RANK": str(environment.node_rank()),
            "LOCAL_RANK": str(environment.local_rank()),
            "WORLD_SIZE": str(self.num_processes * self.num_nodes),
        }
        _set_num_threads_if_needed(self.num_processes)
        words = {}
        for rank in range(1, self.num_processes):
            words[rank], pipe = os.pipe()
            own = {"LOCAL_RANK": str(rank), RANK_ZERO: str(os.getpid()), LAST_WORDS: str(pipe)}
            self.procs.append(self.start_rank({**os.environ, **own}, pipe))
            os.close(pipe)
        return Ranks(dict(enumerate(self.procs, 1)), words)

    def start_rank(self, environment: dict[str, str], pipe: int) -> subprocess.Popen[bytes]:
        """Start one process.

        Args:
            environment: Says which rank it is.
            pipe: A file that it inherits.
        """
        return subprocess.Popen(_basic_subprocess_cmd(), env=environment, pass_fds=(pipe,))


def check_port(port: int) -> None:
    """Refuse a ``MASTER_PORT`` that another process listens on.

    Args:
        port: Given by the person, or just found free.

    Raises:
        HardwareError: It is taken; names the owner where the system tells.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise HardwareError(
                f"port {port} is in use{owner_of(port)}",
                where="MASTER_PORT",
                fix="unset MASTER_PORT (a free one is found), or end that process",
            ) from error


def owner_of(port: int) -> str:
    """`` by process 123 (python)``, or nothing where the system does not tell."""
    try:
        found = [c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.pid]
        return f" by process {found[0]} ({psutil.Process(found[0]).name()})" if found else ""
    except psutil.Error:
        return ""
