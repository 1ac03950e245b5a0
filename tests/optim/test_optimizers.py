"""Optimizers against torch's own, HF Trainer's, and the messages for settings that cannot be."""

import copy
import inspect
import logging
import sys

import pytest
import torch
from jsonargparse import ArgumentParser
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices
from transformers import AutoModelForSequenceClassification, BertConfig, Trainer, TrainingArguments
from transformers.optimization import Adafactor

from lit_tune.errors import ConfigError, ProblemList
from lit_tune.models.freezing import freeze
from lit_tune.optim import optimizers
from lit_tune.optim.optimizers import OptimizerSettings, build_optimizer
from lit_tune.optim.param_groups import no_decay_names


@pytest.fixture
def bert():
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=60,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return AutoModelForSequenceClassification.from_config(config)


def build(model, fused_allowed=True, **settings):
    return build_optimizer(OptimizerSettings(**settings), model, fused_allowed=fused_allowed)


def train(model, optimizer, steps=5):
    """Weights after a few steps on a fixed batch."""
    for step in range(steps):
        optimizer.zero_grad()
        ids = torch.arange(12).reshape(2, 6) + step
        model(input_ids=ids, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def plain_groups(model, weight_decay):
    undecayed = no_decay_names(model)
    return [
        {"params": [p for n, p in model.named_parameters() if n not in undecayed], "weight_decay": weight_decay},
        {"params": [p for n, p in model.named_parameters() if n in undecayed], "weight_decay": 0.0},
    ]


OURS_AND_TORCHS = {
    "adamw": ({"name": "adamw"}, lambda g: torch.optim.AdamW(g, lr=1e-2, betas=(0.9, 0.999), eps=1e-8)),
    "adamw with betas and eps": (
        {"name": "adamw", "betas": (0.8, 0.9), "eps": 1e-3, "init_args": {"amsgrad": True}},
        lambda g: torch.optim.AdamW(g, lr=1e-2, betas=(0.8, 0.9), eps=1e-3, amsgrad=True),
    ),
    "sgd": ({"name": "sgd"}, lambda g: torch.optim.SGD(g, lr=1e-2, momentum=0.9)),
    "sgd without momentum": ({"name": "sgd", "momentum": 0.0}, lambda g: torch.optim.SGD(g, lr=1e-2)),
    "SGD is sgd": ({"name": "SGD"}, lambda g: torch.optim.SGD(g, lr=1e-2, momentum=0.9)),
    "a path has torch's own defaults": ({"name": "torch.optim.SGD"}, lambda g: torch.optim.SGD(g, lr=1e-2)),
    "RMSprop": (
        {"name": "RMSprop", "momentum": 0.5, "init_args": {"alpha": 0.9}},
        lambda g: torch.optim.RMSprop(g, lr=1e-2, momentum=0.5, alpha=0.9),
    ),
    "NAdam": ({"name": "torch.optim.NAdam"}, lambda g: torch.optim.NAdam(g, lr=1e-2)),
    "adafactor": (
        {"name": "adafactor"},
        lambda g: Adafactor(g, lr=1e-2, scale_parameter=False, relative_step=False),
    ),
    "torch's Adafactor": ({"name": "torch.optim.Adafactor"}, lambda g: torch.optim.Adafactor(g, lr=1e-2)),
}


@pytest.mark.parametrize("case", OURS_AND_TORCHS)
def test_weights_after_five_steps_equal_the_class_used_by_hand(bert, case):
    settings, by_hand = OURS_AND_TORCHS[case]
    other = copy.deepcopy(bert)
    ours = train(bert, build(bert, fused_allowed=False, lr=1e-2, weight_decay=0.1, **settings))
    theirs = train(other, by_hand(plain_groups(other, 0.1)))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("adamw", "adamw_torch"), ("adafactor", "adafactor"), ("adamw", "adamw_torch_fused")]
)
def test_class_and_arguments_are_those_of_hf_trainer(bert, tmp_path, ours, theirs):
    arguments = TrainingArguments(
        output_dir=str(tmp_path), optim=theirs, learning_rate=3e-4, weight_decay=0.01, use_cpu=True, report_to="none"
    )
    reference = Trainer(bert, arguments).create_optimizer()
    optimizer = build(bert, name=ours, lr=3e-4, weight_decay=0.01, fused_allowed=theirs.endswith("fused"))
    assert type(optimizer) is type(reference)
    skip = {"weight_decay", "fused", "foreach"}  # decay stands in the groups; HF leaves fused=None where we say False
    assert {k: v for k, v in optimizer.defaults.items() if k not in skip} == {
        k: v for k, v in reference.defaults.items() if k not in skip
    }
    assert bool(optimizer.defaults.get("fused")) == bool(reference.defaults.get("fused"))
    assert [g["weight_decay"] for g in optimizer.param_groups] == [g["weight_decay"] for g in reference.param_groups]


