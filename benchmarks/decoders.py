"""Decoders from random weights: lit-tune and HF Trainer on the same text, from the same first weights, over seeds.

    python benchmarks/decoders.py shakespeare --data DATA/text --seeds 1 2
    python benchmarks/decoders.py gsm8k --data DATA/gsm8k --seeds 1 2

`shakespeare` is language modelling, HF's side as run_clm.py of transformers does it: all text joined, cut into blocks,
the rest dropped. `gsm8k` is instruction tuning, HF's side with a row per conversation, padded, its prompt masked out of
the labels. A step has about as many tokens (conversations) on both sides, the number of epochs is the same. Both models
are then measured by the same plain loop over the test split. Prints a table and appends JSON lines to --output.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

import lit_tune
from lit_tune.models.chat_templates import TEMPLATES

Conversation = list[dict[str, str]]
SETTINGS: dict[str, dict[str, Any]] = {
    "shakespeare": {"length": 128, "batch": 16, "lit_tune_batch": 16, "epochs": 1, "lr": 2e-3, "vocabulary": 2000},
    # 512 tokens hold three conversations and a half: 5 blocks are as many as 16 rows
    "gsm8k": {"length": 512, "batch": 16, "lit_tune_batch": 5, "epochs": 2, "lr": 2e-3, "vocabulary": 4000},
}
TRAIN_CONVERSATIONS, TEST_CONVERSATIONS = 1500, 200


def make_model(texts: list[str], vocabulary: int, folder: Path, seed: int) -> Path:
    """A byte-level tokenizer learned from the train texts, and a Llama of four layers with random weights."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATES["plain"]
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def load_texts(name: str, data: Path, scratch: Path) -> tuple[dict[str, str], list[str], list[Any]]:
    """Files for lit-tune, the train texts (or conversations as JSON), and what is tested on."""
    if name == "shakespeare":
        text = (data / "shakespeare.txt").read_text(encoding="utf-8")
        cut = text.rfind("\n", 0, int(len(text) * 0.9)) + 1
        (scratch / "train.txt").write_text(text[:cut], encoding="utf-8")
        (scratch / "val.txt").write_text(text[cut:], encoding="utf-8")
        return {s: str(scratch / f"{s}.txt") for s in ("train", "val")}, [text[:cut]], [text[cut:]]
    train = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()[:TRAIN_CONVERSATIONS]
    test = (data / "test.jsonl").read_text(encoding="utf-8").splitlines()[:TEST_CONVERSATIONS]
    for split, lines in (("train", train), ("val", test)):
        (scratch / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    conversations = [json.loads(line)["messages"] for line in test]
    return {s: str(scratch / f"{s}.jsonl") for s in ("train", "val")}, train, conversations


def run_lit_tune(name: str, settings: dict[str, Any], files: dict[str, str], model: Path, seed: int, out: Path) -> Path:
    """One run; returns the export."""
    task: dict[str, Any] = {"class_path": "CausalLM"}
    if name == "gsm8k":
        task = {"class_path": "InstructionTuning", "init_args": {"generate_rows": 0}}
    config = {
        "run_dir": str(out / "run"),
        "seed_everything": seed,
        "task": task,
        "model": {"model_name_or_path": str(model)},
        "data": {**files, "max_length": settings["length"], "train_batch_size": settings["lit_tune_batch"]},
        "optimizer": {"lr": settings["lr"]},
        "overfit": {"probe_size": 0},
        "checkpoint": {"keep_best": 0},
        "trainer": {"max_epochs": settings["epochs"], "accelerator": "cpu", "log_every_n_steps": 50},
    }
    trainer, module, datamodule = lit_tune.build(config)
    trainer.fit(module, datamodule=datamodule)
    return out / "run" / "best"


def run_hf_trainer(
    name: str, settings: dict[str, Any], files: dict[str, str], model: Path, seed: int, out: Path
) -> Path:
    """The same with HF Trainer; returns the model it saves."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = Path(files["train"]).read_text(encoding="utf-8")
    if name == "shakespeare":
        ids, length = tokenizer(text, verbose=False)["input_ids"], settings["length"]
        blocks = [ids[i : i + length] for i in range(0, len(ids) // length * length, length)]
        rows = [{"input_ids": block, "labels": block} for block in blocks]
    else:
        rows = []
        for messages in (json.loads(line)["messages"] for line in text.splitlines()):
            prompt, whole = tokens_of(tokenizer, messages)
            rows.append(
                {"input_ids": whole[: settings["length"]], "labels": masked(prompt, whole)[: settings["length"]]}
            )
    set_seed(seed)
    arguments = TrainingArguments(
        output_dir=str(out / "hf"),
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["batch"],
        learning_rate=settings["lr"],
        weight_decay=0.01,
        warmup_steps=0.1,
        lr_scheduler_type="linear",
        save_strategy="no",
        seed=seed,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    trainer.train()
    trainer.save_model(str(out / "hf" / "model"))
    return out / "hf" / "model"


def tokens_of(tokenizer: Any, messages: Conversation) -> tuple[list[int], list[int]]:
    """Tokens of the prompt, and of the whole up to the end of the answer."""
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
    answer = tokenizer.apply_chat_template(messages, tokenize=False)[len(prompt) :].rstrip("\n")
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return ids, ids + tokenizer(answer, add_special_tokens=False)["input_ids"]


def masked(prompt: list[int], whole: list[int]) -> list[int]:
    """Labels of the answer alone."""
    return [-100] * len(prompt) + whole[len(prompt) :]


@torch.no_grad()
def test_loss(folder: Path, tokenizer: Any, name: str, test: list[Any], length: int) -> float:
    """Nats per token: of all but the first token of each window, or of the answers."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    if name == "shakespeare":
        ids = tokenizer(test[0], verbose=False)["input_ids"]
        rows = [(ids[i : i + length], ids[i : i + length]) for i in range(0, len(ids) - 1, length - 1)]
    else:
        rows = [(whole, masked(prompt, whole)) for prompt, whole in (tokens_of(tokenizer, m) for m in test)]
    total = count = 0.0
    for ids, labels in rows:
        logits = model(torch.tensor([ids[:512]])).logits[0, :-1]
        target = torch.tensor(labels[1:512])
        total += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
        count += int((target >= 0).sum())
    return total / count


PEERS = {"lit_tune": run_lit_tune, "hf_trainer": run_hf_trainer}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETTINGS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=Path("decoders.jsonl"))
    options = parser.parse_args()
    settings = SETTINGS[options.name]
    results: dict[str, list[tuple[float, float]]] = {peer: [] for peer in PEERS}
    for seed in options.seeds:
        for peer, run in PEERS.items():  # alternating: both meet the same state of the machine
            with tempfile.TemporaryDirectory() as folder:
                scratch = Path(folder)
                files, texts, test = load_texts(options.name, options.data, scratch)
                model = make_model(texts, settings["vocabulary"], scratch / "model", seed)
                started = time.perf_counter()
                export = run(options.name, settings, files, model, seed, scratch)
                seconds = time.perf_counter() - started
                loss = test_loss(export, AutoTokenizer.from_pretrained(model), options.name, test, settings["length"])
            results[peer].append((loss, seconds))
            line = {"data": options.name, "peer": peer, "seed": seed, "test_loss": loss, "seconds": seconds}
            with options.output.open("a") as file:
                file.write(json.dumps(line) + "\n")
    print(f"\n{options.name}: torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}")
    for peer, runs in results.items():
        losses = [loss for loss, _ in runs]
        print(f"  {peer:<12}test loss {statistics.mean(losses):.4f}  {[round(v, 4) for v in losses]}")
        print(
            f"  {peer:<12}seconds   {statistics.median(s for _, s in runs):.0f} (median, with preparation and export)"
        )


if __name__ == "__main__":
    main()
