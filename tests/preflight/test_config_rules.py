"""Every rule, on a real parsed config with one contradiction put into it."""

import copy

import pytest

from lit_tune.cli import parse
from lit_tune.config.parse import as_plain
from lit_tune.config.sections import TRAINER_DEFAULTS, all_keys, tasks
from lit_tune.preflight.config_rules import RULES, contradictions
from lit_tune.preflight.situation import Situation
from lit_tune.preflight.trainer_rules import REFUSED

TRAIN = ["--data.train", "a.csv", "--model.model_name_or_path", "m"]


@pytest.fixture(scope="module")
def good_config():
    return as_plain(parse(TRAIN).config)


def changed(config, changes):
    config = copy.deepcopy(config)
    for key, value in changes.items():
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node[part]
        assert last in node or path[-1:] == ["config_overrides"], f"the test names a key that is not there: {key}"
        node[last] = value
    return config


def found(config, changes, verb="fit", accelerators=(), num_devices=0):
    return contradictions(Situation(changed(config, changes), verb, accelerators, num_devices))


def test_a_good_config_has_no_contradiction_on_any_machine(good_config):
    for accelerators, count in [((), 0), (("cuda",), 2), (("mps",), 1)]:
        for verb in ("fit", "prepare", "validate"):
            assert found(good_config, {}, verb, accelerators, count) == []


ASYNC_IO = "lightning.pytorch.plugins.io.AsyncCheckpointIO"
DDP = "lightning.pytorch.strategies.DDPStrategy"

