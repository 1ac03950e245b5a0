"""Finding: something that was noticed before training, with its place and its remedy."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from lit_tune.errors import LitTuneError, raise_problems

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed.

    Args:
        severity: An ``error`` ends in a failure, or in a result that means nothing; a ``warning`` does neither.
        problem: What, where, the remedy, and the exit code of an error.
    """

    severity: Severity
    problem: LitTuneError

    @property
    def is_error(self) -> bool:
        """Whether training should not start."""
        return self.severity == "error"

    def to_dict(self) -> dict[str, Any]:
        """For ``--format json``."""
        problem = self.problem
        return {
            "severity": self.severity,
            "where": problem.where,
            "what": problem.what,
            "fix": problem.fix,
            "exit_code": problem.exit_code if self.is_error else 0,
        }


def errors(problems: Iterable[LitTuneError]) -> list[Finding]:
    """Problems as findings that end a run."""
    return [Finding("error", problem) for problem in problems]


def warning(what: str, *, where: str, fix: str) -> Finding:
    """A finding that is only told."""
    return Finding("warning", LitTuneError(what, where=where, fix=fix))


def raise_errors(findings: Iterable[Finding]) -> None:
    """Raise what should not start; warnings pass.

    Raises:
        LitTuneError: The one error, or all of them together.
    """
    raise_problems([f.problem for f in findings if f.is_error])
