"""What is logged equals a recount by plain torch, on the rows that were trained on."""

import math

import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tiny_runs import NO_DROPOUT, fit_plain, lines
from torch.nn.functional import cross_entropy
from toy import toy_rows, write_csv
from transformers import BertForSequenceClassification

from lit_tune.callbacks.eval_schedule import EvalSchedule
from lit_tune.callbacks.jsonl_metrics import JsonlLogger
from lit_tune.callbacks.metric_log import MetricLog

STILL = 1e-12
"""A learning rate at which the weights of the whole run are those of its start."""


class Recount(Callback):
    """Every micro-batch by optimizer step, and the weights at the start."""

    def __init__(self):
        self.batches = {}

    def on_train_start(self, trainer, pl_module):
        self.config = pl_module.model.config
        self.weights = {k: v.clone() for k, v in pl_module.model.state_dict().items()}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.setdefault(trainer.global_step + 1, []).append(batch)

    def model(self):
        model = BertForSequenceClassification(self.config)
        model.load_state_dict(self.weights)
        return model

    def summed_loss(self, model, first, last):
        """Of the rows of these steps, one micro-batch after another; and their number."""
        batches = [b for step in range(first, last + 1) for b in self.batches[step]]
        inputs = ("input_ids", "attention_mask", "token_type_ids")
        losses = [
            cross_entropy(model(**{k: b[k] for k in inputs}).logits, b["labels"], reduction="sum") for b in batches
        ]
        return sum(losses), sum(len(b["labels"]) for b in batches)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model_dir):
    """37 rows in micro-batches of 5, windows of 3: 3 steps an epoch; logged every 4 steps."""
    folder = tmp_path_factory.mktemp("metric_log")
    recount = Recount()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_TUNE_CACHE", str(folder / "cache"))
        data = {"train": str(write_csv(folder / "train.csv", toy_rows(37))), "train_batch_size": 5}
        module = {
            "optimizer": {"lr": STILL, "head_lr": 10 * STILL, "weight_decay": 0.0},
            "lr_schedule": {"name": "linear", "warmup": 0},
            "log_parameter_norms": True,
        }
        trainer = fit_plain(
            tiny_model_dir,
            data,
            [MetricLog(), recount],
            module=module,
            logger=JsonlLogger(folder / "metrics.jsonl"),
            log_every_n_steps=4,
            accumulate_grad_batches=3,
            gradient_clip_val=1e-3,
            max_epochs=3,
        )
    recount.trainer = trainer
    recount.lines = [line for line in lines(folder / "metrics.jsonl") if "train/loss" in line]
    recount.all_lines = lines(folder / "metrics.jsonl")
    return recount


def test_lines_come_at_the_first_step_every_n_and_the_last(run):
    assert [line["step"] for line in run.lines] == [1, 4, 8, 9]
    # by micro-batches, 8 an epoch: 3, then 8 + 3, 2 x 8 + 6 and all 24
    assert [line["epoch"] for line in run.lines] == [0.375, 1.375, 2.75, 3.0]
    steps = [line["step"] for line in run.all_lines]
    assert steps == sorted(steps)


def test_train_loss_is_the_mean_over_all_rows_of_the_interval(run):
    model = run.model()
    for first, line in zip((1, 2, 5, 9), run.lines, strict=True):
        total, rows = run.summed_loss(model, first, line["step"])
        assert line["train/loss"] == pytest.approx(total.item() / rows, rel=1e-5)


def test_grad_norm_is_that_of_the_mean_loss_before_clipping(run):
    for line in run.lines:
        model = run.model()
        total, rows = run.summed_loss(model, line["step"], line["step"])
        (total / rows).backward()
        norm = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in model.parameters() if p.grad is not None))
        assert line["optim/grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert norm > 0.1  # far above the 0.001 at which it is clipped


def test_norms_of_each_parameter_on_request(run):
    names = {n for n, _ in run.model().named_parameters()}
    for line in run.lines:
        norms = {k.removeprefix("grad_norm/"): v for k, v in line.items() if k.startswith("grad_norm/")}
        assert set(norms) == names
        assert math.sqrt(sum(v * v for v in norms.values())) == pytest.approx(
            1e-3, rel=1e-2
        )  # as the optimizer saw them


def test_every_group_has_its_learning_rate_to_the_end(run):
    groups = run.trainer.optimizers[0].param_groups
    assert len(groups) > 1
    for line in run.lines:
        left = (9 - line["step"]) / 9
        for group in groups:
            rate = (10 if "head" in group["name"] else 1) * STILL * left
            assert line[f"optim/lr/{group['name']}"] == pytest.approx(rate)
        assert line["optim/lr"] == pytest.approx(10 * STILL * left)


def test_padding_is_counted_exactly(run):
    for first, line in zip((1, 2, 5, 9), run.lines, strict=True):
        masks = [b["attention_mask"] for step in range(first, line["step"] + 1) for b in run.batches[step]]
        tokens, positions = sum(int(m.sum()) for m in masks), sum(m.numel() for m in masks)
        assert line["perf/padding_fraction"] == 1 - tokens / positions
        rows = sum(len(m) for m in masks)
        assert line["perf/tokens_per_second"] / line["perf/examples_per_second"] == pytest.approx(tokens / rows)
        assert line["perf/peak_memory_gb"] > 0.1


class Skips(Callback):
    """As if the fp16 scaler had skipped steps."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.num_skipped_steps = 2


def test_undefined_metrics_are_null_in_json_and_do_not_trouble_other_loggers(tiny_model_dir, tmp_path):
    train = write_csv(tmp_path / "train.csv", toy_rows(30))
    rows = [row for row in toy_rows(40, seed=3) if row["label"] == "fine"][:5]
    val = write_csv(tmp_path / "val.csv", rows)
    loggers = [
        JsonlLogger(tmp_path / "m.jsonl"),
        TensorBoardLogger(tmp_path, name="tb", version=""),
        CSVLogger(tmp_path, name="csv", version=""),
    ]
    data = {"train": str(train), "val": str(val)}
    callbacks = [EvalSchedule(), MetricLog(), Skips()]
    fit_plain(tiny_model_dir, data, callbacks, logger=loggers, max_epochs=1, module={"config_overrides": NO_DROPOUT})
    logged = lines(tmp_path / "m.jsonl")
    (val_line,) = [line for line in logged if "val/loss" in line]
    assert val_line["val/auroc"] is None
    assert val_line["step"] == 2
    assert val_line["epoch"] == 1.0
    assert all(v is None or isinstance(v, str) or math.isfinite(v) for line in logged for v in line.values())
    assert [line["optim/skipped_steps"] for line in logged if "train/loss" in line] == [2, 2]
    assert {"baseline/accuracy", "baseline/loss"} <= set(logged[0])
    assert logged[0]["step"] == 0
    assert "val/auroc" in (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0]
