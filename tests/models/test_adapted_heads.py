"""What of a head is trained beside an adapter: all that is its own, and nothing that it shares with the embeddings."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from lit_tune.models.adapter_settings import adapter_settings
from lit_tune.models.adapters import attach, merged, trained_whole

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
DISTIL = {"vocab_size": 40, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}


@pytest.mark.parametrize(
    ("kind", "auto_class", "expected"),
    [
        ("bert", AutoModelForSequenceClassification, ["classifier"]),
        ("distilbert", AutoModelForSequenceClassification, ["pre_classifier", "classifier"]),
        ("bert", AutoModelForMaskedLM, ["cls.predictions.transform"]),
        ("roberta", AutoModelForMaskedLM, ["lm_head.dense", "lm_head.layer_norm"]),
        ("distilbert", AutoModelForMaskedLM, ["vocab_transform", "vocab_layer_norm"]),
    ],
)
def test_what_is_tied_to_the_embeddings_is_not_trained_as_a_whole(kind, auto_class, expected):
    model = auto_class.from_config(CONFIG_MAPPING[kind](**(DISTIL if kind == "distilbert" else SIZES)))
    named = model.named_parameters(remove_duplicate=False)
    shared = model.get_input_embeddings().weight
    new = [name for name, p in named if name.startswith(("cls", "lm_", "voc")) and p is not shared]
    assert trained_whole(model, new) == expected
    is_pretrained = model.get_output_embeddings() is not None  # a head over the vocabulary, in all weights
    assert trained_whole(model, []) == ([] if is_pretrained else expected)


def test_a_language_models_head_is_no_part_of_its_adapter():
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**SIZES, tie_word_embeddings=False))
    assert trained_whole(model, []) == []
    assert trained_whole(model, ["lm_head.weight"]) == ["lm_head"]


def test_an_adapted_head_over_the_vocabulary_stays_tied_when_it_is_merged():
    torch.manual_seed(0)
    base = AutoModelForMaskedLM.from_config(CONFIG_MAPPING["bert"](**SIZES))
    model = attach(base, adapter_settings("lora"), AutoModelForMaskedLM, "base", None, ())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    ids = torch.arange(3, 12)[None]
    expected = model.eval()(input_ids=ids).logits
    whole = merged(model)
    assert whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    assert torch.allclose(whole(input_ids=ids).logits, expected, atol=1e-6)
