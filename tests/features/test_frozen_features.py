"""Runs whose frozen part is computed once: equal to runs in which it is computed at every step."""

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from parity.runs import Recorder, plain_update
from tiny_runs import Messages, built, fit
from toy import make_tiny_model, toy_choices, toy_rows, toy_sentences, write_jsonl
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_tune.callbacks.frozen_features import FrozenFeatures
from lit_tune.data.features import FeatureFile
from lit_tune.data.orders import steps
from lit_tune.features import recording

pytestmark = pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
ROWS, BATCH, EPOCHS, LR = 37, 8, 3, 1e-2
NAMES = ["bad", "fine", "good"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """Two layers with much dropout, words in pieces."""
    return make_tiny_model(tmp_path_factory.mktemp("frozen"), dropout=0.3, subwords=True)


@pytest.fixture
def cache(own_cache):
    """Where the features of this test are."""

    return Path(os.environ["LIT_TUNE_CACHE"]) / "features"


@pytest.fixture
def messages():
    """What is said."""
    handler, log = Messages(), logging.getLogger("lit_tune")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler.texts
    log.removeHandler(handler)
    log.setLevel(level)


class CountsLayers(Recorder):
    """Also how often the first layer of the model has run since training began."""

    num_calls = 0

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.hook = pl_module.model.get_submodule("bert.encoder.layer.0.attention").register_forward_hook(self.count)

    def count(self, *_):
        self.num_calls += 1

    def on_train_end(self, trainer, pl_module):
        self.hook.remove()
        super().on_train_end(trainer, pl_module)


def run(model_dir, folder, rows=None, **settings):
    """Losses, validations and weights of a run that freezes the backbone."""
    path = write_jsonl(folder / "train.jsonl", toy_rows(ROWS) if rows is None else rows)
    defaults = {
        "model__freeze": "backbone",
        "trainer__max_epochs": EPOCHS,
        "data__train_batch_size": BATCH,
        "data__val_fraction": 0.3,
        "optimizer__lr": LR,
        "checkpoint__keep_last": 0,
        "checkpoint__keep_best": 0,
    }
    recorder = CountsLayers()
    shutil.rmtree(folder / "run", ignore_errors=True)
    fit(built(model_dir, path, folder / "run", **defaults | settings), recorder)
    return recorder


TASKS = {
    "texts": (toy_rows, {}),
    "texts, padded": (toy_rows, {"data__padding": "max_length", "data__max_length": 20}),
    "layers below 2": (toy_rows, {"model__freeze": "layers below 2"}),
    "words": (toy_sentences, {"task__class_path": "TokenClassification"}),
    "choices": (toy_choices, {"task__class_path": "MultipleChoice"}),
    "bfloat16": (toy_rows, {"trainer__precision": "bf16-mixed"}),
}


SLOW = ("texts, padded", "bfloat16", "choices")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in TASKS])
def test_losses_and_metrics_are_those_of_a_run_that_computes_everything(name, model_dir, tmp_path, cache):
    make, settings = TASKS[name]
    kept = run(model_dir, tmp_path, make(ROWS), **settings)
    assert len(list(cache.glob("*.bin"))) == 1
    computed = run(model_dir, tmp_path, make(ROWS), **settings, model__cache_features=False)
    tolerance = 2e-2 if name == "bfloat16" else 1e-6
    assert kept.losses == pytest.approx(computed.losses, rel=tolerance)
    assert len(kept.val) == len(computed.val) == EPOCHS
    for mine, theirs in zip(kept.val, computed.val, strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance)
        assert any(key.startswith("probe/") for key in mine)
    assert (kept.num_calls, computed.num_calls > 10) == (0, True)


def test_losses_equal_a_plain_loop_with_the_backbone_in_eval_mode(model_dir, tmp_path):
    content = toy_rows(ROWS)
    overrides = {"classifier_dropout": 0.0}  # that of the backbone stays
    settings = {"lr_schedule__name": "constant", "lr_schedule__warmup": 0, "optimizer__weight_decay": 0.0}
    settings |= {"data__val_fraction": 0, "data__group_by_length": False, "model__config_overrides": overrides}
    kept = run(model_dir, tmp_path, content, **settings)

    torch.manual_seed(42)
    model = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=3, **overrides).train()
    model.bert.eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=LR, weight_decay=0.0)
    losses = []
    for epoch in range(EPOCHS):
        for ids in steps(ROWS, BATCH, 42, epoch):
            losses.append(plain_update(model, tokenizer, optimizer, [content[i] for i in ids.tolist()], NAMES))
    assert kept.num_calls == 0
    assert kept.losses == pytest.approx(losses, abs=1e-6)


NO_DROPOUT = {"classifier_dropout": 0.0}
FLOAT64 = {"trainer__precision": "64-true", "model__config_overrides": NO_DROPOUT}


