"""How a model reads text: lengths, pad tokens, and decoders and encoders whose predictions do not depend on padding."""

import json
import logging
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
from parity.runs import NO_DROPOUT, fit, relative
from toy import WORDS, make_tiny_model, toy_rows, write_jsonl
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from lit_tune.__main__ import main
from lit_tune.datamodule import TokenizedDataModule
from lit_tune.errors import ConfigError, ModelError
from lit_tune.models.text_reader import TextReader
from lit_tune.module import FineTuneModule
from lit_tune.tasks.sequence_classification import SequenceClassification

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:Found .* in eval mode at the start of training",  # the console silences it too: frozen modules belong there
)
QUIET = {"enable_model_summary": False, "enable_checkpointing": False}
NAMES = ["bad", "fine", "good"]


@pytest.fixture(autouse=True)
def said(monkeypatch, caplog):
    """What is told to the person; the command line keeps messages from the root logger."""
    monkeypatch.setattr(logging.getLogger("lit_tune"), "propagate", True)
    caplog.set_level(logging.INFO, logger="lit_tune")
    return caplog


def decoder(folder: Path, kind: str, padding_side: str = "right") -> Path:
    """A random two-layer decoder with a head, and a tokenizer without a pad token, as GPT-2 and Llama have it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = {"gpt2": ["<|endoftext|>"], "llama": ["<unk>", "<s>", "</s>"]}[kind]
    vocab = {w: i for i, w in enumerate(special + WORDS)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token=special[0]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"unk_token": special[0], "eos_token": special[-1], "bos_token": special[min(1, len(special) - 1)]}
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side=padding_side, model_max_length=64, model_input_names=names, **tokens
    ).save_pretrained(folder)
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
    torch.manual_seed(0)
    if kind == "gpt2":
        ids = {"bos_token_id": 0, "eos_token_id": 0}
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
        GPT2ForSequenceClassification(GPT2Config(vocab_size=len(vocab), **sizes, **ids, **labels)).save_pretrained(
            folder
        )
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = LlamaConfig(
            vocab_size=len(vocab),
            max_position_embeddings=64,
            initializer_range=0.3,
            pad_token_id=None,
            **sizes,
            **labels,
        )
        LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


# --- lengths ---------------------------------------------------------------------------------------------------------


def test_the_default_length_is_what_the_model_takes_but_at_most_512(tiny_model_dir, tmp_path):
    assert TextReader(str(tiny_model_dir)).max_length == 64
    folder = make_tiny_model(tmp_path / "long")
    for name, field in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, field: 2048}))
    assert TextReader(str(folder)).max_length == 512
    assert TextReader(str(folder), max_length_given=1000).max_length == 1000
    # fewer positions by an override are seen too
    assert TextReader(str(folder), config_overrides={"max_position_embeddings": 100}).max_length == 100


def test_more_tokens_than_positions_is_an_error_that_names_the_limit(tiny_model_dir):
    with pytest.raises(ModelError, match="65 is more than the 64 tokens this model can read") as caught:
        _ = TextReader(str(tiny_model_dir), max_length_given=65).max_length
    assert (caught.value.where, caught.value.fix) == ("data.max_length", "data.max_length: 64")


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused(tiny_model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.add_tokens(["summit"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="the tokenizer has 25 tokens, the model embeds 24") as caught:
        _ = TextReader(str(tiny_model_dir), tokenizer_name=str(tmp_path)).tokenizer
    assert caught.value.where == "data.tokenizer"
    with pytest.raises(ModelError, match="there is no folder") as missing:
        _ = TextReader(str(tiny_model_dir), tokenizer_name=str(tmp_path / "nowhere")).tokenizer
    assert missing.value.where == "data.tokenizer"


# --- decoders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_decoder_gets_a_pad_token_is_trained_and_says_so(tmp_path, kind, said):
    model = decoder(tmp_path / kind, kind)
    rows = [{"text": r["text"], "label": r["label"]} for r in toy_rows(64)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    dropout = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}, "llama": {}}[kind]
    run = fit(model, {"train": path}, batch=16, max_epochs=6, module={"config_overrides": dropout})
    token = {"gpt2": "<|endoftext|>", "llama": "<unk>"}[kind]
    assert said.text.count(f"pad token: the tokenizer has none, '{token}' (id 0) is used") == 1
    assert run.losses[-1] < 0.7 * run.losses[0]
    # the cut of a batch decides how much is padded
    double = {"config_overrides": dropout}
    whole = fit(model, {"train": path}, batch=16, max_steps=3, precision="64-true", module=double)
    single = fit(model, {"train": path}, batch=1, accumulate=16, max_steps=3, precision="64-true", module=double)
    assert max(relative(b, a) for a, b in zip(whole.gradients, single.gradients, strict=True)) < 1e-12


def probabilities(model: Path, path: str, batch: int, **data) -> torch.Tensor:
    """Predictions in input order, (rows, classes)."""
    task = SequenceClassification()
    datamodule = TokenizedDataModule(task, model_name_or_path=str(model), predict=path, eval_batch_size=batch, **data)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, **QUIET)
    batches = trainer.predict(FineTuneModule(str(model), task), datamodule=datamodule)
    records = [record for records in batches for record in records]
    assert [r["row"] for r in records] == list(range(len(records)))
    return torch.tensor([[r["probabilities"][n] for n in NAMES] for r in records])


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_predictions_of_a_decoder_do_not_depend_on_padding(tmp_path, kind, padding_side):
    model = decoder(tmp_path / kind, kind, padding_side)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": r["text"]} for r in toy_rows(24)] + [{"text": ""}])
    alone = probabilities(model, path, 1)
    assert torch.isfinite(alone).all()
    assert len({round(p, 4) for p in alone[:, 0].tolist()}) > 10
    for batch, options in ((8, {}), (8, {"padding": "max_length"}), (4, {"pad_to_multiple_of": 16})):
        assert torch.allclose(probabilities(model, path, batch, **options), alone, rtol=0, atol=1e-5)
    # an oracle that never pads
    network = {"gpt2": GPT2ForSequenceClassification, "llama": LlamaForSequenceClassification}[kind]
    reference = network.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    for i, row in enumerate(toy_rows(24)):
        with torch.no_grad():
            ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
            logits = reference(input_ids=ids).logits
        assert torch.allclose(logits.softmax(-1)[0], alone[i], atol=1e-5)


def test_predictions_of_an_encoder_do_not_depend_on_padding(tiny_model_dir, tmp_path):
    from toy import model_with_head

    model = model_with_head(tiny_model_dir, tmp_path / "model", NAMES)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": r["text"]} for r in toy_rows(24)])
    for side in ("right", "left"):
        (model / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": side}))
        alone = probabilities(model, path, 1)
        assert torch.allclose(probabilities(model, path, 8, padding="max_length"), alone, rtol=0, atol=1e-5)


# --- settings of the model, seen in training -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows_jsonl(tmp_path_factory) -> str:
    rows = [{"text": r["text"], "label": r["label"]} for r in toy_rows(33)]
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_model_dir, rows_jsonl):
    plain = fit(tiny_model_dir, {"train": rows_jsonl}, precision="64-true", max_steps=4)
    spared = fit(
        tiny_model_dir, {"train": rows_jsonl}, precision="64-true", max_steps=4, module={"gradient_checkpointing": True}
    )
    assert max(relative(b, a) for a, b in zip(plain.gradients, spared.gradients, strict=True)) < 1e-12
    assert spared.losses == pytest.approx(plain.losses, rel=1e-12)


def test_an_architecture_that_cannot_recompute_its_activations_is_exit_2(tiny_model_dir, rows_jsonl, monkeypatch):
    from transformers import BertForSequenceClassification

    monkeypatch.setattr(BertForSequenceClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match="cannot recompute its activations") as caught:
        fit(tiny_model_dir, {"train": rows_jsonl}, max_steps=1, module={"gradient_checkpointing": True})
    assert caught.value.where == "model.gradient_checkpointing"


def test_gradient_checkpointing_recomputes_the_layers(tiny_model_dir, rows_jsonl, monkeypatch):
    from transformers.models.bert.modeling_bert import BertSelfAttention

    calls = []
    original = BertSelfAttention.forward

    def counted(self, *arguments, **options):
        calls.append(self)
        return original(self, *arguments, **options)

    monkeypatch.setattr(BertSelfAttention, "forward", counted)
    fit(tiny_model_dir, {"train": rows_jsonl}, max_steps=1)
    plain = len(calls)
    fit(tiny_model_dir, {"train": rows_jsonl}, max_steps=1, module={"gradient_checkpointing": True})
    assert len(calls) - plain == 2 * plain


@pytest.mark.parametrize("patterns", ["backbone", ["embeddings", r"layer\.0\."]])
def test_frozen_parameters_do_not_move_and_the_others_do(tiny_model_dir, rows_jsonl, said, patterns):
    before = fit(tiny_model_dir, {"train": rows_jsonl}, max_steps=1, module={"optimizer": {"lr": 1e-12}}).weights
    after = fit(tiny_model_dir, {"train": rows_jsonl}, max_steps=4, module={"freeze": patterns}).weights
    moved = {name for name in after if not torch.allclose(after[name], before[name], rtol=0, atol=1e-9)}
    frozen = {n for n in after if not n.startswith("classifier")}
    if patterns != "backbone":
        frozen = {n for n in after if "embeddings" in n or "layer.0." in n}
    assert frozen.isdisjoint(moved)
    assert moved >= {"classifier.weight", "classifier.bias"}
    assert patterns == "backbone" or any("layer.1." in n for n in moved)
    assert "frozen: " in said.text
    assert "eval mode, because nothing in " in said.text
    assert "is trained: bert" in said.text


def test_weights_kept_in_bfloat16_are_trained_in_bfloat16(tiny_model_dir, rows_jsonl):
    run = fit(tiny_model_dir, {"train": rows_jsonl}, max_steps=3, module={"dtype": "bfloat16"}, precision="bf16-true")
    assert {w.dtype for w in run.weights.values() if w.is_floating_point()} == {torch.bfloat16}
    assert all(loss == loss and loss < 10 for loss in run.losses)


def test_new_weights_are_named_in_one_line(tiny_model_dir, rows_jsonl, said):
    fit(tiny_model_dir, {"train": rows_jsonl}, max_steps=1)
    lines = [r.message for r in said.records if r.message.startswith("new weights: ")]
    assert lines == [f"new weights: classifier.bias, classifier.weight (not in {tiny_model_dir}, random)"]


def test_an_override_of_dropout_changes_what_is_trained(tiny_model_dir, rows_jsonl):
    runs = [
        fit(tiny_model_dir, {"train": rows_jsonl}, max_steps=2, module={"config_overrides": {"hidden_dropout_prob": p}})
        for p in (0.0, 0.0, 0.5)
    ]
    assert runs[0].losses != runs[2].losses


@pytest.mark.slow  # the first compilation of two tiny layers takes 50 seconds of one core
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method", "ignore:.*LeafSpec")
def test_a_compiled_model_is_trained_exported_and_gives_the_same_numbers(tiny_model_dir, rows_jsonl, tmp_path):
    logged = {}
    for compiled in ("false", "true"):
        run = tmp_path / compiled
        options = {
            "data.train": rows_jsonl,
            "data.val": rows_jsonl,
            "data.accept": "[leakage]",
            "model.model_name_or_path": tiny_model_dir,
            "model.compile": compiled,
            "model.config_overrides": json.dumps(NO_DROPOUT),
            "trainer.max_epochs": 2,
            "trainer.log_every_n_steps": 1,
            "trainer.accelerator": "cpu",
            "logger": "none",
            "run_dir": run,
        }
        assert main(["fit", *(part for k, v in options.items() for part in (f"--{k}", str(v)))]) == 0
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        logged[compiled] = [line[k] for line in lines for k in ("train/loss", "val/loss") if k in line]
        assert (run / "best" / "model.safetensors").is_file()
    assert len(logged["true"]) == 8
    assert logged["true"] == pytest.approx(logged["false"], rel=1e-4)
