"""A person's whole way, through the command line in this process: fit, test, predict, and what lies in the run
directory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from toy import make_tiny_model, toy_rows, write_csv

from lit_tune.__main__ import main


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Model and data of all tests here."""
    folder = tmp_path_factory.mktemp("files")
    make_tiny_model(folder / "tiny")
    write_csv(folder / "train.csv", toy_rows(160, seed=1))
    write_csv(folder / "val.csv", toy_rows(60, seed=2))
    write_csv(folder / "test.csv", toy_rows(50, seed=3))
    write_csv(folder / "new.csv", [{"text": r["text"]} for r in toy_rows(9, seed=4)])
    return folder


def options(files: Path, run: Path, *more: str) -> list[str]:
    return [
        "--data.train",
        str(files / "train.csv"),
        "--data.val",
        str(files / "val.csv"),
        "--model.model_name_or_path",
        str(files / "tiny"),
        "--run_dir",
        str(run),
        "--trainer.accelerator",
        "cpu",
        *more,
    ]


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    """A finished run of three epochs."""
    run = tmp_path_factory.mktemp("runs") / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_TUNE_CACHE", str(run.parent / "cache"))
        assert (
            main(["fit", *options(files, run, "--optimizer.lr", "0.01", "--data.test", str(files / "test.csv"))]) == 0
        )
    return run


def lines(path: Path) -> list[dict]:
    return [json.loads(x) for x in path.read_text().splitlines()]


def test_the_run_directory_is_as_designed(finished):
    names = {p.name for p in finished.iterdir()}
    assert {"config.yaml", "manifest.json", "metrics.jsonl", "run.log", "tensorboard", "checkpoints", "best"} <= names
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["steps"] == 30
    assert manifest["spec"]["label_names"] == ["bad", "fine", "good"]
    assert {Path(c["path"]).name.partition("-")[0] for c in manifest["checkpoints"]} == {"best", "last"}
    for checkpoint in manifest["checkpoints"]:
        file = finished / checkpoint["path"]
        assert file.stat().st_size == checkpoint["bytes"]
        assert torch.load(file, weights_only=True)["hyper_parameters"]["spec"]["num_rows"] == 160
    assert manifest["verdict"]["state"]
    assert manifest["best_metrics"]["val/accuracy"] == max(
        line["val/accuracy"] for line in lines(finished / "metrics.jsonl") if "val/accuracy" in line
    )


def test_metrics_jsonl_has_step_and_epoch_and_what_is_promised(finished):
    logged = lines(finished / "metrics.jsonl")
    assert all("step" in line for line in logged)
    keys = set().union(*logged)
    assert {
        "epoch",
        "train/loss",
        "optim/lr",
        "optim/grad_norm",
        "perf/examples_per_second",
        "perf/tokens_per_second",
        "perf/padding_fraction",
        "perf/peak_memory_gb",
        "val/loss",
        "val/f1",
        "val/f1/good",
        "probe/loss",
        "probe/accuracy",
        "overfit/gap",
        "overfit/state",
        "baseline/accuracy",
    } <= keys
    assert [line["step"] for line in logged if "val/loss" in line] == [10, 20, 30]
    assert [line["step"] for line in logged if "train/loss" in line] == [1, 10, 20, 30]


def test_run_log_holds_what_the_console_says(finished):
    text = (finished / "run.log").read_text()
    assert "validation at step 30" in text
    assert "6,243 trained" in text
    assert "160 rows" in text


