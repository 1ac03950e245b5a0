"""Tiny real objects for tests: rows made from a seed, a tokenizer made here, a two-layer random model. No network."""

import csv
import json
import random
from pathlib import Path

WORDS = [
    "trail",
    "rock",
    "river",
    "steep",
    "mud",
    "view",
    "forest",
    "long",
    "short",
    "easy",
    "hard",
    "great",
    "awful",
    "rain",
    "sun",
    "path",
    "climb",
    "lake",
    "bridge",
    "fog",
]
CLASSES = ("bad", "fine", "good")


def toy_rows(count: int, seed: int = 0, num_classes: int = 3) -> list[dict]:
    """Texts of ragged length whose label depends on their words, so that a model can learn something."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, 12))]
        score = sum(WORDS.index(w) for w in words) / len(words)
        label = min(num_classes - 1, int(score / len(WORDS) * num_classes * 1.0))
        rows.append({"text": " ".join(words), "label": CLASSES[label], "score": score / 4 + 0.05})
    return rows


def write_csv(path: Path, rows: list[dict]) -> Path:
    """Rows as a csv file with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict]) -> str:
    """Rows as json lines."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def labelled(labels: list) -> list[dict]:
    """A text for each label."""
    return [{"text": r["text"], "label": v} for r, v in zip(toy_rows(len(labels)), labels, strict=True)]


def make_tiny_model(
    folder: Path, dropout: float = 0.1, hidden: int = 16, subwords: bool = False, mask: bool = False
) -> Path:
    """Save the tiny model into a folder; with ``subwords`` its tokenizer cuts ``mud-mud`` as BERT's does.

    With ``mask`` it has a mask token, and a head that guesses words.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    inner = ["##-", *(f"##{w}" for w in WORDS)] if subwords else []
    vocab = {w: i for i, w in enumerate(special + WORDS + inner + ["[MASK]"] * mask)}
    model = models.WordPiece(vocab, unk_token="[UNK]") if subwords else models.WordLevel(vocab, unk_token="[UNK]")
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if subwords else pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        **({"mask_token": "[MASK]"} if mask else {}),
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.3,
        pad_token_id=0,
    )
    (BertForMaskedLM if mask else BertModel)(config).save_pretrained(folder)
    return folder


def model_with_head(tiny_model_dir: Path, folder: Path, names: list[str]) -> Path:
    """The tiny model with a random head for some labels, as a run would leave it in best/."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    torch.manual_seed(1)
    BertForSequenceClassification.from_pretrained(tiny_model_dir, **labels).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    return folder


PLACES, SKY = ("river", "forest", "lake", "bridge"), ("rain", "sun", "fog")


def toy_sentences(count: int, seed: int = 0) -> list[dict]:
    """Words and BIO tags that follow from the words; some words are several tokens to the tiny model."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, 12))]
        kinds = ["PLACE" if w in PLACES else "SKY" if w in SKY else "" for w in words]
        inside = [kind and kind == before for kind, before in zip(kinds, ["", *kinds], strict=False)]
        tags = [f"{'I' if i else 'B'}-{kind}" if kind else "O" for kind, i in zip(kinds, inside, strict=True)]
        rows.append({"tokens": [f"{w}-{w}" if rng.random() < 0.2 else w for w in words], "ner_tags": tags})
    return rows


