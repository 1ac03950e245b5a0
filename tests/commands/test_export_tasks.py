"""Every task's model in every form, and architectures that the exporter knows or does not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from cards import run_card
from commands.runs import config, said
from toy import (
    make_tiny_decoder,
    make_tiny_model,
    toy_choices,
    toy_documents,
    toy_lines,
    toy_questions,
    toy_sentences,
    write_jsonl,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BartConfig, BertConfig, XLNetConfig

from lit_tune.__main__ import main
from lit_tune.errors import ModelError
from lit_tune.models.onnx_graph import check_graph, write_graph
from lit_tune.models.probing import probe, real

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
]

TASKS = {
    "TokenClassification": ([], {"logits"}),
    "QuestionAnswering": (["--data.max_length", "24", "--task.init_args.stride", "6"], {"start_logits", "end_logits"}),
    "MultipleChoice": ([], {"logits"}),
    "MaskedLM": (["--data.max_length", "16"], {"logits"}),
    "CausalLM": (["--data.max_length", "16"], {"logits"}),
}


def train_task(task: str, folder: Path) -> Path:
    """A run of 40 rows."""
    make = {"CausalLM": make_tiny_decoder}.get(task, make_tiny_model)
    make(folder / "tiny", **({"mask": True} if task == "MaskedLM" else {}))
    rows = {
        "TokenClassification": lambda: toy_sentences(40),
        "QuestionAnswering": lambda: toy_questions(40, seed=1, num_words=12),
        "MultipleChoice": lambda: toy_choices(40),
        "MaskedLM": lambda: [{"text": line} for line in toy_lines(80)],
        "CausalLM": lambda: toy_documents(80),
    }[task]()
    write_jsonl(folder / "train.jsonl", rows)
    options = ["--task", task, "--data.train", str(folder / "train.jsonl"), "--run_dir", str(folder / "run")]
    options += ["--model.model_name_or_path", str(folder / "tiny"), "--trainer.accelerator", "cpu"]
    options += ["--trainer.max_epochs", "1", "--logger", "none", *TASKS[task][0]]
    assert main(["fit", *options]) == 0
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_graph_a_half_and_lines_that_run(task, tmp_path):
    run = train_task(task, tmp_path)
    folder = tmp_path / "onnx"
    assert main(["export", *config(run), "--format", "onnx", "--output", str(folder)]) == 0
    outputs = run_card(folder)["outputs"]
    assert outputs.keys() == TASKS[task][1]
    assert all(np.isfinite(value).all() for value in outputs.values())
    assert main(["export", *config(run), "--dtype", "bfloat16", "--output", str(tmp_path / "half")]) == 0
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


SIZES = {
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
DECODER = {**SIZES, "num_key_value_heads": 1}
GPT2 = {"vocab_size": 24, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
SPECIAL = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
CASES = {
    "roberta": ("TokenClassification", "Roberta", {**SIZES, "max_position_embeddings": 66}),
    "distilbert": ("SequenceClassification", "DistilBert", {"vocab_size": 24, "dim": 16, "n_layers": 2, "n_heads": 2}),
    "deberta": ("SequenceClassification", "DebertaV2", {**SIZES, "relative_attention": True, "pos_att_type": ["p2c"]}),
    "gpt2": ("SequenceClassification", "GPT2", {**GPT2, **SPECIAL}),
    "llama": ("CausalLM", "Llama", {**DECODER, **SPECIAL}),
    "qwen3": ("CausalLM", "Qwen3", {**DECODER, "head_dim": 8, **SPECIAL}),
}


PADDED = [(kind, "left") for kind in ("gpt2", "llama")] + [(kind, "right") for kind in CASES if kind != "llama"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "side"), PADDED)
def test_architectures_with_padding_on_either_side(kind, side, tiny_model_dir, tmp_path):
    head, family, sizes = CASES[kind]
    auto_class = getattr(transformers, f"AutoModelFor{head}")
    model = auto_class.from_config(getattr(transformers, f"{family}Config")(**sizes))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir, padding_side=side)
    assert write_graph(model, tokenizer, tmp_path / "x") < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            BartConfig(
                vocab_size=24, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, **SPECIAL,
            ),
            "onnxruntime cannot run the graph",
        ),
        (XLNetConfig(vocab_size=24, d_model=16, n_layer=2, n_head=2, d_inner=32), "gives mems.0 besides its scores"),
    ],
    ids=["bart", "xlnet"],
)  # fmt: skip
def test_an_architecture_that_cannot_be_exported_is_told(settings, words, tiny_model_dir, tmp_path):
    model = AutoModelForSequenceClassification.from_config(settings)
    with pytest.raises(ModelError, match=words) as caught:
        write_graph(model, AutoTokenizer.from_pretrained(tiny_model_dir), tmp_path / "x")
    assert "--format hf" in str(caught.value)


class Unwritable(torch.nn.Module):
    def forward(self, x):
        return x * len([1 for value in x.flatten().tolist() if value > 0])


@pytest.mark.slow
def test_an_operator_without_a_counterpart_is_told_with_what_to_do(tiny_model_dir, tmp_path):
    model = AutoModelForSequenceClassification.from_config(BertConfig(**SIZES))
    model.dropout = Unwritable()
    with pytest.raises(ModelError, match="BertForSequenceClassification cannot be written as an ONNX graph") as caught:
        write_graph(model, AutoTokenizer.from_pretrained(tiny_model_dir), tmp_path / "x")
    assert len(str(caught.value).splitlines()) <= 6
    assert caught.value.exit_code == 4


@pytest.mark.slow
def test_a_graph_of_other_weights_is_found_out(tiny_model_dir, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = AutoModelForSequenceClassification.from_config(BertConfig(**SIZES)).eval()
    write_graph(model, tokenizer, tmp_path / "x")
    with torch.no_grad():
        model.classifier.bias += 3e-4
    with pytest.raises(ModelError, match=r"the graph's logits of 2x5 tokens differ from the model's by 0\.0003"):
        check_graph(model, tmp_path / "x", [probe(model, tokenizer, 2, 5)])
    assert said(capsys) == ""


def test_what_two_models_are_compared_on(tiny_model_dir):
    """Rows are padded where the tokenizer pads, no padding token stands in a text, choices have their own axis."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir, padding_side="left")
    model = AutoModelForSequenceClassification.from_config(BertConfig(**SIZES))
    batch = probe(model, tokenizer, 6, 12)
    mask = batch["attention_mask"]
    assert batch.keys() == {"input_ids", "attention_mask", "token_type_ids"}
    assert mask.sum(1).max() == 12 > mask.sum(1).min() >= 6
    assert (mask.diff(dim=1) >= 0).all()
    assert ((batch["input_ids"] == tokenizer.pad_token_id) == (mask == 0)).all()
    assert probe(model, tokenizer, 2, 5, has_choices=True)["input_ids"].shape == (2, 3, 5)
    assert real(batch, torch.zeros(6, 12, 3)).equal(mask.bool())
    assert real(batch, torch.zeros(6, 3)).all()
