"""Pieces of a user's own: the shipped examples as they are documented, what they do, and what is told of wrong ones."""

import contextlib
import copy
import csv
import json
import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import own_pieces
import own_things
import pytest
import torch
import yaml
from checkpointing.resume_matrix import check
from checkpointing.resume_matrix import fit as fit_run
from parity.runs import fit, relative
from sklearn.metrics import top_k_accuracy_score
from torchmetrics import MeanSquaredError
from toy import toy_rows, write_csv
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from lit_tune import imports
from lit_tune.__main__ import main
from lit_tune.cli import parse
from lit_tune.data.collators import Padding
from lit_tune.metrics.own_metric import OwnMetric
from lit_tune.models.layers import head_parameter_names
from lit_tune.tasks.own_pieces import snake_name
from lit_tune.tasks.spec import Spec

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "own_pieces" / "own_pieces.yaml"
MODEL = "own_pieces.MeanOfWordsForSequenceClassification"
SMALL = "--data.limit_train 300 --data.limit_val 100 --trainer.accelerator cpu --logger none"


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    """What this test allows is allowed to no other one."""
    monkeypatch.setattr(imports, "_added", ["own_pieces", "own_things"])


def commands() -> list[list[str]]:
    """The command lines in the config's header, without the environment."""
    lines = re.findall(r"^#   PYTHONPATH=\S+ lit-tune (.*)$", CONFIG.read_text(), re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The documented commands, on fewer rows."""
    run = tmp_path_factory.mktemp("own") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("LIT_TUNE_CACHE", str(run.parent / "cache"))
        patch.setattr(imports, "_added", [])
        for command in commands():
            given = [str(run / "config.yaml") if part.startswith("runs/") else part for part in command]
            more = ["--run_dir", str(run), *SMALL.split()] if command[0] == "fit" else []
            with (run.parent / f"{command[0]}.txt").open("w") as said, contextlib.redirect_stdout(said):
                assert main([*given, *more]) == 0
    return run


@pytest.fixture(scope="module")
def answers(finished) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, C) logits of the test rows by transformers alone, and (B,) class ids."""
    model = AutoModelForSequenceClassification.from_pretrained(finished / "best").eval()
    tokenizer = AutoTokenizer.from_pretrained(finished / "best")
    rows = rows_to_test()
    tokens = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**{k: tokens[k] for k in ("input_ids", "attention_mask")}).logits
    return logits, torch.tensor([model.config.label2id[row["label"]] for row in rows])


def rows_to_test() -> list[dict[str, str]]:
    return list(csv.DictReader((ROOT / "configs/quickstart/test.csv").read_text().splitlines()))


def measured(run: Path) -> dict[str, float]:
    return json.loads((run / "test_metrics.json").read_text())["metrics"]


def test_the_metric_is_that_of_scikit_learn_and_decides_which_weights_are_best(finished, answers):
    logits, labels = answers
    assert len(labels) == 800
    expected = top_k_accuracy_score(labels, logits.softmax(-1), k=2)
    assert measured(finished)["top_k_accuracy"] == pytest.approx(expected)
    assert expected > measured(finished)["accuracy"]
    result = json.loads((finished / "manifest.json").read_text())
    told = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert result["monitor"] == "val/top_k_accuracy"
    best = max(line["val/top_k_accuracy"] for line in told if "val/top_k_accuracy" in line)
    assert result["best_metrics"]["val/top_k_accuracy"] == best


def test_the_loss_is_the_formula(finished, answers):
    logits, labels = answers
    right = logits.double().softmax(-1)[torch.arange(len(labels)), labels]
    assert measured(finished)["loss"] == pytest.approx(float((-right.log() + 1 - right).mean()), rel=1e-5)


def test_the_callback_has_measured_the_weights_of_each_epoch(finished):
    told = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    norms = [line["weights/norm"] for line in told if "weights/norm" in line]
    last = max((finished / "checkpoints").glob("last-*"))
    weights = torch.load(last, weights_only=True)["state_dict"]
    assert len(norms) == 3
    assert norms[-1] == pytest.approx(float(torch.stack([w.norm() for w in weights.values()]).norm()), rel=1e-5)