def test_any_cut_gives_the_same_weights_in_float64(model_dir, tmp_path):
    whole = run(model_dir, tmp_path, **FLOAT64)
    cut = run(model_dir, tmp_path, **FLOAT64, data__train_batch_size=2, trainer__accumulate_grad_batches=BATCH // 2)
    assert cut.num_calls == 0
    for mine, theirs in zip(cut.gradients, whole.gradients, strict=True):
        assert (mine - theirs).norm() <= 1e-12 * theirs.norm()


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_share_the_work_and_give_the_same_weights(model_dir, tmp_path, cache):
    whole = run(model_dir, tmp_path, **FLOAT64)
    (file,) = cache.glob("*.bin")
    expected = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.float64)
    file.unlink()
    ranks = {"trainer__devices": 2, "trainer__strategy": "ddp_fork", "data__train_batch_size": BATCH // 2}
    path = write_jsonl(tmp_path / "train.jsonl", toy_rows(ROWS))
    settings = {
        "model__freeze": "backbone",
        "trainer__max_epochs": EPOCHS,
        "data__val_fraction": 0.3,
        "checkpoint__keep_last": 0,
        "checkpoint__keep_best": 0,
        "optimizer__lr": LR,
    }
    fit(built(model_dir, path, tmp_path / "two", **settings, **FLOAT64, **ranks), CountsLayers(tmp_path))
    two = torch.load(tmp_path / "rank0.pt", weights_only=True)
    found = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    for mine, theirs in zip(two["gradients"], whole.gradients, strict=True):
        assert (mine - theirs).norm() <= 1e-12 * theirs.norm()


@pytest.mark.slow
def test_a_run_killed_while_it_writes_leaves_nothing_that_is_read(model_dir, tmp_path, cache, monkeypatch):
    expected = run(model_dir, tmp_path)
    (file,) = cache.glob("*.bin")
    content = file.read_bytes()
    file.unlink()
    monkeypatch.setattr(recording, "ROWS_AT_ONCE", 8)
    child = os.fork()
    if child == 0:  # killed by itself, before the third block is written
        written = []
        write = FeatureFile.write

        def write_or_die(self, *arguments):
            written.append(write(self, *arguments))
            if len(written) == 2:
                os.kill(os.getpid(), 9)

        monkeypatch.setattr(FeatureFile, "write", write_or_die)
        run(model_dir, tmp_path)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 9
    (left,) = cache.iterdir()
    assert left.suffix == ".tmp"
    monkeypatch.undo()
    os.environ["LIT_TUNE_CACHE"] = str(cache.parent)
    assert run(model_dir, tmp_path).losses == expected.losses
    assert [path.name for path in cache.iterdir()] == [file.name]
    assert file.read_bytes() == content


@pytest.mark.slow
def test_a_file_that_was_cut_is_made_again_and_one_that_holds_something_else_is_removed(
    model_dir, tmp_path, cache, messages
):
    expected = run(model_dir, tmp_path)
    (file,) = cache.glob("*.bin")
    content = file.read_bytes()
    file.write_bytes(content[:-4])
    assert run(model_dir, tmp_path).losses == expected.losses
    assert file.read_bytes() == content
    file.write_bytes(bytes(len(content)))
    assert run(model_dir, tmp_path).losses == pytest.approx(expected.losses, rel=1e-6)
    assert not file.exists()
    assert any("did not hold what the model gives" in text for text in messages)


@pytest.mark.slow
def test_other_weights_and_other_rows_have_files_of_their_own(model_dir, tmp_path, cache):
    run(model_dir, tmp_path)
    other = shutil.copytree(model_dir, tmp_path / "other")
    model = AutoModelForSequenceClassification.from_pretrained(other)
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.bias[0] += 1e-3
    model.bert.save_pretrained(other)
    run(other, tmp_path)
    run(model_dir, tmp_path, toy_rows(ROWS, seed=1))
    assert len(list(cache.glob("*.bin"))) == 3
    run(shutil.copytree(model_dir, tmp_path / "moved"), tmp_path, optimizer__lr=1e-3)
    assert len(list(cache.glob("*.bin"))) == 3


def test_one_line_says_what_is_in_eval_mode_and_one_that_features_are_kept(model_dir, tmp_path, messages):
    run(model_dir, tmp_path, model__freeze="layers below 2")
    assert [t for t in messages if "eval mode" in t] == [
        "eval mode, because nothing in them is trained: bert.embeddings, bert.encoder.layer.0"
    ]
    assert len([t for t in messages if t.startswith("features of the frozen part")]) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"model__cache_features": False},
        {"model__freeze": None},
        {"trainer__max_epochs": 1},
        {"model__unfreeze": "gradual", "trainer__max_epochs": 4},
        {"model__gradient_checkpointing": True},
    ],
)
def test_nothing_is_kept_or_said_where_it_is_not_wanted_or_does_not_pay(model_dir, tmp_path, cache, messages, settings):
    assert run(model_dir, tmp_path, **settings).num_calls > 0
    assert not cache.exists()
    assert not [t for t in messages if "features" in t]


@pytest.mark.parametrize(
    ("settings", "limit", "reason"),
    [
        ({"model__freeze": "embeddings"}, recording.MAX_BYTES, "no layer is frozen that comes before what is trained"),
        ({"model__freeze": r"layer\.1\.output"}, recording.MAX_BYTES, "no layer is frozen"),
        ({}, 100, "cannot be kept: more than 0.0 MB"),
    ],
)
def test_one_line_says_why_features_are_not_kept(
    model_dir, tmp_path, cache, messages, monkeypatch, settings, limit, reason
):
    monkeypatch.setattr(recording, "MAX_BYTES", limit)
    assert run(model_dir, tmp_path, **settings).num_calls > 0
    assert not [*cache.glob("*"), *cache.glob(".*")]
    (line,) = [t for t in messages if "are not cached" in t]
    assert reason in line


def test_a_file_that_cannot_be_written_stops_no_run(model_dir, tmp_path, cache, messages):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file where the folder should be")
    assert run(model_dir, tmp_path).num_calls > 0
    assert any("cannot be kept" in text for text in messages)


def test_the_model_is_as_it_was_when_a_run_is_over(model_dir, tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", toy_rows(ROWS))
    made = fit(built(model_dir, path, tmp_path / "run", model__freeze="backbone", trainer__max_epochs=2))
    callback = next(c for c in made.trainer.callbacks if isinstance(c, FrozenFeatures))
    assert callback.file is None
    hooks = [m for m in made.module.model.modules() if m._forward_pre_hooks or "forward" in vars(m)]
    assert hooks == []
