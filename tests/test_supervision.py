"""What is taken over from Lightning's trainer; whole runs in tests/test_signals.py."""

import os
import signal
import socket

import pytest
from lightning.pytorch import Trainer
from tiny_runs import QUIET, built

from lit_tune import interrupts
from lit_tune.errors import HardwareError
from lit_tune.supervision import START_TIMEOUT, OurSignals, RankLauncher, check_port, supervise


@pytest.fixture
def alone(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def trainer(devices: int) -> Trainer:
    return Trainer(**QUIET, devices=devices)


def test_during_a_fit_our_handler_is_the_one_in_force_and_then_the_persons_is_back(alone):
    run = trainer(1)
    supervise(run)
    before = signal.getsignal(signal.SIGTERM)
    run._signal_connector.register_signal_handlers()
    assert interrupts.is_installed()
    run._signal_connector.teardown()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not run.received_sigterm


def test_handlers_of_the_command_line_outlive_a_fit(alone):
    interrupts.install()
    try:
        run = trainer(1)
        supervise(run)
        run._signal_connector.register_signal_handlers()
        run._signal_connector.teardown()
        assert interrupts.is_installed()
    finally:
        interrupts.uninstall()


def test_every_trainer_of_a_config_is_supervised(alone, tiny_model_dir, toy_csv, tmp_path):
    run = built(tiny_model_dir, toy_csv, tmp_path / "run", trainer__devices=2).trainer
    assert isinstance(run._signal_connector, OurSignals)
    assert isinstance(run.strategy.launcher, RankLauncher)
    assert run.strategy._timeout == START_TIMEOUT


def test_processes_that_somebody_else_has_started_are_not_started_again(alone, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = trainer(2)
    supervise(run)
    assert not isinstance(run.strategy.launcher, RankLauncher)


def test_a_port_in_use_is_exit_5_and_names_the_process():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HardwareError) as caught:
            check_port(port)
    assert caught.value.where == "MASTER_PORT"
    assert f"port {port} is in use by process {os.getpid()} (" in str(caught.value)
    check_port(port)
