"""Files that somebody sends who means harm; each is given to the command a person would use on it."""

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from lit_tune.durable import HASH, fingerprint, fingerprints
from lit_tune.run_dir import EXPORT_HASHES, RunDir

MARKER = "PWNED"
"""A file that appears where a payload was executed; every payload writes it into the working folder."""

BAIT = "corpus_bait"
"""A module on ``sys.path`` that writes the marker when it is imported."""

BAIT_SOURCE = f"open({MARKER!r}, 'w').close()\nclass Loss: ...\nclass Evil: ...\n"


class Payload:
    """Unpickled, it runs a command."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {MARKER}",)


@dataclass(frozen=True)
class Kit:
    """What the cases are made of.

    Args:
        folder: Empty; the working folder of the command.
        model: A good model folder, to be copied.
        train: Good rows.
        run: A good run of one epoch, to be copied; one more can be asked for.
    """

    folder: Path
    model: Path
    train: Path
    run: Path

    def fit(self, *options: str, **changes: str) -> list[str]:
        """A fit that would take a second; ``data_train="x.csv"`` changes a key."""
        settings = {
            "data.train": str(self.train),
            "model.model_name_or_path": str(self.model),
            "run_dir": "run",
            "trainer.accelerator": "cpu",
            "trainer.max_epochs": "1",
            "trainer.enable_progress_bar": "false",
            "logger": "none",
            **{key.replace("_", ".", 1): value for key, value in changes.items()},
        }
        return ["fit", *(f"--{k}={v}" for k, v in settings.items() if v), *options]

    def config(self, text: str) -> list[str]:
        """A fit with a YAML file on top."""
        (self.folder / "evil.yaml").write_text(text, "utf-8")
        return [*self.fit(), "--config", "evil.yaml"]

    def file(self, name: str, content: bytes, **changes: str) -> list[str]:
        """A fit on a data file."""
        (self.folder / name).write_bytes(content)
        return self.fit(data_train=name, **changes)

    def dataset(self, files: dict[str, bytes]) -> list[str]:
        """A fit on a data set folder."""
        for name, content in files.items():
            (self.folder / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / "set" / name).write_bytes(content)
        return self.fit(data_train="", data_dataset="./set")

    def with_model(self, change: Callable[[Path], None], *options: str) -> list[str]:
        """A fit on a changed copy of the model."""
        shutil.copytree(self.model, self.folder / "model")
        change(self.folder / "model")
        return self.fit(*options, model_model_name_or_path="model")

    def resumed(self, change: Callable[[Path, Path], None], *options: str) -> list[str]:
        """The same fit again on a changed copy of the run, whose manifest vouches for what was changed."""
        run = self.folder / "run"
        shutil.copytree(self.run, run)
        last = max(run.glob("checkpoints/last-*.ckpt"))
        change(run, last)
        if last.is_file():
            vouch(RunDir(run), last)
        return ["fit", "--config", "run/config.yaml", "--run_dir=run", "--trainer.max_epochs=2", *options]

    def tested(self, change: Callable[[Path, Path], None]) -> list[str]:
        """A test of a changed copy of the run."""
        return ["test", *self.resumed(change)[1:], f"--data.test={self.train}"]


def vouch(run: RunDir, checkpoint: Path) -> None:
    """Write size and hash of a file into the manifest: its hash is no signature."""
    manifest = run.read()
    now = fingerprint(checkpoint)
    for entry in manifest["checkpoints"]:
        if entry["path"].endswith(checkpoint.name):
            entry.update({"bytes": now.bytes, HASH: now.digest})
    run.write(manifest)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def with_object(run: Path, last: Path) -> None:
    """A checkpoint with an object beside its tensors."""
    torch.save({**torch.load(last, weights_only=True), "extra": Payload()}, last)


def as_legacy_pickle(run: Path, last: Path) -> None:
    """torch's format before 1.6: one pickle after the other."""
    torch.save({"extra": Payload()}, last, _use_new_zipfile_serialization=False)


def as_tar(run: Path, last: Path) -> None:
    """torch's format before 0.1: a tar of pickles."""
    with tarfile.open(last, "w") as tar:
        for name in ("pickle", "tensors", "storages"):
            content = pickle.dumps(Payload())
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def as_pickle(run: Path, last: Path) -> None:
    """No torch file at all."""
    last.write_bytes(pickle.dumps(Payload()))


