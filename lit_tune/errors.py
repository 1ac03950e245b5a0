"""What a person is told when something is wrong, and the exit code that goes with it.

A message says what is wrong, where (a config key, or file:row) and how to fix it, in at most six lines. The command
line prints it without a traceback and exits with the class's code; Python users catch :class:`LitTuneError`, a
``ValueError``.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

MAX_MESSAGE_LINES = 6
MAX_CHARACTERS = 800
"""Of each part of a message: six full lines."""


class LitTuneError(ValueError):
    """A problem the person can fix.

    Args:
        what: One sentence: what is wrong, with the value given and the values allowed.
        where: The config key (``data.train``) or the place in a file (``train.csv:17``).
        fix: What to change, in the imperative; shown after ``Fix:``.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        what, where, fix = fit_to_print(what), where and fit_to_print(where), fix and fit_to_print(fix)
        self.what, self.where, self.fix = what, where, fix
        lines = [f"{where}: {what}" if where else what]
        if fix:
            lines.append(f"Fix: {fix}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its parts: what a worker process raises reaches the main one with place and remedy."""
        return _rebuilt, (type(self), self.what, self.where, self.fix)


class ConfigError(LitTuneError):
    """An unknown key, a wrong type, or settings that contradict each other."""

    exit_code = 2


class DataError(LitTuneError):
    """A file that cannot be read, or rows that cannot be trained on."""

    exit_code = 3


class ModelError(LitTuneError):
    """A model, tokenizer or Hub repository that cannot be used."""

    exit_code = 4


class HardwareError(LitTuneError):
    """A device or a process group that is not there."""

    exit_code = 5


class NumericsError(LitTuneError):
    """A loss, gradient or metric that is not a finite number."""

    exit_code = 6


class StorageError(LitTuneError):
    """A run directory, checkpoint or disk that cannot be used."""

    exit_code = 7


class OutOfMemory(LitTuneError):  # noqa: N818 - the field's own word
    """The device's memory is exhausted."""

    exit_code = 8
    retry_with: dict[str, int] | None = None
    """Batch sizes with which the run can go on by itself, under the names of ``batch_sizes.BatchSizes``."""


class ProblemList(LitTuneError):  # noqa: N818 - several of them
    """Several independent problems, reported together; the exit code is the first one's.

    Args:
        problems: At least one error.
    """

    def __init__(self, problems: list[LitTuneError]) -> None:
        self.problems = problems
        self.exit_code = problems[0].exit_code  # type: ignore[misc]
        ValueError.__init__(self, "\n\n".join(str(p) for p in problems))

    def __reduce__(self) -> tuple[Any, ...]:
        return ProblemList, (self.problems,)


_MEMORY_TEXTS = (
    "out of memory",  # CUDA outside torch's allocator, MPS
    "DefaultCPUAllocator: can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What torch's plain RuntimeErrors say where memory is short."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of torch or of Python, means that memory is exhausted.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("out of memory"))
    (True, False)
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXTS)


def _rebuilt(cls: type[LitTuneError], what: str, where: str | None, fix: str | None) -> LitTuneError:
    return cls(what, where=where, fix=fix)


def raise_problems(problems: list[LitTuneError]) -> None:
    """Raise what was collected: nothing, the one error, or a :class:`ProblemList`."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ProblemList(problems)


@contextmanager
def collected(problems: list[LitTuneError]) -> Iterator[None]:
    """Put what the block raises into a list, so that one problem does not hide the next one; none stands there twice.

    >>> problems = []
    >>> with collected(problems):
    ...     raise DataError("is empty", where="a.csv")
    >>> [str(p) for p in problems]
    ['a.csv: is empty']
    """
    try:
        yield
    except LitTuneError as error:
        known = {str(p) for p in problems}
        problems += [p for p in getattr(error, "problems", [error]) if str(p) not in known]


# Tokens of Hugging Face, GitHub, GitLab, AWS, Google, Slack and OpenAI as their issuers write them, private keys, and
# the password of an address.
_SECRET = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,}|sk-[\w-]{20,}|wandb_v1_\w{16,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----|(?<=://)[^\s/@:]*:[^\s/@]+(?=@)"
)


def holds_secret(text: str) -> bool:
    """Whether a text holds what looks like an access token or a password.

    >>> holds_secret("https://me:pa55@host/x.csv"), holds_secret("hf_internal-testing/tiny"), holds_secret("a@b.org")
    (True, False, False)
    """
    return _SECRET.search(text) is not None


def fit_to_print(text: str) -> str:
    """The text without secrets, and without the middle of what nobody would read to the end.

    >>> len(fit_to_print("a.csv and " + "x" * 3000)), len(fit_to_print("{a: " * 1000))
    (263, 803)
    """
    text = re.sub(r"(\S{200})\S{100,}(\S{50})", r"\1...\2", hide_secrets(text))
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 150]}...{text[-150:]}"


def hide_secrets(text: str) -> str:
    """The text with ``***`` in the place of what looks like a secret.

    >>> hide_secrets("cannot reach https://me:pa55@host/x.csv")
    'cannot reach https://***@host/x.csv'
    """
    return _SECRET.sub("***", text)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name a typo most probably means, or None.

    >>> nearest("weight_deacy", ["lr", "weight_decay"])
    'weight_decay'
    """
    lowered = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return lowered[found[0]] if found else None
