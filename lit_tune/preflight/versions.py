"""Installed packages that are known to be bad, or that contradict each other, read from their metadata.

Nothing is imported for it: a package that steals tokens does so when it is imported.
"""

import importlib.metadata
from collections.abc import Callable, Iterator
from functools import cache

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from lit_tune.errors import ConfigError, HardwareError
from lit_tune.preflight.findings import Finding, warning
from lit_tune.preflight.situation import Situation

KNOWN_BAD: tuple[tuple[str, str, str], ...] = (
    # https://github.com/Lightning-AI/pytorch-lightning/security/advisories/GHSA-w37p-236h-pfx3
    ("lightning", "==2.6.2", "is malware that steals tokens and keys when it is imported"),
    ("lightning", "==2.6.3", "is malware that steals tokens and keys when it is imported"),
    ("lightning", "<2.6.6", "runs code from a checkpoint (CVE-2026-58659)"),
    ("pytorch-lightning", "==2.6.2", "is malware that steals tokens and keys when it is imported"),
    ("pytorch-lightning", "==2.6.3", "is malware that steals tokens and keys when it is imported"),
    ("torch", "<2.10", "corrupts memory when it loads a crafted checkpoint (CVE-2026-24747)"),
    ("transformers", ">=4.56,<5.3", "runs code that a model's config names (CVE-2026-4372)"),
)
"""(package, versions, why)."""

Installed = Callable[[str], str | None]
"""Package -> its version, or None where it is not installed."""

Required = Callable[[str], list[str]]
"""Package -> what it requires, as its metadata says."""


@cache
def installed_version(package: str) -> str | None:
    """The version of an installed package, read without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def requirements_of(package: str) -> list[str]:
    """What an installed package requires."""
    try:
        return importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []


@cache
def version_findings(
    installed: Installed = installed_version, required: Required = requirements_of
) -> tuple[Finding, ...]:
    """Everything about the installed packages; a quarter of a second, once per process.

    Args:
        installed: Package -> version.
        required: Package -> requirements.
    """
    return (*known_bad(installed), *contradictions("lit-tune", installed, required))


def refuse_malware(installed: Installed = installed_version) -> None:
    """To be called before Lightning is imported, which is when it would steal.

    Raises:
        HardwareError: An installed package is known malware.
    """
    for finding in known_bad(installed):
        if "malware" in finding.problem.what:
            raise finding.problem


def missing_packages(s: Situation, installed: Installed = installed_version) -> list[Finding]:
    """Packages that a setting needs."""
    loggers = s["logger"] if isinstance(s["logger"], list) else [s["logger"]]
    needed = (
        ("wandb" in loggers, "wandb", "logger", "pip install 'lit-tune[wandb]'"),
        (s["optimizer.name"] == "adamw_8bit", "bitsandbytes", "optimizer.name", "pip install 'lit-tune[8bit]'"),
        (bool(s["model.quantization"]), "bitsandbytes", "model.quantization", "pip install 'lit-tune[8bit]'"),
        (
            s["model.attn_implementation"] == "flash_attention_2",
            "flash-attn",
            "model.attn_implementation",
            "pip install flash-attn, or model.attn_implementation: sdpa",
        ),
    )
    return [
        Finding("error", ConfigError(f"needs {package}, which is not installed", where=where, fix=fix))
        for is_needed, package, where, fix in needed
        if is_needed and installed(package) is None
    ]


def known_bad(installed: Installed) -> Iterator[Finding]:
    """Versions with a known hole; the first reason per package."""
    told: set[str] = set()
    for package, versions, why in KNOWN_BAD:
        version = installed(package)
        if version is None or package in told or not Requirement(f"{package}{versions}").specifier.contains(version):
            continue
        told.add(package)
        yield Finding(
            "error",
            HardwareError(
                f"{package} {version} {why}",
                where=f"installed {package}",
                fix=f"pip install -U {package}"
                + ("; then change every token and key of this machine" * ("malware" in why)),
            ),
        )


def contradictions(root: str, installed: Installed, required: Required) -> Iterator[Finding]:
    """Requirements of a package and of its direct dependencies that the installed versions do not meet.

    An older version than ours asks for is an error; a newer one, and what its dependencies ask of each other, may work.
    """
    asked = [(root, text) for text in required(root)]
    direct = [needed.name for _, text in asked if (needed := _needed_here(text))]
    asked += [(package, text) for package in direct for text in required(package)]
    for package, text in asked:
        requirement = _needed_here(text)
        version = installed(requirement.name) if requirement else None
        if requirement is None or version is None or _is_met(requirement, version):
            continue
        what = f"{package} needs {requirement.name}{requirement.specifier}, installed is {version}"
        fix = f"pip install '{requirement.name}{requirement.specifier}'"
        if package == root and Version(version) < min(_versions(requirement), default=Version("0")):
            yield Finding("error", HardwareError(what, where=f"installed {requirement.name}", fix=fix))
        else:
            yield warning(what, where=f"installed {requirement.name}", fix=fix)


def _needed_here(text: str) -> Requirement | None:
    try:
        requirement = Requirement(text)
        return requirement if requirement.marker is None or requirement.marker.evaluate({"extra": ""}) else None
    except (InvalidRequirement, ValueError):
        return None


def _is_met(requirement: Requirement, version: str) -> bool:
    try:
        return requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return True


def _versions(requirement: Requirement) -> list[Version]:
    return [Version(s.version.removesuffix(".*")) for s in requirement.specifier if s.operator in (">=", "==", "~=")]
