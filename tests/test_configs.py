"""Every shipped config parses without a problem, alone or, for overlays, on top of another one."""

import re
from pathlib import Path

import pytest
import yaml

from lit_tune import imports
from lit_tune.cli import parse

ROOT = Path(__file__).parents[1] / "configs"
OVERLAYS = sorted((ROOT / "overlays").glob("*.yaml"))
CONFIGS = sorted(p for p in ROOT.rglob("*.yaml") if p not in OVERLAYS)
BASE = ["--data.train", "a.csv", "--model.model_name_or_path", "m"]


@pytest.fixture(autouse=True)
def allowed(request, monkeypatch):
    """What the command in a config's header allows, and nothing else."""
    text = request.node.callspec.params["path"].read_text()
    monkeypatch.setattr(imports, "_added", sorted(set(re.findall(r"--allow-import (\S+)", text))))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_shipped_config_parses(path):
    cli = parse(["--config", str(path)])
    tree = yaml.safe_load(path.read_text())
    if "run_dir" in tree:
        assert cli.config.run_dir == tree["run_dir"]


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda p: p.stem)
def test_an_overlay_parses_on_top_of_a_config(path):
    parse([*BASE, "--config", str(path)])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_no_key_of_a_shipped_config_only_restates_a_default(path):
    defaults = yaml.safe_load(parse(BASE).to_yaml())
    for section, keys in yaml.safe_load(path.read_text()).items():
        if isinstance(keys, dict) and section != "task":
            restated = [k for k, v in keys.items() if k in defaults[section] and defaults[section][k] == v]
            assert restated == [], f"{section}: {restated}"


@pytest.mark.parametrize("path", [*CONFIGS, *OVERLAYS], ids=lambda p: p.stem)
def test_a_shipped_config_says_how_to_run_it(path):
    text = path.read_text()
    assert text.startswith("# ")
    assert f"--config {path.relative_to(ROOT.parent)}" in text or "--config my.yaml" in text
