"""An adapter by its Hub id: trained on, measured, found in the cache; and what a repository without one costs."""

import json
import shutil

import pytest
import torch
from huggingface_hub import constants
from loopback_hub import Repo, forget, hub_for
from peft import LoraConfig, get_peft_model
from tiny_runs import built, fit
from toy import toy_rows, write_csv
from transformers import AutoConfig, AutoModelForSequenceClassification

from lit_tune.errors import LitTuneError, ModelError
from lit_tune.models.adapter_folders import adapter_folder
from lit_tune.models.assembly import Recipe, assemble
from lit_tune.models.load import load_config, load_tokenizer

AUTO = AutoModelForSequenceClassification
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_for(monkeypatch, tmp_path) as server:
        monkeypatch.delenv("HF_TOKEN")
        yield server


@pytest.fixture(scope="module")
def saved(tiny_model_dir, tmp_path_factory):
    """An adapter as peft alone saves it, over a base model that is on the Hub."""
    torch.manual_seed(3)
    model = AUTO.from_pretrained(tiny_model_dir, num_labels=3)
    wrapped = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    folder = tmp_path_factory.mktemp("hub") / "adapter"
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "org/base"}))
    return wrapped.eval(), folder


@pytest.fixture
def published(hub, saved, tiny_model_dir):
    hub.repos |= {"org/base": Repo(), "org/adapter": Repo()}
    hub.repos["org/base"].put(tiny_model_dir)
    hub.repos["org/adapter"].put(saved[1])
    return hub


def logits_of(model):
    batch = {"input_ids": torch.arange(4, 12)[None], "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    with torch.no_grad():
        return model.eval()(**batch).logits


def assembled(name, fitting=False, **options):
    config = load_config(name, options.get("revision"), {"num_labels": 3})
    return assemble(AUTO, Recipe(name, **options), config, fitting)[0]


def test_an_adapter_of_the_hub_computes_what_it_did(published, saved):
    assert torch.equal(logits_of(assembled("org/adapter")), logits_of(saved[0]))
    assert load_tokenizer("org/adapter")("good")["input_ids"]  # the base model's


def test_offline_the_cache_is_enough(published, saved, monkeypatch):
    assembled("org/adapter")
    forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    published.asked.clear()
    assert torch.equal(logits_of(assembled("org/adapter")), logits_of(saved[0]))
    assert published.asked == []


def test_a_revision_is_the_one_that_is_read(published, saved, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(saved[1], folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 99}))
    commit = published.repos["org/adapter"].put(folder, "louder")
    for revision, alpha in ((None, 8), ("louder", 99), (commit, 99)):
        assert adapter_folder("org/adapter", revision).fields["lora_alpha"] == alpha


def test_training_goes_on_and_best_is_tested_and_trained_on(published, saved, tmp_path):
    train = write_csv(tmp_path / "train.csv", toy_rows(48))
    made = fit(built("org/adapter", train, tmp_path / "run", data__max_length=32, optimizer__lr=1e-12))
    assert torch.allclose(logits_of(made.module.model), logits_of(saved[0]), atol=1e-6)
    best = adapter_folder(str(tmp_path / "run" / "best"))
    assert (best.base, best.fields["r"]) == ("org/base", 2)
    assert best.reference  # hashes of the base model
    # pushed as it is, it has a config.json of its own, and is an adapter nevertheless
    published.repos["org/second"] = Repo()
    published.repos["org/second"].put(best.path)
    assert adapter_folder("org/second").reference == best.reference
    assert AutoConfig.from_pretrained("org/second").id2label == {0: "bad", 1: "fine", 2: "good"}
    assert torch.allclose(logits_of(assembled("org/second")), logits_of(saved[0]), atol=1e-6)


def test_a_model_that_is_no_adapter_costs_one_request_and_then_none(published):
    assert adapter_folder("org/base") is None
    assert published.asked == ["HEAD /org/base/resolve/main/adapter_config.json"]
    forget()
    assert adapter_folder("org/base") is None
    assert adapter_folder("text_cnn") is None
    assert len(published.asked) == 1


def refused(name, **options) -> str:
    with pytest.raises(LitTuneError) as caught:
        assembled(name, **options)
    assert caught.value.exit_code == 4
    assert len(str(caught.value).splitlines()) <= 6
    return str(caught.value)


def test_what_is_missing_is_told(published, saved, tmp_path, monkeypatch):
    adapter, files = published.repos["org/adapter"], published.repos["org/adapter"].files()
    del published.repos["org/base"]
    assert "no model 'org/base' on the Hub" in refused("org/adapter")
    forget()
    adapter.gated = True
    assert "org/adapter is gated" in refused("org/adapter")
    adapter.gated = False
    forget()
    assert "has no revision 'nowhere'" in refused("org/adapter", revision="nowhere")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    forget()
    adapter.commit("main", {n: (c, False) for n, c in files.items() if "safetensors" not in n}, "a pickle")
    assert "an adapter without adapter_model.safetensors; pickled weights can run code" in refused("org/adapter")


def test_a_hub_that_does_not_answer_is_no_repository_without_an_adapter(
    published, saved, tiny_model_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its attempts
    both = tmp_path / "both"  # a model, and an adapter for it, in one repository
    shutil.copytree(saved[1], both)
    for file in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model_dir / file, both)
    published.repos["org/both"] = Repo()
    published.repos["org/both"].put(both)
    for status in (403, 500):
        published.failures["both/resolve/main/adapter_config.json"] = [status] * 9
        assert "org/both" in refused("org/both")
        forget()
    published.failures.clear()
    assert torch.equal(logits_of(assembled("org/both")), logits_of(saved[0]))
    assembled("org/base", fitting=True)
    forget()
    published.failures["adapter_config.json"] = [500] * 9
    assert adapter_folder("org/base") is None  # without an answer, the cache holds a model


def test_an_adapter_on_an_adapter_of_the_hub_is_refused(published, saved, tmp_path):
    folder = tmp_path / "second"
    shutil.copytree(saved[1], folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "org/adapter"}))
    with pytest.raises(ModelError, match="is an adapter itself: org/adapter"):
        adapter_folder(str(folder))