def as_zip_slip(run: Path, last: Path) -> None:
    """A zip whose members climb out."""
    with zipfile.ZipFile(last, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload()))
        archive.writestr("archive/version", "3")
        archive.writestr(f"../../{MARKER}", "x")
        archive.writestr(f"archive/../../{MARKER}", "x")


def with_class_names(run: Path, last: Path) -> None:
    """Plain types that Lightning would take for classes to import."""
    content = torch.load(last, weights_only=True)
    names = {"_instantiator": f"{BAIT}.Evil", "_class_path": f"{BAIT}.Evil", "class_path": f"{BAIT}.Evil"}
    content["hyper_parameters"] |= names
    content["datamodule_hyper_parameters"] = names
    content["callbacks"] |= {f"{BAIT}.Evil": {"class_path": f"{BAIT}.Evil"}}
    torch.save(content, last)


def with_paths(run: Path, last: Path) -> None:
    """Callback states that name files to delete."""
    content = torch.load(last, weights_only=True)
    victim = str(run.parent / "precious.txt")
    (run.parent / "precious.txt").write_text("x")
    for state in content["callbacks"].values():
        if "best_k_models" in state:
            state.update(best_k_models={victim: torch.tensor(0.0)}, best_model_path=victim, kth_best_model_path=victim)
            state.update(last_model_path=victim, dirpath=str(run.parent))
    torch.save(content, last)


def pickled_best(run: Path, last: Path) -> None:
    """The exported weights as a pickle."""
    (run / "best" / "model.safetensors").unlink()
    torch.save({"x": Payload()}, run / "best" / "pytorch_model.bin")
    known = {name: list(found) for name, found in fingerprints(run / "best").items()}
    RunDir(run).update({EXPORT_HASHES: known})


def manifest_of(**fields: Any) -> Callable[[Path, Path], None]:
    """A manifest with fields of other types."""

    def change(run: Path, last: Path) -> None:
        last.unlink()
        manifest = RunDir(run).read()
        RunDir(run).write({**manifest, **fields})

    return change


# ---- YAML ------------------------------------------------------------------------------------------------------------


def bomb(reference: str = "{previous}") -> str:
    """A few hundred bytes that stand for a billion values."""
    lines = ["a0: &a0 {x: 1}"]
    for i in range(1, 10):
        lines.append(f"a{i}: &a{i} {{{reference}: [{', '.join([f'*a{i - 1}'] * 9)}]}}")
    return "\n".join(lines)


def callback(class_path: str, **init_args: Any) -> str:
    """A config with a callback."""
    spec = {"class_path": class_path, "init_args": init_args}
    return yaml.safe_dump({"trainer": {"callbacks": [spec]}})


# ---- data ------------------------------------------------------------------------------------------------------------


def lying_parquet() -> bytes:
    """Its footer says that 11 rows are two thousand million."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(11)], "label": ["x", "y"] * 5 + ["x"]}), sink)
    content = bytearray(sink.getvalue())
    (length,) = struct.unpack("<I", content[-8:-4])
    start = len(content) - 8 - length
    footer = bytes(content[start:-8]).replace(b"\x16\x16", b"\x16\xfe\xff\xff\xff\x0f"[:6])
    return bytes(content[:start]) + footer + struct.pack("<I", len(footer)) + b"PAR1"


def arrow_with_pickled_type() -> bytes:
    """pyarrow before 14.0.1 unpickled the type of an extension column while reading (CVE-2023-47248)."""
    marks = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Payload())}
    field = pa.field("text", pa.string(), metadata=marks)
    table = pa.table({"text": [f"row {i}" for i in range(18)], "label": ["x", "y"] * 9})
    schema = pa.schema([field, table.schema.field("label")])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table.cast(schema))
    return sink.getvalue()


def saved_set(**state: Any) -> dict[str, bytes]:
    """A folder of ``save_to_disk`` whose state names other files."""
    whole = {"_data_files": [{"filename": "data.pkl"}], "_fingerprint": "x", "_format_columns": None}
    whole |= {"_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None, **state}
    info = {"features": {"text": {"dtype": "string", "_type": "Value"}, "label": {"dtype": "string", "_type": "Value"}}}
    return {
        "state.json": json.dumps(whole).encode(),
        "dataset_info.json": json.dumps(info).encode(),
        "data.pkl": pickle.dumps(Payload()),
    }


def tar_of(**members: bytes) -> bytes:
    """A tar, as WebDataset has them; ``__`` stands for a dot."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    """A zip."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return sink.getvalue()


ROWS = b"text,label\n" + b"good path,a\nbad mud,b\n" * 9


# ---- model folders ---------------------------------------------------------------------------------------------------


