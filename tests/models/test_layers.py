"""Depths of real architectures, built small and random."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from lit_tune.models.layers import head_parameter_names, layer_depths, num_layers

COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
    "max_position_embeddings": 64,
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 2, "vocab_size": 60}
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "norm_rel_ebd": "layer_norm",
    "conv_kernel_size": 3,
    "position_buckets": 8,
}
BART = {"d_model": 16, "encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}

# model type -> config, {part of a parameter name: its depth}; the head is one above the last layer everywhere
ARCHITECTURES = {
    "bert": (COMMON, {"bert.embeddings.": 0, "layer.0.": 1, "layer.2.": 3, "pooler": 3, "classifier": 4}),
    "distilbert": (
        {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "vocab_size": 60},
        {"distilbert.embeddings": 0, "transformer.layer.1.": 2, "pre_classifier": 4, "classifier": 4},
    ),
    "roberta": (COMMON, {"embeddings": 0, "layer.0.": 1, "layer.2.": 3, "classifier.out_proj": 4}),
    "albert": (
        {**COMMON, "embedding_size": 8},
        {"embeddings": 0, "embedding_hidden_mapping_in": 0, "albert_layer_groups.0.": 1, "pooler": 1, "classifier": 2},
    ),
    "deberta-v2": (
        {**COMMON, **DEBERTA},
        {"rel_embeddings": 0, "encoder.LayerNorm": 0, "layer.0.": 1, "layer.2.": 3, "pooler": 4, "classifier": 4},
    ),
    "gpt2": (
        {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64, "vocab_size": 60},
        {"wte": 0, "wpe": 0, "h.0.": 1, "h.2.": 3, "ln_f": 3, "score": 4},
    ),
    "llama": (
        {**COMMON, "num_key_value_heads": 2},
        {"embed_tokens": 0, "layers.0.": 1, "layers.2.": 3, "model.norm": 3, "score": 4},
    ),
    "mixtral": (
        {**COMMON, "num_key_value_heads": 2, "num_local_experts": 8},
        {"embed_tokens": 0, "layers.0.mlp": 1, "layers.2.": 3, "score": 4},
    ),
    "opt": (
        {**COMMON, "ffn_dim": 32, "word_embed_proj_dim": 8},
        {"embed_": 0, "project_in": 0, "layers.0.": 1, "decoder.final_layer_norm": 3, "project_out": 3, "score": 4},
    ),
    "xlm": (
        {"emb_dim": 16, "n_layers": 3, "n_heads": 2, "vocab_size": 60},
        {"layer_norm_emb": 0, "attentions.0.": 1, "ffns.0.": 1, "layer_norm2.2.": 3, "sequence_summary": 4},
    ),
    "t5": (
        T5,
        {
            "shared": 0,
            "encoder.block.0.": 1,
            "encoder.block.2.": 3,
            "encoder.final_layer_norm": 3,
            "decoder.block.0.": 4,
            "decoder.final_layer_norm": 5,
            "classification_head": 6,
        },
    ),
    "bart": (
        {**BART, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 60},
        {"shared": 0, "encoder.layernorm_embedding": 0, "encoder.layers.2.": 3, "decoder.layers.0.": 4, "classif": 6},
    ),
}


def tiny(model_type, auto_class=AutoModelForSequenceClassification):
    return auto_class.from_config(AutoConfig.for_model(model_type, **ARCHITECTURES[model_type][0]))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_part_of_an_architecture_has_its_depth(model_type):
    model = tiny(model_type)
    depths = layer_depths(model)
    assert list(depths) == [name for name, _ in model.named_parameters()]
    for part, expected in ARCHITECTURES[model_type][1].items():
        found = {depth for name, depth in depths.items() if part in name}
        assert found == {expected}, part


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_depth_between_embeddings_and_head_is_taken(model_type):
    model = tiny(model_type)
    assert set(layer_depths(model).values()) == set(range(num_layers(model) + 2))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_head_is_what_from_pretrained_finds_missing_in_the_base_model(model_type, tmp_path):
    # transformers' own answer: a checkpoint of the bare model, loaded with a head, reports the head as missing.
    model = tiny(model_type)
    model.base_model.save_pretrained(tmp_path)
    _, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert head_parameter_names(model) == set(report["missing_keys"])


def test_a_shared_layer_is_one_layer():
    assert num_layers(tiny("albert")) == 1
    assert num_layers(tiny("t5")) == 5


def test_a_tied_head_is_embeddings_and_an_untied_one_is_a_head():
    tied = tiny("bert", AutoModelForMaskedLM)
    assert "cls.predictions.decoder.weight" not in layer_depths(tied)
    assert layer_depths(tied)["bert.embeddings.word_embeddings.weight"] == 0
    assert layer_depths(tied)["cls.predictions.transform.dense.weight"] == 4
    t5 = tiny("t5", AutoModelForSeq2SeqLM)
    assert head_parameter_names(t5) == set()
    t5.lm_head.weight = nn.Parameter(t5.lm_head.weight.detach().clone())
    assert head_parameter_names(t5) == {"lm_head.weight"}
    assert layer_depths(t5)["lm_head.weight"] == 6


def test_a_base_model_alone_has_no_head():
    model = tiny("bert", AutoModel)
    assert head_parameter_names(model) == set()
    assert set(layer_depths(model).values()) == {0, 1, 2, 3}


def test_a_model_without_a_stack_has_no_layers():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    assert num_layers(model) == 0
    assert set(layer_depths(model).values()) == {0}


def test_experts_inside_a_block_are_not_layers():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(8))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropouts = nn.ModuleList(nn.Dropout() for _ in range(9))
            self.scale = nn.Parameter(torch.ones(1))
            self.blocks = nn.ModuleList(Block() for _ in range(2))

    depths = layer_depths(Model())
    assert depths["scale"] == 0
    assert {d for name, d in depths.items() if name.startswith("blocks.0.")} == {1}
    assert {d for name, d in depths.items() if name.startswith("blocks.1.")} == {2}
