"""From row numbers to batches: the only loaders lit-tune uses.

They wrap a ``DataLoader`` instead of subclassing it, because Lightning rebuilds what is a ``DataLoader`` (prediction
wraps its batch sampler, distributed runs replace it) and leaves any other iterable alone.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.data._utils import signal_handling

from lit_tune import interrupts
from lit_tune.data.samplers import FILLER, EvalBatchSampler, TrainBatchSampler, cut
from lit_tune.data.units import Units
from lit_tune.errors import LitTuneError

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


def collate(
    features: list[dict[str, Any]], ids: list[int], collator: Collator, epoch: int | None = None
) -> dict[str, Any]:
    """A batch with its bookkeeping: ``example_ids``, and ``is_filler`` (weighs nothing, is not decoded).

    Args:
        features: Of each unit.
        ids: Their numbers.
        collator: Features -> tensors. One with ``is_random`` gets a ``draw`` with each feature, the seed of whatever
            is random in it: that may depend on the unit and the epoch, never on how a step is cut into batches.
        epoch: Of training; None where nothing may change from one time to the next.
    """
    if getattr(collator, "is_random", False):
        pairs = zip(features, ids, strict=True)
        features = [{**feature, "draw": (0 if epoch is None else epoch + 1, max(i, 0))} for feature, i in pairs]
    batch = collator(features)
    batch["example_ids"] = list(ids)
    batch["is_filler"] = batch["example_ids"] == [FILLER]
    return batch


class EncodedRows(Dataset):
    """Units by number, read a batch at a time.

    Args:
        units: Encoded features, memory-mapped.
        collator: Features -> tensors. Collating here keeps numbers and features together in the worker.
    """

    def __init__(self, units: Units, collator: Collator) -> None:
        self.units, self.collator = units, collator

    def __len__(self) -> int:
        return len(self.units)

    def __getitems__(self, ids: list[int]) -> dict[str, Any]:
        """Called by torch's fetcher with a whole batch of numbers."""
        return collate(self.units.read([max(i, 0) for i in ids]), ids, self.collator, getattr(ids, "epoch", None))


def identity(batch: dict[str, Any]) -> dict[str, Any]:
    """The rows come collated."""
    return batch


def quiet_forks(num_workers: int) -> None:
    """Tokenizers that ran on several threads write five lines to stderr for each process forked after."""
    if num_workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # torch sets its SIGCHLD handler, which tells what killed a worker, once per process; Lightning puts back all
        # handlers from before a fit when that ends
        signal_handling._SIGCHLD_handler_set = False


def start_worker(worker_id: int) -> None:
    """A loading process begins: signals to the whole group are for the run, which ends its workers itself."""
    interrupts.in_worker()


class BatchLoader:
    """Batches in the order of a batch sampler.

    Args:
        units: What the batches are drawn from.
        batch_sampler: Gives lists of numbers.
        collator: Features -> tensors.
        num_workers: Loading processes.
        pin_memory: Page-locked memory.
        persistent_workers: Keep the processes between epochs.
        seed: Seed of the workers; the process's own random state is never drawn from.
    """

    def __init__(
        self,
        units: Units,
        batch_sampler: TrainBatchSampler | EvalBatchSampler,
        collator: Collator,
        num_workers: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = False,
        seed: int = 0,
    ) -> None:
        self.batch_sampler = batch_sampler
        self.seed, self._generator = seed, torch.Generator()
        quiet_forks(num_workers)
        self._loader = DataLoader(
            EncodedRows(units, collator),
            batch_sampler=batch_sampler,  # type: ignore[arg-type]  # torch asks for a Sampler, uses an iterable
            collate_fn=identity,  # type: ignore[arg-type]  # the rows come as a batch, not as a list
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=start_worker,
            persistent_workers=persistent_workers and num_workers > 0,
            generator=self._generator,
        )

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._generator.manual_seed(self.seed)  # not by how often it was read: a resumed run has read it less often
        return iter(self._loader)

    def state_dict(self) -> dict[str, int]:
        """Nothing: what was fetched ahead is not what was trained on; ``checkpointing`` writes the position."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next reading in an epoch, after so many micro-batches of it."""
        if isinstance(self.batch_sampler, TrainBatchSampler):
            self.batch_sampler.epoch, self.batch_sampler.start = state["epoch"], state["batch"]


