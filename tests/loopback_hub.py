"""A Hugging Face Hub on this machine: what huggingface_hub asks for to push a model and to load it again, in memory.

Repositories, branches, commits, large file storage (basic transfer), private ones; it answers as the Hub does, after
the client's source (huggingface_hub 2.4). No xet.
"""

import base64
import hashlib
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
from huggingface_hub import constants
from transformers.utils import hub as transformers_hub

from lit_tune import hub_access
from lit_tune.models import hub_adapters

TOKENS = {
    "hf_writesandwritesandwrites": ("me", "write"),
    "hf_readsandreadsandreadsand": ("me", "read"),
    "hf_somebodyelsesomebodyelse": ("you", "write"),
}
"""Token -> user and role."""
WRITE, READ, OTHER = TOKENS


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, tuple[bytes, bool]]] = field(default_factory=dict)
    """Commit -> path -> content, and whether it lies in large file storage."""
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, tuple[bytes, bool]], message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {branch} {message}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def put(self, folder: Path, branch: str = "main") -> str:
        """A folder's files as a commit; returns its id."""
        files = {p.name: (p.read_bytes(), is_large(p.name)) for p in folder.iterdir() if p.is_file()}
        return self.commit(branch, files, f"{len(files)} files")

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {n: c for n, (c, _) in self.commits[self.branches.get(revision, revision)].items()}