def test_fused_is_on_by_default_only_where_it_may_be(bert):
    assert build(bert).defaults["fused"] is True
    assert not build(bert, fused_allowed=False).defaults["fused"]
    assert not build(bert, fused=False).defaults["fused"]
    assert not build(bert, name="Adagrad").defaults["fused"], "fused Adagrad exists on the CPU only"
    assert not build(bert, init_args={"foreach": True}).defaults["fused"]
    assert not build(copy.deepcopy(bert).to("meta")).defaults["fused"]
    assert set(optimizers._FUSED_DEVICES) <= set(_get_fused_kernels_supported_devices())


def test_fused_gives_the_weights_of_the_plain_optimizer(bert):
    other = copy.deepcopy(bert)
    settings = {"lr": 1e-2, "eps": 1e-3}  # a large eps: key biases have gradient 0, and Adam would blow up its rounding
    fused, plain = train(bert, build(bert, **settings)), train(other, build(other, **settings, fused=False))
    assert torch.allclose(fused, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "fused_allowed", "message"),
    [
        ({"fused": True}, False, "16-mixed"),
        ({"fused": True, "name": "adafactor"}, True, "does not exist for Adafactor"),
    ],
)
def test_fused_that_cannot_be_is_an_error(bert, settings, fused_allowed, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(bert, fused_allowed=fused_allowed, **settings)
    assert caught.value.where == "optimizer.fused"


def test_only_trainable_parameters_are_optimized(bert):
    freeze(bert, ["backbone"])
    optimizer = build(bert)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]


def test_names_of_groups_survive_in_the_state(bert):
    state = build(bert, head_lr=1e-3).state_dict()
    assert [group["name"] for group in state["param_groups"]] == [
        "backbone, decay",
        "backbone, no decay",
        "head, decay",
        "head, no decay",
    ]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"lr": 0.0}, "lr"),
        ({"lr": -1e-5}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": float("inf")}, "lr"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": (0.9,)}, "betas"),
        ({"eps": -1e-8}, "eps"),
        ({"momentum": 1.0}, "momentum"),
        ({"head_lr": 0.0}, "head_lr"),
        ({"layer_lr_decay": 0.0}, "layer_lr_decay"),
        ({"layer_lr_decay": 1.1}, "layer_lr_decay"),
        ({"layer_lr_decay": float("nan")}, "layer_lr_decay"),
    ],
)
def test_a_value_out_of_range_names_its_key(settings, key):
    with pytest.raises(ConfigError, match="out of range") as caught:
        OptimizerSettings(**settings)
    assert caught.value.where == f"optimizer.{key}"
    assert caught.value.exit_code == 2


def test_several_values_out_of_range_are_reported_together():
    with pytest.raises(ProblemList) as caught:
        OptimizerSettings(lr=0.0, weight_decay=-1.0)
    assert [problem.where for problem in caught.value.problems] == ["optimizer.lr", "optimizer.weight_decay"]