CONTRADICTIONS = [
    ({"trainer.use_distributed_sampler": True}, "trainer.use_distributed_sampler"),
    ({"trainer.overfit_batches": 2}, "trainer.overfit_batches"),
    ({"trainer.barebones": True}, "trainer.barebones"),
    ({"trainer.val_check_interval": 100}, "trainer.val_check_interval"),
    ({"trainer.check_val_every_n_epoch": None}, "trainer.check_val_every_n_epoch"),
    ({"trainer.enable_checkpointing": False}, "trainer.enable_checkpointing"),
    ({"trainer.reload_dataloaders_every_n_epochs": 1}, "trainer.reload_dataloaders_every_n_epochs"),
    ({"trainer.logger": False}, "trainer.logger"),
    ({"trainer.num_nodes": 2}, "trainer.num_nodes"),
    ({"trainer.strategy": "fsdp"}, "trainer.strategy"),
    ({"trainer.strategy": "deepspeed_stage_2"}, "trainer.strategy"),
    ({"trainer.strategy": {"class_path": "lightning.pytorch.strategies.FSDPStrategy"}}, "trainer.strategy"),
    ({"trainer.strategy": "dpd"}, "trainer.strategy"),
    ({"trainer.accelerator": "gpuu"}, "trainer.accelerator"),
    ({"trainer.gradient_clip_algorithm": "max"}, "trainer.gradient_clip_algorithm"),
    ({"trainer.accelerator": "gpu"}, "trainer.accelerator"),
    ({"trainer.accelerator": "mps"}, "trainer.accelerator"),
    ({"trainer.precision": "16-mixed"}, "trainer.precision"),
    ({"trainer.precision": 16}, "trainer.precision"),
    ({"trainer.precision": "bf16-true", "model.dtype": "float16"}, "model.dtype"),
    ({"model.attn_implementation": "flash_attention_2"}, "model.attn_implementation"),
    ({"optimizer.name": "adamw_8bit"}, "optimizer.name"),
    ({"model.quantization": "nf4", "model.from_scratch": True}, "model.from_scratch"),
    ({"model.quantization": "nf4", "model.freeze": "embeddings"}, "model.freeze"),
    ({"model.quantization": "nf4", "model.compile": True}, "model.compile"),
    ({"model.quantization": "nf4", "trainer.precision": "64-true"}, "trainer.precision"),
    ({"data.train": None}, "data.train"),
    ({"data.dataset": "glue"}, "data.train"),
    ({"data.name": "mrpc"}, "data.name"),
    ({"data.val_split": "dev"}, "data.val_split"),
    ({"data.val_fraction": 0.0, "early_stopping.patience": 3}, "early_stopping.patience"),
    ({"data.val_fraction": 0.0, "checkpoint.monitor": "val/f1"}, "checkpoint.monitor"),
    ({"data.val_fraction": 0.0, "eval_every_steps": 10}, "eval_every_steps"),
    ({"data.val_fraction": 0.0, "overfit.action": "stop"}, "overfit.action"),
    ({"data.streaming": True, "data.val_fraction": 0.0}, "trainer.max_steps"),
    ({"data.streaming": True, "trainer.max_steps": 9}, "data.val_fraction"),
    (
        {"data.streaming": True, "trainer.max_steps": 9, "data.val": "b.csv", "data.limit_train": 5},
        "data.limit_train",
    ),
    ({"trainer.max_steps": 100, "lr_schedule.warmup": 100.0}, "lr_schedule.warmup"),
    ({"trainer.min_epochs": 4}, "trainer.min_epochs"),
    ({"trainer.max_steps": 10, "trainer.min_steps": 11}, "trainer.min_steps"),
    ({"trainer.max_epochs": -1}, "trainer.max_epochs"),
    (
        {"data.padding": "max_length", "data.max_length": 100, "data.pad_to_multiple_of": 8},
        "data.max_length",
    ),
    ({"checkpoint.monitor": "f1"}, "checkpoint.monitor"),
    ({"early_stopping.patience": 2, "early_stopping.monitor": "train/loss"}, "early_stopping.monitor"),
    ({"early_stopping.monitor": "val/f1"}, "early_stopping.monitor"),
    ({"early_stopping.min_delta": 0.1}, "early_stopping.min_delta"),
    ({"checkpoint.keep_best": 0, "checkpoint.monitor": "val/f1"}, "checkpoint.monitor"),
    ({"checkpoint.keep_last": 0, "checkpoint.every_n_steps": 5}, "checkpoint.every_n_steps"),
    ({"logger": ["none", "csv"]}, "logger"),
    ({"logger": ["csv", "csv"]}, "logger"),
    ({"wandb.project": "hikes"}, "wandb.project"),
    (
        {"task.init_args.loss": "MultiMarginLoss", "task.init_args.label_smoothing": 0.1},
        "task.init_args.label_smoothing",
    ),
    (
        {"task.init_args.class_weights": "balanced", "task.init_args.problem_type": "multi_label_classification"},
        "task.init_args.class_weights",
    ),
    (
        {"task.init_args.pos_weight": "balanced", "task.init_args.problem_type": "single_label_classification"},
        "task.init_args.pos_weight",
    ),
    (
        {"task.init_args.pos_weight": "balanced", "task.init_args.class_weights": "balanced"},
        "task.init_args.pos_weight",
    ),
    ({"task.init_args.focal_gamma": 2.0, "task.init_args.problem_type": "regression"}, "task.init_args.focal_gamma"),
    ({"task.init_args.label_names": ["a", "b", "a"]}, "task.init_args.label_names"),
    (
        {"task.init_args.label_names": ["a", "b"], "task.init_args.class_weights": [1.0, 2.0, 3.0]},
        "task.init_args.class_weights",
    ),
    ({"model.from_scratch": True, "model.new_head": True}, "model.new_head"),
    ({"model.from_scratch": True, "model.freeze": "backbone"}, "model.freeze"),
    ({"model.config_overrides.num_labels": 3}, "model.config_overrides.num_labels"),
    ({"trainer.plugins": {"class_path": ASYNC_IO, "init_args": {}}}, "trainer.plugins"),
    ({"trainer.plugins": [{"class_path": ASYNC_IO}]}, "trainer.plugins"),
    (
        {"trainer.strategy": {"class_path": DDP, "init_args": {"checkpoint_io": {"class_path": ASYNC_IO}}}},
        "trainer.strategy.init_args.checkpoint_io",
    ),
]


@pytest.mark.parametrize(("changes", "where"), CONTRADICTIONS, ids=lambda v: v if isinstance(v, str) else None)
def test_a_contradiction_on_a_cpu_is_found_once_under_its_key(good_config, changes, where):
    problems = found(good_config, changes)
    assert [p.where for p in problems] == [where]
    assert problems[0].fix
    assert "Fix: " in str(problems[0])
    assert problems[0].exit_code in (2, 5)


