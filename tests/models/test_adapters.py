"""Adapters: what they train, what they refuse, and the same losses as with peft used directly."""

import json
import shutil

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from peft import AutoPeftModelForSequenceClassification, IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_runs import NO_DROPOUT, built, fit
from torch import nn
from toy import toy_rows, write_csv
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    DebertaV2Config,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    GPT2Config,
    MPNetConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
)

from lit_tune.checkpointing.verified import newest_verified
from lit_tune.errors import ConfigError, LitTuneError, ModelError
from lit_tune.models.adapter_folders import adapter_folder
from lit_tune.models.adapter_settings import adapter_settings
from lit_tune.models.adapters import attach, trainable_line
from lit_tune.models.assembly import Recipe, assemble, load_as_anyone, save
from lit_tune.models.freezing import train_mode
from lit_tune.optim.param_groups import build_param_groups
from lit_tune.run_dir import RunDir

AUTO = AutoModelForSequenceClassification
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 30}
# peft and transformers about each other, and Lightning about a head in eval mode
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
]


def adapted(model: nn.Module, value, new=()) -> nn.Module:
    settings = adapter_settings(value)
    assert settings is not None
    return attach(model, settings, AUTO, "base", None, new)


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def bert(tiny_model_dir) -> BertForSequenceClassification:
    torch.manual_seed(3)
    return BertForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=3, **NO_DROPOUT)


# ---- what is trained -------------------------------------------------------------------------------------------------


def test_lora_trains_its_matrices_and_the_head_and_leaves_berts_pooler_alone(bert):
    names = trained(adapted(bert, "lora"))
    assert {n.split(".")[-3] for n in names if "lora_" in n} <= {"lora_A", "lora_B"}
    assert {n for n in names if "lora_" not in n} == {
        f"base_model.model.classifier.modules_to_save.default.{kind}" for kind in ("weight", "bias")
    }
    assert len(names) == 2 + 2 * 2 * 2  # A and B, query and value, two layers


def test_both_layers_of_distilberts_head_are_trained():
    config = DistilBertConfig(vocab_size=30, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    model = adapted(DistilBertForSequenceClassification(config), "lora")
    assert {n.split(".")[2] for n in trained(model) if "modules_to_save" in n} == {"pre_classifier", "classifier"}
    targets = next(iter(model.peft_config.values())).target_modules
    assert set(targets) == {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"}  # peft has no default for it


def test_robertas_head_is_trained_as_a_whole():
    names = trained(adapted(RobertaForSequenceClassification(RobertaConfig(**SMALL)), "lora"))
    assert {n.split("modules_to_save.default.")[1] for n in names if "lora_" not in n} == {
        *("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")
    }


ARCHITECTURES = [
    (ElectraConfig(**SMALL, embedding_size=8), {"classifier"}),
    (MPNetConfig(**SMALL), {"classifier"}),  # a `dense` in its head and in its layers
    (DebertaV2Config(**SMALL), {"classifier", "pooler"}),
    (XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=32, vocab_size=30), {"logits_proj", "sequence_summary"}),
    (
        GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30, pad_token_id=0, bos_token_id=1, eos_token_id=1),
        {"score"},
    ),
]


