"""Faults 34 to 44: tokenizer, weights, heads."""

import hashlib
import json
import os
from pathlib import Path

from faults.registry import NOT_HERE, Options, Scene, fault
from toy import model_with_head

NOT_HERE[42] = "gated, not found and offline need a server and a new process: test_hub_faults.py"


def good(s: Scene, **more: object) -> Options:
    return {"data.train": s.good(), **more}


@fault(34, "a tokenizer without a pad token", 0, '"trial"')
def no_pad_token(s: Scene) -> Options:
    s.change("tokenizer_config.json", pad_token=None)
    s.change("config.json", pad_token_id=None)
    return good(s)


@fault(35, "more tokens than positions", 4, "65 is more than the 64 tokens", "data.max_length: 64", place="data.max_le")
def positions(s: Scene) -> Options:
    return good(s, **{"data.max_length": 65})


@fault(35, "a tokenizer that overstates the positions", 0, '"max_length": 64')
def lying_tokenizer(s: Scene) -> Options:
    s.change("tokenizer_config.json", model_max_length=512)
    return good(s)


@fault(36, "a tokenizer that knows more words than the model", 4, "the model embeds 10", place="data.tokenizer")
def vocabulary(s: Scene) -> Options:
    return good(s, **{"model.config_overrides": "{vocab_size: 10}"})


@fault(37, "a task that needs a fast tokenizer", 4, "does not know where its tokens stand", place="data.tokenizer")
def slow_tokenizer(s: Scene) -> Options:
    s.text("asks_for_places.py", OFFSETS_TASK)
    for path in s.model.iterdir():
        path.unlink()
    sizes = {"d_model": 8, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1, "vocab_size": 384}
    (s.model / "config.json").write_text(json.dumps({"model_type": "t5", **sizes}))
    (s.model / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer", "model_max_length": 64}')
    return good(s, **{"task.class_path": "asks_for_places.Tagging", "model.from_scratch": "true"})


OFFSETS_TASK = """
from lit_tune.tasks.sequence_classification import SequenceClassification


class Tagging(SequenceClassification):
    needs_offsets = True
"""


@fault(
    38, "pickled weights only", 4, "holds pickled weights only", "save_pretrained()", place="model.model_name_or_path"
)
def pickled(s: Scene) -> Options:
    (s.model / "model.safetensors").rename(s.model / "pytorch_model.bin")
    return good(s)


@fault(
    39, "weights that are cut short", 4, "model.safetensors is damaged or cut short", place="model.model_name_or_path"
)
def cut_weights(s: Scene) -> Options:
    os.truncate(s.model / "model.safetensors", (s.model / "model.safetensors").stat().st_size // 2)
    return good(s)


@fault(39, "weights that are empty", 4, "model.safetensors is damaged or cut short", place="model.model_name_or_path")
def empty_weights(s: Scene) -> Options:
    os.truncate(s.model / "model.safetensors", 0)
    return good(s)


@fault(39, "a shard that is missing", 4, "model-2.safetensors is missing", place="model.model_name_or_path")
def missing_shard(s: Scene) -> Options:
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (s.model / "model.safetensors.index.json").write_text(json.dumps(index))
    return good(s)


@fault(
    43, "target modules that match nothing", 4, "has no module 'querry'", "did you mean query?", place="model.adapter"
)
def unmatched_target(s: Scene) -> Options:
    return good(s, **{"model.adapter": '{"target_modules": ["querry"]}'})


def flip_a_bit(path: Path) -> None:
    """In the last tensor; no header tells."""
    content = bytearray(path.read_bytes())
    content[-7] ^= 0x40
    path.write_bytes(content)


@fault(
    40, "a flipped bit in weights that the Hub published", 4, "is damaged: its bytes are not", place="model.model_name"
)
def flipped_download(s: Scene) -> Options:
    weights = s.model / "model.safetensors"
    notes = s.model / ".cache" / "huggingface" / "download"  # what `hf download --local-dir` leaves
    notes.mkdir(parents=True)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (notes / "model.safetensors.metadata").write_text(f"{'c' * 40}\n{digest}\n1700000000.0\n")
    flip_a_bit(weights)
    return good(s)


@fault(
    41, "no trained head, and nothing is trained", 4, "has no trained head", place="model.model_name", verb="validate"
)
def no_head(s: Scene) -> Options:
    return good(s, **{"data.val": s.csv("val.csv", [{"text": "a", "label": 0}, {"text": "b", "label": 1}])})


@fault(
    41, "a head for other labels", 4, "a head for other labels (x, y)", "model.new_head: true", place="model.new_head"
)
def other_head(s: Scene) -> Options:
    folder = model_with_head(s.model, s.folder / "head", ["x", "y"])
    return good(s, **{"model.model_name_or_path": folder})


@fault(41, "weights of another size than the config's", 4, "in the weights of", place="model.config_overrides")
def other_size(s: Scene) -> Options:
    return good(s, **{"model.config_overrides": "{intermediate_size: 64}"})


@fault(44, "a model that needs its own code", 4, "needs code of its own repository", place="model.model_name_or_path")
def remote_code(s: Scene) -> Options:
    classes = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    s.change("config.json", model_type="own", auto_map=classes)
    (s.model / "own.py").write_text(f"open({str(s.folder / 'ran')!r}, 'w')\n")
    return good(s)
