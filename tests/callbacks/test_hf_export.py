"""best/: equal logits, verified before it gets its name; the module then holds the same weights."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tiny_runs import built, fit, lines
from toy import toy_rows, write_csv
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from lit_tune.errors import StorageError


@pytest.fixture
def train(tmp_path):
    return write_csv(tmp_path / "train.csv", toy_rows(20))


def best_step(run):
    return next(c for c in json.loads((run / "manifest.json").read_text())["checkpoints"] if "best-" in c["path"])


class Worse(Callback):
    """Spoils the weights after the first epoch, so that best and last differ."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            with torch.no_grad():
                pl_module.model.classifier.weight.mul_(-20)


def test_the_best_weights_are_exported_and_stay_in_the_module(tiny_model_dir, train, tmp_path):
    run = tmp_path / "run"
    options = {"trainer__max_epochs": 2, "checkpoint__monitor": "val/loss", "data__val_fraction": 0.3}
    made = fit(built(tiny_model_dir, train, run, overfit__probe_size=0, **options), Worse())
    best = torch.load(run / best_step(run)["path"], weights_only=True)["state_dict"]
    last = torch.load(next((run / "checkpoints").glob("last-*")), weights_only=True)["state_dict"]
    assert any(not torch.equal(best[k], last[k]) for k in best)
    exported = AutoModelForSequenceClassification.from_pretrained(run / "best")
    for name, value in exported.state_dict().items():
        assert torch.equal(value, best[f"model.{name}"])
        assert torch.equal(value, made.module.model.state_dict()[name])
    text = AutoTokenizer.from_pretrained(run / "best")(["rock river", "mud"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = made.module.model.eval()(**text).logits
        assert torch.equal(exported.eval()(**text).logits, expected)
    assert exported.config.id2label == {0: "bad", 1: "fine", 2: "good"}
    assert not list(run.glob(".*"))


class Corrupted(Callback):
    """The model's class becomes one whose files are spoiled after they are written."""

    def __init__(self, spoil):
        class BertSpoiled(BertForSequenceClassification):
            def save_pretrained(self, folder, **options):
                super().save_pretrained(folder, **options)
                spoil(folder / "model.safetensors")

        BertSpoiled.__name__ = "BertForSequenceClassification"
        self.spoiled = BertSpoiled

    def on_train_end(self, trainer, pl_module):
        pl_module.model.__class__ = self.spoiled


def flip_last_bits(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 0b01100000  # the exponent of the last float32
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-64])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(flip_last_bits, "gives other logits"), (cut, "does not load: "), (lambda p: p.unlink(), "does not load")],
)
def test_a_broken_export_is_noticed_and_never_called_best(tiny_model_dir, train, tmp_path, spoil, says):
    run = tmp_path / "run"
    with pytest.raises(StorageError, match=says) as caught:
        fit(built(tiny_model_dir, train, run, overfit__probe_size=0), Corrupted(spoil))
    assert len(str(caught.value).splitlines()) <= 6
    assert not (run / "best").exists()
    assert not list(run.glob(".*"))
    found = json.loads((run / "manifest.json").read_text())
    assert found["status"] == "failed"
    assert says in found["error"]


class Watch(Callback):
    """What this rank has counted."""

    def __init__(self, folder):
        self.folder, self.tokens, self.positions = folder, 0, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not batch["is_filler"]:
            self.tokens += int(batch["attention_mask"].sum())
            self.positions += batch["attention_mask"].numel()

    def on_train_end(self, trainer, pl_module):
        found = {
            "tokens": self.tokens,
            "positions": self.positions,
            "planned": trainer.datamodule.total_steps(),
            "taken": trainer.global_step,
        }
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(found))


@pytest.mark.ddp
def test_two_ranks_export_once_and_count_together(tiny_model_dir, tmp_path):
    train, val = (str(write_csv(tmp_path / f"{n}.csv", toy_rows(37, seed=n))) for n in range(2))
    run = tmp_path / "run"
    options = {
        "data__val": val,
        "data__train_batch_size": 4,
        "trainer__devices": 2,
        "trainer__strategy": "ddp_fork",
        "trainer__accumulate_grad_batches": 2,
        "trainer__log_every_n_steps": 100,
        "trainer__max_epochs": 2,
        "overfit__probe_size": 0,
    }
    fit(built(tiny_model_dir, train, run, **options), Watch(tmp_path))
    ranks = [json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2)]
    assert [(r["planned"], r["taken"]) for r in ranks] == [(6, 6)] * 2
    found = json.loads((run / "manifest.json").read_text())
    assert (found["status"], found["steps"], found["world_size"]) == ("complete", 6, 2)

    logged = lines(run / "metrics.jsonl")
    assert [x["step"] for x in logged if "val/loss" in x] == [3, 6]
    first, last = (x for x in logged if "train/loss" in x)
    counted = sum(r["positions"] for r in ranks), sum(r["tokens"] for r in ranks)
    assert 0 < first["perf/padding_fraction"] < 1
    # the run's last interval is all but its first step of 16 rows; both together are what the ranks have counted
    shares = [
        x["perf/tokens_per_second"] / x["perf/examples_per_second"] * rows for x, rows in ((first, 16), (last, 58))
    ]
    assert sum(shares) == pytest.approx(counted[1])
    positions = [share / (1 - x["perf/padding_fraction"]) for x, share in zip((first, last), shares, strict=True)]
    assert sum(positions) == pytest.approx(counted[0])

    model, tokenizer = (
        kind.from_pretrained(run / "best") for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    rows = toy_rows(37, seed=1)
    with torch.inference_mode():
        logits = model.eval()(**tokenizer([r["text"] for r in rows], padding=True, return_tensors="pt")).logits
    guesses = [model.config.id2label[i] for i in logits.argmax(-1).tolist()]
    accuracy = sum(g == r["label"] for g, r in zip(guesses, rows, strict=True)) / 37
    assert accuracy == pytest.approx(found["best_metrics"]["val/accuracy"])