@pytest.mark.parametrize(("config", "head"), ARCHITECTURES, ids=[c.model_type for c, _ in ARCHITECTURES])
def test_an_adapter_comes_back_as_it_was_saved(config, head, tmp_path):
    """In plain transformers and peft, and here; with a head of any name."""
    AUTO.from_config(config).base_model.save_pretrained(tmp_path / "base")
    labelled = AutoConfig.from_pretrained(tmp_path / "base", num_labels=3)
    recipe = Recipe(str(tmp_path / "base"), adapter=adapter_settings("lora"))
    model, reference, _ = assemble(AUTO, recipe, labelled, fitting=True)
    assert {n.split(".modules_to_save")[0].split(".")[2] for n in trained(model) if "modules_to_save" in n} == head
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.requires_grad * torch.randn_like(parameter)
    save(model, tmp_path / "adapter", reference)
    again = [load_as_anyone(AUTO, tmp_path / "adapter", torch.float32), assembled(tmp_path / "adapter")]
    batch = {"input_ids": torch.arange(4, 10)[None], "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    with torch.no_grad():
        logits = model.eval()(**batch).logits
        assert all(torch.equal(loaded.eval()(**batch).logits, logits) for loaded in again)


def test_what_was_not_in_the_weights_is_trained_too(bert):
    names = trained(adapted(bert, "lora", new=["bert.pooler.dense.weight", "bert.pooler.dense.bias"]))
    assert any("pooler.dense.modules_to_save" in n for n in names)


def test_the_kinds_are_those_of_peft(bert):
    configs = {
        kind: next(iter(adapted(BertForSequenceClassification(bert.config), kind).peft_config.values()))
        for kind in ("lora", "dora", "rslora", "ia3", "prompt_tuning")
    }
    assert [(c.use_dora, c.use_rslora) for k, c in configs.items() if "ora" in k] == [
        *((False, False), (True, False), (False, True))
    ]
    assert {k: c.peft_type.value for k, c in configs.items()} | {"dora": "LORA"} == {
        **{"lora": "LORA", "dora": "LORA", "rslora": "LORA"},
        **{"ia3": "IA3", "prompt_tuning": "PROMPT_TUNING"},
    }
    assert all(c.task_type == "SEQ_CLS" for c in configs.values())


def test_head_lr_is_the_heads_and_virtual_tokens_are_none(bert):
    model = adapted(bert, {"type": "prompt_tuning", "num_virtual_tokens": 2})
    groups = {g["name"]: sum(p.numel() for p in g["params"]) for g in build_param_groups(model, 1e-3, 0.1, head_lr=1.0)}
    assert groups == {"backbone, decay": 2 * 16, "head, decay": 3 * 16, "head, no decay": 3}


def test_the_optimizer_has_the_trained_parameters_only(bert):
    model = adapted(bert, "lora")
    groups = build_param_groups(model, 1e-3, 0.1, head_lr=1.0, layer_lr_decay=0.5)
    given = {id(p) for g in groups for p in g["params"]}
    assert given == {id(p) for p in model.parameters() if p.requires_grad}
    assert {g["name"].split(",")[0]: g["lr"] for g in groups} == {"layer 1": 2.5e-4, "layer 2": 5e-4, "head": 1.0}


def test_the_line_says_how_much_is_trained(bert):
    line = trainable_line(adapted(bert, {"type": "dora", "r": 4, "alpha": 8}))
    assert line.startswith("dora r 4, alpha 8 on query, value, classifier as a whole: ")
    assert line.endswith("%)")


# ---- dropout ---------------------------------------------------------------------------------------------------------


def test_lora_dropout_and_the_base_models_dropout_are_on(tiny_model_dir):
    base = BertForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=3)
    model = adapted(base, {"type": "lora", "dropout": 0.5})
    model.eval()
    train_mode(model, is_whole=True)
    assert all(m.training for m in model.modules() if isinstance(m, nn.Dropout))
    assert sum(isinstance(m, nn.Dropout) and m.p == 0.5 for m in model.modules()) == 4


def test_a_model_is_put_together_with_all_of_its_dropout_on(tiny_model_dir):
    config = AutoConfig.from_pretrained(tiny_model_dir, num_labels=3)
    recipe = Recipe(str(tiny_model_dir), adapter=adapter_settings({"dropout": 0.5}))
    model, *_ = assemble(AUTO, recipe, config, fitting=True)
    assert all(m.training for m in model.modules())


