"""Fault 42, and what else the Hub may answer: gated, not found, pickled weights only, nobody there."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from toy import toy_rows, write_csv

pytestmark = pytest.mark.slow
"""A new process costs 14 seconds."""

COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """What the Hub answers for a public model, one with pickled weights only, a gated and a missing one."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        self.asked.append(f"{self.command} {path}")
        for name, status, code in (("gated", 403, "GatedRepo"), ("missing", 404, "RepoNotFound")):
            if name in path:
                return self.answer(status, X_Error_Code=code)
        files = {n: c for n, c in self.files.items() if not ("pickled" in path and n == "model.safetensors")}
        if "/tree/" in path:
            return self.answer(200, b"[]", Content_Type="application/json")
        if "/resolve/" not in path:
            siblings = [{"rfilename": n, "size": len(c)} for n, c in files.items()]
            info = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings}
            return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
        content = files.get(path.rsplit("/", 1)[1])
        if content is None:
            return self.answer(404, X_Error_Code="EntryNotFound")
        return self.answer(200, content, ETag=f'"{hash(content)}"')

    do_HEAD = do_GET  # noqa: N815 - the name http.server calls


CHECK_EACH = """
import sys, time
from lit_tune.__main__ import main
for name in sys.argv[2:]:
    print("==", name, file=sys.stderr)
    begun = time.monotonic()
    code = main(["check", "--data.train", sys.argv[1], "--model.model_name_or_path", name, "--run_dir", "run",
                 "--trainer.accelerator", "cpu"])
    print("code", code, "in seconds", round(time.monotonic() - begun), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def said(tiny_model_dir, tmp_path_factory) -> dict[str, str]:
    """Model name -> what check printed to stderr; one process, as the address of the Hub is read once."""
    folder: Path = tmp_path_factory.mktemp("hub")
    Hub.files = {p.name: p.read_bytes() for p in tiny_model_dir.iterdir()} | {"pytorch_model.bin": b"pickle"}
    train = write_csv(folder / "train.csv", toy_rows(40))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}
    settings |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "PYTHONPATH": os.pathsep.join(sys.path)}
    settings |= {"LIT_TUNE_CACHE": str(folder / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        settings.pop(name, None)
    names = ["org/gated", "org/missing", "org/pickled", "org/tiny"]
    try:
        command = [sys.executable, "-W", "ignore", "-c", CHECK_EACH, str(train), *names]
        done = subprocess.run(
            command, env=settings, cwd=folder, capture_output=True, text=True, timeout=300, check=False
        )
    finally:
        server.shutdown()
        server.server_close()
    parts = done.stderr.split("== ")[1:]
    assert len(parts) == len(names), done.stderr
    assert "Traceback" not in done.stderr
    return {name: " ".join(part.split()) for name, part in zip(names, parts, strict=True)}


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        (
            "org/gated",
            "org/gated is gated: its licence must be accepted first",
            "open https://huggingface.co/org/gated",
        ),
        (
            "org/missing",
            "no model 'org/missing' on the Hub (or it is private)",
            "check the spelling, or `hf auth login`",
        ),
        ("org/pickled", "org/pickled has no safetensors weights", "another model"),
    ],
)
def test_a_model_that_cannot_be_had_is_told_in_its_own_words_before_anything_is_downloaded(said, name, what, fix):
    assert f"model.model_name_or_path: {what}" in said[name]
    assert f"Fix: {fix}" in said[name] or fix in said[name]
    assert "code 4" in said[name]
    assert not any(a.startswith("GET") and f"{name}/resolve" in a and "model." in a for a in Hub.asked)


def test_a_model_of_the_hub_is_checked_and_then_tried(said):
    assert "code None" in said["org/tiny"] or "code 0" in said["org/tiny"], said["org/tiny"]
