"""Freezing by pattern; what is frozen does not move in a real step."""

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig

from lit_tune.errors import ConfigError
from lit_tune.models.freezing import freeze, frozen_modules


@pytest.fixture
def bert_config():
    return BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=60, num_labels=3
    )


@pytest.fixture
def bert(bert_config):
    return AutoModelForSequenceClassification.from_config(bert_config)


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_backbone_leaves_the_head(bert):
    report = freeze(bert, ["backbone"])
    assert trainable(bert) == {"classifier.weight", "classifier.bias"}
    assert report.names == [name for name, _ in bert.bert.named_parameters(prefix="bert")]
    assert report.num_parameters == sum(p.numel() for p in bert.bert.parameters())


def test_a_plain_name_and_a_regular_expression_are_searched_in_names(bert):
    freeze(bert, ["embeddings", r"layer\.0\.attention"])
    frozen = {name for name, p in bert.named_parameters() if not p.requires_grad}
    assert frozen == {
        name for name in frozen if name.startswith(("bert.embeddings.", "bert.encoder.layer.0.attention."))
    }
    assert len(frozen) == 5 + 10


def test_frozen_parameters_do_not_move_and_others_do(bert):
    freeze(bert, ["embeddings"])
    before = {name: p.detach().clone() for name, p in bert.named_parameters()}
    optimizer = torch.optim.SGD([p for p in bert.parameters() if p.requires_grad], lr=1.0)
    bert(input_ids=torch.arange(6)[None], labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    moved = {name for name, p in bert.named_parameters() if not torch.equal(p, before[name])}
    assert not any("embeddings" in name for name in moved)
    assert "classifier.weight" in moved


def test_an_unmatched_pattern_is_an_error_with_names_and_the_nearest(bert):
    with pytest.raises(
        ConfigError, match=r"matches none of the 41 parameter names.*bert\.embeddings\.word_embeddings"
    ) as caught:
        freeze(bert, ["backbone", "embedings"])
    assert "did you mean embeddings?" in str(caught.value)
    assert caught.value.where == "model.freeze"
    assert len(trainable(bert)) == 41, "an error must leave the model unchanged"


def test_a_mistyped_backbone_is_recognised(bert):
    with pytest.raises(ConfigError, match="did you mean backbone"):
        freeze(bert, ["backbon"])


@pytest.mark.parametrize("patterns", [["."], ["bert", "classifier"], ["backbone", "classifier"]])
def test_freezing_everything_is_an_error(bert, patterns):
    with pytest.raises(ConfigError, match="nothing is left to train"):
        freeze(bert, patterns)
    assert len(trainable(bert)) == 41


def test_a_broken_regular_expression_is_an_error(bert):
    with pytest.raises(ConfigError, match="not a regular expression"):
        freeze(bert, ["*.bias"])


def test_backbone_of_a_model_without_a_head_is_an_error(bert_config):
    with pytest.raises(ConfigError, match="no head"):
        freeze(AutoModel.from_config(bert_config), ["backbone"])


def test_frozen_modules_are_the_largest_ones(bert):
    assert frozen_modules(bert) == {}
    freeze(bert, ["embeddings", r"encoder", "pooler"])
    assert frozen_modules(bert) == {"bert": bert.bert}


def test_frozen_modules_of_a_partly_frozen_encoder(bert):
    freeze(bert, ["embeddings", r"layer\.0\.", r"layer\.1\.output\.dense"])
    layers = bert.bert.encoder.layer
    assert frozen_modules(bert) == {
        "bert.embeddings": bert.bert.embeddings,
        "bert.encoder.layer.0": layers[0],
        "bert.encoder.layer.1.output.dense": layers[1].output.dense,
    }
