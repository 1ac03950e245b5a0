"""``lit-tune push`` to a Hub on this machine, with huggingface_hub's own client."""

import json
import os
import shutil
import signal
import socket
from pathlib import Path

import huggingface_hub
import pytest
from commands.runs import config, said
from huggingface_hub import constants
from loopback_hub import OTHER, READ, WRITE, Repo, hub_for
from toy import toy_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from lit_tune.__main__ import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # huggingface_hub 2.4 with httpx2
]


SIGNALS = ((signal.SIGINT, 130), (signal.SIGTERM, 143))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_for(monkeypatch, tmp_path) as server:
        yield server


def push(run: Path, *more: str, repo: str = "me/model") -> int:
    return main(["push", "--folder", str(run / "best"), "--repo", repo, *more])


def push_run(run: Path, *more: str) -> int:
    """A run is verified and pushed: 1 s more than a folder."""
    return main(["push", *config(run), "--repo", "me/model", *more])


def test_a_run_is_pushed_in_one_commit_of_a_private_repository_and_loads_from_there(whole, hub, capsys):
    assert push_run(whole, "--message", "the first one") == 0
    out, err = capsys.readouterr()
    assert f"pushed   {hub.address}/me/model" in out
    assert "compared; private" in out
    assert WRITE not in out + err + (whole / "run.log").read_text()
    repo = hub.repos["me/model"]
    assert repo.private
    assert repo.messages == ["initial commit", "the first one"]
    files = repo.files()
    best = {p.name: p.read_bytes() for p in (whole / "best").iterdir()}
    assert files.keys() == {".gitattributes", *best}
    assert all(files[name] == content for name, content in best.items() if name != "README.md")
    assert '"me/model"' in files["README.md"].decode()
    assert "PATH_OR_ID" not in files["README.md"].decode()
    mine = pipeline("text-classification", "me/model", device="cpu")
    here = pipeline("text-classification", str(whole / "best"), device="cpu")
    texts = [r["text"] for r in toy_rows(5)]
    assert mine(texts) == here(texts)


def test_a_private_model_is_for_its_owner_alone(whole, hub, monkeypatch):
    assert push(whole) == 0
    monkeypatch.setenv("HF_TOKEN", OTHER)
    with pytest.raises(OSError, match="me/model"):
        AutoTokenizer.from_pretrained("me/model")


def test_without_an_owner_it_is_the_users_own_and_public_is_asked_for(whole, hub, capsys):
    assert push(whole, "--public", repo="mine") == 0
    assert "public" in capsys.readouterr().out
    assert not hub.repos["me/mine"].private


def test_a_second_push_replaces_the_first_and_a_third_changes_nothing(whole, hub, tmp_path, capsys):
    assert push(whole) == 0
    repo = hub.repos["me/model"]
    extra = {**repo.commits[repo.branches["main"]], "adapter_config.json": (b"{}", False), "plot.png": (b"x", False)}
    repo.commit("main", extra, "by hand")
    folder = tmp_path / "half"
    assert main(["export", *config(whole), "--dtype", "bfloat16", "--output", str(folder)]) == 0
    capsys.readouterr()
    assert main(["push", "--folder", str(folder), "--repo", "me/model"]) == 0
    assert "deleted  adapter_config.json of an earlier push" in capsys.readouterr().out
    assert repo.files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert repo.files()["plot.png"] == b"x"
    commits = len(repo.commits)
    uploads = sum(a.startswith("PUT") for a in hub.asked)
    assert main(["push", "--folder", str(folder), "--repo", "me/model"]) == 0
    assert len(repo.commits) == commits
    assert sum(a.startswith("PUT") for a in hub.asked) == uploads


def test_a_branch_of_its_own(whole, hub):
    assert push(whole) == 0
    assert push(whole, "--revision", "v2", "--message", "two") == 0
    assert hub.repos["me/model"].branches.keys() == {"main", "v2"}
    AutoModelForSequenceClassification.from_pretrained("me/model", revision="v2")


