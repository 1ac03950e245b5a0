"""TokenizedDataModule: the one LightningDataModule. Raw rows -> checked, split, encoded once, batched exactly."""

from typing import Literal

import lightning as L

from lit_tune.tasks.base import Task


class TokenizedDataModule(L.LightningDataModule):
    """Any data set, tokenized once and cached.

    Args:
        task: The task (set by the ``task`` section).
        tokenizer: Name or path of the tokenizer; default: the model's own.
        dataset: A Hub id, or a folder written by ``datasets.save_to_disk``.
        name: Configuration of the Hub data set, e.g. ``mrpc``.
        revision: Branch, tag or commit of the Hub data set.
        train_split: Name of the Hub data set's split to train on.
        val_split: Split to validate on; default: ``validation``, ``val`` or ``dev``, whichever there is.
        test_split: Split for ``lit-tune test``.
        train: File(s) to train on: csv, tsv, json, jsonl, parquet, arrow or txt, plain or .gz; a path, a glob or a list.
        val: File(s) to validate on. Without them ``val_fraction`` of train is used.
        test: File(s) for ``lit-tune test``.
        predict: File(s) for ``lit-tune predict``; the label column may be absent.
        field: Key that holds the array of rows in a json file.
        delimiter: Column separator of csv files; default: comma, tab for .tsv.
        encoding: Text encoding of csv, json and txt files.
        streaming: Read train as a stream that is never stored; demands ``trainer.max_steps``.
        val_fraction: Share of train held out, stratified and seeded, where there is no val split; 0 trains without one.
        limit_train: Use only this many rows of train, a seeded subset.
        limit_val: The same for val.
        limit_test: The same for test.
        max_length: Tokens at which a text is cut; default: 512 or what the model can take, whichever is less.
        train_batch_size: Rows per rank and micro-batch; effective batch = it x ranks x trainer.accumulate_grad_batches.
        eval_batch_size: Rows per rank and batch in validation, test and prediction.
        seed: Seed of order, subsets and splits; default: ``seed_everything``.
        num_workers: Processes for loading, and for tokenizing.
        pin_memory: Page-locked memory for faster copies to a GPU; default: only where there is a GPU.
        persistent_workers: Keep the workers alive between epochs.
        padding: Pad to the longest row of each batch, or always to ``max_length``.
        pad_to_multiple_of: Round the padded length up to a multiple, e.g. 8 for tensor cores.
        cache_dir: Where tokenized data is kept; default: ``$LIT_TUNE_CACHE`` or ``~/.cache/lit_tune``.
        model_name_or_path: Set by ``model.model_name_or_path``.
        model_revision: Set by ``model.revision``.
        new_head: Set by ``model.new_head``.
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
        seed: int | None = None,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        persistent_workers: bool = True,
        padding: Literal["longest", "max_length"] = "longest",
        pad_to_multiple_of: int | None = None,
        cache_dir: str | None = None,
        model_name_or_path: str | None = None,
        model_revision: str | None = None,
        new_head: bool = False,
        probe_size: int = 1000,
        default_seed: int = 42,
    ) -> None:
        super().__init__()
        self.task = task
