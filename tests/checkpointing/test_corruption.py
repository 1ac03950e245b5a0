"""Flipped bits, cut and swapped files: every one is noticed before what is in the file is used."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_runs import built, fit
from toy import toy_rows, write_csv

from lit_tune.checkpointing.durable_io import DurableCheckpointIO
from lit_tune.checkpointing.verified import newest_verified, verify
from lit_tune.errors import StorageError
from lit_tune.preflight.finished_run import check_export
from lit_tune.run_dir import EXPORT_HASHES, RunDir, seal, unseal


class Artefact(NamedTuple):
    """A file of a run, and how it is read by whoever uses it."""

    file: Path
    use: Callable[[], object]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model_dir) -> Path:
    """A finished run of two epochs: best of one step, last of another."""
    folder = tmp_path_factory.mktemp("corrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_TUNE_CACHE", str(folder / "cache"))
        train = write_csv(folder / "train.csv", toy_rows(40, seed=1))
        fit(built(tiny_model_dir, train, folder / "run", trainer__max_epochs=2, checkpoint__keep_last=2))
    return folder / "run"


def artefacts(folder: Path) -> dict[str, Artefact]:
    run_dir = RunDir(folder)
    newest = max(run_dir.checkpoints.glob("last-*.ckpt"))
    hashes = run_dir.read()[EXPORT_HASHES]
    return {
        "checkpoint": Artefact(newest, lambda: DurableCheckpointIO(run_dir).load_checkpoint(newest)),
        "manifest": Artefact(run_dir.manifest, run_dir.read),
        "best": Artefact(run_dir.best / "model.safetensors", lambda: check_export(run_dir, hashes)),
    }


def damaged(content: bytes, flips: int, cuts: int, seed: int):
    """Copies of a file with one bit flipped, and shorter ones."""
    rng = random.Random(seed)
    for place in (rng.randrange(8 * len(content)) for _ in range(flips)):
        copy = bytearray(content)
        copy[place // 8] ^= 1 << place % 8
        yield f"bit {place}", bytes(copy)
    for length in sorted({round(len(content) * i / cuts) for i in range(cuts)}):
        yield f"cut to {length}", content[:length]


def all_noticed(artefact: Artefact, flips: int, cuts: int, seed: int = 0) -> int:
    """Number of damaged copies, each of which was refused."""
    content, used, said = artefact.file.read_bytes(), [], []
    artefact.use()
    for what, copy in damaged(content, flips, cuts, seed):
        artefact.file.write_bytes(copy)
        try:
            artefact.use()
            used.append(what)
        except StorageError as error:
            said.append(str(error))
    artefact.file.write_bytes(content)
    artefact.use()
    assert not used, f"{len(used)} were not noticed: {used[:5]}"
    assert all("Fix: " in text and len(text.splitlines()) <= 6 for text in said)
    return len(said)


@pytest.mark.parametrize("name", ["checkpoint", "manifest", "best"])
def test_flips_and_cuts_are_noticed(run, tmp_path, name):
    copy = shutil.copytree(run, tmp_path / "run")
    assert all_noticed(artefacts(copy)[name], flips=50, cuts=10) == 60


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoint", "manifest", "best"])
@pytest.mark.parametrize("seed", [1])
def test_a_thousand_flips_and_a_hundred_cuts_are_noticed(run, tmp_path, name, seed):
    copy = shutil.copytree(run, tmp_path / "run")
    assert all_noticed(artefacts(copy)[name], flips=1000, cuts=100, seed=seed) == 1100


def test_every_bit_of_a_manifest_counts():
    """White space, digits, the letters of a number such as 1e-05, and the hash itself."""
    manifest = {"lr": 1e-05, "metrics": {"f1": 0.5, "no": None}, "text": "é"}
    content = seal(manifest)
    assert unseal(content) == manifest
    for place in range(8 * len(content)):
        copy = bytearray(content)
        copy[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match="own hash does not fit"):
            unseal(bytes(copy))


def test_the_run_goes_on_from_the_one_before(run, tmp_path):
    run_dir = RunDir(shutil.copytree(run, tmp_path / "run"))
    old, new = sorted(run_dir.checkpoints.glob("last-*.ckpt"))
    for what, copy in damaged(new.read_bytes(), flips=8, cuts=4, seed=2):
        new.write_bytes(copy)
        choice = newest_verified(run_dir)
        assert choice.step == int(old.stem.split("-")[1]), what
        assert choice.steps_lost == int(new.stem.split("-")[1]) - choice.step
        assert [r.path for r in choice.refused] == [new]
        with pytest.raises(StorageError, match="damaged") as caught:
            verify(run_dir, new)
        assert caught.value.exit_code == 7


HTML = b"<!DOCTYPE html><html><body>504 Gateway Time-out</body></html>"


@pytest.mark.parametrize("other", ["html", "empty", "zeros", "folder", "gone", "circle", "another step", "another run"])
def test_a_swapped_checkpoint_is_not_used(run, tmp_path, other):
    run_dir = RunDir(shutil.copytree(run, tmp_path / "run"))
    old, new = sorted(run_dir.checkpoints.glob("last-*.ckpt"))
    size = new.stat().st_size
    new.unlink()
    if other == "folder":
        new.mkdir()
    elif other == "circle":
        new.symlink_to(new.name)
    elif other == "another run":
        stranger = RunDir(tmp_path / "stranger")
        content = {"global_step": 9, "epoch": 0, "optimizer_states": []}
        DurableCheckpointIO(stranger).save_checkpoint(content, stranger.checkpoints / "x.ckpt")
        shutil.copy(stranger.checkpoints / "x.ckpt", new)
    elif other != "gone":
        new.write_bytes({"html": HTML, "empty": b"", "zeros": bytes(size), "another step": old.read_bytes()}[other])
    choice = newest_verified(run_dir)
    assert choice.path.name != new.name
    for use in (verify, lambda r, path: DurableCheckpointIO(r).load_checkpoint(path)):
        with pytest.raises(StorageError) as caught:
            use(run_dir, new)
        assert "Fix: " in str(caught.value)
