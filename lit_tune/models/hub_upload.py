"""Files to the Hugging Face Hub: one commit, so that all of them are there or none, and compared once they are."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from lit_tune import __version__, hub_access
from lit_tune.errors import ConfigError, LitTuneError, ModelError

KEY = "--repo"
LOG_IN = "`hf auth login`, or HF_TOKEN in the environment, with a token of role write: {}/settings/tokens"
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Uploaded:
    """What the Hub has now.

    Args:
        repo: Its full id.
        url: Of the page.
        commit: That holds the files.
        is_private: Only its owner sees it.
        deleted: Files of an earlier push that would have been loaded instead.
    """

    repo: str
    url: str
    commit: str
    is_private: bool
    deleted: list[str] = field(default_factory=list)


class Hub:
    """The Hub, with the user's token.

    Args:
        repo: ``name`` or ``owner/name``.

    Raises:
        ConfigError: Not a name of a repository.
        ModelError: No token, one that may not write, or nobody answers.
    """

    def __init__(self, repo: str) -> None:
        check_name(repo)
        if constants.HF_HUB_OFFLINE:
            raise ModelError(
                "offline mode is on: HF_HUB_OFFLINE is set", where="Hub", fix="unset HF_HUB_OFFLINE, then push"
            )
        token = get_token()
        log_in = LOG_IN.format(constants.ENDPOINT)
        if token is None:
            raise ModelError("no access token for the Hugging Face Hub is here", where="Hub", fix=log_in)
        if not hub_access.is_reachable():
            raise ModelError(
                f"{constants.ENDPOINT} cannot be reached", where="Hub", fix="a network, or HF_ENDPOINT; then push again"
            )
        self.api = HfApi(token=token, library_name="lit-tune", library_version=__version__)
        with explained(repo):
            me = self.api.whoami()
        role = ((me.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            raise ModelError(f"the access token of {me['name']} may only read", where="Hub", fix=log_in)
        self.repo = repo if "/" in repo else f"{me['name']}/{repo}"

    def prepare(self, public: bool) -> bool:
        """Find the repository or make it; returns whether it is private.

        Args:
            public: Everybody may see it.

        Raises:
            ModelError: It is there and as private or public as was not asked for, or cannot be made.
        """
        with explained(self.repo):
            try:
                info = self.api.model_info(self.repo)
            except RepositoryNotFoundError:
                self.api.create_repo(self.repo, private=not public, exist_ok=False)
                info = self.api.model_info(self.repo)
        if public and info.private:
            raise ModelError(
                f"{self.repo} is private",
                where="--public",
                fix=f"leave --public out; {constants.ENDPOINT}/{self.repo}/settings makes it public",
            )
        if not public and not info.private:
            raise ModelError(
                f"{self.repo} is public: everybody would see the model",
                where=KEY,
                fix="--public, if that is meant; else another --repo",
            )
        return bool(info.private)

    def upload(
        self, files: dict[str, Path | bytes], public: bool, message: str, revision: str, replaced: tuple[str, ...]
    ) -> Uploaded:
        """Add all files in one commit, and compare what the Hub has then.

        Args:
            files: By their names there.
            public: Everybody may see them.
            message: Of the commit.
            revision: Branch; a new one begins at main.
            replaced: Patterns of files that are deleted in the same commit, where they are not among ``files``.

        Raises:
            ModelError: The Hub refuses, breaks off, or holds other bytes.
        """
        is_private = self.prepare(public)
        with explained(self.repo):
            if revision != constants.DEFAULT_REVISION:
                self.api.create_branch(self.repo, branch=revision, exist_ok=True)
            before = self.api.model_info(self.repo, revision=revision)
            there = {sibling.rfilename for sibling in before.siblings or []}
            deleted = sorted(n for n in there - files.keys() if any(PurePosixPath(n).match(p) for p in replaced))
            commit = self.api.create_commit(
                self.repo,
                [
                    *(CommitOperationAdd(name, content) for name, content in files.items()),
                    *(CommitOperationDelete(name) for name in deleted),
                ],
                commit_message=message,
                revision=revision,
                parent_commit=before.sha,  # somebody else's push in between is told, not mixed with ours
            )
            self.compare(files, commit.oid)
        url = f"{constants.ENDPOINT}/{self.repo}"
        if revision != constants.DEFAULT_REVISION:
            url += f"/tree/{revision}"
        return Uploaded(self.repo, url, commit.oid, is_private, deleted)

    def compare(self, files: dict[str, Path | bytes], commit: str) -> None:
        """Compare sizes and hashes of a commit's files with ours.

        Raises:
            ModelError: One is missing or another one.
        """
        tree = self.api.list_repo_tree(self.repo, recursive=True, revision=commit)
        there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        wrong = [name for name, content in files.items() if not is_same(there.get(name), content)]
        if wrong:
            raise ModelError(
                f"the Hub holds other bytes than these: {', '.join(wrong[:4])}",
                where=self.repo,
                fix="push again; a .gitignore in the repository may keep files out",
            )


def is_same(entry: RepoFile | None, content: Path | bytes) -> bool:
    """Whether a file of the Hub has these bytes: by sha256 in large file storage, else by git's own hash."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if entry is None or entry.size != size:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == digest(content, hashlib.sha256())
    return entry.blob_id == digest(content, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False))