@pytest.mark.slow
def test_best_loads_without_lit_tune_and_gives_the_logged_metric(finished, files):
    script = """
import csv, json, sys
from transformers import AutoModelForSequenceClassification, pipeline
rows = list(csv.DictReader(open(sys.argv[2])))
classify = pipeline("text-classification", sys.argv[1], device="cpu")
guess = [p["label"] for p in classify([r["text"] for r in rows], batch_size=8)]
assert not [m for m in sys.modules if m.startswith("lit_tune")]
print(json.dumps(sum(g == r["label"] for g, r in zip(guess, rows)) / len(rows)))
"""
    command = [sys.executable, "-W", "ignore", "-c", script, str(finished / "best"), str(files / "val.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    manifest = json.loads((finished / "manifest.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(manifest["best_metrics"]["val/accuracy"], abs=1e-6)
    card = (finished / "best" / "README.md").read_text()
    assert "| accuracy |" in card
    assert str(files) not in card, "paths of this machine do not go into a card"


def test_validate_gives_the_logged_metric_again(finished, capsys, tmp_path):
    assert main(["validate", "--config", str(finished / "config.yaml")]) == 0
    best = json.loads((finished / "manifest.json").read_text())["best_metrics"]["val/accuracy"]
    row = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("accuracy"))
    assert float(row.split()[1]) == pytest.approx(best, abs=5e-5)


def test_test_and_predict_work_from_the_run_alone(finished, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moved = tmp_path / "moved"
    moved.mkdir()
    for item in finished.iterdir():
        (moved / item.name).symlink_to(item)
    (moved / "manifest.json").unlink()
    (moved / "manifest.json").write_text((finished / "manifest.json").read_text())
    assert main(["test", "--config", str(moved / "config.yaml")]) == 0
    report = capsys.readouterr().out
    assert "confusion matrix" in report
    written = json.loads((moved / "test_metrics.json").read_text())
    assert written["num_rows"] == 50
    assert sum(map(sum, written["confusion_matrix"])) == 50
    code = main(
        [
            "predict",
            "--config",
            str(moved / "config.yaml"),
            "--data.predict",
            str(files / "new.csv"),
            "--output",
            "o.jsonl",
        ]
    )
    assert code == 0
    records = lines(tmp_path / "o.jsonl")
    assert [r["row"] for r in records] == list(range(9))
    assert all(sum(r["probabilities"].values()) == pytest.approx(1) for r in records)


def test_a_complete_run_says_so_and_touches_nothing(finished, files, capsys):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in finished.rglob("*") if p.is_file()}
    same = ["fit", *options(files, finished, "--optimizer.lr", "0.01")]
    assert main(same) == 0
    assert "is complete: 30 steps" in capsys.readouterr().out
    assert main([*same, "--logger", "csv"]) == 0  # harmless
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in finished.rglob("*") if p.is_file()} == before


def test_a_complete_run_without_checkpoints_is_not_deleted_to_be_made_longer(files, tmp_path, capsys):
    keep_none = ["--checkpoint.keep_last", "0", "--checkpoint.keep_best", "0", "--data.limit_train", "16"]
    command = ["fit", *options(files, tmp_path / "run", *keep_none)]
    assert main([*command, "--trainer.max_epochs", "1"]) == 0
    assert main([*command, "--trainer.max_epochs", "2"]) == 7
    assert "checkpoint to go on from" in capsys.readouterr().err
    assert (tmp_path / "run" / "best" / "config.json").is_file()


def test_a_complete_run_with_another_config_is_left_alone(finished, files, capsys):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert main(["fit", *options(files, finished), "--optimizer.lr", "0.5", "--logger", "csv"]) == 7
    message = capsys.readouterr().err
    assert "optimizer.lr" in message
    assert "--allow-changed" in message
    assert "no effect on the weights" in message
    assert main(["fit", *options(files, finished), "--model.freeze", "backbone", "--allow-changed"]) == 7
    assert "does not fit the checkpoint" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_a_mistake_in_the_data_costs_nothing_and_the_same_command_works_after_it(files, tmp_path, capsys):
    rows = toy_rows(20)
    rows[16]["label"] = ""
    bad = write_csv(tmp_path / "bad.csv", rows)
    command = ["fit", *options(files, tmp_path / "run", "--data.train", str(bad), "--trainer.max_epochs", "1")]
    assert main(command) == 3
    message = capsys.readouterr().err
    assert "bad.csv:17" in message
    assert "Traceback" not in message
    assert not (tmp_path / "run" / "checkpoints").exists()
    write_csv(bad, toy_rows(20))
    assert main(command) == 0


