"""A built wheel works outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from toy import make_tiny_model, toy_rows, write_csv

ROOT = Path(__file__).parent.parent


def run(arguments: list[str], cwd: Path, site: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.slow
def test_a_wheel_trains_outside_the_checkout(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copytree(ROOT / "lit_tune", source / "lit_tune", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path), str(source)]
    done = run([sys.executable, *build], tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("lit_tune-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        assert "lit_tune/py.typed" in archive.namelist()
        assert not [n for n in archive.namelist() if n.startswith("tests")]
    where = run([sys.executable, "-c", "import lit_tune; print(lit_tune.__file__)"], tmp_path, site)
    assert Path(where.stdout.strip()).is_relative_to(site)

    make_tiny_model(tmp_path / "tiny")
    write_csv(tmp_path / "train.csv", toy_rows(40))
    fit = "fit --data.train train.csv --model.model_name_or_path tiny --trainer.max_epochs 1 --trainer.accelerator cpu"
    done = run([sys.executable, "-m", "lit_tune", *fit.split()], tmp_path, site)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "train_tiny" / "best" / "model.safetensors").is_file() or list(
        (tmp_path / "runs").glob("*/best/model.safetensors")
    )