def edited(name: str, **fields: Any) -> Callable[[Path], None]:
    """A json file of the model with other fields."""

    def change(model: Path) -> None:
        path = model / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def with_code(**fields: Any) -> Callable[[Path], None]:
    """A model that brings its own Python files."""

    def change(model: Path) -> None:
        source = f"open({MARKER!r}, 'w').close()\nfrom transformers import BertConfig, BertModel, BertTokenizer\n"
        source += "class EvilConfig(BertConfig): pass\nclass EvilModel(BertModel): pass\n"
        source += "class EvilTokenizer(BertTokenizer): pass\n"
        (model / "evil.py").write_text(source)
        names = {
            "AutoConfig": "evil.EvilConfig",
            "AutoModel": "evil.EvilModel",
            "AutoModelForSequenceClassification": "evil.EvilModel",
            "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"],
        }
        edited("config.json", auto_map=names, **fields)(model)
        edited("tokenizer_config.json", auto_map={"AutoTokenizer": names["AutoTokenizer"]})(model)

    return change


def with_custom_tokenizer(model: Path) -> None:
    """A tokenizer class that only its own file knows."""
    with_code()(model)
    config = json.loads((model / "config.json").read_text())
    config.pop("auto_map")
    (model / "config.json").write_text(json.dumps(config))
    edited("tokenizer_config.json", tokenizer_class="EvilTokenizer")(model)


def pickled_weights(model: Path) -> None:
    """Weights as a pickle, and none beside it."""
    (model / "model.safetensors").unlink()
    torch.save({"x": Payload()}, model / "pytorch_model.bin")


def pickled_beside(model: Path) -> None:
    """Pickles of every name beside good weights."""
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"x": Payload()}, model / name)


def index_to_pickle(model: Path) -> None:
    """A safetensors index that names a pickle, outside of the folder."""
    torch.save({"x": Payload()}, model.parent / "outside.bin")
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": "../outside.bin"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def lying_header(size: int, header: dict[str, Any] | None = None) -> Callable[[Path], None]:
    """Weights whose header says what is not there."""

    def change(model: Path) -> None:
        path = model / "model.safetensors"
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        body = json.dumps(header).encode() if header else content[8 : 8 + length]
        path.write_bytes(struct.pack("<Q", size or len(body)) + body + content[8 + length :])

    return change


def with_adapter(model: Path) -> None:
    """An adapter that sends for another base model, with its weights as a pickle."""
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "evil/base", "r": 1, "target_modules": ["query"]}
    (model / "adapter_config.json").write_text(json.dumps(adapter))
    torch.save({"x": Payload()}, model / "adapter_model.bin")


CHAT_TEMPLATE = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}{% include '/etc/passwd' %}{{ cycler.__init__.__globals__ }}"
)


