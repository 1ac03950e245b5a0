"""validate, test and predict take weights, labels and tokenizer from the run, wherever it lies now."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import built, fit, lines
from toy import CLASSES, toy_rows, write_csv

from lit_tune.__main__ import main
from lit_tune.cli import build
from lit_tune.durable import fingerprints
from lit_tune.errors import StorageError
from lit_tune.preflight.finished_run import run_of_config, use_best_weights
from lit_tune.run_dir import EXPORT_HASHES, RunDir


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model_dir):
    folder = tmp_path_factory.mktemp("run_of_their_own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_TUNE_CACHE", str(folder / "cache"))
        train = write_csv(folder / "train.csv", toy_rows(40))
        pretrained = shutil.copytree(tiny_model_dir, folder / "pretrained")
        fit(built(pretrained, train, folder / "run", overfit__probe_size=0))
        shutil.rmtree(pretrained)  # from here on the run is all there is
    return folder / "run"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--config", "{run}/config.yaml"], True),
        (["-c", "{run}/config.yaml"], True),
        (["--config={run}/config.yaml", "--data.test", "x.csv"], True),
        (["--config", "{run}/config.yaml", "--run_dir", "other"], False),
        (["--config", "{run}/config.yaml", "--run_dir=other"], False),
        (["--config", "{run}/best/config.json"], False),
        (["--config", "elsewhere/config.yaml"], False),
        (["--data.test", "{run}/config.yaml"], False),
        (["--config"], False),
        ([], False),
    ],
)
def test_a_config_in_a_run_directory_means_that_run(run, options, found):
    assert run_of_config([o.format(run=run) for o in options]) == (str(run) if found else None)


def settings(run, **changes):
    made = build(run / "config.yaml", changes, verb="predict")
    return made.module, made.datamodule


def test_weights_labels_and_tokenizer_are_those_of_best(run, tmp_path):
    new = write_csv(tmp_path / "new.csv", [{"text": "rock"}])
    module, datamodule = settings(run, **{"data.predict": str(new), "model.freeze": "backbone"})
    assert use_best_weights(RunDir(run), module, datamodule) is True
    assert module.model_name == str(run / "best")
    assert module.freeze_patterns == []  # nothing is trained
    assert datamodule.spec.label_names == list(CLASSES)
    datamodule.prepare("predict")
    module.spec = datamodule.spec
    assert module.build_config(module.spec).id2label == dict(enumerate(CLASSES))


def test_without_a_run_the_configs_own_model_is_measured(run, tmp_path):
    module, datamodule = settings(run, **{"data.predict": "new.csv"})
    assert use_best_weights(RunDir(tmp_path / "none"), module, datamodule) is False
    assert module.model_name.endswith("pretrained")


def test_another_model_than_the_runs_is_not_silently_ignored(run, capsys):
    options = ["--data.predict", "new.csv", "--model.model_name_or_path", "bert-base-uncased"]
    assert main(["predict", "--config", str(run / "config.yaml"), *options]) == 2
    said = capsys.readouterr().err
    assert "bert-base-uncased has no effect" in said
    assert "Fix: leave it out" in said


@pytest.mark.parametrize("status", ["failed", "running"])
def test_a_run_without_best_is_an_error(run, tmp_path, status):
    module, datamodule = settings(run, **{"data.predict": "new.csv"})
    unfinished = RunDir(tmp_path / "unfinished")
    unfinished.write({"status": status})
    with pytest.raises(StorageError, match=f"status '{status}', without best/") as caught:
        use_best_weights(unfinished, module, datamodule)
    assert "Fix: finish it" in str(caught.value)


def test_a_run_that_was_moved_predicts_from_where_it_is(run, tmp_path, capsys):
    """Nothing of the run is retyped, and its old place is not looked at."""
    moved = shutil.copytree(run, tmp_path / "moved")
    weights = load_file(moved / "best" / "model.safetensors")
    weights["classifier.bias"] = torch.tensor([0.0, 0.0, 1e4])  # not what lies at the old place
    save_file(weights, moved / "best" / "model.safetensors", metadata={"format": "pt"})
    hashes = {name: list(found) for name, found in fingerprints(moved / "best").items()}
    RunDir(moved).update({EXPORT_HASHES: hashes})
    new = write_csv(tmp_path / "new.csv", [{"text": "rock"}, {"text": "mud"}])
    assert main(["predict", "--config", str(moved / "config.yaml"), "--data.predict", str(new)]) == 0
    assert [r["label"] for r in lines(moved / "predictions.jsonl")] == ["good", "good"]
    assert not (run / "predictions.jsonl").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("spoil", ["flip", "cut", "delete"])
def test_a_best_that_is_not_what_the_run_wrote_is_exit_7(run, tmp_path, capsys, name, spoil):
    moved = shutil.copytree(run, tmp_path / "moved")
    (moved / "best" / "README.md").write_text("a card may be edited")
    file = moved / "best" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if spoil == "flip" else content[:-1])
    if spoil == "delete":
        file.unlink()
    new = write_csv(tmp_path / "new.csv", [{"text": "rock"}])
    assert main(["predict", "--config", str(moved / "config.yaml"), "--data.predict", str(new)]) == 7
    said = capsys.readouterr().err
    assert "not what the run wrote" in said or "without best/" in said
    assert "Fix: " in said


def test_a_file_that_cannot_be_predicted_is_exit_3_and_writes_nothing(run, tmp_path, capsys):
    bad = write_csv(tmp_path / "bad.csv", [{"words": "rock"}])
    assert main(["predict", "--config", str(run / "config.yaml"), "--data.predict", str(bad)]) == 3
    assert not (run / "predictions.jsonl").exists()
    assert json.loads((run / "manifest.json").read_text())["status"] == "complete"
