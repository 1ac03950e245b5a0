"""Groups against HF Trainer's choice of decayed parameters and a hand calculation of layer-wise rates."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from lit_tune.errors import ConfigError
from lit_tune.models.freezing import freeze
from lit_tune.optim.param_groups import build_param_groups, describe_groups, no_decay_names

COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
    "max_position_embeddings": 64,
}
MODELS = {
    "bert": COMMON,
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "vocab_size": 60},
    "roberta": COMMON,
    "albert": {**COMMON, "embedding_size": 8},
    "deberta": {**COMMON, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {**COMMON, "relative_attention": True, "pos_att_type": ["c2p"], "norm_rel_ebd": "layer_norm"},
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64, "vocab_size": 60},
    "llama": {**COMMON, "num_key_value_heads": 2},
    "qwen3": {**COMMON, "num_key_value_heads": 2, "head_dim": 8},
    "modernbert": {**COMMON, "pad_token_id": 0},
    "mpnet": COMMON,
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2, "vocab_size": 60},
    "xlm": {"emb_dim": 16, "n_layers": 3, "n_heads": 2, "vocab_size": 60},
}


def tiny(model_type, auto_class=AutoModelForSequenceClassification):
    return auto_class.from_config(AutoConfig.for_model(model_type, **MODELS[model_type]))


def names_of(model, parameters):
    name_of = {id(p): name for name, p in model.named_parameters()}
    return [name_of[id(p)] for p in parameters]


@pytest.mark.parametrize("model_type", MODELS)
def test_decay_falls_on_the_same_parameters_as_in_hf_trainer(model_type, tmp_path):
    model = tiny(model_type)
    trainer = Trainer(model, TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"))
    theirs = set(trainer.get_decay_parameter_names(model)) & {name for name, _ in model.named_parameters()}
    decayed = {name for name, _ in model.named_parameters()} - no_decay_names(model)
    assert decayed == theirs
    groups = build_param_groups(model, lr=1e-3, weight_decay=0.1)
    assert {g["name"]: g["weight_decay"] for g in groups} == {"all, decay": 0.1, "all, no decay": 0.0}
    assert set(names_of(model, groups[0]["params"])) == theirs


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize(("head_lr", "layer_lr_decay"), [(None, 1.0), (1e-2, 1.0), (None, 0.5), (1e-2, 0.5)])
def test_every_trainable_parameter_is_in_exactly_one_group(model_type, head_lr, layer_lr_decay):
    model = tiny(model_type)
    freeze(model, [r"(layer|layers|block|h|attentions|albert_layer_groups)\.0\."])
    groups = build_param_groups(model, 1e-3, 0.1, head_lr, layer_lr_decay)
    found = sorted(name for group in groups for name in names_of(model, group["params"]))
    assert found == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert len({group["name"] for group in groups}) == len(groups)
    torch.optim.AdamW(groups)  # refuses a parameter in two groups


def test_layer_wise_rates_fall_from_the_head_down():
    model = tiny("bert")
    groups = build_param_groups(model, lr=1.0, weight_decay=0.1, layer_lr_decay=0.5)
    rates = {group["name"]: group["lr"] for group in groups}
    expected = {"embeddings": 0.5**4, "layer 1": 0.5**3, "layer 2": 0.5**2, "layer 3": 0.5, "head": 1.0}
    assert rates == {f"{part}, {decay}": lr for part, lr in expected.items() for decay in ("decay", "no decay")}
    assert list(rates)[:3] == ["embeddings, decay", "embeddings, no decay", "layer 1, decay"]
    assert names_of(model, groups[-2]["params"]) == ["classifier.weight"]


def test_head_lr_replaces_only_the_heads_rate():
    groups = build_param_groups(tiny("bert"), lr=1e-5, weight_decay=0.0, head_lr=1e-3)
    assert {group["name"].split(",")[0]: group["lr"] for group in groups} == {"backbone": 1e-5, "head": 1e-3}
    both = build_param_groups(tiny("bert"), lr=1e-5, weight_decay=0.0, head_lr=1e-3, layer_lr_decay=0.9)
    rates = {group["name"].split(",")[0]: group["lr"] for group in both}
    assert rates["head"] == 1e-3
    assert rates["layer 3"] == pytest.approx(0.9e-5)


def test_tied_weights_are_in_one_group_once():
    model = tiny("bert", AutoModelForMaskedLM)
    groups = build_param_groups(model, 1.0, 0.1, head_lr=2.0, layer_lr_decay=0.5)
    holders = [g["name"] for g in groups if any(p is model.get_output_embeddings().weight for p in g["params"])]
    assert holders == ["embeddings, decay"]


def test_a_model_that_lacks_what_a_setting_is_about_is_an_error():
    model = tiny("bert")
    for parameter in model.classifier.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"optimizer\.head_lr"):
        build_param_groups(model, 1e-3, 0.0, head_lr=1e-2)
    with pytest.raises(ConfigError, match=r"optimizer\.layer_lr_decay"):
        build_param_groups(nn.Linear(2, 2), 1e-3, 0.0, layer_lr_decay=0.9)
    with pytest.raises(ConfigError, match=r"model\.freeze"):
        build_param_groups(nn.Linear(2, 2).requires_grad_(False), 1e-3, 0.0)


def test_groups_are_described_in_one_line_each():
    groups = build_param_groups(tiny("bert"), 2e-5, 0.01, head_lr=1e-3)
    assert describe_groups(groups)[2:] == [
        "head, decay: lr 0.001, weight decay 0.01, 1 tensor, 32 parameters",
        "head, no decay: lr 0.001, weight decay 0, 1 tensor, 2 parameters",
    ]