# ---- the corpus ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A malicious file.

    Args:
        make: Writes it and gives the command line.
        code: The exit code.
        says: What standard error must name.
    """

    make: Callable[[Kit], list[str]]
    code: int
    says: str = ""


CASES: dict[str, Case] = {
    # checkpoints
    "a checkpoint with an object in it": Case(lambda k: k.resumed(with_object), 7, "plain types"),
    "a checkpoint in the legacy format": Case(lambda k: k.resumed(as_legacy_pickle), 7),
    "a checkpoint that is a tar of pickles": Case(lambda k: k.resumed(as_tar), 7),
    "a checkpoint that is a bare pickle": Case(lambda k: k.resumed(as_pickle), 7),
    "a checkpoint whose zip climbs out": Case(lambda k: k.resumed(as_zip_slip), 7),
    "a checkpoint that names classes to import": Case(lambda k: k.resumed(with_class_names), 0),
    "a checkpoint that names files to delete": Case(lambda k: k.resumed(with_paths), 0),
    "a checkpoint at an address": Case(lambda k: k.fit("--resume=http://127.0.0.1:9/x.ckpt"), 7),
    "a manifest of other types": Case(lambda k: k.resumed(manifest_of(checkpoints=[3, {"path": 4}])), 7),
    "a manifest that names a file outside": Case(
        lambda k: k.resumed(manifest_of(checkpoints=[{"path": "/etc/passwd", "step": "x", "resumable": True}])), 7
    ),
    "a manifest with a wrong spec": Case(lambda k: k.tested(manifest_of(spec={"label_names": 3})), 7, "spec"),
    "an export with pickled weights": Case(lambda k: k.tested(pickled_best), 4, "pickled"),
    # YAML
    "a tag that calls os.system": Case(
        lambda k: k.config(f"run_dir: !!python/object/apply:os.system ['touch {MARKER}']"), 2, "tag"
    ),
    "a tag in a text": Case(
        lambda k: k.config(f"trainer: {{strategy: \"!!python/object/apply:os.system ['touch {MARKER}']\"}}"), 2
    ),
    "aliases that multiply": Case(lambda k: k.config(bomb("previous")), 2, "aliases"),
    "merge keys that multiply": Case(lambda k: k.config(bomb("<<")), 2, "aliases"),
    "aliases that multiply in a text": Case(
        lambda k: k.config(yaml.safe_dump({"trainer": {"plugins": "{" + bomb("p").replace("\n", ", ") + "}"}})), 2
    ),
    "brackets without end": Case(lambda k: k.config("[" * 3000), 2, "nested"),
    "an alias of itself": Case(lambda k: k.config("model: {config_overrides: &a {x: *a}}"), 2, "nested"),
    "a config of two megabytes": Case(lambda k: k.config("# " + "x" * 2_000_000), 2, "1 MB"),
    "os.system as a callback": Case(
        lambda k: k.config(callback("os.system", command=f"touch {MARKER}")), 2, "os.system"
    ),
    "builtins.eval as a task": Case(lambda k: k.config("task: {class_path: builtins.eval}"), 2, "builtins.eval"),
    "importlib as an optimizer": Case(lambda k: k.config("optimizer: {name: importlib.import_module}"), 2, "importlib"),
    "torch.hub as a schedule": Case(lambda k: k.config("lr_schedule: {name: torch.hub.load}"), 2, "torch.hub"),
    "a module of one's own as a loss": Case(
        lambda k: k.config(f"task: {{init_args: {{loss: {BAIT}.Loss}}}}"), 2, f"--allow-import {BAIT}"
    ),
    "a module of one's own as a metric": Case(
        lambda k: k.config(f"task: {{init_args: {{metrics: [{BAIT}.Metric]}}}}"), 2, f"--allow-import {BAIT}"
    ),
    "a module of one's own as a model": Case(
        lambda k: k.config(f"model: {{model_class: {BAIT}.Model}}"), 2, f"--allow-import {BAIT}"
    ),
    "a module of one's own deep in a mapping": Case(
        lambda k: k.config(f"optimizer: {{init_args: {{x: {{class_path: {BAIT}.Evil, init_args: {{}}}}}}}}"), 2
    ),
    "a json.py in the working folder": Case(
        lambda k: (
            (k.folder / "json.py").write_text(BAIT_SOURCE)
            and k.config("task: {init_args: {loss: {class_path: torch.nn.NLLLoss, init_args: {weight: 3}}}}")
        ),
        2,
        "NLLLoss",
    ),
    "functions for LambdaCallback": Case(
        lambda k: k.config(callback("lightning.pytorch.callbacks.LambdaCallback", on_fit_start="os.getcwd")),
        2,
        "LambdaCallback",
    ),
    "a config that allows imports": Case(lambda k: k.config(f"allow_import: [{BAIT}]"), 2, "allow_import"),
    "a config that trusts remote code": Case(
        lambda k: k.config("model: {trust_remote_code: true}"), 2, "trust_remote_code"
    ),
    "a config at an address": Case(lambda k: k.config("trainer: {callbacks: 'http://127.0.0.1:9/x.yaml'}"), 2),
    "an attention kernel of the Hub": Case(
        lambda k: k.config("model: {attn_implementation: evil/kernel}"), 2, "attn_implementation"
    ),
    "a callback that writes elsewhere": Case(
        lambda k: k.config(callback("ModelCheckpoint", dirpath="../elsewhere", every_n_train_steps=1)), 2, "dirpath"
    ),
    "a logger that writes elsewhere": Case(
        lambda k: k.config("trainer: {logger: {class_path: CSVLogger, init_args: {save_dir: ../elsewhere}}}"),
        2,
        "save_dir",
    ),
    "a profiler that writes elsewhere": Case(
        lambda k: k.config(
            "trainer: {profiler: {class_path: SimpleProfiler, init_args: {dirpath: run, filename: ../../x}}}"
        ),
        2,
        "filename",
    ),
    # data
    "a pickle called csv": Case(lambda k: k.file("x.csv", pickle.dumps(Payload())), 3, "x.csv"),
    "a pickle called parquet": Case(lambda k: k.file("x.parquet", pickle.dumps(Payload())), 3, "x.parquet"),
    "a pickle called arrow": Case(lambda k: k.file("x.arrow", pickle.dumps(Payload())), 3, "x.arrow"),
    "a pickle called jsonl": Case(lambda k: k.file("x.jsonl", pickle.dumps(Payload())), 3, "x.jsonl"),
    "a pickle": Case(lambda k: k.file("x.pkl", pickle.dumps(Payload())), 3, "x.pkl"),
    "a parquet that lies about its rows": Case(lambda k: k.file("x.parquet", lying_parquet()), 0),
    "an arrow file with a pickled type": Case(lambda k: k.file("x.arrow", arrow_with_pickled_type()), 0),
    "json without end": Case(lambda k: k.file("x.json", b"[" * 100_000), 3, "x.json"),
    "json lines without end": Case(lambda k: k.file("x.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n"), 3, "x.jsonl"),
    "a gzip that is no data": Case(lambda k: k.file("x.csv.gz", gzip.compress(pickle.dumps(Payload()))), 3, "x.csv.gz"),
    "a path that climbs out": Case(lambda k: k.fit(data_train="../../../../../../etc/passw[d]"), 3, "ending"),
    "an address as data": Case(lambda k: k.fit(data_train="http://127.0.0.1:9/x.csv"), 3, "address"),
    "a data set script": Case(lambda k: k.dataset({"set.py": BAIT_SOURCE.encode(), "x.csv": ROWS}), 3),
    "a data set script alone": Case(lambda k: k.dataset({"set.py": BAIT_SOURCE.encode()}), 3),
    "a saved data set of pickles": Case(lambda k: k.dataset(saved_set()), 3),
    "a saved data set that climbs out": Case(
        lambda k: k.dataset(saved_set(_data_files=[{"filename": "../../../../../../etc/passwd"}])), 3
    ),
    "a data set of pandas pickles": Case(lambda k: k.dataset({"train.pkl": pickle.dumps(Payload())}), 3),
    "a data set of tars with pickles": Case(
        lambda k: k.dataset({"train.tar": tar_of(a__pkl=pickle.dumps(Payload()), a__pyd=pickle.dumps(Payload()))}), 3
    ),
    "a data set of zips that climb out": Case(
        lambda k: k.dataset({"train.zip": zip_of({f"../../{MARKER}": b"x", "a.csv": ROWS})}), 3
    ),
    "a data set that sends for its files": Case(
        lambda k: k.dataset(
            {"README.md": b"---\nconfigs:\n- config_name: default\n  data_files: http://127.0.0.1:9/x.csv\n---\n"}
        ),
        3,
    ),
    # model folders
    "a model with code of its own": Case(lambda k: k.with_model(with_code(model_type="evil")), 4, "not run unasked"),
    "a known model with code of its own": Case(lambda k: k.with_model(with_code()), 0),
    "a tokenizer with code of its own": Case(lambda k: k.with_model(with_custom_tokenizer), 0),
    "pickled weights": Case(lambda k: k.with_model(pickled_weights), 4, "pickled"),
    "pickles beside good weights": Case(lambda k: k.with_model(pickled_beside), 0),
    "an index that names a pickle": Case(lambda k: k.with_model(index_to_pickle), 4, "no weights"),
    "a kernel in the config": Case(
        lambda k: k.with_model(edited("config.json", _attn_implementation_internal="evil/kernel")), 0
    ),
    "an attention kernel in the config": Case(
        lambda k: k.with_model(edited("config.json", attn_implementation="evil/kernel")), 4, "never runs"
    ),
    "a kernel among the overrides": Case(
        lambda k: k.config("model: {config_overrides: {_attn_implementation: evil/kernel}}"), 4, "never runs"
    ),
    "weights with a header of exabytes": Case(lambda k: k.with_model(lying_header(2**62)), 4, "damaged"),
    "weights with offsets outside": Case(
        lambda k: k.with_model(lying_header(0, {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})),
        4,
        "damaged",
    ),
    "an adapter that sends for another model": Case(lambda k: k.with_model(with_adapter), 4, "adapter"),
    "a chat template with tricks": Case(
        lambda k: k.with_model(edited("tokenizer_config.json", chat_template=CHAT_TEMPLATE)), 0
    ),
    "a config of other types": Case(
        lambda k: k.with_model(edited("config.json", hidden_size="os.system", id2label=[1], torch_dtype={"a": 1})), 4
    ),
    "a config that is a list": Case(
        lambda k: k.with_model(lambda m: (m / "config.json").write_text("[[]]") and None), 4
    ),
}
