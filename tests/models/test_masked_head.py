"""Logits of some tokens are those that the whole model gives them, whatever its head is made of."""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForMaskedLM

from lit_tune.models.masked_head import logits_at

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
MODELS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "electra": {"embedding_size": 8},
    "albert": {"embedding_size": 8},
    "mpnet": {},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "deberta-v2": {"legacy": False},
    "modernbert": {"global_attn_every_n_layers": 1, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1},
    "mobilebert": {"embedding_size": 8, "intra_bottleneck_size": 16, "true_hidden_size": 16},  # calls no output layer
}


@pytest.mark.parametrize("kind", MODELS)
def test_logits_and_gradients_are_those_of_the_whole_model(kind):
    torch.manual_seed(0)
    sizes = {k: v for k, v in SIZES.items() if kind != "distilbert" or not k.startswith(("hidden", "num", "interm"))}
    model = AutoModelForMaskedLM.from_config(CONFIG_MAPPING[kind](**sizes, **MODELS[kind])).eval()
    inputs = {"input_ids": torch.randint(3, 40, (3, 9)), "attention_mask": torch.ones(3, 9, dtype=torch.long)}
    places = torch.tensor([1, 2, 11, 26])
    gradients = []
    whole = model(**inputs).logits.flatten(0, 1)[places]
    some = logits_at(model, inputs, places)
    assert some.shape == (4, 40)
    assert torch.allclose(some, whole, atol=1e-6)
    for logits in (whole, some):
        model.zero_grad()
        logits.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(**inputs).logits.flatten(0, 1)[places], whole), "nothing is left of it"


def test_no_place_at_all_gives_no_logits_and_a_gradient_of_nothing():
    model = AutoModelForMaskedLM.from_config(CONFIG_MAPPING["bert"](**SIZES))
    logits = logits_at(model, {"input_ids": torch.tensor([[1, 2]])}, torch.tensor([], dtype=torch.long))
    assert logits.shape == (0, 40)
    logits.sum().backward()
    assert not any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)
