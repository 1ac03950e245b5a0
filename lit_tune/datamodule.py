"""TokenizedDataModule: the one LightningDataModule. Encoded splits -> batches, cut exactly."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import datasets
import lightning as L
from transformers import PreTrainedTokenizerBase

from lit_tune.data import cache
from lit_tune.data.loader import BatchLoader, StreamBatches, StreamLoader
from lit_tune.data.raw_data import RawData
from lit_tune.data.samplers import EvalBatchSampler, TrainBatchSampler
from lit_tune.data.step_count import batches_used, total_steps
from lit_tune.data.txt_files import TxtRows
from lit_tune.data.units import Units, some_of
from lit_tune.errors import ConfigError
from lit_tune.models.own_class import own_config
from lit_tune.models.text_reader import TextReader
from lit_tune.preparation import Preparation
from lit_tune.tasks.base import Collator, Spec, Task
from lit_tune.tasks.batching import lengths_of, padding_of


class TokenizedDataModule(L.LightningDataModule):
    """Any data set, tokenized once and cached.

    Args:
        task: The task (set by the ``task`` section).
        tokenizer: Name or path of the tokenizer; default: the model's own.
        dataset: A Hub id, or a folder written by ``datasets.save_to_disk``.
        name: Configuration of the Hub data set, e.g. ``mrpc``.
        revision: Branch, tag or commit of the Hub data set.
        train_split: Name of the Hub data set's split to train on; default: ``train``.
        val_split: Split to validate on; default: ``validation``, ``val`` or ``dev``, whichever there is.
        test_split: Split for ``lit-tune test``; default: ``test``.
        train: File(s) to train on: csv, tsv, json, jsonl, parquet, arrow, txt or conll, plain or .gz; a path, a glob or
            a list.
        val: File(s) to validate on. Without them ``val_fraction`` of train is used.
        test: File(s) for ``lit-tune test``.
        predict: File(s) for ``lit-tune predict``; the label column may be absent.
        field: Key that holds the array of rows in a json file.
        txt_rows: What is a row of a txt file: a ``line``, a ``paragraph`` or the ``file``; default: the task's own.
        delimiter: Column separator of csv files; default: comma, tab for .tsv.
        encoding: Text encoding of csv, json, txt and conll files.
        streaming: Read train as a stream that is never stored; demands ``trainer.max_steps``.
        val_fraction: Share of train held out, stratified and seeded, where there is no val split; 0 trains without one.
        limit_train: Use only this many rows of train, a seeded subset.
        limit_val: The same for val.
        limit_test: The same for test.
        max_length: Tokens at which a text is cut; default: 512 (384 for windows of question answering) or what the
            model can take, whichever is less.
        train_batch_size: Rows per rank and micro-batch; effective batch = it x ranks x trainer.accumulate_grad_batches.
        eval_batch_size: Rows per rank and batch in validation, test and prediction.
        auto_batch: Where memory is exhausted, repeat the step with half the train_batch_size and twice the
            accumulation, which gives the same result; in validation, with half the eval_batch_size. The run
            keeps what it has found.
        seed: Seed of order, subsets and splits; default: ``seed_everything``.
        num_workers: Processes for loading, and for tokenizing.
        pin_memory: Page-locked memory for faster copies to a GPU; default: only where there is a GPU.
        persistent_workers: Keep the workers alive between epochs.
        padding: Pad to the longest row of each batch, or always to ``max_length``.
        pad_to_multiple_of: Round the padded length up to a multiple, e.g. 8 for tensor cores.
        group_by_length: Train on rows of like length in one step, so that little is padded.
        cache_dir: Where tokenized data is kept; default: ``$LIT_TUNE_CACHE`` or ``~/.cache/lit_tune``.
        accept: What is meant so in these rows and no error: ``single_class`` (one label in all of train), ``leakage``
            (more than half of the texts of val or test stand in train), ``empty_texts`` (more than 5 % are empty).
        model_name_or_path: Set by ``model.model_name_or_path``.
        model_revision: Set by ``model.revision``.
        model_class: Set by ``model.model_class``.
        new_head: Set by ``model.new_head``.
        from_scratch: Set by ``model.from_scratch``.
        config_overrides: Set by ``model.config_overrides``.
        add_tokens: Set by ``model.add_tokens``.
        add_special_tokens: Set by ``model.add_special_tokens``.
        probe_size: Set by ``overfit.probe_size``.
        default_seed: Set by ``seed_everything``.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: str | None = None,
        dataset: str | None = None,
        name: str | None = None,
        revision: str | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        field: str | None = None,
        txt_rows: TxtRows | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        streaming: bool = False,
        val_fraction: float = 0.1,
        limit_train: int | None = None,
        limit_val: int | None = None,
        limit_test: int | None = None,
        max_length: int | None = None,
        train_batch_size: int = 16,
        eval_batch_size: int = 64,
        auto_batch: bool = False,
        seed: int | None = None,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        persistent_workers: bool = True,
        padding: Literal["longest", "max_length"] = "longest",
        pad_to_multiple_of: int | None = None,
        group_by_length: bool = True,
        cache_dir: str | None = None,
        accept: list[Literal["single_class", "leakage", "empty_texts"]] = [],  # noqa: B006
        model_name_or_path: str | None = None,
        model_revision: str | None = None,
        model_class: str | None = None,
        new_head: bool = False,
        from_scratch: bool = False,
        config_overrides: dict[str, Any] = {},  # noqa: B006
        add_tokens: str | list[str] | None = None,
        add_special_tokens: list[str] = [],  # noqa: B006
        probe_size: int = 1000,
        default_seed: int = 42,
    ) -> None:
        super().__init__()
        if model_name_or_path is None:
            raise ConfigError("is missing", where="model.model_name_or_path", fix="a Hub id or a folder")
        self.task, self.dataset, self.streaming, self.accept = task, dataset, streaming, list(accept)
        self.train_batch_size, self.eval_batch_size, self.auto_batch = train_batch_size, eval_batch_size, auto_batch
        self.together, self.probe_size = task.rows_together(train_batch_size), probe_size
        self.default_seed, self.seed = default_seed, default_seed if seed is None else seed
        self.num_workers, self.pin_memory, self.persistent_workers = num_workers, pin_memory, persistent_workers
        self.padding_mode, self.pad_to_multiple_of, self.group_by_length = padding, pad_to_multiple_of, group_by_length
        self.reader = TextReader(
            model_name_or_path,
            model_revision,
            tokenizer,
            max_length,
            dict(config_overrides),
            num_texts=len(task.input_columns()),
            prepare=task.prepare_tokenizer,
            usual_max_length=task.usual_max_length,
            add_tokens=add_tokens,
            add_special_tokens=list(add_special_tokens),
            config_class=own_config(model_class, task.auto_class),
        )
        self.preparation = Preparation(
            task=task,
            raw=RawData(
                files={"train": train, "val": val, "test": test, "predict": predict},
                dataset=dataset,
                name=name,
                revision=revision,
                hub_splits={"train": train_split, "val": val_split, "test": test_split},
                delimiter=delimiter,
                encoding=encoding,
                json_field=field,
                txt_rows=txt_rows or task.txt_rows,
                text_columns=task.verbatim_columns(),
            ),
            reader=self.reader,
            val_fraction=val_fraction,
            limits={"train": limit_train, "val": limit_val, "test": limit_test},
            seed=self.seed,
            new_head=new_head or from_scratch,  # a head of random weights has no labels to agree with
            num_workers=num_workers,
            cache_dir=Path(cache_dir) if cache_dir else cache.default_cache_dir(),
            stream_probe=probe_size,
        )

    # ---- what others ask ---------------------------------------------------------------------------------------------

    @property
    def spec(self) -> Spec | None:
        """What the task read off the labels; None before ``setup``."""
        return self.preparation.spec

    @spec.setter
    def spec(self, spec: Spec) -> None:
        self.preparation.spec = spec

    @property
    def encoded(self) -> dict[str, datasets.Dataset]:
        """The encoded splits."""
        return self.preparation.encoded

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with a pad token."""
        return self.reader.tokenizer

    @property
    def max_length(self) -> int:
        """Tokens at which a text is cut."""
        return self.reader.max_length

    @property
    def text_overlap(self) -> float | None:
        """Share of val rows whose text also stands in train, where measured."""
        return self.preparation.examination.val_overlap

    @property
    def fingerprint(self) -> str | None:
        """Hash of all that decides the content of train and val."""
        return self.preparation.fingerprint

    def use_model(self, name: str) -> None:
        """Read tokenizer and config of another model, as that of a finished run."""
        as_saved: Any = {"tokenizer_name": None, "config_overrides": {}, "add_tokens": None, "add_special_tokens": []}
        self.reader = self.preparation.reader = replace(self.reader, model_name=name, revision=None, **as_saved)
        self.preparation.new_head = False

    # ---- Lightning's hooks -------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Called on one process per node, before the others go on: what it writes to the cache, they read."""
        self.prepare(self.stage())

    def setup(self, stage: str) -> None:
        """Called on every process."""
        self.prepare(stage)

    def stage(self) -> str:
        """What the trainer was asked to do: ``fit``, ``validate``, ``test`` or ``predict``."""
        fn = self.trainer.state.fn if self.trainer else None
        return fn.value if fn is not None else "fit"

    def prepare(self, stage: str) -> None:
        """Make the splits of a stage ready."""
        if stage == "fit" and self.streaming:
            self.preparation.prepare_stream()
        elif stage == "fit":
            self.preparation.prepare_fit()
        else:
            self.preparation.prepare_eval("val" if stage == "validate" else stage)

    def train_dataloader(self) -> BatchLoader | StreamLoader:
        """Batches of train for this rank."""
        stream = self.preparation.stream
        if stream is not None:
            cuts = (self.train_batch_size, self.accumulate, self.num_ranks, self.rank)
            encode = self.preparation.stream_encoder()
            batches = StreamBatches(stream.read, encode, self.collator(), *cuts, self.seed, together=self.together)
            batches.epoch = self.epoch
            return StreamLoader(batches, self.num_workers, self.pins(), self.seed)
        sampler = self.train_sampler()
        sampler.epoch = self.epoch
        units, workers = self.units("train", training=True), (self.num_workers, self.pins(), self.persistent_workers)
        return BatchLoader(units, sampler, self.collator(), *workers, self.seed)

    def val_dataloader(self) -> list[BatchLoader]:
        """Val, and beside it during fit the probe of train."""
        if "val" not in self.encoded:
            return []
        evaluated = [self.units("val"), self.probe() if self.stage() == "fit" else None]
        return [self.eval_loader(units) for units in evaluated if units is not None]

    def test_dataloader(self) -> BatchLoader:
        """The test split."""
        return self.eval_loader(self.units("test"))

    def predict_dataloader(self) -> BatchLoader:
        """The rows to predict; predictions that are returned, and not written by number, come in the order of rows."""
        returned = self.trainer is None or self.trainer.predict_loop.return_predictions
        units = self.task.predict_units(self.encoded["predict"], self.reader)
        return self.eval_loader(units, together=1, in_order=returned)

    # ---- batches -----------------------------------------------------------------------------------------------------

    @property
    def num_ranks(self) -> int:
        """Processes that work together."""
        return self.trainer.world_size if self.trainer else 1

    @property
    def rank(self) -> int:
        """This process."""
        return self.trainer.global_rank if self.trainer else 0

    @property
    def epoch(self) -> int:
        """The epoch to begin with: workers fetch ahead before Lightning says it."""
        return self.trainer.current_epoch if self.trainer else 0

    @property
    def accumulate(self) -> int:
        """Micro-batches per optimizer step."""
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    @property
    def effective_batch(self) -> int:
        """Rows per optimizer step."""
        return self.train_batch_size * self.num_ranks * self.accumulate

    def train_sampler(self) -> TrainBatchSampler:
        """The order of training on this rank."""
        cuts = (self.train_batch_size, self.accumulate, self.num_ranks, self.rank)
        units = self.units("train", training=True)
        lengths = lengths_of(units, self.padding_mode, self.together) if self.group_by_length else None
        return TrainBatchSampler(len(units), *cuts, self.seed, self.together, lengths)

    def total_steps(self) -> int | None:
        """Optimizer steps of the whole run, or None where nothing says when it ends."""
        # never Lightning's estimated_stepping_batches: it builds the loader before a checkpoint is restored
        trainer, part = self.trainer, self.trainer.limit_train_batches  # type: ignore[union-attr]
        batches = part if isinstance(part, int) else None  # of a stream: at most, nobody knows how long it is
        if self.preparation.stream is None:
            batches = batches_used(len(self.train_sampler()), part)
        return total_steps(batches, self.accumulate, trainer.max_epochs, trainer.max_steps)  # type: ignore[union-attr]

    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of an epoch, or None for a stream."""
        if self.preparation.stream is not None:
            return None
        batches = batches_used(len(self.train_sampler()), self.trainer.limit_train_batches)  # type: ignore[union-attr]
        return total_steps(batches, self.accumulate, 1, None)

    def collator(self) -> Collator:
        """The task's collator with this run's padding."""
        assert self.spec is not None
        mode, multiple = self.padding_mode, self.pad_to_multiple_of
        padding = padding_of(self.task, self.reader, mode, multiple, self.seed, self.together)
        return self.task.collator(padding, self.spec)

    def units(self, name: str, training: bool = False) -> Units:
        """What the batches of a split are drawn from."""
        return self.task.units(self.encoded[name], training, self.reader)

    def eval_loader(self, units: Units, together: int | None = None, in_order: bool = False) -> BatchLoader:
        """Every unit once."""
        together = together or self.together
        lengths = None if in_order else lengths_of(units, self.padding_mode, together)
        sampler = EvalBatchSampler(len(units), self.eval_batch_size, self.num_ranks, self.rank, together, lengths)
        return BatchLoader(units, sampler, self.collator(), self.num_workers, self.pins(), False, self.seed)

    def probe(self) -> Units | None:
        """Fixed units of train that are evaluated beside val, so that the two can be compared."""
        if self.probe_size == 0 or self.preparation.stream is not None:
            return self.units("probe") if self.probe_size else None
        train = self.units("train")
        return some_of(train, min(self.probe_size, len(self.units("val")), len(train)), self.seed)

    def pins(self) -> bool:
        """Whether batches go to page-locked memory."""
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return on_gpu and self.pin_memory is not False  # without a GPU torch only warns that it pins nothing