def test_the_model_is_the_users_own_wherever_it_is_loaded(finished, answers, tmp_path, capsys):
    best = finished / "best"
    assert json.loads((best / "config.json").read_text())["architectures"] == [MODEL.split(".")[1]]
    assert "```python\nimport own_pieces\nfrom transformers import pipeline\n" in (best / "README.md").read_text()
    rows = rows_to_test()[:5]
    write_csv(tmp_path / "rows.csv", rows)
    config = ["--config", str(finished / "config.yaml"), "--allow-import", "own_pieces"]
    given = ["--data.predict", str(tmp_path / "rows.csv"), "--output", str(tmp_path / "told.jsonl")]
    assert main(["predict", *config, *given]) == 0
    told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    run = pipeline("text-classification", str(best))
    assert [record["label"] for record in told] == [run(row["text"])[0]["label"] for row in rows]
    assert main(["export", *config, "--dtype", "bfloat16", "--output", str(tmp_path / "half")]) == 0
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


def test_the_next_command_that_is_told_is_one_that_works(finished):
    (told,) = re.findall(r"^next     lit-tune (.*) \[", (finished.parent / "fit.txt").read_text(), re.MULTILINE)
    assert told == f"test --config {finished / 'config.yaml'} --allow-import own_pieces"


@pytest.mark.slow
def test_a_run_goes_on_from_the_weights_of_another(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    more = ["--model.model_name_or_path", str(finished / "best"), "--model.from_scratch", "false"]
    cli = parse(["--config", str(CONFIG), *SMALL.split(), *more, "--run_dir", str(tmp_path / "run")])
    trainer, module, datamodule = cli.build()
    datamodule.prepare("fit")
    module.trainer = trainer
    trainer.datamodule = datamodule
    module.setup("fit")
    module.configure_model()
    before = AutoModelForSequenceClassification.from_pretrained(finished / "best").state_dict()
    assert head_parameter_names(module.model) == {"classifier.weight", "classifier.bias"}
    assert type(module.model) is own_pieces.MeanOfWordsForSequenceClassification
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
    assert module.new_parameters == []


@pytest.mark.slow
def test_a_head_of_ones_own_stands_on_pretrained_weights(tiny_model_dir, toy_csv, tmp_path):
    run = tmp_path / "run"
    given = [
        "--data.train",
        str(toy_csv),
        "--run_dir",
        str(run),
        "--trainer.accelerator",
        "cpu",
        "--optimizer.lr=1e-30",
    ]
    given += ["--model.model_name_or_path", str(tiny_model_dir), "--trainer.max_epochs", "1"]
    assert main(["fit", *given, "--model.model_class", "own_things.PooledBert"]) == 0
    assert AutoConfig.from_pretrained(run / "best").model_type == "pooled_bert"
    model = AutoModelForSequenceClassification.from_pretrained(run / "best")
    stored = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir).bert
    assert type(model) is own_things.PooledBert
    for name, value in model.bert.state_dict().items():
        assert torch.allclose(value, stored.state_dict()[name], rtol=0, atol=1e-20), name
    assert "own_head" in (run / "run.log").read_text()


# ---- the collator: exact however a step is cut ---------------------------------------------------------------------


def thinned(draw, ids=tuple(range(100))):
    collator = own_pieces.WordDropout(list, 0.3, seed=7)
    return collator([{"input_ids": list(ids), "draw": draw}])[0]["input_ids"]


def test_tokens_are_left_out_in_training_only_and_others_in_each_epoch():
    assert thinned((0, 3)) == list(range(100))
    first, again, later, other = (thinned(draw) for draw in ((1, 3), (1, 3), (2, 3), (1, 4)))
    assert first == again
    assert len({tuple(first), tuple(later), tuple(other)}) == 3
    assert (first[0], first[-1]) == (0, 99)
    assert first == sorted(first)
    share = np.mean([len(thinned((1, row))) for row in range(200)]) / 100
    assert share == pytest.approx(0.7, abs=0.02)


