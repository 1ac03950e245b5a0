"""Keeps the run directory's record: config.yaml, manifest.json, run.log, and the result at the end."""

import hashlib
import logging
import math
import time
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from lit_tune.callbacks.checkpoints import BestCheckpoint, step_of
from lit_tune.console import configure_logging, log_to_file
from lit_tune.durable import sweep_temporaries, write_durably
from lit_tune.errors import NumericsError, StorageError
from lit_tune.run_dir import MANIFEST_FORMAT, RunDir, environment, flat
from lit_tune.run_lock import RunLock

log = logging.getLogger("lit_tune")


class RunRecord(Callback):
    """Claims the run directory and writes down what happened in it.

    Args:
        run_dir: The run directory.
        config_yaml: Text of the resolved config.
        overwrite: Delete an earlier run first.
        may_change: A run that goes on may have other data and ranks than it had.
    """

    def __init__(self, run_dir: RunDir, config_yaml: str, overwrite: bool = False, may_change: bool = False) -> None:
        self.run_dir, self.config_yaml = run_dir, config_yaml
        self.overwrite, self.may_change = overwrite, may_change
        self.lock = RunLock(run_dir.path)
        self.history: list[dict[str, float]] = []
        """Scalars of each validation, with ``step`` and ``epoch``."""
        self.best: dict[str, float] = {}
        """Scalars of the validation whose weights are exported."""
        self.result: dict[str, Any] = {}
        self.baseline: dict[str, float] = {}
        self.claimed = self.goes_on = self.failed = self.finished = False
        self.seconds_before = self.started = 0.0
        self._before: tuple[dict[str, Any], bytes] | None = None
        """Manifest and config of a run that goes on, until it does."""
        self._handler: logging.Handler | None = None

    @rank_zero_only
    def claim(self, goes_on: bool = False) -> None:
        """Take the directory; once.

        Args:
            goes_on: A run is in it, and is resumed.
        """
        if self.claimed:
            return
        self.goes_on = goes_on
        self._take(goes_on)
        sweep_temporaries(self.run_dir.path)
        self.claimed = True
        digest = hashlib.sha256(self.config_yaml.encode()).hexdigest()
        before = self.run_dir.read() if goes_on else {"trained": False}
        for result in ("error", "exported", "verdict"):
            before.pop(result, None)
        fields = {"format": MANIFEST_FORMAT, "status": "running", "config_sha256": digest, **environment()}
        self.run_dir.write({**before, **fields})
        write_durably(self.run_dir.config, self.config_yaml.encode())
        self._handler = log_to_file(self.run_dir.log)

    def _take(self, goes_on: bool) -> None:
        """Lock first, then delete: another process may have begun here in the meantime."""
        if not goes_on:
            self.run_dir.check_free(self.overwrite)
        self.lock.acquire()
        try:
            if not goes_on:
                self.run_dir.claim(self.overwrite)
            elif self.run_dir.config.is_file():
                self._before = self.run_dir.read(), self.run_dir.config.read_bytes()
        except BaseException:
            self.lock.release()
            raise

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Python users come here first; the command line has claimed already."""
        if not log.hasHandlers():  # a notebook or a script: it wants to see what happens too
            configure_logging()
        if stage != "fit" or trainer.fast_dev_run:
            return
        self.claim()
        self.record_data(trainer)

    @rank_zero_only
    def record_data(self, trainer: Any) -> None:
        """What is trained on, and by how many.

        Raises:
            StorageError: It is not what the run was started with.
        """
        data = trainer.datamodule
        if self.goes_on and not self.may_change:
            before = self.run_dir.read()
            unchanged("the data", before.get("data", {}).get("fingerprint"), data.fingerprint)
            unchanged("the number of processes", before.get("world_size"), trainer.world_size)
        self.run_dir.update(
            {
                "spec": data.spec.to_dict(),
                "data": {
                    "fingerprint": data.fingerprint,
                    "rows": {name: len(rows) for name, rows in data.encoded.items()},
                    "val_rows_found_in_train": data.text_overlap,
                    "max_length": data.max_length,
                },
                "world_size": trainer.world_size,
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """The validations so far and the time they took."""
        return {"history": [dict(h) for h in self.history], "seconds": self.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.history, self.seconds_before = list(state_dict["history"]), state_dict["seconds"]

    def seconds(self) -> float:
        """Training time, that before an interruption included."""
        return round(self.seconds_before + time.perf_counter() - self.started, 1)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock; the loggers get the config."""
        self.started = time.perf_counter()
        self.baseline = dict(pl_module.spec.baseline)
        if self.claimed:
            config = flat(yaml.safe_load(self.config_yaml) or {})
            for logger in trainer.loggers:
                logger.log_hyperparams(config)
                if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                    self.run_dir.update({"wandb_id": logger.version})  # a run that goes on goes on there too

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """From here on there is something to lose: the directory is not free any more."""
        self._before = None
        if self.claimed and trainer.is_global_zero:
            self.run_dir.update({"trained": True})

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Remember the numbers of each validation."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("val/", "probe/"))}
        self.history.append({"step": trainer.global_step, **values})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Gather the result; export comes after this and reads it."""
        if not trainer.fast_dev_run:
            self.gather(trainer, pl_module)

    def gather(self, trainer: Any, pl_module: Any) -> None:
        """The result, from the validations so far."""
        best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)
        chosen = self.history[-1] if self.history else {}
        if best is not None and best.best_model_path:
            step = step_of(Path(best.best_model_path))
            chosen = next((h for h in self.history if h["step"] == step), chosen)
        self.best = chosen
        self.result = {
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "seconds": self.seconds(),
            "monitor": best.monitor if best is not None and self.history else None,
            "final_metrics": plain(self.history[-1]) if self.history else {},
            "best_metrics": plain(self.best),
            "skipped_steps": pl_module.num_skipped_steps,
        }

        total = trainer.datamodule.total_steps()
        if total and trainer.global_step < total and not trainer.should_stop:
            log.warning(
                "training ended at step %d of %d: the stream was read %d times. Fix: trainer.max_epochs: -1",
                *(trainer.global_step, total, trainer.current_epoch),
            )

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """A run that trained nothing has no result.

        Raises:
            StorageError: No optimizer step was taken.
            NumericsError: All of them were left out.
        """
        if trainer.global_step == 0:
            raise StorageError(
                "no optimizer step was taken, there is nothing to export",
                where="run_dir",
                fix="more rows, epochs, trainer.max_steps or trainer.max_time",
            )
        if trainer.global_step == pl_module.num_skipped_steps:
            raise NumericsError(
                f"all {trainer.global_step} optimizer steps were left out, the weights are those the run began with",
                where="optimizer.skip_nonfinite",
                fix="see the warnings above: rows, optimizer.lr or trainer.precision",
            )
        if not self.result and not trainer.fast_dev_run:
            self.gather(trainer, pl_module)  # resumed after its last step: Lightning calls no on_train_end

    @rank_zero_only
    def finish(self, trainer: Any, extra: dict[str, Any]) -> None:
        """The run is complete: the artefact was verified."""
        if not self.claimed:
            return
        self.result.update(extra)
        self.run_dir.update({"status": "complete", **self.result})
        self.finished = True

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The run has failed."""
        self.fail(exception)

    @rank_zero_only
    def fail(self, exception: BaseException) -> None:
        """Write down why."""
        if self.claimed and not self.failed and not self.finished:
            self.failed = True
            # Lightning's own answer to SIGTERM is a SystemExit
            status = "interrupted" if isinstance(exception, KeyboardInterrupt | SystemExit) else "failed"
            try:
                self._undo()
                if self.run_dir.read().get("status") != "complete":
                    self.run_dir.update({"status": status, "error": f"{type(exception).__name__}: {exception}"[:2000]})
            except (OSError, StorageError) as e:  # the first error is the one to tell
                log.warning("the manifest could not be written: %s", e)
        self.close()

    def _undo(self) -> None:
        """A run that could not go on stays what it was: a complete one complete, with the config it had."""
        if self._before is not None:
            manifest, config = self._before
            self.run_dir.write(manifest)
            write_durably(self.run_dir.config, config)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Close run.log."""
        self.close()

    def close(self) -> None:
        """Close run.log, let go of the directory."""
        self.lock.release()
        if self._handler is not None:
            log.removeHandler(self._handler)
            self._handler.close()
            self._handler = None


def unchanged(what: str, was: Any, now: Any) -> None:
    """Refuse to go on with other data or other ranks.

    Raises:
        StorageError: They differ.
    """
    if was is not None and was != now:
        raise StorageError(
            f"{what} changed since the run was started ({was} -> {now})",
            where="run_dir",
            fix="--allow-changed goes on all the same; or --run_dir NEW",
        )


def plain(values: dict[str, float]) -> dict[str, float | None]:
    """Numbers JSON can hold."""
    return {k: v if math.isfinite(v) else None for k, v in values.items()}
