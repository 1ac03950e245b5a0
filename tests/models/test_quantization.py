"""A base model in 4 bits under an adapter, on the CPU: what is packed, what is trained and saved, what is refused."""

import json

import pytest
import torch
from parity.runs import fit as parity_fit
from parity.runs import relative
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_runs import NO_DROPOUT, built, fit
from torch import nn
from toy import toy_rows, write_csv
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, BertModel
from transformers.utils import is_bitsandbytes_available

from lit_tune.__main__ import main
from lit_tune.checkpointing.verified import newest_verified
from lit_tune.errors import ConfigError, ModelError, StorageError
from lit_tune.models.adapter_settings import adapter_settings
from lit_tune.models.assembly import Recipe, assemble
from lit_tune.models.layers import is_packed, size_of
from lit_tune.models.quantization import Quantization, check_training, quantization_of
from lit_tune.run_dir import RunDir

AUTO = AutoModelForSequenceClassification
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
]
needs_package = pytest.mark.skipif(
    not is_bitsandbytes_available(), reason="bitsandbytes is not installed (lit-tune[8bit])"
)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_quantized_weights_are_trained_by_an_adapter_that_can_read_them_alone():
    for kind, said in ((None, "cannot be trained: an adapter"), ("loha", "kind loha cannot read")):
        with pytest.raises(ConfigError, match=said):
            check_training("nf4", kind)
    check_training("nf4", "lora")
    check_training(None, None)


def test_products_are_computed_in_the_precision_of_the_trainer(tmp_path, tiny_model_dir, toy_csv):
    for precision, dtype in (("bf16-mixed", "bfloat16"), ("32-true", "float32")):
        settings = {"trainer__precision": precision}
        trainer = built(tiny_model_dir, toy_csv, tmp_path / precision, **settings).trainer
        assert quantization_of("nf4", trainer) == Quantization("nf4", dtype, "cpu")
    assert quantization_of(None, None) is None


@pytest.mark.skipif(is_bitsandbytes_available(), reason="bitsandbytes is installed")
def test_without_bitsandbytes_the_extra_is_named(tiny_model_dir):
    recipe = Recipe(str(tiny_model_dir), adapter=adapter_settings("lora"), quantization=Quantization("nf4"))
    config = AutoConfig.from_pretrained(tiny_model_dir, num_labels=3)
    with pytest.raises(ConfigError, match=r"pip install 'lit-tune\[8bit\]'"):
        assemble(AUTO, recipe, config, fitting=True)


# ---- with bitsandbytes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_model_dir):
    """An encoder saved without its pooler, whose layers are as wide as a block of 64 numbers."""
    from transformers import AutoTokenizer

    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes, **NO_DROPOUT)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("rows") / "train.csv", toy_rows(96))


def settings(**more):
    adapter = {"type": "lora", "r": 4}
    return {"model__adapter": adapter, "model__quantization": "nf4", "data__max_length": 32, "data__seed": 5} | more


def batch():
    return {"input_ids": torch.arange(4, 12)[None], "attention_mask": torch.ones(1, 8, dtype=torch.long)}


@torch.inference_mode()
def logits_of(model):
    return model.eval()(**batch()).logits


@pytest.fixture(scope="module", params=["nf4", "nf4_double"])
def run(request, base, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    more = settings(model__quantization=request.param)
    return fit(built(base, data, folder / "run", **more)), RunDir(folder / "run")


def assembled(name, fitting=False, auto_class=AUTO, **options):
    config = AutoConfig.from_pretrained(name, **({} if auto_class is not AUTO else {"num_labels": 3}))
    return assemble(auto_class, Recipe(str(name), **options), config, fitting)[0]


@needs_package
@pytest.mark.slow
def test_linear_layers_are_packed_and_nothing_else(base):
    lora = adapter_settings("lora")
    model = assembled(base, fitting=True, adapter=lora, quantization=Quantization("nf4"))
    plain = assembled(base, fitting=True, adapter=lora)
    packed = {n.removesuffix(".weight") for n, p in model.named_parameters() if is_packed(p)}
    linear = {n for n, m in plain.named_modules() if type(m) is nn.Linear and "lora_" not in n}
    assert packed == {n for n in linear if "pooler" not in n and "classifier" not in n}
    assert packed
    assert sum(map(size_of, model.parameters())) == sum(map(size_of, plain.parameters()))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in plain.named_parameters() if p.requires_grad}
    assert {n.split(".modules_to_save")[0].rpartition(".")[2] for n in trained if "modules_to_save" in n} == {
        *("classifier", "dense")  # the pooler's: the weights lack it
    }


@needs_package
@pytest.mark.slow
def test_the_head_of_a_language_model_stays_as_it_is(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": 30, "bos_token_id": 1, "eos_token_id": 1}
    GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False)).save_pretrained(tmp_path)
    options = {"adapter": adapter_settings("lora"), "quantization": Quantization("nf4")}
    model = assembled(tmp_path, fitting=True, auto_class=AutoModelForCausalLM, **options)
    packed = {n for n, p in model.named_parameters() if is_packed(p)}
    layers = {n.split(".base_layer")[0].removesuffix(".weight").rpartition(".")[2] for n in packed}
    assert layers == {"c_attn", "c_proj", "c_fc"}
    assert not any("lm_head" in n or "wte" in n for n in packed)