def test_lora_dropout_alone_makes_two_passes_differ(bert):
    """The base has no dropout here, so that only the adapter's can."""
    model = adapted(bert, {"type": "lora", "dropout": 0.5})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    batch = {"input_ids": torch.arange(4, 10)[None], "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    train_mode(model, is_whole=True)
    assert not torch.equal(model(**batch).logits, model(**batch).logits)
    model.eval()
    assert torch.equal(model(**batch).logits, model(**batch).logits)


def test_running_means_that_no_adapter_saves_do_not_move():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(2), nn.Linear(2, 1)

    model = Normed()
    model.norm.requires_grad_(False)
    train_mode(model, is_whole=True)
    assert (model.norm.training, model.head.training) == (False, True)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("lorra", r"model.adapter.type: expected one of lora, dora.*Fix: model.adapter.type: lora"),
        ({"rank": 4}, r"model.adapter.rank: no such key.*Fix: "),
        ({"typ": "lora"}, r"Fix: write model.adapter.type"),
        ({"r": 0}, r"model.adapter.r: expected a whole number of at least 1, got 0"),
        ({"dropout": 1}, r"model.adapter.dropout: expected a number from 0 to below 1, got 1"),
        ({"target_modules": []}, r"model.adapter.target_modules: expected a text or a list of texts"),
        ({"type": "ia3", "r": 4}, r"model.adapter.r: has no effect: ia3 reads type, target_modules"),
        ({"class_path": "peft.VeraConfig", "r": 4}, r"model.adapter.r: has no effect"),
        ({"class_path": "peft.VeraConfg"}, r"peft.VeraConfg.* is not on the list of imports"),
        ({"class_path": "peft.PeftModel"}, r"is not on the list of imports"),
        ({"class_path": "peft.tuners.lora.config.warnings"}, r"is not on the list of imports"),
        (
            {"class_path": "peft.VeraConfig", "init_args": {"rr": 4}},
            r"VeraConfig has no argument 'rr'.*did you mean r\?",
        ),
        ({"class_path": "peft.LoraConfig", "init_args": {"task_type": "CAUSAL_LM"}}, r"task_type follows from"),
        (
            {"class_path": "peft.LoraConfig", "init_args": {"megatron_core": "evil", "megatron_config": {"a": 1}}},
            r"megatron_core names modules or files that peft would read",
        ),
        (
            {"class_path": "peft.PromptTuningConfig", "init_args": {"tokenizer_kwargs": {"trust_remote_code": True}}},
            r"tokenizer_kwargs names modules",
        ),
    ],
)
def test_wrong_settings_are_told_with_a_fix(value, said):
    with pytest.raises(LitTuneError, match=f"(?s){said}") as caught:
        adapter_settings(value)
    problems = getattr(caught.value, "problems", [caught.value])
    assert all(p.exit_code == 2 for p in problems)


@pytest.mark.parametrize("targets", [["querry"], ["query", "nothing_like_it"], "bert.*querry", "all-linea"])
def test_target_modules_that_match_nothing_are_told_with_candidates(bert, targets):
    with pytest.raises(ModelError, match=r"has no module .*") as caught:
        adapted(bert, {"target_modules": targets})
    assert caught.value.exit_code == 4
    assert caught.value.where == "model.adapter.target_modules"
    assert "query, key, value" in str(caught.value)


def test_modules_that_cannot_be_adapted_are_told(bert):
    with pytest.raises(ModelError, match=r"LayerNorm.* is not supported"):
        adapted(bert, {"target_modules": ["LayerNorm"]})


def test_ia3_has_no_default_for_every_architecture():
    config = DistilBertConfig(vocab_size=30, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    with pytest.raises(ModelError, match="no default for ia3 and distilbert"):
        adapted(DistilBertForSequenceClassification(config), "ia3")
    model = adapted(DistilBertForSequenceClassification(config), {"type": "ia3", "target_modules": ["k_lin"]})
    assert any("k_lin.ia3_l" in n for n in trained(model))


def test_all_linear_is_every_linear_layer_but_the_heads(bert):
    model = adapted(bert, {"target_modules": "all-linear"})
    # query key value dense x 3 in each of two layers, and the pooler's
    assert sum("lora_A" in n for n in trained(model)) == 2 * 6 + 1


# ---- beside peft -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("rows") / "train.csv", toy_rows(96))


def losses_of_peft(model, batches, lr: float) -> list[float]:
    """A plain loop of torch and peft."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    losses = []
    for batch in batches:
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
        loss = nn.functional.cross_entropy(model(**inputs).logits, batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class Seen(Callback):
    """Batches and losses of a run."""

    def __init__(self):
        self.batches, self.losses = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(batch)
        self.losses.append(outputs["loss"].item())


@pytest.mark.parametrize("kind", ["lora", pytest.param("ia3", marks=pytest.mark.slow)])
def test_losses_are_those_of_peft_used_directly(tiny_model_dir, data, tmp_path, kind):
    """Same base, same seed for head and adapter, same rows: the adapter is peft's, and so is each step."""
    settings = {"optimizer__weight_decay": 0.0, "lr_schedule__name": "constant", "lr_schedule__warmup": 0}
    settings |= {"overfit__probe_size": 0, "data__val_fraction": 0, "model__config_overrides": NO_DROPOUT}
    settings |= {"trainer__gradient_clip_val": 0.0, "trainer__max_epochs": 2, "data__seed": 5, "seed_everything": 5}
    made = built(tiny_model_dir, data, tmp_path / "run", model__adapter=kind, **settings)
    seen = Seen()
    fit(made, seen)
    torch.manual_seed(5)
    config = AutoConfig.from_pretrained(tiny_model_dir, num_labels=3, **NO_DROPOUT)
    base = AUTO.from_pretrained(tiny_model_dir, config=config)
    chosen = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16) if kind == "lora" else IA3Config(task_type="SEQ_CLS")
    plain = losses_of_peft(get_peft_model(base, chosen), seen.batches, 0.01)
    scale = 16 / made.module._loss_scale  # a step's loss is the sum over a constant
    ours = [loss / scale for loss in seen.losses]
    assert len(ours) == 12
    assert ours == pytest.approx(plain, rel=1e-6)