@pytest.mark.parametrize(
    ("settings", "where", "message"),
    [
        ({"name": "adafactr"}, "optimizer.name", "did you mean adafactor"),
        ({"name": "torch.optim.RMSpop"}, "optimizer.name", "did you mean RMSprop"),
        ({"name": "torch.optim.lr_scheduler.StepLR"}, "optimizer.name", "not a torch optimizer"),
        ({"name": "os.system"}, "optimizer.name", "--allow-import os"),
        ({"name": "sgd", "betas": (0.9, 0.99)}, "optimizer.betas", "SGD has no betas"),
        ({"name": "adamw", "momentum": 0.9}, "optimizer.momentum", "AdamW has no momentum"),
        ({"name": "adafactor", "eps": 1e-8}, "optimizer.eps", r"optimizer\.init_args\.eps: \(1e-30, 0\.001\)"),
        ({"init_args": {"amsgard": True}}, "optimizer.init_args.amsgard", "did you mean amsgrad"),
        ({"init_args": {"lr": 1.0}}, "optimizer.init_args.lr", r"write optimizer\.lr"),
        ({"init_args": {"params": []}}, "optimizer.init_args.params", "come from the model"),
        ({"name": "sgd", "init_args": {"nesterov": True, "dampening": 0.5}}, "optimizer", "Nesterov"),
        ({"name": "LBFGS"}, "optimizer", "LBFGS"),
        ({"name": "Muon"}, "optimizer", "2D"),
        ({"name": "adafactor", "init_args": {"relative_step": True}}, "optimizer", "relative_step"),
    ],
)
def test_settings_that_cannot_be_are_errors_with_a_place(bert, settings, where, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(bert, **settings)
    assert caught.value.where == where


def test_a_pair_as_eps_goes_through_init_args(bert):
    optimizer = build(bert, name="adafactor", init_args={"eps": [1e-20, 1e-2]})
    assert optimizer.defaults["eps"] == [1e-20, 1e-2]


def test_8_bit_without_its_package_names_the_extra(bert, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"pip install 'lit-tune\[8bit\]'"):
        build(bert, name="adamw_8bit")


def test_8_bit_keeps_8_bit_state_but_for_embeddings(bert):
    pytest.importorskip("bitsandbytes", reason="the 8bit extra is not installed")
    optimizer = build(bert, name="adamw_8bit", init_args={"min_8bit_size": 256})
    train(bert, optimizer, steps=1)
    dense = bert.bert.encoder.layer[0].intermediate.dense.weight
    assert optimizer.state[dense]["state1"].dtype == torch.uint8
    assert optimizer.state[bert.bert.embeddings.word_embeddings.weight]["state1"].dtype == torch.float32


def test_groups_and_choices_are_logged(bert, caplog):
    with caplog.at_level(logging.INFO, logger="lit_tune"):
        build(bert, name="adafactor", lr=1e-3, head_lr=1e-2)
    assert "Optimizer Adafactor: lr 0.001, relative_step False, scale_parameter False, weight_decay 0.01" in caplog.text
    assert "not its own relative step sizes" in caplog.text
    assert "head, decay: lr 0.01, weight decay 0.01, 1 tensor, 32 parameters" in caplog.text


def test_weight_decay_that_an_optimizer_lacks_is_said(bert, caplog):
    build(bert, name="Rprop")
    assert "optimizer.weight_decay has no effect: Rprop has none" in caplog.text


def test_the_signature_is_the_section_and_a_plain_dict_is_the_way_back():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(OptimizerSettings, "optimizer")
    arguments = ["--optimizer.lr=1e-3", "--optimizer.betas=[0.8,0.9]", "--optimizer.init_args={amsgrad: true}"]
    section = parser.parse_args(arguments).optimizer.as_dict()
    assert set(section) == set(inspect.signature(OptimizerSettings).parameters)
    settings = OptimizerSettings(**section)
    assert (settings.lr, settings.betas, settings.init_args) == (1e-3, (0.8, 0.9), {"amsgrad": True})
    assert OptimizerSettings(**{**section, "betas": [0.8, 0.9]}).betas == (0.8, 0.9), "a list, as JSON gives it back"
