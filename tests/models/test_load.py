"""Loading a model: every way it fails is told in words, and what was loaded is what was asked for."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from toy import model_with_head, toy_rows, write_csv
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from lit_tune.__main__ import main
from lit_tune.errors import ConfigError, LitTuneError, ModelError
from lit_tune.models.load import LoadReport, build_model, load_config, load_tokenizer, set_pad_token
from lit_tune.models.positions import max_positions


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny(tiny_model_dir, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "tiny"))


def load(name, overrides: dict | None = None, revision: str | None = None, **options) -> tuple:
    """Config, tokenizer and weights, in the order of a run."""
    config = load_config(str(name), revision, overrides)
    load_tokenizer(str(name), revision)
    return build_model(AutoModelForSequenceClassification, str(name), config, revision=revision, **options)


def problem(*arguments, **options) -> LitTuneError:
    with pytest.raises(LitTuneError) as caught:
        load(*arguments, **options)
    assert len(str(caught.value).splitlines()) <= 6
    assert caught.value.fix
    return caught.value


def change_config(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (config | fields).items() if v is not None}))


# --- folders that do not load ----------------------------------------------------------------------------------------


def cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size // 2)


def shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


DAMAGES = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "is not a valid JSON file"),
    "unknown architecture": (lambda f: change_config(f, model_type="foo"), "does not recognize this architecture"),
    "no architecture": (lambda f: change_config(f, model_type=None), "Unrecognized model"),
    "no classifier": (lambda f: (f / "config.json").write_text('{"model_type": "blip"}'), "Unrecognized configuration"),
    "cut": (cut, "model.safetensors is damaged or cut short"),
    "empty": (lambda f: os.truncate(f / "model.safetensors", 0), "model.safetensors is damaged or cut short"),
    "garbage": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 999), "is damaged or cut short"),
    "pickled": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "holds pickled weights only"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "missing shard": (shard, "model-1.safetensors is missing"),
    "no tokenizer": (without_tokenizer, "has no tokenizer"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "has no usable tokenizer"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_does_not_load_says_why(tiny, damage):
    apply, what = DAMAGES[damage]
    apply(tiny)
    found = problem(tiny)
    assert isinstance(found, ModelError)
    assert what in str(found)
    assert str(tiny) in str(found)


def test_code_of_a_repository_is_never_run(tiny, tmp_path):
    classes = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    change_config(tiny, model_type="own", auto_map=classes)
    (tiny / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "needs code of its own repository, which is not run unasked" in str(problem(tiny))
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_not_there_names_the_nearest(tiny, tmp_path):
    found = problem(tmp_path / "tinny")
    assert str(found) == (
        f"model.model_name_or_path: there is no folder '{tmp_path / 'tinny'}' and it is not a Hub id\n"
        f"Fix: model.model_name_or_path: {tiny}"
    )
    assert "tiny, a folder" in str(problem("tinny").fix)  # it could be a Hub id too; tests are offline
    assert str(problem(tiny / "config.json").fix) == f"model.model_name_or_path: {tiny}, the folder around it"


def test_a_tokenizer_of_its_own_is_named_by_its_own_key(tiny):
    without_tokenizer(tiny)
    with pytest.raises(ModelError, match="has no tokenizer") as caught:
        load_tokenizer(str(tiny), key="data.tokenizer")
    assert caught.value.where == "data.tokenizer"


# --- settings that do not fit ----------------------------------------------------------------------------------------

WRONG = {
    "unknown field": ({"hidden_dropuot_prob": 0.1}, {}, "model.config_overrides", "hidden_dropout_prob"),
    "wrong type": ({"hidden_size": "wide"}, {}, "model.config_overrides.hidden_size", "16"),
    "other sizes": ({"hidden_size": 32}, {}, "model.config_overrides", "from_scratch"),
    "more words": ({"vocab_size": 99}, {}, "model.config_overrides", "from_scratch"),
    "more words with a new head": ({"vocab_size": 99}, {"new_head": True}, "model.config_overrides", "from_scratch"),
    "unknown attention": ({}, {"attn_implementation": "flash"}, "model.attn_implementation", "sdpa"),
    "attention not installed": ({}, {"attn_implementation": "flash_attention_2"}, "model.attn_implementation", "sdpa"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_setting_that_does_not_fit_the_model_names_its_key(tiny, case):
    overrides, options, where, fix = WRONG[case]
    found = problem(tiny, overrides, **options)
    assert found.where == where
    assert fix in str(found.fix)


def test_overrides_reach_the_model_and_any_attention_the_model_has_works(tiny):
    model, _ = load(tiny, {"hidden_dropout_prob": 0.37}, attn_implementation="eager")
    assert {m.p for n, m in model.named_modules() if isinstance(m, torch.nn.Dropout) and "self" not in n} == {0.37}
    assert model.config._attn_implementation == "eager"
    assert load(tiny, attn_implementation="sdpa")[0].config._attn_implementation == "sdpa"


# --- what is loaded --------------------------------------------------------------------------------------------------


def test_weights_are_those_of_the_folder_and_only_the_head_is_new(tiny):
    model, report = load(tiny)
    assert report == LoadReport(["classifier.bias", "classifier.weight"], [])
    reference = BertForSequenceClassification.from_pretrained(tiny).bert.state_dict()
    assert all(torch.equal(w, reference[n]) for n, w in model.bert.state_dict().items())
    assert model.dtype == torch.float32


def test_from_scratch_reads_no_weights(tiny):
    (tiny / "model.safetensors").unlink()
    model, report = load(tiny, from_scratch=True)
    assert report == LoadReport([], [])
    assert model.config.hidden_size == 16
    assert load(tiny, {"hidden_size": 32}, from_scratch=True)[0].config.hidden_size == 32
    assert load(tiny, from_scratch=True, dtype="bfloat16")[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto"])
def test_the_type_of_the_weights_is_as_asked(tiny, dtype):
    assert load(tiny, dtype=dtype)[0].dtype == (torch.float32 if dtype == "auto" else getattr(torch, dtype))


def config_for(folder: Path, names: list[str]):
    config = load_config(str(folder))
    config.id2label, config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    return config


def classifier(folder: Path, names: list[str], **options):
    return build_model(AutoModelForSequenceClassification, str(folder), config_for(folder, names), **options)


def test_a_trained_head_is_kept_or_replaced_as_asked(tiny_model_dir, tmp_path):
    folder = model_with_head(tiny_model_dir, tmp_path / "head", ["a", "b", "c"])
    trained = BertForSequenceClassification.from_pretrained(folder).state_dict()
    kept, report = classifier(folder, ["a", "b", "c"])
    assert report == LoadReport([], [])
    assert torch.equal(kept.classifier.weight, trained["classifier.weight"])
    for names in (["x", "y", "z"], ["x", "y"]):  # of the same size too
        torch.manual_seed(3)
        new, report = classifier(folder, names, new_head=True)
        assert report.new_parameters == ["classifier.bias", "classifier.weight"]
        assert new.classifier.weight.shape == (len(names), 16)
        assert not torch.equal(new.classifier.weight[:2], trained["classifier.weight"][:2])
        assert new.classifier.weight.detach().std().item() == pytest.approx(new.config.initializer_range, rel=0.5)
        assert not new.classifier.bias.any()
        assert torch.equal(new.bert.pooler.dense.weight, trained["bert.pooler.dense.weight"])
    with pytest.raises(
        ModelError, match=r"classifier.bias is \(3,\) in the weights of .* and \(2,\) in the model"
    ) as e:
        classifier(folder, ["x", "y"])
    assert e.value.where == "model.new_head"


def test_a_head_of_several_layers_is_replaced_whole(tmp_path):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(vocab_size=30, max_position_embeddings=20, num_labels=2, pad_token_id=1, **sizes)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "roberta")
    old, _ = classifier(tmp_path / "roberta", ["a", "b"])
    new, report = classifier(tmp_path / "roberta", ["x", "y"], new_head=True)
    assert report.new_parameters == sorted(
        f"classifier.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("weight", "bias")
    )
    assert not torch.equal(new.classifier.dense.weight, old.classifier.dense.weight)


class WithPositions:
    """As much of a tokenizer as ``max_positions`` reads."""

    def __init__(self, model_max_length: float) -> None:
        self.model_max_length = model_max_length


def test_the_length_a_model_can_read(tiny):
    from transformers import BertConfig, GPT2Config, RobertaConfig, XLNetConfig

    unlimited = WithPositions(1e30)
    assert max_positions(RobertaConfig(max_position_embeddings=514, pad_token_id=1), unlimited) == 512
    assert max_positions(BertConfig(max_position_embeddings=512, pad_token_id=0), unlimited) == 512
    assert max_positions(GPT2Config(n_positions=1024), unlimited) == 1024
    assert max_positions(BertConfig(max_position_embeddings=512), WithPositions(128)) == 128
    assert max_positions(XLNetConfig(), unlimited) is None


def test_what_roberta_can_read_is_what_it_computes_without_an_index_error():
    from transformers import RobertaConfig, RobertaModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = RobertaConfig(vocab_size=30, max_position_embeddings=18, pad_token_id=1, **sizes)
    model, longest = RobertaModel(config).eval(), max_positions(config, WithPositions(1e30))
    assert longest == 16
    model(input_ids=torch.full((1, longest), 5), attention_mask=torch.ones(1, longest))
    with pytest.raises((IndexError, RuntimeError), match=r"out of (bounds|range)"):
        model(input_ids=torch.full((1, longest + 1), 5), attention_mask=torch.ones(1, longest + 1))


def test_a_pad_token_is_found_said_and_never_a_new_row(tiny):
    tokenizer, config = AutoTokenizer.from_pretrained(tiny), load_config(str(tiny))
    assert set_pad_token(tokenizer, config) is None
    size = len(tokenizer)
    tokenizer.pad_token = None
    config.pad_token_id = None
    said = set_pad_token(tokenizer, config)
    assert said == "pad token: the tokenizer has none, '[UNK]' (id 1) is used and saved with it"
    assert (tokenizer.pad_token_id, config.pad_token_id, len(tokenizer)) == (1, 1, size)
    tokenizer.pad_token = tokenizer.unk_token = tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no pad, unk or eos token"):
        set_pad_token(tokenizer, config)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["no config", "cut", "pickled", "no tokenizer"])
def test_the_command_line_ends_with_4_and_no_traceback(tiny, tmp_path, capsys, damage):
    DAMAGES[damage][0](tiny)
    train = write_csv(tmp_path / "train.csv", toy_rows(20))
    options = {"data.train": train, "model.model_name_or_path": tiny, "run_dir": "run", "trainer.accelerator": "cpu"}
    assert main(["fit", *(part for k, v in options.items() for part in (f"--{k}", str(v)))]) == 4
    out, err = capsys.readouterr()
    assert DAMAGES[damage][1] in " ".join(err.split())
    assert "Fix: " in err
    assert "Traceback" not in out + err


def test_a_head_for_other_labels_ends_with_4_before_weights_are_read(tiny_model_dir, tmp_path, capsys):
    folder = model_with_head(tiny_model_dir, tmp_path / "head", ["a", "b", "c"])
    (folder / "model.safetensors").unlink()
    train = write_csv(tmp_path / "train.csv", toy_rows(20))
    options = {"data.train": train, "model.model_name_or_path": folder, "run_dir": "run", "trainer.accelerator": "cpu"}
    assert main(["fit", *(part for k, v in options.items() for part in (f"--{k}", str(v)))]) == 4
    assert "model.new_head: true replaces the head" in " ".join(capsys.readouterr().err.split())


# --- the Hub, played by a server on this machine ---------------------------------------------------------------------


class _Hub(BaseHTTPRequestHandler):
    """What the Hub answers for a public model, one with pickled weights only and a gated one."""

    folder = Path()
    commit = "c" * 40

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        for name, status, code in (
            ("gated", 403, "GatedRepo"),
            ("missing", 404, "RepoNotFound"),
            ("nowhere", 404, "RevisionNotFound"),
        ):
            if name in path:
                return self.answer(status, X_Error_Code=code)
        if "/tree/" in path:
            return self.answer(200, b"[]", Content_Type="application/json")
        if "/resolve/" not in path:
            return self.answer(200, json.dumps({"id": "org/tiny", "sha": self.commit, "siblings": []}).encode())
        file = self.folder / path.rsplit("/", 1)[1]
        if not file.is_file() or ("pickled" in path and file.suffix == ".safetensors"):
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=self.commit)
        content = file.read_bytes()
        return self.answer(200, content, ETag=f'"{hash(content)}"', X_Repo_Commit=self.commit)

    do_HEAD = do_GET  # noqa: N815 - the name http.server calls


HUB_CODE = """
import sys
from transformers import AutoModelForSequenceClassification
from lit_tune.errors import LitTuneError
from lit_tune.models.load import build_model, load_config, load_tokenizer
from lit_tune.models.sentence_folders import pooling_of_model
for name, _, revision in (argument.partition("@") for argument in sys.argv[1:]):
    revision = revision or None
    try:
        config = load_config(name, revision)
        load_tokenizer(name, revision)
        build_model(AutoModelForSequenceClassification, name, config, revision=revision)
        print("loaded, pooled by", pooling_of_model(config))  # the file that would say it is not there
    except LitTuneError as error:
        print(str(error).replace(chr(10), " | "))