class LoopbackHub(ThreadingHTTPServer):
    """Start it with ``with LoopbackHub() as hub``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repos: dict[str, Repo] = {}
        self.storage: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failures: dict[str, list[int]] = defaultdict(list)
        """Part of "METHOD path" -> statuses that the next such requests get; 0 closes the connection."""
        self.spoiled: set[str] = set()
        """Paths of which other bytes are kept than were sent."""
        self.upload_begun, self.upload_may_end = threading.Event(), threading.Event()
        self.upload_may_end.set()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.upload_may_end.set()
        self.shutdown()
        self.server_close()


@contextmanager
def hub_for(monkeypatch, folder: Path) -> Iterator[LoopbackHub]:
    """A Hub for one test; the client's address, token and cache are read from where they are set here."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    forget()
    with LoopbackHub() as server:
        for name, value in {
            "ENDPOINT": server.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_TOKEN_PATH": str(folder / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(transformers_hub, "_hf_api", None)  # knows the address it was first made with
        monkeypatch.setenv("HF_TOKEN", WRITE)
        yield server
    forget()


def forget() -> None:
    """As a process that has asked nothing yet."""
    huggingface_hub.close_session()
    for asked in (hub_access.answers, hub_adapters.config_on_hub, hub_adapters.snapshot_of):
        asked.cache_clear()


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    """As a new repository's .gitattributes says."""
    return path.endswith((".safetensors", ".onnx", ".onnx.data", ".bin", ".model"))


class Answers(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status: int, body: object = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        for key, value in {"Content-Length": str(len(content)), "Content-Type": kind, **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, message: str, code: str = "", **headers: str) -> None:
        headers |= {"X_Error_Code": code} if code else {}
        self.answer(status, {"error": message}, X_Error_Message=message, **headers)

    def fail(self, status: int) -> None:
        if status:
            return self.refuse(status, "as the test wishes")
        self.close_connection = True
        return None

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {path}"
        self.server.asked.append(request)
        for part, statuses in self.server.failures.items():
            if part in request and statuses:
                return self.fail(statuses.pop(0))
        self.user, self.role = TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "), ("", ""))
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, request):
                return method(self, content, **match.groupdict())
        return self.refuse(404, f"no such place: {request}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815 - the names http.server calls

    def repo_of(self, name: str, writing: bool = False) -> Repo | None:
        repo = self.server.repos.get(name)
        mine = name.split("/")[0] == self.user
        if repo is None or (repo.private and not mine):
            self.refuse(404, "Repository not found", "RepoNotFound")
            return None
        if writing and not (mine and self.role == "write"):
            self.refuse(403, "You don't have the rights to write here")
            return None
        return repo

    def whoami(self, content: bytes) -> None:
        if not self.user:
            return self.refuse(401, "Invalid credentials in Authorization header")
        return self.answer(200, {"name": self.user, "orgs": [], "auth": {"accessToken": {"role": self.role}}})

    def create(self, content: bytes) -> None:
        asked = json.loads(content)
        name = f"{asked.get('organization') or self.user}/{asked['name']}"
        if name.split("/")[0] != self.user or self.role != "write":
            return self.refuse(403, "You don't have the rights to create a model under this namespace")
        if name in self.server.repos:
            return self.refuse(409, "You already created this model repo")
        repo = self.server.repos[name] = Repo(asked.get("visibility") == "private" or asked.get("private") is True)
        repo.commit("main", {".gitattributes": (b"*.safetensors filter=lfs", False)}, "initial commit")
        return self.answer(200, {"url": f"{self.server.address}/{name}", "name": name})

    def info(self, content: bytes, repo: str, revision: str | None = None) -> None:
        found = self.repo_of(repo)
        if found is None:
            return None
        oid = found.branches.get(revision or "main", revision or "")
        if oid not in found.commits:
            return self.refuse(404, "no such revision", "RevisionNotFound")
        siblings = [{"rfilename": n} for n in found.commits[oid]]
        return self.answer(200, {"id": repo, "sha": oid, "private": found.private, "siblings": siblings})

    def validate(self, content: bytes) -> None:
        card = json.loads(content)["content"]
        if "broken metadata" in card:
            return self.answer(400, {"errors": [{"message": '"license" is not a licence'}], "warnings": []})
        return self.answer(200, {"errors": [], "warnings": []})

    def branch(self, content: bytes, repo: str, branch: str) -> None:
        found = self.repo_of(repo, writing=True)
        if found is None:
            return None
        if branch in found.branches:
            return self.refuse(409, "Reference already exists")
        found.branches[branch] = found.branches["main"]
        return self.answer(200, {})

    def preupload(self, content: bytes, repo: str, revision: str) -> None:
        found = self.repo_of(repo, writing=True)
        if found is None:
            return None
        there = found.files(revision)
        files = []
        for each in json.loads(content)["files"]:
            path = each["path"]
            old = there.get(path)
            oid = None if old is None else hashlib.sha256(old).hexdigest() if is_large(path) else blob_id(old)
            mode = "lfs" if is_large(path) else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self.answer(200, {"files": files})

    def batch(self, content: bytes, repo: str) -> None:
        if self.repo_of(repo, writing=True) is None:
            return None
        objects = []
        for each in json.loads(content)["objects"]:
            place = {"href": f"{self.server.address}/storage/{each['oid']}"}
            has = each["oid"] in self.server.storage
            objects.append(each if has else {**each, "actions": {"upload": place}})
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, content: bytes, oid: str) -> None:
        self.server.upload_begun.set()
        self.server.upload_may_end.wait(60)
        if hashlib.sha256(content).hexdigest() != oid:
            return self.refuse(400, "cut short")
        self.server.storage[oid] = content
        return self.answer(200)

    def commit(self, content: bytes, repo: str, revision: str) -> None:
        found = self.repo_of(repo, writing=True)
        if found is None:
            return None
        lines = [json.loads(line) for line in content.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, found.branches[revision]):
            return self.refuse(412, "A commit has happened since. Please refresh and try again.")
        files = dict(found.commits[found.branches[revision]])
        for line in lines[1:]:
            value = line["value"]
            path = value["path"]
            if line["key"] == "deletedFile":
                del files[path]
            elif line["key"] == "lfsFile":
                files[path] = (self.server.storage[value["oid"]], True)
            else:
                files[path] = (base64.b64decode(value["content"]), False)
            if path in self.server.spoiled and path in files:
                files[path] = (files[path][0][:-1] + b"?", files[path][1])
        oid = found.commit(revision, files, header["summary"])
        return self.answer(200, {"commitUrl": f"{self.server.address}/{repo}/commit/{oid}", "commitOid": oid})

    def tree(self, content: bytes, repo: str, revision: str) -> None:
        found = self.repo_of(repo)
        if found is None:
            return None
        entries = []
        for path, (data, large) in found.commits[found.branches.get(revision, revision)].items():
            entry = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
            if large:
                pointer = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
                entry |= {"lfs": pointer, "oid": "0" * 40}
            entries.append(entry)
        return self.answer(200, entries)

    def resolve(self, content: bytes, repo: str, revision: str, path: str) -> None:
        found = self.repo_of(repo)
        if found is None:
            return None
        if found.gated:
            return self.refuse(403, "Access to this model is restricted", "GatedRepo")
        oid = found.branches.get(revision, revision)
        if oid not in found.commits:
            return self.refuse(404, "Invalid rev id", "RevisionNotFound")
        if path not in found.commits[oid]:
            return self.refuse(404, "Entry not found", "EntryNotFound", X_Repo_Commit=oid)
        data, large = found.commits[oid][path]
        tag = hashlib.sha256(data).hexdigest() if large else blob_id(data)
        return self.answer(200, data, ETag=f'"{tag}"', X_Repo_Commit=oid)


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    (r"GET /api/whoami-v2", Answers.whoami),
    (r"POST /api/repos/create", Answers.create),
    (r"POST /api/validate-yaml", Answers.validate),
    (rf"GET /api/models/{_REPO}(/revision/(?P<revision>[\w./-]+))?", Answers.info),
    (rf"POST /api/models/{_REPO}/branch/(?P<branch>[\w./-]+)", Answers.branch),
    (rf"POST /api/models/{_REPO}/preupload/(?P<revision>[\w./-]+)", Answers.preupload),
    (rf"POST /api/models/{_REPO}/commit/(?P<revision>[\w./-]+)", Answers.commit),
    (rf"GET /api/models/{_REPO}/tree/(?P<revision>[\w.-]+)/?", Answers.tree),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", Answers.batch),
    (r"PUT /storage/(?P<oid>\w+)", Answers.store),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/(?P<revision>[\w.-]+)/(?P<path>.+)", Answers.resolve),
]