def test_an_unknown_monitor_fails_before_weights_load(files, tmp_path, capsys):
    code = main(["fit", *options(files, tmp_path / "run", "--checkpoint.monitor", "val/f1_macros")])
    captured = capsys.readouterr().err
    assert code == 2
    assert "val/f1_macro" in captured
    assert "new weights" not in captured


def test_validation_by_steps_counts_optimizer_steps_and_the_end_is_validated(files, tmp_path):
    run = tmp_path / "run"
    more = ["--eval_every_steps", "4", "--trainer.accumulate_grad_batches", "3", "--data.train_batch_size", "5"]
    assert main(["fit", *options(files, run, *more, "--trainer.max_steps", "14", "--trainer.max_epochs", "9")]) == 0
    assert [line["step"] for line in lines(run / "metrics.jsonl") if "val/loss" in line] == [4, 8, 12, 14]


def test_without_validation_the_last_weights_are_exported_and_nothing_is_claimed(files, tmp_path):
    run = tmp_path / "run"
    command = ["fit", *options(files, run, "--data.val_fraction", "0", "--trainer.max_epochs", "1")]
    at = command.index("--data.val")
    del command[at : at + 2]
    assert main(command) == 0
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["exported"] == "last-0000010.ckpt"
    assert "not measured" in manifest["verdict"]["message"]
    assert (run / "best" / "model.safetensors").is_file()


