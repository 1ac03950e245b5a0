"""Which architectures keep packed documents apart, measured on each of them."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, BertConfig, T5Config

from lit_tune.errors import ModelError
from lit_tune.models.packed_documents import LOOK_ACROSS, check_apart, why_not_packed

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
OF_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
APART = {
    "llama": SIZES,
    "mistral": {**SIZES, "sliding_window": 4},
    "qwen2": SIZES,
    "qwen3": {**SIZES, "head_dim": 8},
    "gemma2": {**SIZES, "head_dim": 8, "sliding_window": 4},
    "gpt_neox": {**SIZES, "num_key_value_heads": 4},
    "phi3": SIZES,
    "gpt2": OF_GPT,
    "gpt_bigcode": OF_GPT,
}
NOT_APART = {
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    },
    "falcon": {**SIZES, "alibi": False},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "bert": {**SIZES, "is_decoder": True},
}
EXACT_IN_FLOAT64 = {"gemma2": False}
"""These compute softmax in float32."""


def model_of(kind: str, dtype: torch.dtype, attention: str | None = None):
    sizes = {**APART, **NOT_APART}[kind]
    config = CONFIG_MAPPING[kind](vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    options = {"attn_implementation": attention} if attention else {}
    model = AutoModelForCausalLM.from_config(config, **options).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:  # large weights: a document that is seen changes everything
            parameter.data.normal_(0, 0.3)
    return model


def documents() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 64, (n,), generator=generator) for n in (7, 9, 1, 5)]


def packed(model, rows: list[list[torch.Tensor]]) -> torch.Tensor:
    """Logits of packed rows; padding is a document of its own."""
    width = max(sum(map(len, row)) for row in rows)
    parts = [[*row, torch.zeros(width - sum(map(len, row)), dtype=torch.int64)] for row in rows]
    ids = torch.stack([torch.cat(row) for row in parts])
    positions = torch.stack([torch.cat([torch.arange(len(d)) for d in row]) for row in parts])
    return model(input_ids=ids, position_ids=positions, use_cache=False).logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", APART)
def test_a_packed_block_has_the_logits_and_loss_of_its_documents(kind, attention):
    model = model_of(kind, torch.float64, None if kind == "gemma2" else attention)
    assert why_not_packed(model.config) is None
    check_apart(model)
    a, b, c, d = documents()
    tolerance = 1e-9 if attention == "sdpa" and EXACT_IN_FLOAT64.get(kind, True) else 1e-5
    with torch.no_grad():
        rows = packed(model, [[a, b, c, d], [d, a]])
        alone = [model(input_ids=x[None], labels=x[None] if len(x) > 1 else None) for x in (a, b, c, d)]
        together = torch.cat([found.logits[0] for found in alone])
    assert torch.allclose(rows[0], together, rtol=0, atol=tolerance)
    assert torch.allclose(rows[1, :12], torch.cat([alone[3].logits[0], alone[0].logits[0]]), rtol=0, atol=tolerance)
    ends = torch.tensor([7, 16, 17, 22])
    labels = torch.cat([a, b, c, d]).roll(-1)
    labels[ends - 1] = -100
    by_document = sum(
        float(found.loss) * (len(x) - 1) for found, x in zip(alone, (a, b, c, d), strict=True) if len(x) > 1
    )
    assert float(F.cross_entropy(rows[0], labels, reduction="sum")) == pytest.approx(
        by_document, rel=max(tolerance, 1e-6)
    )


@pytest.mark.parametrize("kind", NOT_APART)
def test_what_looks_across_is_known_and_would_be_found(kind):
    model = model_of(kind, torch.float32)
    assert why_not_packed(model.config) is not None
    if "position_ids" in inspect.signature(model.forward).parameters:
        with pytest.raises(ModelError, match="does not keep packed documents apart") as caught:
            check_apart(model)
        assert caught.value.fix == "task.init_args.packing: false"


def test_a_config_without_a_decoder_is_not_packed():
    assert "nothing is known of t5" in str(why_not_packed(T5Config()))
    assert why_not_packed(SimpleNamespace(model_type="new")) is not None  # a class of a repository's own
    assert why_not_packed(BertConfig()) is not None
    assert set(LOOK_ACROSS) <= set(CONFIG_MAPPING.keys())
    kinds = {config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING}
    assert set(LOOK_ACROSS) <= kinds


def test_the_probe_leaves_the_model_in_its_mode_and_draws_nothing():
    model = model_of("llama", torch.float32).train()
    model.model.layers[0].eval()  # frozen, say
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    check_apart(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), before)
