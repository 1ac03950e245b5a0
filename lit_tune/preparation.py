"""Raw rows -> checked, split, encoded once and cached. What ``lit-tune prepare`` does, and the start of every run."""

import logging
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from lit_tune.data import cache, checks, splits
from lit_tune.data.file_tables import quiet_datasets
from lit_tune.data.hub import content_fingerprint
from lit_tune.data.raw_data import RawData
from lit_tune.data.split import Split
from lit_tune.data.truncation import TokenCounts, token_counts
from lit_tune.errors import ConfigError, DataError, StorageError
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.base import Spec, Task
from lit_tune.tasks.encoding import StreamEncoder, class_labels, encode_batch

log = logging.getLogger("lit_tune")


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
        self.text_overlap: float | None = None
        """Share of val rows whose text also stands in train."""
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
        train, val = self.load_train(), self.raw.load("val")
        self.cuts_val = val is None and self.val_fraction > 0
        parts = (train.fingerprint, val.fingerprint if val else None, self.val_fraction, self.limits, self.new_head)
        self.fingerprint = self.key(*parts)
        if self.restore(self.fingerprint):
            return
        self.spec = self.task.inspect(train, self.reader.config, self.new_head)
        self.check(train)
        train, val = self.held_out(train, val)
        self.spec = self.task.summarize(train, self.spec)
        if val:
            report = checks.text_overlap(self.texts(train), self.texts(val))
            self.text_overlap = report.count / max(1, report.total)
        self.encode({"train": train} | ({"val": val} if val else {}), self.fingerprint)

    def prepare_stream(self) -> None:
        """Train stays a stream; val and the probe are small and are encoded like any split."""
        if self.stream is not None:
            return
        train, val = self.load_train(streaming=True), self.raw.load("val")
        self.spec = self.task.inspect(train, self.reader.config, self.new_head)
        probe = train.take(max(1, self.stream_probe)).renamed("probe")
        kept = ({"probe": probe} if self.stream_probe else {}) | ({"val": self.limited(val)} if val else {})
        # the fingerprint of a stream is that of its beginning: the probe's own content decides what is cached of it
        parts = (content_fingerprint(probe.rows), val.fingerprint if val else None, self.limits, sorted(kept))
        self.fingerprint = self.key(train.fingerprint, *parts)
        if kept and not self.restore(self.fingerprint):
            for split in kept.values():
                self.check(split)
            self.spec = self.with_baseline(self.spec, probe)
            self.encode(kept, self.fingerprint)
        self.stream = train

    def with_baseline(self, spec: Spec, probe: Split) -> Spec:
        """The baseline of a stream is that of its first rows; none where they are all alike, as in a sorted file."""
        found = self.task.summarize(probe, spec).baseline
        tells = found.get("accuracy") != 1.0 and 0.0 not in (found.get("loss"), found.get("mse"))
        return replace(spec, baseline=found) if tells and self.stream_probe else spec

    def load_train(self, streaming: bool = False) -> Split:
        """The train split.

        Raises:
            ConfigError: There is none.
        """
        train = self.raw.load("train", streaming)
        if train is None:
            raise ConfigError(
                "there is nothing to train on", where="data.train", fix="data.train: a file, or data.dataset"
            )
        return train

    def held_out(self, train: Split, val: Split | None) -> tuple[Split, Split | None]:
        """Cut val from train where it is missing, then apply the limits."""
        assert self.spec is not None
        if val is None and self.val_fraction > 0:
            if len(train) < 2:
                raise DataError("one row cannot be split", where=train.title, fix="more rows, or data.val_fraction: 0")
            kept, held = splits.holdout(len(train), self.val_fraction, self.seed, self.task.strata(train, self.spec))
            train, val = train.select(kept), train.select(held).renamed("val")
        elif val is not None:
            self.check(val)
        return self.limited(train), self.limited(val) if val else None

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
            self.check(split, labelled)
            self.encode({name: split if labelled else self.task.without_labels(split)}, key)

    # ---- encoding and the cache --------------------------------------------------------------------------------------

    def check(self, split: Split, labelled: bool = True) -> None:
        """Find unusable rows before anything is tokenized."""
        assert self.spec is not None
        for remark in self.task.check(split, self.spec, labelled=labelled):
            log.warning(remark)

    def texts(self, split: Split) -> Iterator[str]:
        """The task's texts of all rows, one after another."""
        for rows in split.rows.iter(batch_size=1000):
            yield from self.task.texts(rows)

    def key(self, *parts: Any) -> str:
        """Cache key: the data's content, the tokenizer, the task's settings, the labels and the code's version."""
        labels = self.spec.to_dict() if self.spec else [self.reader.config.architectures, self.reader.config.id2label]
        reader = (cache.tokenizer_fingerprint(self.reader.tokenizer), self.reader.max_length)
        task = (self.task.settings(), cache.code_fingerprint(self.task))
        return cache.digest(parts, self.seed, reader, task, labels)

    def encode(self, raw: dict[str, Split], key: str) -> None:
        """Tokenize, count, store, and read back memory-mapped."""
        assert self.spec is not None
        folder = self.cache_dir / key
        with cache.draft(folder) as temporary:
            encoded = {name: self.encode_rows(split, temporary / f"{name}.arrow") for name, split in raw.items()}
            self.counts.update({name: token_counts(rows, self.reader.max_length) for name, rows in encoded.items()})
            notes = {
                "spec": self.spec.to_dict(),
                "counts": {name: vars(self.counts[name]) for name in raw},
                "text_overlap": self.text_overlap,
            }
            kept = {name: rows.remove_columns("num_tokens") for name, rows in encoded.items()}
            cache.save(folder, kept, notes, temporary)
        stored = cache.load(folder)
        if stored is None:
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
        if self.spec is None or "train" in encoded or "probe" in encoded:
            self.spec = Spec(**notes["spec"])
            self.text_overlap = notes["text_overlap"]
        self.encoded.update(encoded)
        self.counts.update({name: TokenCounts(**counts) for name, counts in notes["counts"].items()})
        self.reused.update(encoded)
        self.say(encoded, "reused from the cache")
        return True

    def say(self, names: Any, how: str) -> None:
        """One line per split: rows, tokens, what was cut, and whether anything was tokenized."""
        for name in names:
            log.info("%-8s%s", name, self.counts[name].line(self.reader.max_length, how))
