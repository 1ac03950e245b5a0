"""Raw rows -> checked, split, encoded once and cached. What ``lit-tune prepare`` does, and the start of every run."""

import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from lit_tune.data import cache, splits
from lit_tune.data.file_tables import quiet_datasets
from lit_tune.data.hub import content_fingerprint
from lit_tune.data.raw_data import RawData
from lit_tune.data.split import Split
from lit_tune.data.texts import texts_of
from lit_tune.data.truncation import TokenCounts, count_columns, token_counts
from lit_tune.errors import ConfigError, LitTuneError, StorageError, collected, raise_problems
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.base import Spec, Task
from lit_tune.tasks.encoding import StreamEncoder, class_labels, encode_batch
from lit_tune.tasks.examination import Examination, examine, is_sorted, is_unlabelled

log = logging.getLogger("lit_tune")
FIRST_BLOCK = 10_000
"""Rows of a stream that are looked at: as many as ``data.loader`` shuffles together."""


class Preparation:
    """The splits of a run, encoded.

    Args:
        task: What to read off the rows, and how to encode them.
        raw: Where the rows come from.
        reader: Tokenizer, config and length of the model.
        val_fraction: Share of train held out where there is no val split.
        limits: Split -> number of rows to use, or None for all.
        seed: Seed of subsets and of the held-out part.
        new_head: The model's own head is replaced.
        num_workers: Processes that tokenize.
        cache_dir: Where encoded splits are kept.
        stream_probe: Rows of a streamed train split to evaluate beside val.
    """

    def __init__(
        self,
        task: Task,
        raw: RawData,
        reader: TextReader,
        val_fraction: float,
        limits: dict[str, int | None],
        seed: int,
        new_head: bool,
        num_workers: int,
        cache_dir: Path,
        stream_probe: int,
    ) -> None:
        self.task, self.raw, self.reader = task, raw, reader
        self.val_fraction, self.limits, self.seed, self.new_head = val_fraction, limits, seed, new_head
        self.num_workers, self.cache_dir, self.stream_probe = num_workers, cache_dir, stream_probe

        self.spec: Spec | None = None
        """Read off train; given by the run for test and predict."""
        self.encoded: dict[str, datasets.Dataset] = {}
        self.counts: dict[str, TokenCounts] = {}
        self.stream: Split | None = None
        self.examination = Examination()
        """What was noticed about the rows."""
        self.fingerprint: str | None = None
        self.unlabelled: set[str] = set()
        """Evaluated splits in which no row has a label."""
        self.cuts_val = False
        """Val is a part of train."""
        self.reused: set[str] = set()
        """Splits that came from the cache."""

    # ---- fit ---------------------------------------------------------------------------------------------------------

    def prepare_fit(self) -> None:
        """Train and val; a second call does nothing, a second start takes them from the cache."""
        if "train" in self.encoded:
            return
        problems: list[LitTuneError] = []
        raw = self.load_raw(("train", "val"), problems)
        if problems:
            self.look_at(raw, problems)
        elif not self.restore_fit(raw):
            assert self.fingerprint is not None
            self.encode(self.look_at(raw, problems), self.fingerprint)

    def read(self, names: Sequence[str]) -> dict[str, Split]:
        """The rows of these splits, looked at; nothing is tokenized.

        Raises:
            LitTuneError: All that cannot be read or used, of all splits together.
        """
        problems: list[LitTuneError] = []
        return self.look_at(self.load_raw(names, problems), problems)

    def load_raw(self, names: Sequence[str], problems: list[LitTuneError]) -> dict[str, Split]:
        """The splits that exist by themselves.

        Args:
            names: Of splits; without train there is a problem.
            problems: Receives what cannot be read.
        """
        raw: dict[str, Split] = {}
        for name in names:
            with collected(problems):
                found = self.raw.load_train() if name == "train" else self.raw.load(name)
                raw |= {name: found} if found else {}
        self.cuts_val = "val" not in raw and self.val_fraction > 0
        return raw

    def restore_fit(self, raw: dict[str, Split]) -> bool:
        """Take train and val from the cache; False where they are not there."""
        content = [raw[name].fingerprint if name in raw else None for name in ("train", "val")]
        self.fingerprint = self.key(*content, self.val_fraction, self.limits, self.new_head)
        return self.restore(self.fingerprint)

    def look_at(self, raw: dict[str, Split], problems: list[LitTuneError]) -> dict[str, Split]:
        """Look at every row, find the labels, hold val out, apply the limits; nothing is tokenized.

        Args:
            raw: Whole splits.
            problems: What is known to be wrong already; raised with the rest.

        Returns:
            The rows that are used.

        Raises:
            LitTuneError: All that cannot be used, of all splits together.
        """
        config = None
        self.spec = None
        with collected(problems):
            config = self.reader.config
        with collected(problems):
            if "train" in raw:
                self.spec = self.task.inspect(raw["train"], config, self.new_head or config is None)
        for split in raw.values():
            with collected(problems):
                # where the labels cannot be told the texts still can
                labelled = self.spec is not None and not is_unlabelled(self.task, self.spec, split)
                self.task.check(split, self.spec or Spec("unknown"), labelled)
        raise_problems(problems)
        assert self.spec is not None
        used = self.held_out({name: self.task.usable(split, self.spec) for name, split in raw.items()})
        self.spec = self.task.summarize(used["train"], self.spec)
        self.examination = examine(self.task, self.spec, used)
        self.reader.learn(texts_of(used["train"], self.task.input_columns()))
        return used

    def prepare_stream(self) -> None:
        """Train stays a stream; val and the probe are small and are encoded like any split."""
        if self.stream is not None:
            return
        train, _, kept = self.look_at_stream()
        # the fingerprint of a stream is that of its beginning: the probe's own content decides what is cached of it
        content = {name: content_fingerprint(split.rows) for name, split in kept.items()}  # type: ignore[arg-type]
        self.fingerprint = self.key(train.fingerprint, content)
        if kept and not self.restore(self.fingerprint):
            self.encode(kept, self.fingerprint)
        self.stream = train

    def look_at_stream(self) -> tuple[Split, Split, dict[str, Split]]:
        """Open the stream, and look at its first block and at every row of val.

        Returns:
            The stream, its first block, and the rows that are evaluated: val, and a probe drawn from the block.

        Raises:
            LitTuneError: All that cannot be used.
        """
        train, val = self.raw.load_train(streaming=True), self.raw.load("val")
        self.spec = spec = self.task.inspect(train, self.reader.config, self.new_head)
        block = train.take(FIRST_BLOCK)
        used = {"train": block} | ({"val": self.limited(val)} if val else {})
        problems: list[LitTuneError] = []
        for split in used.values():
            with collected(problems):
                self.task.check(split, spec)
        raise_problems(problems)
        classes = self.task.strata(block, spec) if spec.label_names else None
        # of the overlap with train only a part is known, which says nothing
        found = replace(examine(self.task, spec, used), overlaps={})
        self.examination = replace(found, is_sorted=classes is not None and is_sorted(classes))
        self.spec = self.with_baseline(spec, block)
        self.reader.learn(texts_of(block, self.task.input_columns()))
        probe = block.select(splits.subset(len(block), max(1, self.stream_probe), self.seed)).renamed("probe")
        evaluated = {k: s for k, s in used.items() if k == "val"}
        return train, block, ({"probe": probe} if self.stream_probe else {}) | evaluated

    def with_baseline(self, spec: Spec, block: Split) -> Spec:
        """The baseline of a stream is that of its first rows; none where they are all alike, or class after class."""
        found = self.task.summarize(block, spec).baseline
        tells = found.get("accuracy") != 1.0 and 0.0 not in (found.get("loss"), found.get("mse"))
        is_fair = tells and not self.examination.is_sorted
        return replace(spec, baseline=found) if is_fair and self.stream_probe else spec

    def held_out(self, raw: dict[str, Split]) -> dict[str, Split]:
        """Cut val from train where it is missing, then apply the limits."""
        used = dict(raw)
        if self.cuts_val:
            assert self.spec is not None
            kept, held = self.task.hold_out(raw["train"], self.val_fraction, self.seed, self.spec)
            used |= {"train": kept, "val": held.renamed("val")}
        return {name: self.limited(split) for name, split in used.items()}

    @property
    def val_fraction_used(self) -> float | None:
        """``val_fraction`` where val was cut from train, else None."""
        return self.val_fraction if self.cuts_val else None

    def limited(self, split: Split) -> Split:
        """A seeded subset where ``limit_*`` asks for one."""
        limit = self.limits.get(split.name)
        if limit is None or limit >= len(split):
            return split
        return split.select(splits.subset(len(split), limit, self.seed))

    # ---- validate, test, predict -------------------------------------------------------------------------------------

    def prepare_eval(self, name: str) -> None:
        """One split, with the labels of the run or of the model.

        Args:
            name: ``val``, ``test`` or ``predict``.

        Raises:
            ConfigError: There is no such split.
        """
        if name in self.encoded:
            return
        if name == "val" and not self.raw.has("val"):
            given = self.spec
            self.prepare_fit()  # it was cut from train: only train can say which rows
            self.spec = given or self.spec
            if "val" not in self.encoded:
                raise ConfigError(
                    "there is no val split", where="data.val", fix="data.val: a file, or val_fraction > 0"
                )
            return
        split = self.raw.load(name)
        if split is None:
            raise ConfigError(f"there is no {name} split", where=f"data.{name}", fix=f"data.{name}: a file")
        if self.spec is None:
            self.spec = self.task.spec_of_model(self.reader.config)
        split = self.limited(split)
        labelled = name == "val" or (name == "test" and not self.task.is_unlabelled(split, self.spec))
        if not labelled:
            self.unlabelled.add(name)
        key = self.key(split.fingerprint, self.limits.get(name), name)
        if not self.restore(key):
            self.task.check(split, self.spec, labelled)
            used = self.task.usable(split, self.spec) if labelled else self.task.without_labels(split)
            self.encode({name: used}, key)

    # ---- encoding and the cache --------------------------------------------------------------------------------------

    def key(self, *parts: Any) -> str:
        """Cache key: the data's content, the tokenizer, the task's settings, the labels and the code's version."""
        labels = self.spec.to_dict() if self.spec else [self.reader.config.architectures, self.reader.config.id2label]
        # a tokenizer that is learned follows from the rows, which are in the key
        learns = self.reader.config.vocab_size if self.reader.learns else None
        reader = (learns or cache.tokenizer_fingerprint(self.reader.tokenizer), self.reader.max_length)
        task = (self.task.settings(), cache.code_fingerprint(self.task))
        return cache.digest(parts, self.seed, reader, task, labels)

    def encode(self, raw: dict[str, Split], key: str) -> None:
        """Tokenize, count, store, and read back memory-mapped."""
        assert self.spec is not None
        folder = self.cache_dir / key
        with cache.draft(folder) as temporary:
            encoded = {name: self.encode_rows(split, temporary / f"{name}.arrow") for name, split in raw.items()}
            limit = self.task.cut_at(self.reader.max_length)
            self.counts.update({name: token_counts(rows, limit) for name, rows in encoded.items()})
            self.spec = self.task.measure(encoded["train"], self.spec) if "train" in encoded else self.spec
            notes = {
                "spec": self.spec.to_dict(),
                "counts": {name: vars(self.counts[name]) for name in raw},
                "examination": self.examination.to_dict(),
                "learned": self.reader.learned,
            }
            kept = {name: rows.remove_columns(count_columns(rows.column_names)) for name, rows in encoded.items()}
            cache.save(folder, kept, notes, temporary)
        if (stored := cache.load(folder)) is None:
            raise StorageError("tokenized data was gone as soon as it was written", where=str(folder), fix=cache.FIX)
        self.encoded.update(stored[0])
        self.say(raw, "tokenized")

    def encode_rows(self, split: Split, path: Path) -> datasets.Dataset:
        """All rows of a split through ``Task.encode``."""
        reader = self.reader
        arguments = {
            "task": self.task,
            "tokenizer": reader.tokenizer,
            "spec": self.spec,
            "max_length": reader.max_length,
            "class_labels": class_labels(split),
        }
        with nullcontext() if sys.stderr.isatty() else quiet_datasets():
            return split.rows.map(
                encode_batch,
                fn_kwargs=arguments,
                batched=True,
                remove_columns=split.rows.column_names,
                num_proc=min(self.num_workers, len(split)) if self.num_workers > 1 else None,
                load_from_cache_file=False,  # ours is keyed by content, datasets' by a pickle of the function
                cache_file_name=str(path),  # datasets would write beside the source, which may be read-only
                new_fingerprint=path.parent.name.strip("."),
                desc=f"tokenizing {split.name}",
            )

    def stream_encoder(self) -> StreamEncoder:
        """What encodes rows of the stream."""
        assert self.stream is not None
        assert self.spec is not None
        return StreamEncoder(self.stream, self.task, self.reader.tokenizer, self.spec, self.reader.max_length)

    def restore(self, key: str) -> bool:
        """Take splits from the cache; False where they are not there."""
        found = cache.load(self.cache_dir / key)
        if found is None:
            return False
        encoded, notes = found
        self.reader.recall(notes.get("learned"))
        if self.spec is None or "train" in encoded or "probe" in encoded:
            self.spec = Spec(**notes["spec"])
            self.task.check_settings(self.spec)
            self.examination = Examination.from_dict(notes["examination"])
        self.encoded.update(encoded)
        self.counts.update({name: TokenCounts(**counts) for name, counts in notes["counts"].items()})
        self.reused.update(encoded)
        self.say(encoded, "reused from the cache")
        return True

    def say(self, names: Any, how: str) -> None:
        """One line per split: rows, tokens, what was cut, and whether anything was tokenized."""
        for name in names:
            found, counts = self.examination.texts.get(name), self.counts[name]
            empty = f", {found.num_empty:,} empty" if found and found.num_empty else ""
            line = counts.line(self.task.cut_at(self.reader.max_length), how)
            log.info("%-8s%s%s%s", name, line, counts.others_line(), empty)
