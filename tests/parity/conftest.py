"""Data and model for the parity tests."""

import json
import random
from pathlib import Path

import pytest
from toy import toy_rows


@pytest.fixture(scope="session")
def problems(tmp_path_factory) -> dict[str, Path]:
    """33 rows of ragged length, so that the last window of 16 is short, as single-label, multi-label and regression."""
    folder = tmp_path_factory.mktemp("problems")
    rows = toy_rows(33, seed=3)
    rng = random.Random(4)
    single = [{"text": r["text"], "label": r["label"]} for r in rows]
    multi = [{"text": r["text"], "label": sorted(rng.sample(["a", "b", "c"], rng.randint(0, 3)))} for r in rows]
    numbers = [{"text": r["text"], "label": r["score"]} for r in rows]
    paths = {}
    for name, content in (("single", single), ("multi", multi), ("regression", numbers)):
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(r) + "\n" for r in content))
    return paths