@needs_package
@pytest.mark.slow
def test_a_run_saves_the_adapter_alone_and_best_computes_what_it_did(run, base):
    made, run_dir = run
    state = torch.load(newest_verified(run_dir).path, weights_only=True)["state_dict"]
    kept = {n.removeprefix("model.") for n, value in state.items() if isinstance(value, torch.Tensor)}
    model = made.module.model
    buffers = {n for n, _ in model.named_buffers(remove_duplicate=False)}
    assert kept - buffers == {n for n, p in model.named_parameters() if p.requires_grad}
    assert "quantization_config" not in json.loads((run_dir.best / "config.json").read_text())
    assert f"in 4 bits ({made.module.quantization})" in (run_dir.best / "README.md").read_text()
    how = Quantization(made.module.quantization)
    assert torch.equal(logits_of(assembled(run_dir.best, quantization=how)), logits_of(model))
    # peft alone puts it on the base model in full precision: near, and not the same
    plain = AUTO.from_pretrained(base, config=AutoConfig.from_pretrained(run_dir.best))
    whole = logits_of(PeftModel.from_pretrained(plain, run_dir.best))
    assert torch.allclose(whole, logits_of(assembled(run_dir.best)), atol=1e-6)
    difference = float((whole - logits_of(model)).norm() / whole.norm())
    assert 1e-6 < difference < 0.5


@needs_package
@pytest.mark.slow
def test_a_base_that_differs_in_a_packed_weight_is_refused(run, base):
    _, run_dir = run
    path, name = base / "model.safetensors", "encoder.layer.0.attention.self.query.weight"
    before, weights = path.read_bytes(), load_file(path)
    try:
        save_file(weights | {name: weights[name] + 1e-4}, path, metadata={"format": "pt"})
        for how in (None, Quantization("nf4")):
            with pytest.raises(ModelError, match=f"has changed: {name}"):
                assembled(run_dir.best, quantization=how)
    finally:
        path.write_bytes(before)


def gradients(base, data, batch, accumulate, ranks=1, scratch=None, **more):
    module = {"adapter": {"type": "lora", "r": 4}, "quantization": "nf4_double"} | more
    rows = {"train": str(data), "max_length": 32, "default_seed": 5}
    torch.manual_seed(7)
    how = {"ranks": ranks, "scratch": scratch, "max_steps": 4}
    made = parity_fit(base, rows, batch=batch, accumulate=accumulate, module=module, **how)
    return made.gradients


@needs_package
@pytest.mark.slow
@pytest.mark.ddp
def test_gradients_are_the_same_however_a_step_is_cut(base, data, tmp_path):
    whole = gradients(base, data, 16, 1)
    assert len(whole) == 4
    others = {
        "accumulated": gradients(base, data, 4, 4),
        "two ranks": gradients(base, data, 8, 1, ranks=2, scratch=tmp_path),
        "recomputed": gradients(base, data, 16, 1, gradient_checkpointing=True),
    }
    for name, other in others.items():
        assert max(relative(a, b) for a, b in zip(other, whole, strict=True)) < 1e-5, name


@needs_package
@pytest.mark.slow
def test_a_run_goes_on_as_if_it_had_never_stopped(base, data, tmp_path):
    flat = {"lr_schedule__name": "constant", "lr_schedule__warmup": 0, "data__val_fraction": 0}

    def trained(name, epochs, ckpt_path=None):
        made = built(base, data, tmp_path / name, **settings(trainer__max_epochs=epochs, **flat))
        made.trainer.fit(made.module, datamodule=made.datamodule, ckpt_path=ckpt_path)
        return {n: p.detach() for n, p in made.module.model.named_parameters() if p.requires_grad}

    whole = trained("whole", 2)
    trained("half", 1)
    path, weights = newest_verified(RunDir(tmp_path / "half")).path, base / "model.safetensors"
    resumed = trained("resumed", 2, path)
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)
    before, tensors = weights.read_bytes(), load_file(weights)
    name = "encoder.layer.1.output.dense.weight"
    try:
        save_file(tensors | {name: tensors[name] + 1e-4}, weights, metadata={"format": "pt"})
        with pytest.raises(StorageError, match=f"has changed: {name}"):
            trained("changed", 2, path)
    finally:
        weights.write_bytes(before)


@needs_package
@pytest.mark.slow
def test_test_predict_and_export_of_a_quantized_run(run, data, tmp_path, capsys):
    made, run_dir = run
    config = ["--config", str(run_dir.path / "config.yaml")]
    assert main(["predict", *config, "--data.predict", str(data)]) == 0
    capsys.readouterr()
    assert main(["export", *config, "--merge", "--output", str(tmp_path / "merged")]) == 0
    out = capsys.readouterr().out
    assert f"not the {made.module.quantization} it was trained on: logits differ" in out
    merged = AUTO.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits_of(merged), logits_of(assembled(run_dir.best)), atol=1e-5)
    assert not any(is_packed(p) for p in merged.parameters())


@needs_package
@pytest.mark.slow
def test_an_adapter_of_full_precision_is_trained_on_over_packed_weights(base, data, tmp_path):
    fit(built(base, data, tmp_path / "whole", **settings(model__quantization=None)))
    best = tmp_path / "whole" / "best"
    made = fit(built(best, data, tmp_path / "on", **settings(model__adapter=None)))
    assert any(is_packed(p) for p in made.module.model.parameters())
    assert AutoConfig.from_pretrained(tmp_path / "on" / "best").num_labels == 3