# ---- best/ and checkpoints -------------------------------------------------------------------------------------------

KINDS = {
    "lora": {"type": "lora", "r": 4, "dropout": 0.1},
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 3},
    "vera": {"class_path": "peft.VeraConfig", "init_args": {"r": 4}},
}


QUICK = ("lora", "prompt_tuning")


@pytest.fixture(scope="module", params=[k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def run(request, tiny_model_dir, data, tmp_path_factory):
    """A finished run for each kind of adapter."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = {"model__adapter": KINDS[request.param], "data__max_length": 32}
    return fit(built(tiny_model_dir, data, folder / "run", **settings)), RunDir(folder / "run")


def test_best_is_an_adapter_that_peft_loads(run):
    made, run_dir = run
    names = {p.name for p in run_dir.best.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json", "tokenizer.json"} <= names
    assert not any(n.startswith("model.") or n.endswith((".bin", ".pt")) for n in names)
    config = AutoConfig.from_pretrained(run_dir.best)
    assert config.id2label == {0: "bad", 1: "fine", 2: "good"}
    base = json.loads((run_dir.best / "adapter_config.json").read_text())["base_model_name_or_path"]
    plain = PeftModel.from_pretrained(AUTO.from_pretrained(base, config=config), run_dir.best).eval()
    auto = AutoPeftModelForSequenceClassification.from_pretrained(run_dir.best, num_labels=3).eval()
    batch = {"input_ids": torch.arange(4, 12)[None], "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    with torch.no_grad():
        ours = made.module.model.eval()(**batch).logits
        assert torch.allclose(plain(**batch).logits, ours, atol=1e-6)
        assert torch.allclose(auto(**batch).logits, ours, atol=1e-6)


def test_checkpoints_hold_no_weight_of_the_base(run):
    made, run_dir = run
    state = torch.load(newest_verified(run_dir).path, weights_only=True)["state_dict"]
    kept = {n.removeprefix("model.") for n, value in state.items() if isinstance(value, torch.Tensor)}
    buffers = {n for n, _ in made.module.model.named_buffers(remove_duplicate=False)}
    assert kept - buffers == trained(made.module.model)


def assembled(folder, fitting=False, **options):
    config = AutoConfig.from_pretrained(folder)
    return assemble(AUTO, Recipe(str(folder), **options), config, fitting)[0]


def test_another_base_is_refused(run, tmp_path):
    _, run_dir = run
    folder, base = tmp_path / "adapter", tmp_path / "base"
    shutil.copytree(run_dir.best, folder)
    fields = json.loads((folder / "adapter_config.json").read_text())
    shutil.copytree(fields["base_model_name_or_path"], base)
    (folder / "adapter_config.json").write_text(json.dumps(fields | {"base_model_name_or_path": str(base)}))
    assembled(folder)
    weights = load_file(base / "model.safetensors")
    name = "embeddings.LayerNorm.weight"
    save_file(weights | {name: weights[name] + 1e-3}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"base model .* has changed: bert\.{name}") as caught:
        assembled(folder)
    assert caught.value.exit_code == 4
    shutil.rmtree(base)
    with pytest.raises(ModelError, match="is not there") as caught:
        assembled(folder)
    assert caught.value.exit_code == 4


# ---- adapters from elsewhere -----------------------------------------------------------------------------------------


@pytest.fixture
def adapter(bert, tiny_model_dir, tmp_path):
    """An adapter as peft alone saves it: neither config.json nor tokenizer."""
    bert.name_or_path = str(tiny_model_dir)
    model = get_peft_model(bert, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    return model.eval(), tmp_path / "adapter"


def test_training_goes_on_with_a_given_adapter(adapter, data, tmp_path):
    given, folder = adapter
    made = built(folder, data, tmp_path / "run", data__max_length=32, optimizer__lr=1e-12)
    fit(made)
    want, have = dict(given.named_parameters()), dict(made.module.model.named_parameters())
    assert have.keys() == want.keys()
    names = [n for n in have if "lora_" in n or "modules_to_save" in n]
    assert all(torch.allclose(have[n], want[n], atol=1e-6) for n in names)
    assert trained(made.module.model) == trained(given)
    assert adapter_folder(str(tmp_path / "run" / "best")).fields["r"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapter": "ia3"}, "holds an adapter with peft_type: LORA, and IA3 is asked for"),
        ({"adapter": {"r": 8}}, "holds an adapter with r: 2, and 8 is asked for"),
        ({"from_scratch": True}, "a random base model"),
        ({"new_head": True}, "would replace a part of the adapter"),
        ({"freeze": ("backbone",)}, "has no effect"),
    ],
)
def test_what_contradicts_a_given_adapter_is_refused(adapter, options, said):
    if "adapter" in options:
        options["adapter"] = adapter_settings(options["adapter"])
    with pytest.raises(ConfigError, match=said):
        Recipe(str(adapter[1]), **options).folder()


def test_the_same_adapter_may_be_named_again(adapter):
    same = adapter_settings({"type": "lora", "r": 2, "target_modules": ["query"]})
    assert Recipe(str(adapter[1]), adapter=same).folder() is not None


def edit(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": "XLORA"}, "kind 'xlora', which is not read here"),
        ({"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": True}}, "sets tokenizer_kwargs"),
        ({"megatron_core": "evil"}, "sets megatron_core"),
        ({"megatron_config": {"a": 1}}, "sets megatron_config"),
        ({"base_model_name_or_path": "/no/where"}, "is not there"),
        ({"base_model_name_or_path": None}, "names its kind and base model"),
        ({"peft_type": 3}, "names its kind and base model"),
        ({"layers_to_transform": [1], "target_modules": "q.*"}, "adapter_config.json: `layers_to_transform` cannot"),
    ],
)
def test_a_config_that_leads_elsewhere_is_refused(adapter, fields, said):
    edit(adapter[1], **fields)
    with pytest.raises(ModelError, match=said) as caught:
        adapter_folder(str(adapter[1])).config(trainable=True)
    assert caught.value.exit_code == 4


def test_pickled_weights_are_refused(adapter):
    folder = adapter[1]
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"an adapter with its weights as a pickle \(adapter_model.bin\)"):
        adapter_folder(str(folder))


def test_an_adapter_on_an_adapter_is_refused(adapter, tmp_path):
    shutil.copytree(adapter[1], tmp_path / "second")
    edit(tmp_path / "second", base_model_name_or_path=str(adapter[1]))
    with pytest.raises(ModelError, match="is an adapter itself"):
        adapter_folder(str(tmp_path / "second"))


def test_an_adapter_for_other_labels_is_refused(adapter, tiny_model_dir):
    config = AutoConfig.from_pretrained(tiny_model_dir, num_labels=5)
    with pytest.raises(ModelError, match=r"does not fit .* with these labels"):
        assemble(AUTO, Recipe(str(adapter[1])), config, fitting=True)


def test_an_adapter_without_its_matrices_is_refused(adapter, tiny_model_dir):
    path = adapter[1] / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({n: t for n, t in weights.items() if "layer.1" not in n}, path)
    config = AutoConfig.from_pretrained(tiny_model_dir, num_labels=3)
    with pytest.raises(ModelError, match=r"it lacks .*layer\.1"):
        assemble(AUTO, Recipe(str(adapter[1])), config, fitting=True)
