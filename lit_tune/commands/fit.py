"""``lit-tune fit``."""

import logging
import os
from typing import Any

from lit_tune.callbacks.run_record import RunRecord
from lit_tune.cli import parse
from lit_tune.console import configure_logging, is_rank_zero
from lit_tune.errors import OutOfMemory, StorageError
from lit_tune.imports import added_flags
from lit_tune.models.adapter_folders import CONFIG
from lit_tune.preflight.batch_sizes import BatchSizes, next_sizes, start_over, use_decided
from lit_tune.preflight.examine import check_before_fit
from lit_tune.preflight.start import checkpoint_path, goes_on, plan_start, start_of_rank_zero, tell_ranks
from lit_tune.run_dir import RunDir
from lit_tune.run_lock import RunLock

log = logging.getLogger("lit_tune")


def fit(options: list[str], overwrite: bool = False, allow_changed: bool = False, verbose: bool = False) -> None:
    """Train a model, keep its best weights, and write them to run_dir/best.

    The same command run again goes on where the run stopped.

    Args:
        options: The config: files and single keys.
        overwrite: Delete what an earlier run left in run_dir.
        allow_changed: Go on although the config, the data or the versions of the packages have changed.
        verbose: Show the module tree and the devices.
    """
    configure_logging(verbose)
    environment = dict(os.environ)
    sizes = attempt(options, overwrite, allow_changed)
    while sizes is not None:
        start_over(environment)
        sizes = attempt(options, False, allow_changed, sizes)


def attempt(
    options: list[str], overwrite: bool, allow_changed: bool, sizes: BatchSizes | None = None
) -> BatchSizes | None:
    """Fit, from where the run stands to its end.

    Args:
        options: The config.
        overwrite: Delete what an earlier run left in run_dir.
        allow_changed: Go on although the config or the data has changed.
        sizes: The batch sizes to go on with, where an attempt in this process has exhausted memory.

    Returns:
        None when the run is complete; or the batch sizes to try next (``data.auto_batch``). Nothing of the attempt is
        kept: its tensors go with this frame.
    """
    cli = parse(options, "fit")
    if is_rank_zero():
        RunLock(cli.run_dir.path).check()
    start = None if is_rank_zero() else start_of_rank_zero(cli.run_dir)
    if start is None:
        resume = cli.config.resume if sizes is None else "auto"
        start = plan_start(cli.run_dir, cli.to_yaml(), resume, overwrite, allow_changed)
    if start.is_complete:
        print(complete(cli.run_dir))
        return None
    trainer: Any
    trainer, module, datamodule = cli.build(start)
    record = next(c for c in trainer.callbacks if isinstance(c, RunRecord))
    if not trainer.fast_dev_run:
        record.claim(goes_on=goes_on(cli.run_dir, start))
        if is_rank_zero():
            tell_ranks(start)
        use_decided(cli.run_dir, sizes, trainer, datamodule)
    try:
        log.info("run      %s", cli.run_dir)
        # before any other process starts, so that a mistake is told once; the others find the cache
        if is_rank_zero():
            check_before_fit(cli.situation, module, datamodule, cli.run_dir.path)
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint_path(start), weights_only=True)
    except OutOfMemory as error:
        record.fail(error)
        return next_sizes(cli.run_dir, error, trainer)
    except BaseException as error:
        record.fail(error)
        raise
    record.close()  # ranks that this process has forked could not let go of what it holds
    if is_rank_zero() and not trainer.fast_dev_run and cli.run_dir.read().get("status") != "complete":
        raise StorageError(
            "fit ended without an export", where="trainer.callbacks", fix="remove those that end it early"
        )
    if is_rank_zero() and record.result:
        print(summary(cli.run_dir, record))
    return None


def complete(run_dir: RunDir) -> str:
    """What there is to say about a run that was complete before."""
    manifest = run_dir.read()
    lines = [f"{run_dir} is complete: {manifest['steps']:,} steps in {manifest['seconds']:.0f} s; nothing to do"]
    if verdict := manifest.get("verdict"):
        lines.append(f"verdict  {verdict['message']}")
    lines.append(f"model    {run_dir.best}  ({who_loads(run_dir)} loads it)")
    lines.append("next     a longer run: --trainer.max_epochs N; again: --overwrite; another one: --run_dir NEW")
    return "\n".join(lines)


def summary(run_dir: RunDir, record: RunRecord) -> str:
    """The last lines a person reads, below the verdict: the result, where things are, what comes next."""
    result, monitor = record.result, record.result.get("monitor")
    lines = [f"\n{result['steps']:,} steps in {result['seconds']:.0f} s"]
    best = result["best_metrics"]
    if monitor and best:
        name = monitor.removeprefix("val/")
        base = record.baseline.get(name)
        beside = f" (baseline {base:.4f})" if base is not None else ""
        value = best[monitor]
        shown = "undefined" if value is None else f"{value:.4f}"
        lines.append(f"best     {monitor} {shown}{beside}, at step {best['step']:,}")
    if run_dir.best.is_dir():
        lines.append(f"model    {run_dir.best}  ({who_loads(run_dir)} loads it)")
    lines.append(f"numbers  {run_dir.metrics}, {run_dir.manifest}")
    lines.append(f"next     lit-tune test --config {run_dir.config}{added_flags()} [--data.test FILE]")
    return "\n".join(lines)


def who_loads(run_dir: RunDir) -> str:
    """What reads ``best/``."""
    return "peft" if (run_dir.best / CONFIG).is_file() else "from_pretrained"