@pytest.mark.parametrize(
    ("changes", "accelerators", "where"),
    [
        ({"trainer.precision": "16-mixed"}, ("mps",), "trainer.precision"),
        ({"trainer.precision": "64-true"}, ("mps",), "trainer.precision"),
        ({"trainer.precision": "16-mixed", "model.dtype": "float16"}, ("cuda",), "model.dtype"),
        ({"model.attn_implementation": "flash_attention_2"}, ("cuda",), "model.attn_implementation"),
        ({"trainer.devices": 8}, ("cuda",), "trainer.devices"),
        ({"trainer.devices": [0, 1, 2]}, ("cuda",), "trainer.devices"),
        ({"trainer.devices": 2}, ("mps",), "trainer.devices"),
        ({"trainer.accelerator": "cpu", "trainer.precision": "16-mixed"}, ("cuda",), "trainer.precision"),
    ],
)
def test_a_contradiction_of_a_gpu_is_found(good_config, changes, accelerators, where):
    assert [p.where for p in found(good_config, changes, accelerators=accelerators, num_devices=1)] == [where]


@pytest.mark.parametrize(
    ("changes", "accelerators", "count"),
    [
        ({"trainer.precision": "16-mixed"}, ("cuda",), 1),
        ({"trainer.precision": "bf16-mixed"}, (), 0),
        ({"trainer.precision": "bf16-true", "model.dtype": "bfloat16"}, (), 0),
        ({"trainer.devices": 2, "trainer.strategy": "ddp"}, (), 0),
        ({"trainer.devices": "2"}, ("cuda",), 2),
        ({"trainer.check_val_every_n_epoch": 2}, (), 0),
        ({"data.val_fraction": 0.0}, (), 0),
        ({"data.val_fraction": 0.0, "data.val": "b.csv", "early_stopping.patience": 3}, (), 0),
        ({"data.streaming": True, "trainer.max_steps": 9, "data.val": "b.csv"}, (), 0),
        ({"logger": ["tensorboard", "wandb"], "wandb.project": "hikes"}, (), 0),
        ({"early_stopping.patience": 3, "early_stopping.monitor": "val/f1"}, (), 0),
        ({"trainer.max_epochs": -1, "trainer.max_time": "00:01:00:00"}, (), 0),
        ({"trainer.plugins": {"class_path": "lightning.pytorch.plugins.environments.SLURMEnvironment"}}, (), 0),
        ({"trainer.strategy": "ddp_find_unused_parameters_true"}, (), 0),
    ],
)
def test_what_works_together_is_not_refused(good_config, changes, accelerators, count):
    assert found(good_config, changes, accelerators=accelerators, num_devices=count) == []


@pytest.mark.parametrize(
    ("verb", "changes", "where"),
    [
        ("validate", {"data.train": None}, ["data.val"]),
        ("validate", {"data.train": None, "data.dataset": "glue"}, []),
        ("test", {}, ["data.test"]),
        ("test", {"data.test": "t.csv", "data.train": None}, []),
        ("predict", {"data.train": None, "data.dataset": "glue"}, ["data.predict"]),
        ("predict", {"data.predict": "p.csv", "data.val_fraction": 0.0, "early_stopping.patience": 3}, []),
        ("prepare", {"data.train": None}, ["data.train"]),
    ],
)
def test_each_verb_asks_for_the_rows_it_reads(good_config, verb, changes, where):
    assert [p.where for p in found(good_config, changes, verb)] == where


def test_several_contradictions_are_found_together(good_config):
    changes = {"trainer.precision": "16-mixed", "data.dataset": "glue", "wandb.project": "x"}
    assert [p.where for p in found(good_config, changes)] == ["trainer.precision", "data.train", "wandb.project"]


def test_the_rules_name_keys_that_exist():
    keys = all_keys(tasks()["SequenceClassification"])
    assert REFUSED.keys() <= keys.keys()
    assert {f"trainer.{name}" for name in TRAINER_DEFAULTS} <= keys.keys()
    assert len(RULES) >= 10
    assert len(CONTRADICTIONS) >= 20
