"""The model card says what was trained on what with which result, and nothing about this machine."""

import json
from pathlib import Path

import pytest
import yaml
from tiny_runs import built, fit
from toy import toy_rows, write_csv

from lit_tune.callbacks.model_card import config_excerpt, metrics_table


@pytest.fixture(scope="module")
def card(finished_run):
    return (finished_run / "best" / "README.md").read_text()


def test_the_header_is_what_the_hub_reads(card):
    _, header, _ = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["lit-tune"],
    }  # no base_model: the name of a local folder means something else on the Hub


def test_a_local_folder_is_no_base_model_whatever_its_path_looks_like(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model_dir.parent)
    train = write_csv(tmp_path / "train.csv", toy_rows(20))
    fit(built(Path(tiny_model_dir.name), train, tmp_path / "run", data__val_fraction=0))
    text = (tmp_path / "run" / "best" / "README.md").read_text()
    assert "base_model" not in text
    assert "No validation split" in text


def test_it_holds_data_metrics_verdict_config_and_versions(card, finished_run):
    manifest = json.loads((finished_run / "manifest.json").read_text())
    assert "60 train, 20 val rows" in card
    assert "`bad`, `fine`, `good`" in card
    best, base = manifest["best_metrics"]["val/accuracy"], manifest["spec"]["baseline"]["accuracy"]
    assert f"| accuracy | {best:.4f} | {base:.4f} |" in card
    assert manifest["verdict"]["message"] in card
    assert "lr: 0.01" in card
    assert f"transformers {manifest['versions']['transformers']}" in card


def test_nothing_in_best_names_a_place_on_this_machine(finished_run):
    places = {str(finished_run.parent), str(Path.cwd()), str(Path.home()), "train.csv"}
    for path in (finished_run / "best").iterdir():
        content = path.read_bytes()
        assert not [p for p in places if p.encode() in content], path.name


def test_an_undefined_metric_is_a_dash():
    table = metrics_table({"step": 3, "val/auroc": None, "val/f1/good": 0.5, "probe/f1": 1.0}, {"auroc": 0.5})
    assert table[4:] == ["| auroc | - | 0.5000 |", ""]


def test_paths_of_the_config_are_not_shown():
    config = {"data": {"train": "/home/me/x.csv", "seed": 1}, "model": {"model_name_or_path": "/m"}, "run_dir": "/r"}
    shown = config_excerpt(yaml.safe_dump({**config, "optimizer": {"lr": 0.1}}))
    assert yaml.safe_load(shown) == {"optimizer": {"lr": 0.1}, "data": {"seed": 1}, "trainer": {}}