@pytest.mark.parametrize(
    ("token", "code", "words"),
    [
        (None, 4, "no access token for the Hugging Face Hub is here Fix: `hf auth login`, or HF_TOKEN"),
        ("hf_nobodyknowsnobodyknows", 4, "the Hub does not know the access token"),
        (READ, 4, "the access token of me may only read"),
    ],
)
def test_a_token_that_is_not_there_or_will_not_do_is_told_before_anything_is_made(
    whole, hub, monkeypatch, token, code, words, capsys
):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    assert push(whole) == code
    message = said(capsys)
    assert words in message
    assert str(token) not in message
    assert hub.repos == {}


def test_a_repository_of_somebody_else_is_not_written_to(whole, hub, capsys):
    assert push(whole, repo="you/model") == 4
    assert "may not write to you/model (You don't have the rights" in said(capsys)
    hub.repos["you/model"] = Repo(private=False)
    hub.repos["you/model"].commit("main", {}, "theirs")
    assert push(whole, "--public", repo="you/model") == 4
    assert "may not write to you/model" in said(capsys)
    assert hub.repos["you/model"].files() == {}


def test_a_model_is_not_made_public_by_a_repository_that_is(whole, hub, capsys):
    assert push(whole, "--public") == 0
    before = len(hub.repos["me/model"].commits)
    assert push(whole) == 4
    assert "me/model is public: everybody would see the model Fix: --public" in said(capsys)
    assert len(hub.repos["me/model"].commits) == before
    assert push(whole, repo="me/secret") == 0
    assert push(whole, "--public", repo="me/secret") == 4
    assert "me/secret is private Fix: leave --public out" in said(capsys)


def test_a_busy_hub_is_asked_again(whole, hub):
    hub.failures["PUT /storage"] = [503]
    hub.failures["preupload"] = [429]
    assert push(whole) == 0
    assert "model.safetensors" in hub.repos["me/model"].files()


@pytest.mark.parametrize(
    ("place", "status", "words"),
    [
        ("commit", 500, "the Hub refused the upload (as the test wishes) Fix: push again later: nothing of it is"),
        ("commit", 412, "me/model was changed at the same time"),
        ("create", 409, "me/model was changed at the same time"),
        ("create", 404, "the Hub has no me/model"),
        ("commit", 413, "the Hub refused the upload (as the test wishes) Fix: do what it asks for"),
        ("commit", 0, "broke off: nothing is to be seen of this push Fix: the same command again"),
    ],
)
def test_what_the_hub_refuses_is_told_and_nothing_is_to_be_seen(whole, hub, place, status, words, capsys):
    hub.failures[place] = [status]
    assert push(whole) == 4
    assert words in said(capsys)
    assert all(repo.files().keys() == {".gitattributes"} for repo in hub.repos.values())
    assert push(whole) == 0


def test_bytes_that_changed_on_the_way_are_noticed(whole, hub, capsys):
    hub.spoiled = {"config.json", "model.safetensors"}
    assert push(whole) == 4
    assert "the Hub holds other bytes than these: config.json, model.safetensors" in said(capsys)


def test_metadata_that_the_hub_refuses_is_told_before_the_upload(whole, hub, tmp_path, capsys):
    folder = tmp_path / "best"
    shutil.copytree(whole / "best", folder)
    (folder / "README.md").write_text("---\nlicense: broken metadata\n---\n")
    assert main(["push", "--folder", str(folder), "--repo", "model"]) == 4
    assert "README.md: the Hub refuses the card's metadata" in said(capsys)
    assert not any(a.startswith("PUT") for a in hub.asked)


def test_nobody_answers_and_offline_mode(whole, hub, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert push(whole) == 4
    assert "offline mode is on: HF_HUB_OFFLINE is set" in said(capsys)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert push(whole) == 4
    assert "cannot be reached" in said(capsys)


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGKILL, -9), *(pytest.param(*one, marks=pytest.mark.slow) for one in SIGNALS)]
)
def test_an_upload_that_is_ended_leaves_nothing_to_be_seen_and_the_next_one_is_whole(whole, hub, sent, code):
    hub.upload_may_end.clear()
    child = os.fork()
    if child == 0:
        huggingface_hub.close_session()
        os._exit(push(whole))
    try:
        assert hub.upload_begun.wait(60)
    finally:
        os.kill(child, sent)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == code
    hub.upload_may_end.set()
    assert hub.repos["me/model"].files().keys() == {".gitattributes"}
    assert push(whole) == 0
    assert "model.safetensors" in hub.repos["me/model"].files()


