"""The run directory: whose files are deleted, when it is free, what is written down."""

import json
import math
import os
import shutil
import subprocess

import pytest
import torch

from lit_tune.errors import StorageError
from lit_tune.run_dir import ARTEFACTS, RunDir, environment, git_commit, write_json


def earlier_run(path, **manifest):
    """Every artefact of a run, and a file that is not ours."""
    path.mkdir()
    for name in ARTEFACTS:
        target = path / name
        if "." in name:
            target.write_text("{}")
        else:
            target.mkdir()
            (target / "content").write_text("x")
    RunDir(path).write({"status": "complete", "trained": True, **manifest})
    (path / "notes.txt").write_text("mine")
    return RunDir(path)


def test_a_new_directory_is_made(tmp_path):
    run = RunDir(tmp_path / "a" / "b")
    run.check_free(overwrite=False)
    run.claim(overwrite=False)
    assert list(run.path.iterdir()) == []


@pytest.mark.parametrize("status", ["complete", "running", "failed", "interrupted"])
def test_a_run_that_trained_is_kept(tmp_path, status):
    run = earlier_run(tmp_path / "run", status=status)
    with pytest.raises(StorageError, match=status) as caught:
        run.claim(overwrite=False)
    assert "Fix: --overwrite" in str(caught.value)
    assert (run.best / "content").exists()


def test_overwrite_deletes_what_we_wrote_and_nothing_else(tmp_path):
    run = earlier_run(tmp_path / "run")
    run.claim(overwrite=True)
    assert [p.name for p in run.path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("deleted", range(len(ARTEFACTS)))
def test_killed_while_it_deletes_a_run_the_directory_is_free(tmp_path, monkeypatch, deleted):
    run, left = earlier_run(tmp_path / "run"), deleted

    def killed(real):
        def delete(path, *args, **kwargs):
            nonlocal left
            if os.path.basename(path) in ARTEFACTS:
                if left == 0:
                    raise KeyboardInterrupt
                left -= 1
            return real(path, *args, **kwargs)

        return delete

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", killed(os.unlink))
        patch.setattr(shutil, "rmtree", killed(shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            run.claim(overwrite=True)
    RunDir(run.path).check_free(overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_others_are_never_taken_for_a_run(tmp_path, overwrite):
    """A project's own checkpoints/ must not go because somebody wrote run_dir: . --overwrite."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "precious.pt").write_text("x")
    with pytest.raises(StorageError, match="checkpoints"):
        RunDir(tmp_path).claim(overwrite)
    assert (tmp_path / "checkpoints" / "precious.pt").exists()


def test_other_files_do_not_hinder_overwrite_but_are_a_reason_not_to_start(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"is not empty \(notes.txt\)"):
        RunDir(tmp_path).claim(overwrite=False)
    RunDir(tmp_path).claim(overwrite=True)
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_failed_before_its_first_step_is_free_again(tmp_path, status):
    run = earlier_run(tmp_path / "run", status=status, trained=False)
    run.claim(overwrite=False)
    assert {p.name for p in run.path.iterdir()} == {"notes.txt", "tensorboard", "csv", "wandb"}


def test_folders_that_loggers_have_opened_are_the_start_of_this_run(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events").write_text("x")
    RunDir(tmp_path).claim(overwrite=False)
    assert (tmp_path / "tensorboard" / "events").exists()


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    run = earlier_run(tmp_path / "run")
    elsewhere = tmp_path / "big_disk"
    run.checkpoints.rename(elsewhere)
    run.checkpoints.symlink_to(elsewhere)
    run.claim(overwrite=True)
    assert (elsewhere / "content").exists()
    assert not run.checkpoints.is_symlink()


@pytest.mark.parametrize("name", ["file", "file/run", "x" * 300])
def test_a_place_that_cannot_be_written_is_told(tmp_path, name):
    (tmp_path / "file").write_text("")
    run = RunDir(tmp_path / name)
    with pytest.raises(StorageError, match="run_dir: ") as caught:
        run.claim(overwrite=False)
    assert "Fix: " in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_told(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(StorageError, match="Permission denied"):
        RunDir(tmp_path / "run").claim(overwrite=False)


def test_a_broken_manifest_is_told(tmp_path):
    (tmp_path / "manifest.json").write_text('{"status": "comp')
    with pytest.raises(StorageError, match=r"manifest\.json: cannot be read"):
        RunDir(tmp_path).claim(overwrite=False)


def test_updates_keep_the_other_fields(tmp_path):
    run = RunDir(tmp_path)
    run.write({"a": 1, "b": 2})
    run.update({"b": 3})
    assert run.read() == {"a": 1, "b": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_a_manifest_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    run.write({"a": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        run.write({"a": 2})
    assert run.read() == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_undefined_numbers_become_null(tmp_path):
    write_json(tmp_path / "x.json", {"auroc": math.nan, "list": [1, math.inf, {"a": -math.inf}], "text": "NaN"})
    read = json.loads((tmp_path / "x.json").read_text())
    assert read == {"auroc": None, "list": [1, None, {"a": None}], "text": "NaN"}


def test_the_commit_of_the_working_folder_is_written_down(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None

    def git(*args):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(["git", *identity, *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "f").write_text("1")
    git("add", "f")
    git("commit", "-q", "-m", "one")
    git("tag", "-a", "v1", "-m", "a tag does not replace the commit")
    commit = git("rev-parse", "HEAD")
    assert git_commit() == commit
    (tmp_path / "f").write_text("2")
    assert git_commit() == f"{commit}-dirty"


def test_a_machine_without_git_is_no_problem(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_versions_are_written_down():
    found = environment()
    assert found["versions"]["torch"] == torch.__version__
    assert {"transformers", "lightning", "datasets"} <= set(found["versions"])
    assert {"python", "platform", "git_commit", "started"} <= set(found)
