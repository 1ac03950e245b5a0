"""Counts are exact; the clock stands still during validation; what cannot be measured is left out."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tiny_runs import fit_plain, lines
from toy import toy_rows, write_csv

from lit_tune.callbacks import throughput
from lit_tune.callbacks.eval_schedule import EvalSchedule
from lit_tune.callbacks.jsonl_metrics import JsonlLogger
from lit_tune.callbacks.metric_log import MetricLog
from lit_tune.callbacks.throughput import Throughput, gpu_utilization
from lit_tune.memory import peak_memory

CPU = torch.device("cpu")


class Clock:
    """A clock that only moves when it is told to."""

    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(throughput, "time", made)
    return made


def batch(lengths, width, filler=False):
    mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
    return {"attention_mask": mask, "is_filler": torch.tensor(filler), "example_ids": list(range(len(lengths)))}


def test_rates_are_counts_over_seconds(clock):
    counter = Throughput()
    counter.add(batch([3, 5], 5))
    counter.add(batch([2], 4))
    counter.add(batch([1], 1, filler=True))  # a rank without rows: no work
    clock.now += 2.0
    rates = counter.read(counter.counts(CPU), CPU)
    assert rates["perf/examples_per_second"] == 3 / 2
    assert rates["perf/tokens_per_second"] == 10 / 2
    assert rates["perf/padding_fraction"] == 1 - 10 / 14
    assert rates["perf/peak_memory_gb"] == peak_memory(CPU) / 1e9
    assert "perf/gpu_utilization" not in rates
    clock.now += 1.0
    assert counter.read(counter.counts(CPU), CPU)["perf/examples_per_second"] == 0  # it started again


def test_packed_documents_are_counted_without_a_mask(clock):
    counter = Throughput()
    aside = {"num_tokens": torch.tensor([8, 3])}
    packed = {"position_ids": torch.zeros(2, 8), "aside": aside, "example_ids": [0, 1]}
    counter.add({**packed, "is_filler": torch.tensor(False)})
    clock.now += 1.0
    rates = counter.read(counter.counts(CPU), CPU)
    assert rates["perf/tokens_per_second"] == 11
    assert rates["perf/padding_fraction"] == 1 - 11 / 16


def test_counts_of_several_ranks_add_up(clock):
    one, two = Throughput(), Throughput()
    one.add(batch([3, 5], 5))
    two.add(batch([1], 6))
    clock.now += 1.0
    rates = one.read(one.counts(CPU) + two.counts(CPU), CPU)
    assert rates["perf/tokens_per_second"] == 9
    assert rates["perf/padding_fraction"] == 1 - 9 / 16


def test_validation_is_not_training_time(tiny_model_dir, tmp_path, clock):
    """A tick is one second of the clock: one for each training batch, a thousand for each validation."""

    class Ticks(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            clock.now += 1.0

        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            clock.now += 1000.0

    train, val = (str(write_csv(tmp_path / f"{n}.csv", toy_rows(20, seed=n))) for n in range(2))
    data = {"train": train, "val": val, "train_batch_size": 5}
    callbacks = [EvalSchedule(1), MetricLog(), Ticks()]
    logger = JsonlLogger(tmp_path / "m.jsonl")
    fit_plain(tiny_model_dir, data, callbacks, logger=logger, log_every_n_steps=2, max_epochs=1)
    rates = [x["perf/examples_per_second"] for x in lines(tmp_path / "m.jsonl") if "train/loss" in x]
    assert rates == [5.0, 5.0, 5.0]  # steps 1, 2 and 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that can be asked")
def test_utilisation_is_left_out_where_no_driver_answers():
    assert gpu_utilization(torch.device("cuda", 0)) is None


def test_utilisation_is_left_out_whatever_nvml_says(monkeypatch):
    class NVMLError(Exception):
        """NVML's own: no RuntimeError."""

    def refuse(device):
        raise NVMLError("Not Supported")

    monkeypatch.setattr(throughput.torch, "cuda", SimpleNamespace(utilization=refuse))
    assert gpu_utilization(torch.device("cuda", 0)) is None
    assert gpu_utilization(CPU) is None
