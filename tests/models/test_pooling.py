"""Token vectors to one, in parts or at once, and what sentence-transformers' files say of it."""

import json

import pytest
import torch
from toy import make_tiny_model
from transformers import AutoConfig, BertConfig

from lit_tune.errors import ModelError
from lit_tune.models import sentence_folders
from lit_tune.models.pooling import embed_in_parts, pool


@pytest.mark.parametrize("how", ["mean", "cls", "last", "max"])
def test_padding_on_either_side_changes_nothing(how):
    hidden = torch.randn(1, 3, 4)
    plain = {"mean": hidden.mean(1), "cls": hidden[:, 0], "last": hidden[:, -1], "max": hidden.amax(1)}[how]
    noise = torch.full((1, 2, 4), 7.0)
    for parts, mask in (([hidden, noise], [1, 1, 1, 0, 0]), ([noise, hidden], [0, 0, 1, 1, 1]), ([hidden], [1, 1, 1])):
        assert torch.allclose(pool(torch.cat(parts, 1), torch.tensor([mask]), how), plain)


def test_half_precision_is_pooled_in_full():
    hidden, mask = torch.full((1, 3000, 1), 3.0, dtype=torch.bfloat16), torch.ones(1, 3000)
    assert pool(hidden, mask, "mean").item() == 3.0


def test_parts_give_the_same_gradient_and_keep_less():
    layer = torch.nn.Linear(4, 4).double()
    inputs = {"x": torch.randn(7, 4, dtype=torch.float64)}
    seen: list[int] = []

    def embed(part: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(len(part["x"]))
        return layer(part["x"]).tanh()

    def gradient(size: int | None) -> torch.Tensor:
        layer.zero_grad()
        vectors = embed_in_parts(embed, inputs, size)
        (vectors @ vectors.T).square().sum().backward()
        return layer.weight.grad.clone()

    whole = gradient(None)
    assert seen == [7]
    assert torch.allclose(gradient(3), whole, rtol=1e-12)
    assert seen == [7, 3, 3, 1, *([3, 3, 1] if seen[4] == 3 else [1, 3, 3])]  # and again in the backward pass
    with torch.no_grad():
        assert torch.allclose(embed_in_parts(embed, inputs, 2), layer(inputs["x"]).tanh())


def written(folder, kinds: list[str], pooling: dict) -> AutoConfig:
    make_tiny_model(folder)
    modules = [{"idx": i, "path": "", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"embedding_dimension": 16, "pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["max"]}, "max"),
        ({"word_embedding_dimension": 16}, "mean"),
    ],
)
def test_a_model_goes_on_to_pool_as_it_did(pooling, expected, tmp_path):
    assert sentence_folders.pooling_of_model(written(tmp_path, ["Transformer", "Pooling"], pooling)) == expected


def test_a_model_without_such_files_is_pooled_by_mean(tiny_model_dir):
    assert sentence_folders.pooling_of_model(AutoConfig.from_pretrained(tiny_model_dir)) == "mean"


@pytest.mark.parametrize(
    ("kinds", "pooling", "message"),
    [
        (["Transformer", "Pooling", "Dense"], {}, "ends in a Dense layer"),
        (["Transformer", "Pooling"], {"pooling_mode": ["mean", "max"]}, "pools by mean and max"),
        (["Transformer", "Pooling"], {"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
    ],
)
def test_what_would_be_lost_is_refused(kinds, pooling, message, tmp_path):
    with pytest.raises(ModelError, match=message) as caught:
        sentence_folders.pooling_of_model(written(tmp_path, kinds, pooling))
    assert "pooling: mean" in caught.value.fix


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
def test_what_is_written_is_read_again(pooling, tmp_path):
    make_tiny_model(tmp_path)
    for path, content in sentence_folders.files(16, pooling, True, 64).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    assert sentence_folders.pooling_of_model(AutoConfig.from_pretrained(tmp_path)) == pooling


def test_a_repository_that_cannot_be_asked_is_an_error_and_no_guess(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = BertConfig()
    config.name_or_path = "nobody/has-this"
    with pytest.raises(ModelError, match=r"modules.json of nobody/has-this cannot be read") as caught:
        sentence_folders.pooling_of_model(config)
    assert "pooling: mean" in caught.value.fix
