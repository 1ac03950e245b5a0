"""The watch over batches that do not end; the whole of it, with ranks, in tests/test_signals.py."""

import threading
import time

import pytest
from tiny_runs import fit_scripted

from lit_tune.callbacks.hang_watchdog import FIRST, SAVE, HangWatchdog, allowed_seconds


@pytest.fixture
def watchdog(monkeypatch):
    """One that notes what it would end."""
    found = []
    dog = HangWatchdog(0.2)
    monkeypatch.setattr(dog, "_end", lambda: found.append(dog.doing))
    dog.found = found
    yield dog
    dog.close()


class Trainer:
    """What the watch asks of a trainer."""

    global_rank = 0
    global_step = 7
    strategy = None


def watches() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "hang watchdog"]


def wait(condition) -> bool:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize(
    ("pauses", "timeout", "expected"),
    [
        ([], 300, 300),
        ([0.1] * 9, 300, 300),
        ([60.0] * 9, 300, 600),
        ([1.0] * 4 + [900.0], 300, 300),
        ([40.0], 300, 400),
    ],
)
def test_a_pause_is_a_hang_after_ten_usual_ones_and_the_timeout(pauses, timeout, expected):
    assert allowed_seconds(pauses, timeout) == expected


def test_it_names_what_ended_last(watchdog):
    watchdog.setup(Trainer(), None, "fit")
    watchdog.on_train_batch_end(Trainer())
    watchdog.on_train_batch_end(Trainer())
    assert wait(lambda: watchdog.found)
    assert watchdog.found == ["optimizer step 7"]


def test_first_batches_and_saves_may_take_longer(watchdog):
    watchdog.setup(Trainer(), None, "fit")
    assert watches()
    assert watchdog._factor == FIRST
    watchdog.on_train_batch_end(Trainer())
    assert watchdog._factor == FIRST  # the first validation may follow
    watchdog.on_train_batch_end(Trainer())
    assert watchdog._factor == 1
    watchdog.on_save_checkpoint(Trainer())
    assert watchdog._factor == SAVE
    watchdog.on_validation_batch_end(Trainer())
    assert watchdog._factor == FIRST


def test_a_run_that_goes_on_is_left_alone_and_the_watch_ends_with_it():
    dog = HangWatchdog(300)
    trainer, _ = fit_scripted([{"val/loss": 1.0}], [dog])
    assert trainer.global_step == 2
    assert not watches()


def test_zero_watches_nothing():
    dog = HangWatchdog(0)
    dog.setup(Trainer(), None, "fit")
    assert not watches()
    dog.close()