CLASS = {"model_class": MODEL, "from_scratch": True}


def run_of(tiny_model_dir, files, fraction=0.3, metrics=(), **cuts):
    task = own_pieces.ThinnedTexts(fraction, metrics=list(metrics), loss="own_pieces.PolyLoss")
    module = {**CLASS, "config_overrides": {}}
    data = {**files, **CLASS}
    return fit(tiny_model_dir, data, task=task, module=module, precision="64-true", **cuts)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    files = {
        "train": write_csv(folder / "train.csv", toy_rows(33)),
        "val": write_csv(folder / "val.csv", toy_rows(9, 1)),
    }
    one = write_csv(folder / "one.csv", toy_rows(1, 1))
    return {name: str(path) for name, path in files.items()}, str(one)


METRICS = ["own_pieces.TopKAccuracy", "own_things.MedianSurprise"]


@pytest.fixture(scope="module")
def whole(tiny_model_dir, rows):
    """Steps of 16 rows in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imports, "_added", ["own_pieces", "own_things"])
        return run_of(tiny_model_dir, rows[0], metrics=METRICS)


@pytest.mark.slow
def test_all_pieces_together_are_exact_in_any_cut(whole, tiny_model_dir, rows):
    files, _ = rows
    cut = run_of(tiny_model_dir, files, metrics=METRICS, batch=4, accumulate=4)
    kept = run_of(tiny_model_dir, files, fraction=0.0)
    for a, b in zip(whole.gradients, cut.gradients, strict=True):
        assert relative(b, a) < 1e-12
    assert relative(kept.gradients[0], whole.gradients[0]) > 0.01
    assert cut.val[-1] == pytest.approx(whole.val[-1], rel=1e-9, nan_ok=True)
    assert {"val/top_k_accuracy", "val/median_surprise", "probe/top_k_accuracy"} <= whole.val[-1].keys()


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_give_the_gradients_and_metrics_of_one(whole, tiny_model_dir, rows, tmp_path):
    files, one = rows
    of_one = {**files, "val": one}  # the second rank gets none
    alone = run_of(tiny_model_dir, of_one, metrics=METRICS, max_steps=1)
    for given, expected, more in ((files, whole, {}), (of_one, alone, {"max_steps": 1})):
        cuts = {"batch": 4, "accumulate": 2, "ranks": 2, "scratch": tmp_path}
        both = run_of(tiny_model_dir, given, metrics=METRICS, **cuts, **more)
        for a, b in zip(expected.gradients, both.gradients, strict=True):
            assert relative(b, a) < 1e-12
        for rank in (0, 1):
            val = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)["val"][-1]
            assert val == pytest.approx(expected.val[-1], rel=1e-9, nan_ok=True)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    steps = "--trainer.max_steps 8 --checkpoint.every_n_steps 2 --eval_every_steps 4"
    given = ["--config", str(CONFIG), *SMALL.split(), *steps.split()]
    full = fit_run([*given, "--run_dir", str(tmp_path / "full")])
    assert check(full, 4, tmp_path / "again", given) == []


# ---- what a metric of one's own is wrapped in ----------------------------------------------------------------------


def test_sums_keep_their_type_where_the_model_is_bfloat16():
    metric = OwnMetric("error", MeanSquaredError(), torch.Tensor.float)
    torch.nn.ModuleList([metric]).to(torch.bfloat16)
    for _ in range(3):
        metric.update(torch.zeros(400), torch.tensor([1.0] * 399 + [0.0]))
    assert float(metric.compute()) == pytest.approx(399 / 400, rel=1e-6)  # 399 is no number of bfloat16
    metric.reset()
    metric.update(torch.zeros(2), torch.tensor([0.0, 1.0]))
    assert float(metric.compute()) == 0.5


def test_a_task_with_metrics_is_copied_and_sent_to_processes():
    task = own_pieces.ThinnedTexts(metrics=[{"class_path": "own_pieces.TopKAccuracy", "init_args": {"k": 1}}])
    for other in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert other.own_metrics["top_k_accuracy"].k == 1
        assert other.collator(Padding(0, seed=3), Spec("single_label_classification", ["a", "b"])).seed == 3


@pytest.mark.parametrize(
    ("name", "logged"),
    [("TopKAccuracy", "top_k_accuracy"), ("MyF1Score", "my_f1_score"), ("ROUGEScore", "rouge_score"), ("F1", "f1")],
)
def test_a_class_gives_its_name_in_snake_case(name, logged):
    assert snake_name(type(name, (), {})()) == logged


# ---- wrong pieces --------------------------------------------------------------------------------------------------

WRONG = {
    "a metric that is not allowed": (
        "task.init_args.metrics",
        ["torchmetrics.MeanMetric"],
        "--allow-import torchmetrics",
    ),
    "a metric that is not there": ("task.init_args.metrics", ["own_things.MedianSurprse"], "MedianSurprise"),
    "a metric that is none": ("task.init_args.metrics", ["own_pieces.PolyLoss"], "is no torchmetrics.Metric"),
    "a metric without a direction": ("task.init_args.metrics", ["own_things.Undirected"], "higher_is_better = True"),
    "two of a name": ("task.init_args.metrics", ["own_pieces.TopKAccuracy"] * 2, "as top_k_accuracy"),
    "a metric with other arguments": ("task.init_args.metrics", ["own_things.Unbuildable"], "arguments that the class"),
    "a metric without a path": ("task.init_args.metrics", [{"init_args": {}}], "has no class_path"),
    "a model that is not allowed": ("model.model_class", "transformers.BertModel", "--allow-import transformers"),
    "a model that is not there": ("model.model_class", "own_things.PoledBert", "did you mean PooledBert"),
    "a model that is none": ("model.model_class", "own_pieces.PolyLoss", "is no PreTrainedModel"),
    "a model that nobody registers": (
        "model.model_class",
        "own_things.Unregistered",
        "AutoModelForSequenceClassification",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_piece_is_told_before_anything_is_read(case, tmp_path, capsys):
    key, value, said = WRONG[case]
    given = ["--data.train", "nothing.csv", "--model.model_name_or_path", "m", "--run_dir", str(tmp_path / "run")]
    code = main(["fit", *given, f"--{key}", yaml.safe_dump(value, default_flow_style=True).splitlines()[0]])
    err = capsys.readouterr().err
    assert (code, said in err, key in err, "Fix: " in err) == (2, True, True, True), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("metric", "said"),
    [("own_things.Accuracy", "called accuracy, too"), ("own_things.PerClass", "tensor of shape (3,)")],
)
def test_a_metric_that_does_not_fit_is_told(metric, said, tiny_model_dir, toy_csv, tmp_path, capsys):
    given = ["--data.train", str(toy_csv), "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]
    given += ["--model.model_name_or_path", str(tiny_model_dir), "--trainer.max_steps", "2"]
    assert main(["fit", *given, "--task.init_args.metrics", f"[{metric}]"]) == 2
    assert said in capsys.readouterr().err


def test_a_run_with_own_pieces_wants_them_allowed_again(finished, monkeypatch, capsys):
    monkeypatch.setattr(imports, "_added", [])
    assert main(["test", "--config", str(finished / "config.yaml")]) == 2
    assert "--allow-import own_pieces" in capsys.readouterr().err


def test_a_new_text_cnn_is_no_class_of_ones_own(toy_csv, capsys):
    given = ["--data.train", str(toy_csv), "--model.model_name_or_path", "text_cnn"]
    assert main(["fit", *given, "--model.model_class", MODEL]) == 2
    assert "has no effect" in capsys.readouterr().err
