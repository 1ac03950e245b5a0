"""Runs that unfreeze: equal to a plain loop that adds groups at the time, exact in any cut, on one rank and two."""

import itertools
import logging

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from parity.runs import NO_DROPOUT, fit, plain_update, relative, token_counts
from tiny_runs import Messages, fit_plain
from toy import toy_rows, write_jsonl
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_tune.data.orders import steps

NAMES = ["bad", "fine", "good"]
LR, OWN_LR, DECAY, ROWS, EPOCHS = 1e-2, 3e-3, 0.1, 33, 4
STAGES = [
    {"at_epoch": 1, "layers": "top 1", "lr": OWN_LR},
    {"at_step": 7, "patterns": [r"layer\.0"]},
    {"at_epoch": 3, "layers": "all", "lr": OWN_LR},
]
SETTINGS = {
    "freeze": "backbone",
    "unfreeze": STAGES,
    "optimizer": {"lr": LR, "weight_decay": DECAY},
    "lr_schedule": {"name": "constant"},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """33 rows, 3 batches of 16, 16 and 1, and the file they stand in."""
    content = [{"text": r["text"], "label": r["label"]} for r in toy_rows(ROWS, seed=8)]
    return content, write_jsonl(tmp_path_factory.mktemp("unfreeze") / "train.jsonl", content)


def run(model_dir, path, **options):
    return fit(
        model_dir, {"train": path}, **{"module": SETTINGS, "max_epochs": EPOCHS, "precision": "64-true"} | options
    )


def groups_of(model, wanted, lr):
    """Two groups of the parameters whose names are wanted, which are trained from now on."""
    named = [(n, p) for n, p in model.named_parameters() if wanted(n) and not p.requires_grad]
    for _, p in named:
        p.requires_grad_(True)
    bare = ("bias", "LayerNorm.weight")
    return [
        {"params": [p for n, p in named if not n.endswith(bare)], "weight_decay": DECAY, "lr": lr},
        {"params": [p for n, p in named if n.endswith(bare)], "weight_decay": 0.0, "lr": lr},
    ]


def plain_loop(model_dir, content):
    """Groups are added to the optimizer when their time comes: the weights after each epoch."""
    torch.manual_seed(42)
    model = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=3, **NO_DROPOUT).double().train()
    model.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    optimizer = torch.optim.AdamW(groups_of(model, lambda n: n.startswith("classifier"), LR))

    def add(wanted, lr):
        for group in groups_of(model, wanted, lr):
            optimizer.add_param_group(group)

    step, weights, lengths = 0, [], token_counts(tokenizer, content)
    for epoch in range(EPOCHS):
        if epoch == 1:
            add(lambda n: "layer.1" in n or "pooler" in n, OWN_LR)
        if epoch == 3:
            add(lambda n: True, OWN_LR)
        for ids in steps(ROWS, 16, 42, epoch, lengths):
            if step == 7:
                add(lambda n: "layer.0" in n, LR)
            plain_update(model, tokenizer, optimizer, [content[i] for i in ids.tolist()], NAMES)
            step += 1
        weights.append({n: p.detach().clone() for n, p in model.named_parameters()})
    return weights


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
@pytest.mark.parametrize("fused", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_weights_are_those_of_a_loop_that_adds_groups_when_their_time_comes(tiny_model_dir, rows, fused):
    content, path = rows
    module = {**SETTINGS, "optimizer": {**SETTINGS["optimizer"], "fused": fused}}
    wanted = plain_loop(tiny_model_dir, content)
    assert not torch.equal(
        wanted[2]["bert.encoder.layer.0.output.dense.weight"], wanted[1]["bert.encoder.layer.0.output.dense.weight"]
    )
    for epochs in (2, 4):
        found = run(tiny_model_dir, path, module=module, max_epochs=epochs).weights
        for name, weight in wanted[epochs - 1].items():
            assert torch.allclose(found[name], weight, rtol=0, atol=1e-9), name


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
def test_any_cut_gives_the_same_weights_in_float64(tiny_model_dir, rows):
    reference = run(tiny_model_dir, rows[1])
    sizes = [len(g) for g in reference.gradients]
    assert sizes == sorted(sizes)
    assert [a < b for a, b in itertools.pairwise(sizes)] == [i in (2, 6, 8) for i in range(11)]
    for batch, accumulate in [(2, 8), (4, 4)]:
        compare(reference, run(tiny_model_dir, rows[1], batch=batch, accumulate=accumulate))
    recomputed = {**SETTINGS, "gradient_checkpointing": True}
    compare(reference, run(tiny_model_dir, rows[1], module=recomputed))


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
def test_two_ranks_give_the_same_weights_in_float64(tiny_model_dir, rows, tmp_path):
    """DDP knows only what was trained when it was made: without a new one the ranks drift apart."""
    reference = run(tiny_model_dir, rows[1])
    for batch, accumulate, extra in [(8, 1, {}), (4, 2, {}), (8, 1, {"auto_batch": True})]:
        options = {"ranks": 2, "batch": batch, "accumulate": accumulate, "scratch": tmp_path}
        module, data = SETTINGS, {"train": rows[1], **extra}
        other = fit(tiny_model_dir, data, module=module, max_epochs=EPOCHS, precision="64-true", **options)
        compare(reference, other)
        one, two = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True)["weights"] for r in range(2))
        assert all(torch.equal(one[n], two[n]) for n in one)


def compare(reference, other):
    for a, b in zip(reference.gradients, other.gradients, strict=True):
        assert relative(b, a) < 1e-12
    for name, weight in reference.weights.items():
        assert torch.allclose(weight, other.weights[name], rtol=0, atol=1e-10), name


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
def test_what_is_frozen_runs_without_dropout_until_a_line_says_that_it_is_trained(tiny_model_dir, rows):
    class Modes(Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            bert = pl_module.model.bert
            layers = [layer.output.dropout.training for layer in bert.encoder.layer]
            self.seen.append((trainer.global_step, bert.embeddings.dropout.training, *layers))

    modes, messages = Modes(), Messages()
    stages = [{"at_step": 2, "layers": "top 1", "lr": OWN_LR}, {"at_epoch": 1, "layers": "all"}]
    module = {**SETTINGS, "unfreeze": stages, "config_overrides": {}, "optimizer": {"lr": LR, "layer_lr_decay": 0.5}}
    log = logging.getLogger("lit_tune")
    level = log.level
    log.addHandler(messages)
    log.setLevel(logging.INFO)
    try:
        data = {"train": rows[1], "val": rows[1], "train_batch_size": 8}  # 5 steps an epoch, each with a validation
        fit_plain(tiny_model_dir, data, [modes], module=module, max_epochs=2, accumulate_grad_batches=1)
    finally:
        log.removeHandler(messages)
        log.setLevel(level)
    assert modes.seen == [(s, s > 5, s > 5, s > 2) for s in range(1, 11)]
    said = [text for text in messages.texts if "unfr" in text or text.startswith("eval mode")]
    assert said == [
        "eval mode, because nothing in it is trained: bert",
        "unfreeze step 2 layer 2 (2,496); epoch 1 embeddings, layer 1 (3,696)",
        "unfrozen at step 2 (epoch 0): layer 2, 2,496 parameters, lr 0.003 times the schedule; 2,547 trained now",
        "unfrozen at step 5 (epoch 1): embeddings, layer 1, 3,696 parameters, lr 0.00125 to 0.0025 times the schedule; "
        "6,243 trained now",
    ]
