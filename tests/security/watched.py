"""The command line in a forked child under an audit hook: what it imports, unpickles, starts, connects to, writes."""

import contextlib
import importlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_tune.__main__ import VERBS, main

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")
CONNECTS = (
    "socket.connect",
    "socket.bind",
    "socket.sendto",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "urllib.Request",
)
WRITES = {  # event -> places of its arguments: a path that is written, and the open folder it is relative to
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "shutil.rmtree": ((0, 1),),
    "shutil.move": ((0, None), (1, None)),
    "shutil.copyfile": ((1, None),),
    "sqlite3.connect": ((0, None),),
}
GIT = ["git", "-c", "core.fsmonitor=false", "describe"]
"""A run asks for the commit of the working folder, for the manifest."""

STUBS = [sys.executable, "-c", "import sys, json; print(json.dumps(sys.path))"]
"""jsonargparse asks where type stubs may lie; the working folder must not answer."""

for _verb in VERBS:  # once, not in every child
    importlib.import_module(f"lit_tune.commands.{_verb}")

CODE = (Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2] / "lit_tune", Path(__file__).parent)
"""Where code may come from: Python, its packages, lit-tune, and these tests."""


@dataclass
class Outcome:
    """What a command did.

    Args:
        code: Exit code.
        out: Standard output.
        err: Standard error.
        foreign: What it did that nothing should do, as short texts.
    """

    code: int
    out: str
    err: str
    foreign: list[str] = field(default_factory=list)


class Watch:
    """An audit hook. It cannot be taken out again, so it belongs into a child process.

    Args:
        writable: Folders that may be written.
    """

    def __init__(self, writable: list[Path]) -> None:
        self.writable = [os.path.realpath(p) for p in writable]
        self.foreign: list[str] = []
        self.busy = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.busy:
            return
        self.busy = True
        try:
            found = self.verdict(event, args)
            if found is not None and found not in self.foreign:
                self.foreign.append(found)
        finally:
            self.busy = False

    def verdict(self, event: str, args: tuple[Any, ...]) -> str | None:
        """What is foreign about an event, or None."""
        if event == "pickle.find_class":
            return f"unpickled {args[0]}.{args[1]}"
        if event in STARTS:
            command = list(args[1]) if len(args) > 1 else []
            is_known = command[: len(GIT)] == GIT or (command == STUBS and "PYTHONSAFEPATH" in os.environ)
            return None if is_known else f"{event} {args[:2]}"
        if event in CONNECTS:
            is_name = event == "socket.bind" and args[1] == ("", 0)
            return None if is_name else f"{event} {args[1:]}"
        if event == "exec":
            return self.foreign_code(getattr(args[0], "co_filename", ""))
        if event == "open":
            path, _, flags = args
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            # a folder is opened for a temporary file without a name, such as that of lit-tune's watchdog
            return self.foreign_place(event, path) if writes and not os.path.isdir(path) else None
        for place, folder in WRITES.get(event, ()):
            opened = args[folder] if folder is not None and len(args) > folder else None
            if wrong := self.foreign_place(event, args[place], opened):
                return wrong
        return None

    def foreign_code(self, filename: str) -> str | None:
        """Python code that was executed from a file outside of the installation."""
        if not filename or filename.startswith("<") or not os.path.exists(filename):
            return None
        inside = any(Path(os.path.realpath(filename)).is_relative_to(os.path.realpath(root)) for root in CODE)
        return None if inside else f"executed {filename}"

    def foreign_place(self, event: str, path: Any, folder: Any = None) -> str | None:
        """A path that is written outside of the folders that may be."""
        if not isinstance(path, str | bytes | os.PathLike):
            return None  # a file descriptor, which was opened before
        name = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0:
            name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
        real = os.path.realpath(name)
        if real in ("/dev/null", "/dev/tty") or any(real == w or real.startswith(w + os.sep) for w in self.writable):
            return None
        return f"{event} {real}"


def watched(arguments: list[str], writable: list[Path], run: Callable[[list[str]], int] = main) -> Outcome:
    """Run a command in a child of this process and see what it does.

    Args:
        arguments: The command line after ``lit-tune``.
        writable: Folders that may be written.
        run: What runs it.
    """
    reads, writes = zip(*(os.pipe() for _ in range(3)), strict=True)
    child = os.fork()
    if child == 0:
        for end in reads:
            os.close(end)
        _in_child(arguments, writable, run, writes)
    for end in writes:
        os.close(end)
    texts = _read_all(list(reads))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    foreign = json.loads(texts[2]) if texts[2] else [f"died: {code}"]
    return Outcome(code, texts[0].decode(), texts[1].decode(), foreign)


def _in_child(arguments: list[str], writable: list[Path], run: Callable[[list[str]], int], ends: Any) -> None:
    code = 99
    watch = Watch(writable)
    try:
        os.dup2(ends[0], 1)
        os.dup2(ends[1], 2)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
        warnings.resetwarnings()  # the command line is not run with warnings as errors
        sys.dont_write_bytecode = True  # what Python keeps of a module beside it is not the run's doing
        sys.addaudithook(watch)
        code = run(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        watch.busy = True  # what follows is the test's own doing
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os.write(ends[2], json.dumps(watch.foreign[:20]).encode()[:60_000])
        os._exit(code)


def _read_all(ends: list[int]) -> list[bytes]:
    """Everything from several pipes, none of which may fill up."""
    import selectors

    texts: dict[int, bytes] = dict.fromkeys(ends, b"")
    with selectors.DefaultSelector() as selector:
        for end in ends:
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                block = os.read(key.fd, 1 << 16)
                texts[key.fd] += block
                if not block:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    return [texts[end] for end in ends]
