"""best/: what the user came for. The best weights as a folder that ``from_pretrained`` loads, verified."""

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError

from lit_tune.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, step_of
from lit_tune.callbacks.model_card import model_card
from lit_tune.callbacks.overfit_detector import OverfitCallback
from lit_tune.callbacks.run_record import RunRecord
from lit_tune.data.loader import collate
from lit_tune.durable import fingerprints, sync_folder, sync_tree, temporary_of
from lit_tune.errors import NumericsError, StorageError
from lit_tune.models.assembly import load_as_anyone, save
from lit_tune.models.freezing import evaluating
from lit_tune.run_dir import EXPORT_HASHES, RunDir

log = logging.getLogger("lit_tune")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
"""Largest relative difference of reloaded logits; other dtypes: 1e-2."""


class HFExport(Callback):
    """Writes ``best/`` when training ends, reloads it and compares one batch.

    The module keeps the best weights afterwards, as HF Trainer's ``load_best_model_at_end`` does.

    Args:
        record: The run's record; it is closed here, after the export is verified.
    """

    def __init__(self, record: RunRecord) -> None:
        self.record = record

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Export, verify, close the record."""
        if trainer.fast_dev_run or trainer.interrupted:
            return
        source = self.load_best(trainer, pl_module)
        overfit = next((c for c in trainer.callbacks if isinstance(c, OverfitCallback)), None)
        verdict = overfit.summary() if overfit is not None else None
        if trainer.is_global_zero:
            logits = reference_logits(trainer, pl_module)
            if logits is not None and not bool(torch.isfinite(logits).all()):
                raise NumericsError(
                    f"training diverged: the weights ({source}) give logits that are not finite, nothing is exported",
                    where="optimizer.lr",
                    fix="a smaller optimizer.lr, trainer.gradient_clip_val: 1.0, or bf16-mixed instead of 16-mixed",
                )
            export(
                pl_module, trainer, self.record.run_dir, model_card(trainer, pl_module, self.record, verdict), logits
            )
            self.record.finish(trainer, {"exported": source, "verdict": verdict})
        trainer.strategy.barrier("export")

    def load_best(self, trainer: Any, pl_module: Any) -> str:
        """Put the best weights into the module; returns which they are.

        Raises:
            NumericsError: No weights are the best.
            StorageError: Their file is damaged, or could not be written.
        """
        path = trainer.strategy.broadcast(self.best_or_last(trainer))
        if not path:
            return "last weights"
        checkpoint = trainer.strategy.load_checkpoint(path, weights_only=True)
        pl_module.load_state_dict(checkpoint["state_dict"])
        return Path(path).name

    def best_or_last(self, trainer: Any) -> str:
        """The checkpoint to export: the best, without validation the last; empty where none is to be kept.

        Raises:
            NumericsError: There were validations, and in none was the monitored metric a number.
            StorageError: It should be there, and could not be written.
        """
        callbacks = trainer.checkpoint_callbacks
        best = next((c for c in callbacks if isinstance(c, BestCheckpoint) and c.save_top_k != 0), None)
        last = next((c for c in callbacks if isinstance(c, LastCheckpoint) and c.save_top_k != 0), None)
        history = self.record.history
        if best is not None and (best.best_model_path or history):
            values = [h.get(str(best.monitor), math.nan) for h in history]
            if not best.best_model_path and not any(map(math.isfinite, values)):
                raise NumericsError(
                    f"{best.monitor} was not a number in any of {len(values)} validations: no weights are the best",
                    where="checkpoint.monitor",
                    fix="checkpoint.monitor: val/loss, or rows in data.val on which the metric is defined",
                )
            return written(best.best_model_path, "the best weights")
        if last is None:
            return ""
        is_there = last.best_model_path and step_of(Path(last.best_model_path)) == trainer.global_step
        return written(last.best_model_path if is_there else "", f"step {trainer.global_step}, the last one,")


def written(path: str, what: str) -> str:
    """The path.

    Raises:
        StorageError: It is empty.
    """
    if not path:
        raise StorageError(
            f"{what} could not be saved", where="run_dir", fix="free some space; the same command goes on from there"
        )
    return path


def export(pl_module: Any, trainer: Any, run_dir: RunDir, card: str, expected: torch.Tensor | None) -> None:
    """Write the folder beside its place, reload and compare it, then rename: a ``best/`` that is there is good.

    Its hashes are in the manifest before it has its name.

    Raises:
        StorageError: It cannot be written, does not load, or gives other logits.
    """
    target = run_dir.best
    temporary, old = temporary_of(target), temporary_of(target.with_name(f"{target.name}.old"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        save(pl_module.model, temporary, pl_module.base_reference)
        trainer.datamodule.tokenizer.save_pretrained(temporary)
        for name, content in pl_module.task.files(pl_module.model.config, trainer.datamodule.max_length).items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_text(content, "utf-8")
        (temporary / "README.md").write_text(card, "utf-8")
        verify(pl_module, trainer, temporary, expected)
        sync_tree(temporary)
        hashes = {name: list(found) for name, found in fingerprints(temporary).items() if name != "README.md"}
        run_dir.update({EXPORT_HASHES: hashes})
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        sync_folder(target.parent)
    except (OSError, SafetensorError) as e:  # safetensors reports a full disk as an error of its own
        reason = getattr(e, "strerror", None) or str(e)
        raise StorageError(f"cannot write the export: {reason}", where=str(target), fix="free some space") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def first_batch(trainer: Any) -> dict[str, Any]:
    """A batch of val, else of train, on the CPU."""
    data = trainer.datamodule
    name = next(n for n in ("val", "probe", "train") if n in data.encoded)
    units = data.units(name)
    few = list(range(min(8, len(units))))
    return collate(units.read(few), few, data.collator())


@torch.inference_mode()
def logits_of(task: Any, model: Any, batch: dict[str, Any], device: torch.device) -> torch.Tensor:
    """Logits without autocast, in eval mode, on the CPU."""
    moved = move_data_to_device(batch, device)
    with evaluating(model):
        return task.scores(task.forward(model, moved)).detach().cpu()  # type: ignore[no-any-return]


def reference_logits(trainer: Any, pl_module: Any) -> torch.Tensor | None:
    """Logits of the weights in memory."""
    data = trainer.datamodule
    if not data.encoded:
        return None
    return logits_of(pl_module.task, pl_module.model, first_batch(trainer), pl_module.device)


def verify(pl_module: Any, trainer: Any, folder: Path, expected: torch.Tensor | None) -> None:
    """Reload the export as anyone would and compare.

    Raises:
        StorageError: It does not load, or gives other logits.
    """
    fix = "run fit again; if it stays so, this is a bug in lit-tune"
    try:
        how, unused = pl_module.recipe.quantization, pl_module.task.unused_modules
        model = load_as_anyone(pl_module.task.auto_class, folder, pl_module.model.dtype, how, unused)
    except Exception as e:  # each broken file has its own class of error
        reason = f"{type(e).__name__}: {str(e).partition(chr(10))[0][:200]}"
        raise StorageError(f"the export does not load: {reason}", where=str(folder.parent), fix=fix) from e
    if expected is None:
        return
    device = pl_module.device
    logits = logits_of(pl_module.task, model.to(device), first_batch(trainer), device)
    difference = float((logits.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-12))
    if not difference <= TOLERANCE.get(logits.dtype, 1e-2):
        raise StorageError(
            f"the reloaded export gives other logits (relative difference {difference:.2e})",
            where=str(folder.parent),
            fix=fix,
        )
    log.debug("export verified: relative difference of one batch's logits %.1e", difference)
