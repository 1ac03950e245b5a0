"""The same command again: it goes on, says that nothing is left to do, or refuses with a reason and touches nothing."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from checkpointing.resume_matrix import stopped_at
from toy import make_tiny_model, toy_rows, write_jsonl

from lit_tune.__main__ import main
from lit_tune.callbacks.checkpoints import step_of
from lit_tune.cli import parse
from lit_tune.preflight.start import Start, plan_start
from lit_tune.run_dir import RunDir

STEPS = 6  # 2 epochs of 3 steps


class Runs:
    """A finished run, copies of it, and the command that made it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model = make_tiny_model(folder / "model")
        train, val = (
            write_jsonl(folder / "train.jsonl", toy_rows(12)),
            write_jsonl(folder / "val.jsonl", toy_rows(6, 1)),
        )
        values = {
            "model.model_name_or_path": model,
            "data.train": train,
            "data.val": val,
            "data.train_batch_size": 4,
            "trainer.accelerator": "cpu",
            "trainer.max_epochs": 2,
            "trainer.enable_progress_bar": "false",
            "overfit.probe_size": 0,
            "logger": "none",
            "checkpoint.every_n_steps": 1,
            "checkpoint.keep_last": -1,
        }
        self.options = [text for key, value in values.items() for text in (f"--{key}", str(value))]
        self.finished = RunDir(folder / "finished")

    def fit(self, run: RunDir | Path, *more: str) -> int:
        """Exit code of the command."""
        return main(["fit", *self.options, "--run_dir", str(run), *more])

    def plan(self, run: RunDir | Path, *more: str) -> Start:
        """What the command would do."""
        cli = parse([*self.options, "--run_dir", str(run), *more], "fit")
        return plan_start(cli.run_dir, cli.to_yaml(), cli.config.resume)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("start"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_TUNE_CACHE", str(runs.folder / "cache"))
        assert runs.fit(runs.finished) == 0
    return runs


@pytest.fixture(autouse=True)
def told_no_rank(monkeypatch):
    """The command tells the ranks that it starts; the next one here is none of them."""
    monkeypatch.setenv("LIT_TUNE_RESUMED_FROM", "")


@pytest.fixture
def complete(runs, tmp_path) -> RunDir:
    shutil.copytree(runs.finished.path, tmp_path / "run")
    return RunDir(tmp_path / "run")


@pytest.fixture
def killed(runs, tmp_path) -> RunDir:
    """The run as a kill -9 after step 4 left it."""
    return stopped_at(runs.finished, 4, tmp_path / "run")


def content(run: RunDir) -> dict[str, bytes]:
    """Every file of a run but its log."""
    return {str(p): p.read_bytes() for p in run.path.rglob("*") if p.is_file() and p != run.log}


def last_step(run: RunDir) -> int:
    return max(step_of(p) for p in run.checkpoints.glob("last-*.ckpt"))


def refused(runs: Runs, run: RunDir, capsys, *more: str) -> str:
    """What is said; nothing was touched."""
    before = content(run)
    assert runs.fit(run, *more) == 7
    assert content(run) == before
    said = capsys.readouterr()
    assert "Fix: " in said.err
    return said.err + said.out


def test_a_directory_that_is_not_there_is_a_beginning(runs, tmp_path):
    assert runs.plan(tmp_path / "new") == Start(may_change=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("more", [[], ["--logger", "csv"], ["--checkpoint.keep_best", "3"]])
def test_a_complete_run_says_so_and_touches_nothing(runs, complete, capsys, more):
    before = content(complete)
    assert runs.fit(complete, *more) == 0
    assert content(complete) == before
    out = capsys.readouterr().out
    assert f"is complete: {STEPS} steps" in out
    assert "nothing to do" in out


def test_more_epochs_train_the_additional_ones_and_no_others(runs, complete, capsys):
    first = torch.load(complete.checkpoints / f"last-{STEPS:07d}.ckpt", weights_only=True)
    assert runs.fit(complete, "--trainer.max_epochs", "3") == 0
    manifest = complete.read()
    assert (manifest["status"], manifest["steps"], manifest["epochs"]) == ("complete", 9, 3)
    then = torch.load(complete.checkpoints / "last-0000009.ckpt", weights_only=True)
    counts = [c["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"] for c in (first, then)]
    assert counts == [6, 9]
    assert yaml.safe_load(complete.config.read_text())["trainer"]["max_epochs"] == 3
    assert "the run gets longer" in capsys.readouterr().err
    assert runs.plan(complete, "--trainer.max_epochs", "3").is_complete


def test_another_learning_rate_is_refused_with_a_table(runs, complete, killed_too, capsys):
    for run in (complete, killed_too):
        said = refused(runs, run, capsys, "--optimizer.lr", "0.5", "--logger", "csv")
        assert "the config has changed: optimizer.lr" in " ".join(said.split())
        assert "needs --allow-changed" in said
        assert "no effect on the weights" in said


@pytest.fixture
def killed_too(runs, tmp_path) -> RunDir:
    """A killed run beside the complete one."""
    return stopped_at(runs.finished, 4, tmp_path / "killed")


def test_allow_changed_goes_on_with_the_new_value(runs, killed):
    assert runs.fit(killed, "--optimizer.lr", "0.5", "--allow-changed") == 0
    assert killed.read()["steps"] == STEPS
    assert yaml.safe_load(killed.config.read_text())["optimizer"]["lr"] == 0.5
    ours, theirs = (
        torch.load(r.checkpoints / f"last-{STEPS:07d}.ckpt", weights_only=True)["state_dict"]
        for r in (killed, runs.finished)
    )
    assert any(not torch.equal(ours[k], theirs[k]) for k in ours)
    fifth = torch.load(killed.checkpoints / "last-0000005.ckpt", weights_only=True)
    # 6 steps, 1 of warm-up: after step 5 the linear schedule is at one fifth of the new rate, not of the old one
    assert {g["lr"] for g in fifth["optimizer_states"][0]["param_groups"]} == {0.5 / 5}


@pytest.mark.parametrize("change", [["--optimizer.name", "sgd"], ["--model.freeze", "backbone"]])
def test_what_does_not_fit_the_checkpoint_is_refused_even_then(runs, killed, capsys, change):
    said = refused(runs, killed, capsys, *change, "--allow-changed")
    assert "does not fit the checkpoint" in said


def test_never_begins_in_a_free_directory_only(runs, complete, tmp_path, capsys):
    assert "--overwrite" in refused(runs, complete, capsys, "--resume", "never")
    assert runs.plan(tmp_path / "new", "--resume", "never") == Start()
    assert runs.fit(complete, "--resume", "never", "--overwrite") == 0
    assert complete.read()["steps"] == STEPS


def test_a_path_of_its_own_goes_back_to_that_step(runs, complete):
    start = runs.plan(complete, "--resume", str(complete.checkpoints / "last-0000002.ckpt"))
    assert start.checkpoint is not None
    assert start.checkpoint.step == 2


def test_a_path_of_another_run_is_where_a_new_one_begins_and_that_once(runs, tmp_path):
    run, path = RunDir(tmp_path / "new"), runs.finished.checkpoints / "last-0000004.ckpt"
    assert runs.fit(run, "--resume", str(path)) == 0
    assert (run.read()["steps"], run.read()["status"]) == (STEPS, "complete")
    ours, theirs = (
        torch.load(r.checkpoints / f"last-{STEPS:07d}.ckpt", weights_only=True)["state_dict"]
        for r in (run, runs.finished)
    )
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert sorted(step_of(p) for p in run.checkpoints.glob("last-*.ckpt")) == [5, 6]
    assert runs.plan(run, "--resume", str(path)).is_complete  # the same command again
    killed = runs.plan(stopped_at(run, 5, tmp_path / "killed"), "--resume", str(path))
    assert killed.checkpoint is not None
    assert killed.checkpoint.step == 5  # its own newest, not the other run's again


def test_a_path_that_cannot_be_used_is_exit_7(runs, complete, capsys):
    last = complete.checkpoints / "last-0000002.ckpt"
    for damage in (lambda: last.write_bytes(last.read_bytes()[:-1] + b"?"), last.unlink):
        damage()
        said = refused(runs, complete, capsys, "--resume", str(last))
        assert "last-0000002.ckpt" in said


def test_the_weights_of_another_model_are_exit_7_too(runs, tmp_path, capsys):
    wide = make_tiny_model(tmp_path / "wide", hidden=32)
    path = runs.finished.checkpoints / "last-0000004.ckpt"
    code = runs.fit(tmp_path / "new", "--resume", str(path), "--model.model_name_or_path", str(wide))
    said = capsys.readouterr().err
    assert code == 7, said
    assert "Fix: " in said
    assert "Traceback" not in said


def test_a_run_that_died_before_its_first_checkpoint_starts_again(runs, killed, capsys):
    for file in killed.checkpoints.glob("*.ckpt"):
        file.unlink()
    killed.update({"checkpoints": []})
    assert runs.fit(killed) == 0
    assert "died before its first checkpoint" in capsys.readouterr().err
    assert killed.read()["steps"] == STEPS
    assert killed.metrics.read_bytes().count(b'"step": 1,') == 1  # nothing of the first attempt is left


def test_a_run_that_never_trained_is_a_beginning(runs, killed):
    killed.write({"status": "running", "trained": False})
    assert runs.plan(killed) == Start(may_change=True)


def test_the_newest_checkpoint_that_is_whole_is_taken_and_the_loss_is_said(runs, killed, capsys):
    newest = killed.checkpoints / "last-0000004.ckpt"
    newest.write_bytes(newest.read_bytes()[:-5] + b"12345")
    assert runs.fit(killed) == 0
    said = capsys.readouterr().err
    assert "last-0000003.ckpt, step 3; 1 steps are lost and done again" in said
    assert killed.read()["steps"] == STEPS


@pytest.mark.slow
def test_other_data_is_exit_7_and_leaves_the_run_as_it_was(runs, tmp_path, capsys):
    data = tmp_path / "train.jsonl"
    shutil.copy(runs.folder / "train.jsonl", data)
    run = RunDir(tmp_path / "run")
    assert runs.fit(run, "--data.train", str(data)) == 0
    write_jsonl(data, toy_rows(12)[::-1])
    before, config = run.read(), run.config.read_bytes()
    assert runs.fit(run, "--data.train", str(data), "--trainer.max_epochs", "3") == 7
    assert "the data changed since the run was started" in capsys.readouterr().err
    assert (run.read(), run.config.read_bytes()) == (before, config)  # still complete, still to be tested
    assert runs.fit(run, "--data.train", str(data), "--trainer.max_epochs", "3", "--allow-changed") == 0
    assert run.read()["steps"] == 9


@pytest.mark.slow
def test_a_killed_run_keeps_its_config_where_it_cannot_go_on(runs, tmp_path, capsys):
    data = tmp_path / "train.jsonl"
    shutil.copy(runs.folder / "train.jsonl", data)
    full = RunDir(tmp_path / "full")
    assert runs.fit(full, "--data.train", str(data)) == 0
    run = stopped_at(full, 4, tmp_path / "run")
    data.rename(tmp_path / "gone")
    assert runs.fit(run, "--data.train", str(data), "--trainer.max_epochs", "3") == 3
    assert run.read()["status"] == "failed"
    (tmp_path / "gone").rename(data)
    capsys.readouterr()
    assert runs.fit(run, "--data.train", str(data)) == 0  # 2 epochs again: no change of config
    assert "changed" not in capsys.readouterr().err
    assert run.read()["steps"] == STEPS


@pytest.mark.parametrize("text", [None, "", "a: [", "just text", "- a list"])
def test_without_a_config_nobody_knows_what_the_run_was(runs, complete, capsys, text):
    complete.config.unlink()
    if text is not None:
        complete.config.write_text(text)
    assert "config.yaml: cannot be read" in " ".join(refused(runs, complete, capsys).split())


def test_a_damaged_manifest_is_exit_7(runs, complete, capsys):
    complete.manifest.write_text('{"status": "comp')
    assert "manifest.json" in refused(runs, complete, capsys)