def digest(content: Path | bytes, state: Any) -> str:
    """Hash of a file's or of given bytes, in pieces of 1 MiB."""
    if isinstance(content, bytes):
        state.update(content)
        return state.hexdigest()
    with content.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            state.update(piece)
    return state.hexdigest()


def check_name(repo: str) -> None:
    """Refuse what cannot be a repository.

    Raises:
        ConfigError: It cannot.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} is no name of a repository", where=KEY, fix="--repo me/my-model") from error


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """What the Hub or the network says, in words a person can act on.

    Raises:
        ModelError: Something was said.
    """
    try:
        yield
    except LitTuneError:
        raise
    except Exception as error:
        found = explain(error, repo)
        if found is None:
            raise
        raise found from error


def explain(error: BaseException, repo: str) -> ModelError | None:
    """What an error of an upload means; None for a bug.

    Args:
        error: As raised; its causes are looked at too.
        repo: The repository.
    """
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    if isinstance(error, ValueError) and "README.md" in str(error):
        said = " ".join(str(error).split()[4:])[:200]
        return ModelError(f"the Hub refuses the card's metadata: {said}", where="README.md", fix="edit its first lines")
    response = next((r for e in chain if (r := getattr(e, "response", None)) is not None), None)
    log_in = LOG_IN.format(constants.ENDPOINT)
    if response is not None:
        said = next(
            (str(m) for e in chain if (m := getattr(e, "server_message", None))), f"status {response.status_code}"
        )
        is_passing = response.status_code == 429 or response.status_code >= 500
        later = f"{'push again later' if is_passing else 'do what it asks for'}: nothing of it is to be seen yet"
        what, fix = {
            401: ("the Hub does not know the access token", log_in),
            403: (f"the access token may not write to {repo}", f"another --repo, or {log_in}"),
            404: (f"the Hub has no {repo}", "check the owner's name in --repo"),
            409: (f"{repo} was changed at the same time", "look at what is there, then push again"),
            412: (f"{repo} was changed at the same time", "look at what is there, then push again"),
        }.get(response.status_code, ("the Hub refused the upload", later))
        return ModelError(f"{what} ({' '.join(said.split())[:200]})", where=repo, fix=fix)
    if any(type(e).__module__.startswith("httpx") or isinstance(e, ConnectionError | TimeoutError) for e in chain):
        return ModelError(
            f"the connection to {constants.ENDPOINT} broke off: nothing is to be seen of this push",
            where=repo,
            fix="the same command again; files that arrived are not sent twice",
        )
    if isinstance(error, RuntimeError) or (isinstance(error, ValueError) and "LFS" in str(error)):
        said = " ".join(str(error).split())[:200]  # hf_xet has no classes of its own
        return ModelError(f"the upload broke off: {said}", where=repo, fix="push again: nothing is to be seen yet")
    return None
