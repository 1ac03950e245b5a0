"""Malicious checkpoints, configs, data and models execute nothing, write nowhere else and end with the right code."""

import sys
from pathlib import Path

import datasets
import pytest
from security.corpus import BAIT, BAIT_SOURCE, CASES, MARKER, Kit
from security.watched import Outcome, watched
from toy import toy_rows, write_csv

LIKE_ANOTHER = {
    "a checkpoint in the legacy format",
    "a checkpoint whose zip climbs out",
    "a manifest that names a file outside",
    "an alias of itself",
    "builtins.eval as a task",
    "importlib as an optimizer",
    "a callback that writes elsewhere",
    "a profiler that writes elsewhere",
    "a config that trusts remote code",
    "a pickle called csv",
    "a pickle called jsonl",
    "a gzip that is no data",
    "an address as data",
    "a parquet that lies about its rows",
    "a checkpoint that names files to delete",
    "a checkpoint that is a tar of pickles",
    "a checkpoint that is a bare pickle",
    "a manifest with a wrong spec",
    "merge keys that multiply",
    "aliases that multiply in a text",
    "torch.hub as a schedule",
    "a module of one's own deep in a mapping",
    "a config that allows imports",
    "a config at an address",
    "a pickle called parquet",
    "a pickle called arrow",
    "a pickle",
    "json lines without end",
    "a data set script alone",
    "a saved data set of pickles",
    "a data set of pandas pickles",
    "a data set of tars with pickles",
    "a data set of zips that climb out",
    "a tokenizer with code of its own",
    "a kernel among the overrides",
    "weights with offsets outside",
    "a chat template with tricks",
}
"""A second or third form of what every ``make test`` tries in one."""


@pytest.fixture(scope="module")
def kit(tmp_path_factory, tiny_model_dir) -> Kit:
    """Good files, and a run that was made of them under the same watch."""
    folder = tmp_path_factory.mktemp("kit")
    train = write_csv(folder / "train.csv", toy_rows(40))
    made = Kit(folder, tiny_model_dir, train, folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        outcome = run_watched(made.fit("--overwrite"), folder, patch)
    assert (outcome.code, outcome.foreign) == (0, []), outcome.err
    return made


def run_watched(arguments: list[str], folder: Path, patch: pytest.MonkeyPatch) -> Outcome:
    """The command may write its run directory and caches, and nothing else."""
    caches = folder / "caches"
    for made in (folder / "run", caches / "lit_tune"):
        made.mkdir(parents=True, exist_ok=True)
    patch.setenv("LIT_TUNE_CACHE", str(caches / "lit_tune"))
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", caches / "datasets")  # read from the environment at import
    return watched(arguments, [folder / "run", caches])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LIKE_ANOTHER else name for name in CASES]
)
def test_a_malicious_file_does_nothing_and_ends_with_the_right_code(name, kit, tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    (tmp_path / "bait").mkdir()
    (tmp_path / "bait" / f"{BAIT}.py").write_text(BAIT_SOURCE)
    monkeypatch.syspath_prepend(tmp_path / "bait")
    monkeypatch.chdir(folder)
    case = CASES[name]
    arguments = case.make(Kit(folder, kit.model, kit.train, kit.run))
    before = set(tmp_path.rglob("*"))
    outcome = run_watched(arguments, folder, monkeypatch)
    assert outcome.foreign == []
    assert outcome.code == case.code, outcome.err
    assert "Traceback" not in outcome.err
    assert case.says in " ".join(outcome.err.split())
    if case.code:
        assert "Fix: " in outcome.err
        assert len(outcome.err.strip().splitlines()) <= 16  # up to 10 of them said by a fit before it fails
    new = set(tmp_path.rglob("*")) - before
    allowed = (folder / "run", folder / "caches")
    assert [p for p in new if not any(p == a or a in p.parents for a in allowed)] == []
    assert MARKER not in {p.name for p in new}
    assert BAIT not in sys.modules


def test_what_is_left_to_the_slow_tests_is_in_the_corpus():
    assert CASES.keys() >= LIKE_ANOTHER
    assert len(CASES) - len(LIKE_ANOTHER) >= 25