"""


def in_new_process(tmp_path: Path, *names: str, **environment: str) -> list[str]:
    """The Hub's address and offline mode are read once per process."""
    settings = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}
    settings |= {**environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HUB_CODE, *names],
        env=settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow  # tests/faults/test_hub_faults.py asks for most of it from the command line
def test_what_the_hub_refuses_is_told_apart(tiny, tmp_path):
    _Hub.folder = tiny
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names = ["org/tiny", "org/tiny@nowhere", "org/gated", "org/missing", "org/pickled"]
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        loaded, revision, gated, missing, pickled = in_new_process(tmp_path, *names, HF_ENDPOINT=endpoint)
    finally:
        server.shutdown()
        server.server_close()
    assert loaded == "loaded, pooled by mean"
    assert revision.startswith("model.revision: org/tiny has no revision 'nowhere'")
    assert "org/gated is gated" in gated
    assert "hf auth login" in gated
    assert "no model 'org/missing' on the Hub" in missing
    assert "org/pickled has no safetensors weights" in pickled
    cached, offline = in_new_process(tmp_path, "org/tiny", "org/other", HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="1")
    assert cached == "loaded, pooled by mean"
    assert "org/other is not in the local cache and the Hub cannot be reached" in offline


def test_settings_of_the_wrong_type_are_config_errors(tiny):
    assert isinstance(problem(tiny, {"hidden_dropout_prob": "much"}), ConfigError)
