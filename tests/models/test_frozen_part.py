"""What is found of a model's frozen part, and what is not taken for one."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig, RobertaConfig

from lit_tune.models.freezing import freeze, train_mode
from lit_tune.models.frozen_part import Call, NoFrozenPartError, Stub, find_parts

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 60, "pad_token_id": 0}
BERT = BertConfig(hidden_size=16, intermediate_size=32, **SIZES)
ROBERTA = RobertaConfig(hidden_size=16, intermediate_size=32, **SIZES)
DISTILBERT = DistilBertConfig(dim=16, hidden_dim=32, n_layers=2, n_heads=2, vocab_size=60)


def frozen(config, pattern="backbone"):
    model = AutoModelForSequenceClassification.from_config(config)
    freeze(model, [pattern])
    train_mode(model, tell=False)
    return model


def batch(rows=3, tokens=5):
    return {"input_ids": torch.randint(1, 60, (rows, tokens), generator=torch.Generator().manual_seed(rows))}


def learned(model):
    parts = find_parts(model, lambda: model(**batch()))
    for part in parts:
        part.learn([lambda: model(**batch()), lambda: model(**batch(2, 7))])
    return parts


@pytest.mark.parametrize(
    ("config", "takers", "shape"),
    [
        (BERT, ["dropout"], (3, 16)),
        (ROBERTA, ["classifier.dropout", "classifier"], (3, 16)),  # the head is given all tokens, its dropout one
        (DISTILBERT, ["pre_classifier"], (3, 16)),
    ],
)
def test_the_innermost_place_behind_a_backbone_is_first(config, takers, shape):
    model = frozen(config)
    parts = learned(model)
    assert [part.taker for part in parts] == takers
    assert parts[0].given(lambda: model(**batch())).shape == shape
    assert parts[0].frozen == [model.base_model_prefix]


def test_what_is_put_back_decides_and_the_backbone_does_not_run():
    model = frozen(BERT)
    (part,) = learned(model)
    calls = []
    model.bert.encoder.register_forward_hook(lambda *_: calls.append(1))
    with part.put_back(torch.ones(4, 16)), torch.no_grad():
        model.eval()
        found = model(**batch(4, 9)).logits
    assert torch.allclose(found, model.classifier(torch.ones(4, 16)))
    assert not calls
    model(**batch())
    assert calls


def test_layers_below_a_trained_one_are_put_back_at_the_attention_of_it():
    model = frozen(BERT, "layers below 2")
    parts = learned(model)
    features = parts[0].given(lambda: model(**batch()))
    assert features.shape == (3, 5, 16)
    assert parts[0].frozen == ["bert.embeddings", "bert.encoder.layer.0"]
    # query, key and value are called with it one after another: put back for the query alone, the key is NaN
    model.eval()
    expected = model(**batch()).logits
    outcomes = {}
    for part in parts:
        with part.put_back(features):
            outcomes[part.taker.rpartition(".")[2]] = torch.equal(model(**batch()).logits, expected)
    assert outcomes == {"query": False, "self": False, "attention": True, "1": True}


class Stack(nn.Module):
    """Frozen layers and a head, with something wrong between them."""

    base_model_prefix = "body"

    def __init__(self, wrong):
        super().__init__()
        self.body = nn.Module()
        self.body.layer = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head, self.wrong = nn.Linear(4, 2), wrong

    def forward(self, x):
        hidden = self.body.layer[1](self.body.layer[0](x))
        if self.wrong == "random":
            hidden = functional.dropout(hidden, 0.5, self.training)
        if self.wrong == "twice":
            hidden = self.body.layer[0](hidden)
        out = self.head(hidden)
        return out + hidden.sum() if self.wrong == "read beside" else out


def stack(wrong):
    model = Stack(wrong)
    freeze(model, ["backbone"])
    train_mode(model, tell=False)
    return model


def test_what_reads_the_frozen_part_elsewhere_becomes_nan():
    model, x = stack("read beside"), torch.ones(3, 4)
    (part,) = find_parts(model, lambda: model(x))
    part.learn([lambda: model(x)])
    with part.put_back(part.given(lambda: model(x))):
        assert model(x).isnan().all()


def test_a_frozen_module_that_is_called_twice_is_no_part():
    model, x = stack("twice"), torch.ones(3, 4)
    (part,) = find_parts(model, lambda: model(x))
    with pytest.raises(NoFrozenPartError, match="called more than once"):
        part.learn([lambda: model(x)])


def test_random_numbers_between_show_in_what_is_given():
    model, x = stack("random"), torch.ones(3, 4)
    (part,) = find_parts(model, lambda: model(x))
    assert not torch.equal(part.given(lambda: model(x)), part.given(lambda: model(x)))


def test_frozen_embeddings_alone_are_no_part():
    model = frozen(BERT, "embeddings")
    with pytest.raises(NoFrozenPartError, match="no layer is frozen"):
        find_parts(model, lambda: model(**batch()))


def test_a_stub_gives_the_shapes_of_other_batches():
    model = frozen(BERT).bert
    given = [batch(3, 5)["input_ids"], batch(2, 7)["input_ids"]]
    stub = Stub([Call(ids.shape, model(ids)) for ids in given])
    ids = batch(6, 4)["input_ids"]
    found, expected = stub(input_ids=ids), model(ids)
    assert type(found) is type(expected)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}
    assert found[0].isnan().all()