def toy_choices(count: int, seed: int = 0) -> list[dict]:
    """Two to four choices, of which the right one speaks of the sky."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        choices = [" ".join(rng.choice(PLACES) for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(2, 4))]
        right = rng.randrange(len(choices))
        choices[right] += f" {rng.choice(SKY)}"
        question = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 8)))
        rows.append({"question": question, "choices": choices, "label": right})
    return rows


def toy_questions(count: int, seed: int = 0, num_words: int = 40, with_none: bool = False) -> list[dict]:
    """``view`` asks for the one place in a context, ``climb`` for the one kind of weather; with ``with_none`` some
    contexts lack what they are asked for."""
    rng = random.Random(seed)
    others = [w for w in WORDS if w not in (*PLACES, *SKY)]
    rows = []
    for i in range(count):
        place, sky = rng.choice(PLACES), rng.choice(SKY)
        asked, answer = ("view", place) if rng.random() < 0.5 else ("climb", sky)
        is_none = with_none and rng.random() < 0.3
        words = [rng.choice(others) for _ in range(rng.randint(1, num_words))]
        for word in (place, sky):
            if not (is_none and word == answer):
                words.insert(rng.randint(0, len(words)), word)
        context = " ".join(words)
        start = f" {context} ".find(f" {answer} ")
        answers = {"text": [] if is_none else [answer], "answer_start": [] if is_none else [start]}
        rows.append({"id": f"q{i}", "question": asked, "context": context, "answers": answers})
    return rows


def make_tiny_decoder(folder: Path, dropout: float = 0.0, kind: str = "llama") -> Path:
    """A two-layer random decoder, and a tokenizer of the toy words that knows an end and has no pad token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

    vocab = {w: i for i, w in enumerate(["</s>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    tokenizer.save_pretrained(folder)
    ids = {"vocab_size": len(vocab), "bos_token_id": None, "eos_token_id": 0, "initializer_range": 0.3}
    config: LlamaConfig | GPT2Config
    if kind == "llama":
        config = LlamaConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            attention_dropout=dropout,
            **ids,
        )
    else:
        drops = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **drops, **ids)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def toy_documents(count: int, seed: int = 0, longest: int = 40) -> list[dict]:
    """Texts of very different lengths, in which each word tells something of the next."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [rng.choice(WORDS)]
        for _ in range(min(longest, int(rng.paretovariate(0.8))) - 1):
            following = (WORDS.index(words[-1]) * 7 + 3) % len(WORDS)
            words.append(WORDS[following] if rng.random() < 0.7 else rng.choice(WORDS))
        rows.append({"text": " ".join(words)})
    return rows


def toy_lines(count: int, seed: int = 0) -> list[str]:
    """Chapters of 12 lines with two words each, so that those around a hidden one tell much; some lines are empty."""
    rng = random.Random(seed)
    lines = []
    for i in range(count):
        if i % 12 == 0:
            start = rng.randrange(len(WORDS) - 1)
        words = rng.choices(WORDS[start : start + 2], k=rng.choice([0, *range(1, 13)]))
        lines.append(" ".join(f"{w}-{w}" if rng.random() < 0.1 else w for w in words))
    return lines


def toy_chats(count: int, seed: int = 0) -> list[dict]:
    """One to three questions of a few words; an answer goes on from the question's last word, as toy documents do."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        messages = []
        for _ in range(rng.randint(1, 3)):
            words = rng.choices(WORDS, k=rng.randint(1, 6))
            messages.append({"role": "user", "content": " ".join(words)})
            answer = words[-1:]
            for _ in range(1 + len(words) % 2):
                answer.append(WORDS[(WORDS.index(answer[-1]) * 7 + 3) % len(WORDS)])
            messages.append({"role": "assistant", "content": " ".join(answer[1:])})
        rows.append({"messages": messages})
    return rows


def toy_pairs(count: int, seed: int = 0) -> list[dict]:
    """Two texts that share some of their words, how large that share is from 0 to 5, and a text that shares none."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = rng.sample(WORDS, rng.randint(3, 8))
        shared = rng.randint(0, len(words))
        others = [w for w in WORDS if w not in words]
        second = words[:shared] + rng.sample(others, len(words) - shared)
        rng.shuffle(second)
        score = round(5 * shared / len(words), 2)
        negative = " ".join(rng.sample(others, 3))
        rows.append(
            {
                "sentence1": " ".join(words),
                "sentence2": " ".join(second),
                "score": score,
                "anchor": " ".join(words),
                "positive": " ".join(rng.sample(words, len(words))[: rng.randint(2, 8)]),
                "negative": negative,
            }
        )
    return rows


def make_tiny_writer(folder: Path, kind: str = "t5", dropout: float = 0.0) -> Path:
    """A random model of an encoder and a decoder, T5 or BART, and a tokenizer of the toy words that ends each text."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoModelForSeq2SeqLM, BartConfig, PreTrainedTokenizerFast, T5Config

    vocab = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special)
    tokenizer.save_pretrained(folder)
    ids = {"vocab_size": len(vocab), "pad_token_id": 0, "eos_token_id": 1, "d_model": 16}
    config: T5Config | BartConfig
    if kind == "t5":
        sizes = {"d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        config = T5Config(decoder_start_token_id=0, dropout_rate=dropout, **sizes, **ids)
    else:
        sides = {
            f"{side}_{name}": size
            for side in ("encoder", "decoder")
            for name, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
        }
        ends = {"bos_token_id": None, "decoder_start_token_id": 1, "forced_eos_token_id": None}
        config = BartConfig(max_position_embeddings=128, dropout=dropout, init_std=0.3, **sides, **ends, **ids)
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    return folder


def toy_descriptions(count: int, seed: int = 0, references: int = 1) -> list[dict]:
    """A source with one place and one kind of weather, and what is to be written about them, in several ways."""
    rng = random.Random(seed)
    others = [w for w in WORDS if w not in (*PLACES, *SKY)]
    rows = []
    for _ in range(count):
        place, sky = rng.choice(PLACES), rng.choice(SKY)
        words = [rng.choice(others) for _ in range(rng.randint(1, 6))]
        for word in (place, sky):
            words.insert(rng.randint(0, len(words)), word)
        usual = f"great view {place} long path {sky}" + " steep rock" * (sky == "sun")
        texts = [usual, f"{sky} hard climb {place}", f"{place} mud {sky} steep rock"][:references]
        rng.shuffle(texts)
        rows.append({"source": " ".join(words), "target": usual if references == 1 else texts})
    return rows
