"""Losses of 50 steps against a plain torch loop and against HF Trainer (accumulation 1, where it is right)."""

import json

import pytest
import torch
from parity.runs import NO_DROPOUT, build, fit, plain_update, token_counts
from toy import toy_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_scheduler

from lit_tune.data.orders import steps

NAMES = ["bad", "fine", "good"]
LR, DECAY, STEPS, ROWS = 2e-3, 0.01, 50, 100


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """100 rows and the file they stand in."""
    content = toy_rows(ROWS, seed=8)
    path = tmp_path_factory.mktemp("loop") / "train.jsonl"
    path.write_text("".join(json.dumps({"text": r["text"], "label": r["label"]}) + "\n" for r in content))
    return content, path


def initial_model(tiny_model_dir):
    """The model with the head that lit-tune draws with its default seed."""
    torch.manual_seed(42)
    return AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=3, **NO_DROPOUT)


def ours(tiny_model_dir, path):
    module = {"optimizer": {"lr": LR, "weight_decay": DECAY}}
    return fit(tiny_model_dir, {"train": str(path)}, batch=16, module=module, max_epochs=100, max_steps=STEPS)


def plain_loop(tiny_model_dir, content):
    """Thirty lines that anyone can check."""
    model = initial_model(tiny_model_dir).train()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    no_decay = ("bias", "LayerNorm.weight")
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if not n.endswith(no_decay)], "weight_decay": DECAY},
        {"params": [p for n, p in named if n.endswith(no_decay)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=5, num_training_steps=STEPS)
    lengths = token_counts(tokenizer, content)
    losses, epoch = [], 0
    while len(losses) < STEPS:
        for ids in steps(ROWS, 16, 42, epoch, lengths):
            losses.append(plain_update(model, tokenizer, optimizer, [content[i] for i in ids.tolist()], NAMES))
            schedule.step()
            if len(losses) == STEPS:
                break
        epoch += 1
    return losses


def test_50_losses_equal_a_plain_torch_loop(tiny_model_dir, rows):
    content, path = rows
    assert ours(tiny_model_dir, path).losses == pytest.approx(plain_loop(tiny_model_dir, content), abs=1e-6)


def test_50_losses_equal_hf_trainer_without_accumulation(tiny_model_dir, rows, tmp_path):
    from transformers import Trainer, TrainingArguments

    content, path = rows
    _, datamodule = build(tiny_model_dir, {"train": str(path), "val_fraction": 0, "train_batch_size": 16})
    datamodule.prepare("fit")
    collate = datamodule.collator()

    class InOurOrder(Trainer):
        def get_train_dataloader(self):
            lengths = token_counts(datamodule.tokenizer, content)
            batches = [b.tolist() for epoch in range(8) for b in steps(ROWS, 16, 42, epoch, lengths)]
            return [collate([datamodule.encoded["train"][i] for i in b]) for b in batches]

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=16,
        learning_rate=LR,
        weight_decay=DECAY,
        warmup_steps=5,
        max_steps=STEPS,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = InOurOrder(model=initial_model(tiny_model_dir), args=arguments, train_dataset=datamodule.encoded["train"])
    trainer.train()
    # Trainer 5.23 rounds what it prints, not what it keeps: these are the floats its training_step returned
    theirs = [h["loss"] for h in trainer.state.log_history if "grad_norm" in h]
    recorded = ours(tiny_model_dir, path)
    assert len(theirs) == STEPS
    assert recorded.losses == pytest.approx(theirs, abs=1e-6)  # 3.6e-7 was seen