class StreamBatches(IterableDataset):
    """Batches cut from a stream: windows of rows, shuffled in blocks, cut into micro-batches and ranks.

    Every rank and worker reads the whole stream and keeps its own cuts, so a window holds the same rows on any number
    of ranks and workers. The shuffle is pure in (seed, epoch, block): ``datasets``' buffer cannot be rebuilt at a
    position.

    Args:
        read: Gives the raw rows of the stream from its beginning.
        encode: Raw rows (column -> values) and their positions in the stream -> features (column -> values).
        collator: Features -> tensors.
        batch_size: Rows per rank and micro-batch.
        accumulate: Micro-batches per optimizer step.
        num_ranks: Processes that train together.
        rank: This process.
        seed: Seed of the order.
        block_size: Rows shuffled together.
        together: Rows of a group that stays whole, as in ``samplers.cut``.
    """

    def __init__(
        self,
        read: Callable[[], Iterator[dict[str, Any]]],
        encode: Callable[[dict[str, list[Any]], list[int]], dict[str, list[Any]]],
        collator: Collator,
        batch_size: int,
        accumulate: int,
        num_ranks: int,
        rank: int,
        seed: int,
        block_size: int = 10_000,
        together: int = 1,
    ) -> None:
        self.read, self.encode, self.collator = read, encode, collator
        self.batch_size, self.accumulate, self.num_ranks, self.rank = batch_size, accumulate, num_ranks, rank
        self.seed, self.block_size, self.together, self.epoch = seed, block_size, together, 0
        self.start = 0
        """Micro-batches of this epoch that are left out, as in ``TrainBatchSampler``; their rows are not encoded."""

    def set_epoch(self, epoch: int) -> None:
        """Called through the loader's ``sampler``."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def windows(self) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        """Rows of one optimizer step after another: (position in the stream, row)."""
        size = self.batch_size * self.accumulate * self.num_ranks
        window: list[tuple[int, dict[str, Any]]] = []
        for block in self.blocks():
            for row in block:
                window.append(row)
                if len(window) == size:
                    yield window
                    window = []
        if window:
            yield window

    def blocks(self) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        """Shuffled blocks of the stream."""
        block: list[tuple[int, dict[str, Any]]] = []
        number = 0
        for item in enumerate(self.read()):
            block.append(item)
            if len(block) == self.block_size:
                yield self.shuffled(block, number)
                block, number = [], number + 1
        if block:
            yield self.shuffled(block, number)

    def shuffled(self, block: list[tuple[int, dict[str, Any]]], number: int) -> list[tuple[int, dict[str, Any]]]:
        """One block in its order."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) * 1_000_003 + number)
        return [block[i] for i in torch.randperm(len(block), generator=generator).tolist()]

    def __iter__(self) -> Iterator[dict[str, Any] | LitTuneError]:
        worker = torch.utils.data.get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        turn = 0
        try:
            for window in self.windows():
                for picks in cut(range(len(window)), self.batch_size, self.num_ranks, self.rank, self.together):
                    # the loader takes one batch from each worker in turn
                    if turn >= self.start and (turn - self.start) % num_workers == worker_id:
                        yield self.batch(window, picks)
                    turn += 1
        except LitTuneError as error:
            # raised by the loader, because torch would wrap what a worker raises in its traceback
            yield getattr(error, "problems", [error])[0]

    def batch(self, window: list[tuple[int, dict[str, Any]]], picks: list[int]) -> dict[str, Any]:
        """Encode and collate the picked rows of a window."""
        chosen = [window[max(i, 0)] for i in picks]
        columns = dict.fromkeys(name for _, row in chosen for name in row)
        positions = [position for position, _ in chosen]
        encoded = self.encode({name: [row.get(name) for _, row in chosen] for name in columns}, positions)
        features = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
        return collate(features, [FILLER] if picks == [FILLER] else positions, self.collator, self.epoch)


class StreamLoader:
    """Batches of a stream; no length, so ``trainer.max_steps`` ends the run."""

    def __init__(self, batches: StreamBatches, num_workers: int = 0, pin_memory: bool = False, seed: int = 0) -> None:
        self.sampler = batches  # Lightning calls its set_epoch
        quiet_forks(num_workers)
        self._loader = DataLoader(
            batches,
            batch_size=None,
            collate_fn=identity,  # type: ignore[arg-type]
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=start_worker,
            generator=torch.Generator().manual_seed(seed),
        )

    def state_dict(self) -> dict[str, int]:
        """Nothing: what was fetched ahead is not what was trained on; ``checkpointing`` writes the position."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next reading in an epoch, after so many micro-batches of it."""
        self.sampler.epoch, self.sampler.start = state["epoch"], state["batch"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._loader:
            if isinstance(batch, LitTuneError):
                raise batch
            yield batch
