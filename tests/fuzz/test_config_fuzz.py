"""Whatever stands in a config: it is built, or refused in words. No traceback, no foreign import, nothing written."""

import re
import warnings
from collections import Counter
from pathlib import Path

import pytest
import yaml
from fuzz.mutations import BAIT, CONFIGS, OVERLAYS, cases, leaves, places

from lit_tune import build
from lit_tune.config.sections import all_keys, tasks
from lit_tune.errors import MAX_MESSAGE_LINES, LitTuneError

KEYS = list(all_keys(tasks()["SequenceClassification"]))
EACH_ONCE = len(places(KEYS))


@pytest.fixture
def bait(tmp_path, monkeypatch) -> Path:
    """An empty working folder, and on the path a module that leaves a trace when it is imported."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / f"{BAIT}.py").write_text(
        "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "path")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "path" / f"{BAIT}.ran"


def outcome(text: str) -> int:
    """0 where the config is built, else the exit code; whatever else is raised is a bug."""
    Path("c.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a strange value may well be worth a warning of Lightning's
            build("c.yaml")
    except LitTuneError as error:
        for problem in getattr(error, "problems", [error]):
            assert problem.fix, str(problem)
            assert len(str(problem).splitlines()) <= MAX_MESSAGE_LINES, str(problem)
            assert len(str(problem)) < 2000, str(problem)
        return error.exit_code
    return 0


def fuzz(count: int, seed: int, bait: Path, in_pairs: bool = False) -> Counter[int]:
    """How many ended how."""
    codes: Counter[int] = Counter()
    failed = []
    for name, text in cases(count, seed, KEYS, in_pairs):
        try:
            codes[outcome(text)] += 1
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {str(error)[:200]}\n{text[:500]}")
    assert failed == [], f"{len(failed)} of {count}: " + "\n\n".join(failed[:5])
    assert not bait.exists()
    assert [path.name for path in Path.cwd().iterdir()] == ["c.yaml"]
    return codes


def test_500_changes_are_built_or_refused(bait):
    """Two to a config: half the time. All keys of all configs are changed in the long test."""
    codes = fuzz(500, seed=1, bait=bait, in_pairs=True)
    assert sum(codes.values()) > 250
    assert codes[0] > 10  # some changes are harmless: else the test would prove little about building
    assert codes[2] > 200


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 30))
def test_10_000_changed_configs_are_built_or_refused(seed, bait):
    codes = fuzz(500, seed, bait)
    assert codes[0] > 25


@pytest.mark.parametrize("in_pairs", [False, True])
def test_so_many_changes_reach_every_key_of_every_shipped_config(in_pairs):
    assert EACH_ONCE > 600
    names = " ".join(name for name, _ in cases(EACH_ONCE, 1, KEYS, in_pairs))
    changed = re.findall(r"\d+: change_\w+ (\S+) (\S+)", names)
    assert len(changed) == EACH_ONCE
    for file in [*CONFIGS, *OVERLAYS]:
        for path in leaves(yaml.safe_load(file.read_text("utf-8"))):
            assert (file.stem, ".".join(path)) in changed
    assert {("base", key) for key in KEYS} <= set(changed)
