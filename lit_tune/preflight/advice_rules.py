"""Settings that work, and are hardly what anybody wants."""

import os
from collections.abc import Iterator

from lit_tune.preflight.findings import Finding, warning
from lit_tune.preflight.situation import Situation

HIGH_LR = 1e-3
"""Fine-tuning with Adam is usual from 1e-5 to 5e-5 (BERT, https://arxiv.org/abs/1810.04805, appendix A.3); at 1e-3 a
pretrained transformer forgets what it knows and its loss stays where it was."""
LOW_LR = 1e-7


def advice(s: Situation) -> list[Finding]:
    """All of it."""
    return [*learning_rate(s), *same_files(s), *groups(s)]


def learning_rate(s: Situation) -> Iterator[Finding]:
    """A rate at which a pretrained model is lost, or stands still."""
    rate, name = s["optimizer.lr"], str(s["optimizer.name"]).lower()
    if not isinstance(rate, float) or not name.startswith("adam"):
        return
    frozen = s["model.freeze"] or []
    only_head = "backbone" in ([frozen] if isinstance(frozen, str) else frozen) and not s["model.unfreeze"]
    if rate >= HIGH_LR and not s["model.from_scratch"] and not only_head:
        yield warning(
            f"{rate:g} is high for a pretrained model: its loss often stays where it was",
            where="optimizer.lr",
            fix="optimizer.lr: 3e-5; for a new head alone optimizer.head_lr",
        )
    if rate < LOW_LR:
        yield warning(f"{rate:g} hardly changes anything", where="optimizer.lr", fix="optimizer.lr: 3e-5")


def same_files(s: Situation) -> Iterator[Finding]:
    """What decides which weights are best cannot measure how good they are."""
    val, test = (_real_paths(s[f"data.{name}"]) for name in ("val", "test"))
    splits = s["data.val_split"], s["data.test_split"]
    if (val and val & test) or (splits[0] is not None and splits[0] == splits[1]):
        yield warning(
            "val and test are the same rows: the best weights are chosen on them, so that the test looks too good",
            where="data.test",
            fix="rows of its own for data.test",
        )


def groups(s: Situation) -> Iterator[Finding]:
    """Rows that are compared with each other are those of a batch, which more batches in a step do not change."""
    if not str(s["task.class_path"]).endswith(".SentenceEmbedding") or s["task.init_args.loss"] == "cosine":
        return
    batches = (s["trainer.accumulate_grad_batches"] or 1) * s.num_ranks
    size = s["data.train_batch_size"]
    if s.verb == "fit" and s["task.init_args.group_size"] is None and batches > 1:
        yield warning(
            f"{size} rows are compared with each other, not the {size * batches} of a step",
            where="task.init_args.group_size",
            fix=f"{size} says that it is meant so; or a larger data.train_batch_size, with texts_at_once: {size}",
        )


def _real_paths(given: str | list[str] | None) -> set[str]:
    paths = [given] if isinstance(given, str) else given or []
    return {os.path.realpath(os.path.expanduser(path)) for path in paths}
