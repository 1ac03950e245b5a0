"""On a terminal one bar with loss, metric and time left; elsewhere a line per logged step and per validation."""

import io
import re

import pytest
from rich.console import Console
from tiny_runs import built, fit
from toy import toy_rows, write_csv

from lit_tune.callbacks import progress
from lit_tune.callbacks.progress import RunProgress


@pytest.fixture
def run(tiny_model_dir, tmp_path, monkeypatch):
    """Everything a fit of 8 steps prints on a console of this kind, without the colours."""

    def start(name="run", **console):
        out = io.StringIO()
        monkeypatch.setattr(progress, "console", Console(file=out, highlight=False, **console))
        train, val = (str(write_csv(tmp_path / f"{n}.csv", toy_rows(40, seed=n))) for n in range(2))
        options = {"data__train_batch_size": 10, "trainer__max_epochs": 2, "trainer__log_every_n_steps": 1}
        fit(built(tiny_model_dir, train, tmp_path / name, data__val=val, overfit__probe_size=0, **options))
        return without_colours(out.getvalue())

    return start


def without_colours(shown: str) -> str:
    """Text alone."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)


@pytest.mark.parametrize("width", [100, 80])
def test_the_bar_shows_step_time_left_loss_and_metric_on_one_line(run, width):
    shown = run(force_terminal=True, width=width).replace("\r", "\n").splitlines()
    last = [line for line in shown if "8/8" in line][-1]
    assert re.match(r"step ━{16} 8/8 0:00 left loss \d\.\d{4}  val/accuracy \d\.\d{4}  ", last)
    assert len(last) <= width
    assert not [line for line in shown if "validation at step" in line and "step ━" in line]


def test_the_bar_gives_way_from_its_end_where_the_terminal_is_narrow(run):
    shown = run(force_terminal=True, width=60).replace("\r", "\n").splitlines()
    last = [line for line in shown if "8/8" in line][-1]
    assert re.match(r"step ━{16} 8/8 0:00 left loss \d\.\d{4}", last)
    assert len(last) <= 60


def test_elsewhere_there_are_plain_lines(run, messages):
    assert run(force_terminal=False) == ""  # the lines go the way of all messages, into run.log too
    steps = [m for m in messages if m.startswith("step ")]
    assert len(steps) == 8
    pattern = (
        r"step 5/8  epoch 1\.25  0:0\d left  loss \d\.\d{4}  val/accuracy \d\.\d{4}  [\d,]+ rows/s  lr \d\.\d\de-\d\d"
    )
    assert re.fullmatch(pattern, steps[4])
    validations = [m for m in messages if m.startswith("validation at step")]
    pattern = r"validation at step 8 \(epoch 2\.00\)  val/loss \d\.\d{4}  val/accuracy \d\.\d{4}"
    assert re.fullmatch(pattern, validations[-1])
    assert len(validations) == 2


def test_an_evaluation_has_a_bar_on_a_terminal_and_says_nothing_elsewhere(
    tiny_model_dir, tmp_path, monkeypatch, messages
):
    rows = str(write_csv(tmp_path / "rows.csv", toy_rows(40)))
    options = {f"data__{split}": rows for split in ("val", "test", "predict")} | {"data__eval_batch_size": 10}
    made = fit(built(tiny_model_dir, rows, tmp_path / "run", overfit__probe_size=0, **options))
    for verb in ("validate", "test", "predict"):
        said = len(messages)
        for is_terminal in (True, False):
            out = io.StringIO()
            console = Console(file=out, highlight=False, force_terminal=is_terminal, width=100)
            monkeypatch.setattr(progress, "console", console)
            getattr(made.trainer, verb)(made.module, datamodule=made.datamodule)
            shown = without_colours(out.getvalue()).replace("\r", "\n").split("\n")
            full = [line for line in shown if re.match(rf"{verb} +━{{16}} 4/4 0:00 left", line)]
            assert bool(full) == is_terminal, shown
        assert not [m for m in messages[said:] if "validation at step" in m]  # the report says it


def test_without_a_known_end_no_time_is_guessed():
    bar = RunProgress(metric_log=None)
    assert bar.time_left(5, None) == ""
    assert bar.time_left(0, 10) == ""


def test_ranks_above_zero_are_silent(run, monkeypatch, messages):
    monkeypatch.setattr(RunProgress, "enable", RunProgress.disable)
    bar = RunProgress(metric_log=None)
    bar.disable()
    bar.open("step", 10)
    assert bar.bar is None
