"""How a run starts: at the beginning, where it stopped, or not at all because it is complete."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from lit_tune.checkpointing.verified import Choice, newest_verified, verify
from lit_tune.errors import StorageError
from lit_tune.preflight.changed_config import Change, Effect, changes, table
from lit_tune.run_dir import RunDir, flat

RESUMED_FROM = "LIT_TUNE_RESUMED_FROM"
"""Set by rank zero for the ranks that it starts: path of the checkpoint, or empty."""

log = logging.getLogger("lit_tune")


@dataclass(frozen=True)
class Start:
    """What fit does with the run directory.

    Args:
        checkpoint: Where the run goes on; None: at the beginning.
        is_complete: Nothing is left to do.
        overwrite: What an earlier run left is deleted first.
        may_change: The data, the ranks and the config may differ from those of the run so far.
    """

    checkpoint: Choice | None = None
    is_complete: bool = False
    overwrite: bool = False
    may_change: bool = False


FROM_THE_BEGINNING = Start()


def plan_start(
    run_dir: RunDir, config_yaml: str, resume: str = "auto", overwrite: bool = False, allow_changed: bool = False
) -> Start:
    """Look at the run directory and decide.

    Args:
        run_dir: The directory.
        config_yaml: Text of the resolved config.
        resume: ``auto``: go on with what is there; ``never``; or the path of a checkpoint. One of another run is where
            this run begins; once it has begun it goes on with its own.
        overwrite: Delete what is there.
        allow_changed: Go on although the config has changed, or the versions of the packages.

    Raises:
        StorageError: The directory is not free and the run in it cannot go on: another config, no checkpoint that is
            whole, not a run of ours.
    """
    if overwrite or resume == "never":
        run_dir.check_free(overwrite)
        return Start(overwrite=overwrite)
    manifest = run_dir.read()
    if manifest.get("trained") and not is_inside(resume, run_dir):
        resume = "auto"
    if not manifest.get("trained"):
        run_dir.check_free(overwrite=False)
        return Start(verify(run_dir, resume, allow_changed) if resume != "auto" else None, may_change=True)
    found = config_changes(run_dir, config_yaml)
    accept(found, run_dir, allow_changed)
    is_longer = any(c.effect == Effect.LONGER for c in found)
    if manifest.get("status") == "complete" and not is_longer and resume == "auto":
        return Start(is_complete=True)
    choice = newest_verified(run_dir, allow_changed) if resume == "auto" else verify(run_dir, resume, allow_changed)
    if choice is None and manifest.get("status") == "complete":
        raise StorageError(
            "the run is complete and kept no checkpoint to go on from",
            where=str(run_dir),
            fix="--overwrite deletes it and trains again; or --run_dir NEW",
        )
    if choice is None:
        log.warning("%s holds a run that died before its first checkpoint: it starts again", run_dir)
        return Start(overwrite=True)
    say(choice)
    return Start(choice, may_change=allow_changed)


def start_of_rank_zero(run_dir: RunDir) -> Start | None:
    """What rank zero has decided, for a rank that it has started; None for one that somebody else started."""
    path = os.environ.get(RESUMED_FROM)
    return None if path is None else Start(verify(run_dir, path, any_version=True) if path else None, may_change=True)


def tell_ranks(start: Start) -> None:
    """Let the ranks that this process starts know where the run goes on."""
    os.environ[RESUMED_FROM] = checkpoint_path(start) or ""


def config_changes(run_dir: RunDir, config_yaml: str) -> list[Change]:
    """What differs from the config the run was started with.

    Raises:
        StorageError: The run's config.yaml is missing or no YAML.
    """
    try:
        was = yaml.safe_load(run_dir.config.read_text("utf-8"))
        return changes(flat(was), flat(yaml.safe_load(config_yaml)))
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as e:
        reason = getattr(e, "strerror", None) or "it is no config"
        raise StorageError(
            f"cannot be read: {reason}", where=str(run_dir.config), fix="restore it, or --overwrite to start again"
        ) from e


def accept(found: list[Change], run_dir: RunDir, allow_changed: bool) -> None:
    """Say what changed; refuse what a run cannot go on with.

    Raises:
        StorageError: With the table of changes.
    """
    if not found:
        return
    fatal = [c for c in found if c.effect == Effect.OTHER_MODEL]
    if fatal or (not allow_changed and any(c.effect == Effect.OTHER_RUN for c in found)):
        log.error("%s was started with another config:\n%s", run_dir, table(found))
        fix = "--run_dir NEW, or --overwrite deletes that run"
        raise StorageError(
            f"the config has changed: {', '.join(c.key for c in found if c.effect != Effect.HARMLESS)}",
            where=str(run_dir),
            fix=fix if fatal else f"--allow-changed goes on with the new values; or {fix}",
        )
    log.info("changed since the run was started:\n%s", table(found))


def say(choice: Choice) -> None:
    """What is gone on with, and what is lost."""
    for each in choice.refused:
        log.warning("not used  %s", each)
    lost = f"; {choice.steps_lost} steps are lost and done again" if choice.steps_lost else ""
    log.info("resume   %s, step %d%s", choice.path, choice.step, lost)


def goes_on(run_dir: RunDir, start: Start) -> bool:
    """Whether the run in this directory is continued; a checkpoint from elsewhere begins a new one."""
    choice = start.checkpoint
    return choice is not None and is_inside(choice.path, run_dir)


def is_inside(path: str | Path, run_dir: RunDir) -> bool:
    """Whether a file lies in a run directory."""
    return Path(path).resolve().is_relative_to(run_dir.path.resolve())


def checkpoint_path(start: Start) -> str | None:
    """What Lightning's ``Trainer.fit`` takes as ``ckpt_path``."""
    return str(start.checkpoint.path) if start.checkpoint is not None else None