def test_an_adapter_whose_base_lies_here_is_not_pushed_and_merged_it_is(finished, files, hub, tmp_path, capsys):
    assert push(finished) == 4
    message = said(capsys)
    assert "the adapter's base model is" in message
    assert "Fix: `lit-tune export --merge --output my_model`" in message
    assert hub.repos == {}
    folder = tmp_path / "merged"
    assert main(["export", *config(finished), "--merge", "--output", str(folder)]) == 0
    assert main(["push", "--folder", str(folder), "--repo", "merged"]) == 0
    AutoModelForSequenceClassification.from_pretrained("me/merged")
    sent = b"".join(hub.repos["me/merged"].files().values())
    for private in (str(files), str(tmp_path), str(finished)):
        assert private.encode() not in sent


def test_an_adapter_of_a_base_on_the_hub_is_pushed(finished, hub, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(finished / "best", folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "org/base"}))
    assert main(["push", "--folder", str(folder), "--repo", "adapter"]) == 0
    assert "adapter_model.safetensors" in hub.repos["me/adapter"].files()


def test_a_run_and_what_is_no_model_are_not_pushed(whole, hub, tmp_path, capsys):
    assert main(["push", "--folder", str(whole), "--repo", "x"]) == 4
    assert f"holds a run, not a model Fix: --config {whole}/config.yaml" in said(capsys)
    assert main(["push", "--folder", str(tmp_path), "--repo", "x"]) == 4
    assert "has no config.json" in said(capsys)
    assert main(["push", "--folder", str(whole / "best"), "--repo", "x", *config(whole)]) == 2
    assert main(["push", *config(whole)]) == 2
    assert main(["push", *config(whole), "--repo", "a/b/c"]) == 2
    assert hub.asked == []


def test_a_damaged_run_is_not_pushed(whole, hub, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    path = run / "best" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert push_run(run) == 7
    assert main(["push", "--folder", str(run / "best"), "--repo", "x"]) == 4
    assert "damaged or cut short" in said(capsys)
    assert hub.asked == []


def test_what_is_no_part_of_a_model_stays_here(whole, hub, tmp_path, capsys):
    folder = tmp_path / "best"
    shutil.copytree(whole / "best", folder)
    private = ["optimizer.safetensors", "last.ckpt", "run.log", "notes.txt", ".env", "checkpoint-5/model.safetensors"]
    for name in private:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("secret")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    assert main(["push", "--folder", str(folder), "--repo", "x"]) == 0
    there = hub.repos["me/x"].files()
    assert not there.keys() & set(private)
    assert "1_Pooling/config.json" in there
    out = capsys.readouterr().out
    assert all(name in out for name in private)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", '{"_name_or_path": "/home/me/base"}', "_name_or_path is /home/me/base, a path on this machine"),
        ("README.md", f"from {Path.home()}/models", "a place on this machine"),
        ("generation_config.json", f'{{"x": "{WRITE}"}}', "holds what looks like an access token"),
    ],
)
def test_paths_and_secrets_stay_here(whole, hub, tmp_path, name, content, words, capsys):
    folder = tmp_path / "best"
    shutil.copytree(whole / "best", folder)
    (folder / name).write_text(content)
    assert main(["push", "--folder", str(folder), "--repo", "x"]) == 4
    message = said(capsys)
    assert words in message
    assert WRITE not in message
    assert hub.asked == []


@pytest.mark.slow
def test_a_graph_is_pushed_and_the_lines_of_its_card_run_it_from_the_hub(whole, hub, tmp_path):
    folder = tmp_path / "onnx"
    assert main(["export", *config(whole), "--format", "onnx", "--output", str(folder)]) == 0
    assert main(["push", "--folder", str(folder), "--repo", "graph"]) == 0
    card = hub.repos["me/graph"].files()["README.md"].decode()
    names: dict = {}
    exec(compile(card.split("```python\n")[1].split("```")[0], "card", "exec"), names)
    assert names["outputs"]["logits"].shape == (2, 3)
    assert str(tmp_path / "hub") in names["folder"]