def test_a_run_directory_behind_a_link_is_recorded(files, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run = tmp_path / "link" / "run"
    assert main(["fit", *options(files, run, "--trainer.max_epochs", "1")]) == 0
    manifest = json.loads((run / "manifest.json").read_text())
    assert all((run / c["path"]).is_file() for c in manifest["checkpoints"])


def test_early_stopping_stops_and_says_so(files, tmp_path):
    run = tmp_path / "run"
    more = ["--early_stopping.patience", "1", "--early_stopping.min_delta", "0.5", "--trainer.max_epochs", "20"]
    assert main(["fit", *options(files, run, *more)]) == 0
    assert json.loads((run / "manifest.json").read_text())["steps"] < 200
    assert "early stopping: val/accuracy did not improve" in (run / "run.log").read_text()


@pytest.mark.slow
def test_a_run_that_overfits_is_told_once_and_one_that_does_not_is_not(tmp_path, capsys):
    """Labels by chance can only be learned by heart; labels that depend on the words cannot be overfitted at once."""
    import random

    rng = random.Random(0)
    make_tiny_model(tmp_path / "tiny", dropout=0.0, hidden=64)
    chance = [{"text": r["text"], "label": rng.choice(["yes", "no"])} for r in toy_rows(300, seed=5)]
    write_csv(tmp_path / "chance.csv", chance)
    base = [
        "--model.model_name_or_path",
        str(tmp_path / "tiny"),
        "--trainer.accelerator",
        "cpu",
        "--data.val_fraction",
        "0.3",
    ]
    run = tmp_path / "overfit"
    more = ["--data.train", str(tmp_path / "chance.csv"), "--run_dir", str(run), "--optimizer.lr", "0.003"]
    assert main(["fit", *base, *more, "--trainer.max_epochs", "14"]) == 0
    verdict = json.loads((run / "manifest.json").read_text())["verdict"]
    assert verdict["state"] in ("severe overfitting", "moderate overfitting"), verdict["message"]
    assert "".join(capsys.readouterr()).count(verdict["message"]) == 1
    assert (run / "run.log").read_text().count(verdict["message"]) == 1
    states = [x["overfit/state"] for x in lines(run / "metrics.jsonl") if "overfit/state" in x]
    assert states[-1] == verdict["state"]

    plain = [r["text"].replace("great", "rock").replace("awful", "mud") for r in toy_rows(300)]
    rows = [{"text": t + (" great" if i % 2 else " awful"), "label": str(i % 2)} for i, t in enumerate(plain)]
    write_csv(tmp_path / "easy.csv", rows)
    run = tmp_path / "sound"
    more = ["--data.train", str(tmp_path / "easy.csv"), "--run_dir", str(run), "--optimizer.lr", "0.003"]
    assert main(["fit", *base, *more, "--trainer.max_epochs", "3"]) == 0
    verdict = json.loads((run / "manifest.json").read_text())["verdict"]
    assert verdict["state"] not in ("severe overfitting", "moderate overfitting", "diverging"), verdict["message"]


def test_a_lower_is_better_monitor_keeps_the_lowest(files, tmp_path):
    run = tmp_path / "run"
    assert main(["fit", *options(files, run, "--checkpoint.monitor", "val/loss", "--optimizer.lr", "0.02")]) == 0
    logged = [line for line in lines(run / "metrics.jsonl") if "val/loss" in line]
    best = min(logged, key=lambda line: line["val/loss"])
    assert json.loads((run / "manifest.json").read_text())["best_metrics"]["step"] == best["step"]


def test_bf16_mixed_works_on_cpu_and_16_mixed_is_refused(files, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["fit", *options(files, run, "--trainer.precision", "bf16-mixed", "--trainer.max_epochs", "1")]) == 0
    if not torch.cuda.is_available():
        assert main(["fit", *options(files, tmp_path / "no", "--trainer.precision", "16-mixed")]) == 2
        assert "Fix:" in capsys.readouterr().err


@pytest.mark.slow
def test_several_loggers_write_the_same_numbers(files, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    more = [
        "--logger",
        "[tensorboard, csv, wandb]",
        "--wandb.project",
        "p",
        "--wandb.tags",
        "[a, b]",
        "--wandb.notes",
        "n",
    ]
    assert main(["fit", *options(files, run, *more, "--trainer.max_epochs", "1")]) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    logged = {line["step"]: line["val/loss"] for line in lines(run / "metrics.jsonl") if "val/loss" in line}
    assert {e.step: pytest.approx(e.value, abs=1e-6) for e in events.Scalars("val/loss")} == logged
    assert "overfit/code" in events.Tags()["scalars"]
    header = (run / "csv" / "metrics.csv").read_text().splitlines()[0]
    assert "val/loss" in header
    assert list((run / "wandb").glob("offline-run-*"))


def test_logger_none_leaves_metrics_jsonl_alone(files, tmp_path):
    run = tmp_path / "run"
    assert main(["fit", *options(files, run, "--logger", "none", "--trainer.max_epochs", "1")]) == 0
    assert not (run / "tensorboard").exists()
    assert (run / "metrics.jsonl").is_file()


def test_config_yaml_gives_the_same_run_again(finished, tmp_path):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["run_dir"] = str(tmp_path / "again")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "again.yaml")]) == 0
    one, two = (
        torch.load(next((d / "checkpoints").glob("last-*.ckpt")), weights_only=True)["state_dict"]
        for d in (finished, tmp_path / "again")
    )
    assert all(torch.equal(v, two[k]) for k, v in one.items())


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_from_the_command_line_equal_one(files, tmp_path):
    """The launcher runs the same command again for the second rank."""
    command = [sys.executable, "-W", "ignore", "-m", "lit_tune", "fit"]
    tail = [
        "--trainer.max_epochs",
        "1",
        "--model.config_overrides",
        "{hidden_dropout_prob: 0, attention_probs_dropout_prob: 0}",
    ]
    two, one = tmp_path / "two", tmp_path / "one"
    done = subprocess.run(
        [*command, *options(files, two, *tail, "--trainer.devices", "2", "--data.train_batch_size", "8")],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert main(["fit", *options(files, one, *tail, "--data.train_batch_size", "16")]) == 0
    a, b = ([line for line in lines(r / "metrics.jsonl") if "val/loss" in line][-1] for r in (one, two))
    assert a["val/loss"] == pytest.approx(b["val/loss"], rel=1e-4)
    assert a["val/accuracy"] == b["val/accuracy"]


def test_a_folder_of_datasets_with_class_labels_and_an_unlabelled_test_split(files, tmp_path, capsys):
    """The shape of GLUE: names in a ClassLabel, a validation split, a test split whose labels are all -1."""
    import datasets

    names = ["good", "bad", "fine"]  # not the alphabet's order
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})

    def split(count: int, seed: int, labelled: bool = True) -> datasets.Dataset:
        rows = toy_rows(count, seed)
        labels = [names.index(r["label"]) if labelled else -1 for r in rows]
        return datasets.Dataset.from_dict({"text": [r["text"] for r in rows], "label": labels}, features=features)

    saved = {"train": split(80, 1), "validation": split(30, 2), "test": split(10, 3, labelled=False)}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "glue"))
    run = tmp_path / "run"
    base = ["--data.dataset", str(tmp_path / "glue"), "--model.model_name_or_path", str(files / "tiny")]
    assert main(["fit", *base, "--run_dir", str(run), "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]) == 0
    config = json.loads((run / "best" / "config.json").read_text())
    assert config["id2label"] == {"0": "good", "1": "bad", "2": "fine"}
    capsys.readouterr()
    assert main(["test", "--config", str(run / "config.yaml")]) == 0
    assert "no row has a label" in capsys.readouterr().err
    assert not (run / "test_metrics.json").exists()


def test_multi_label_and_regression_from_the_command_line(files, tmp_path):
    rows = toy_rows(60, seed=6)
    multi = tmp_path / "multi.jsonl"
    multi.write_text("".join(json.dumps({"text": r["text"], "tags": r["text"].split()[:2:2]}) + "\n" for r in rows))
    model = [
        "--model.model_name_or_path",
        str(files / "tiny"),
        "--trainer.accelerator",
        "cpu",
        "--trainer.max_epochs",
        "1",
    ]
    run = tmp_path / "multi"
    command = ["--data.train", str(multi), "--task.init_args.label_column", "tags", "--run_dir", str(run)]
    assert main(["fit", *command, *model]) == 0
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["spec"]["problem_type"] == "multi_label_classification"
    assert manifest["monitor"] == "val/f1_micro"
    run = tmp_path / "regression"
    command = [
        "--data.train",
        str(files / "train.csv"),
        "--task.init_args.label_column",
        "score",
        "--run_dir",
        str(run),
    ]
    assert main(["fit", *command, *model]) == 0
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["spec"]["problem_type"] == "regression"
    assert manifest["monitor"] == "val/r2"
    assert json.loads((run / "best" / "config.json").read_text())["problem_type"] == "regression"


def test_a_run_that_diverges_exits_with_6_and_exports_nothing(files, tmp_path, capsys):
    run = tmp_path / "run"
    wild = ["--optimizer.name", "sgd", "--optimizer.lr", "1e30", "--trainer.gradient_clip_val", "0"]
    assert main(["fit", *options(files, run, *wild, "--trainer.max_epochs", "1")]) == 6
    assert "The weights were not changed" in capsys.readouterr().err
    assert not (run / "best").exists()
    assert json.loads((run / "manifest.json").read_text())["status"] == "failed"


@pytest.mark.slow  # in a process of its own; tests/test_signals.py forks
def test_sigterm_ends_with_143_and_is_not_called_complete(files, tmp_path):
    import signal
    import time

    run = tmp_path / "run"
    command = [sys.executable, "-W", "ignore", "-m", "lit_tune", "fit"]
    process = subprocess.Popen(
        [*command, *options(files, run, "--trainer.max_epochs", "100000")], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 240
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    assert json.loads((run / "manifest.json").read_text())["status"] == "interrupted"
