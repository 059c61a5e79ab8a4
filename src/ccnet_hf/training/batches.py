"""Which examples make which batch: a pure function of seed and step, so a resumed run goes on as if never stopped."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from itertools import islice
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node

from ccnet_hf.data.loading import SegmentationDataset, read_rows
from ccnet_hf.errors import InputError


_GROUPED_BATCHES = 100


class Batches(torch.utils.data.Sampler):
    """Batches of keys for the steps `start..stop - 1` of one process.

    Args:
        batch_size: examples per step over all processes.
        start: first step.
        stop: step after the last.
        seed: of the order.
        process_index, num_processes: this process takes its equal share of every batch.
        micro_batches: parts a process's share comes in, for gradient accumulation.
    """

    def __init__(
        self,
        batch_size: int,
        start: int,
        stop: int,
        seed: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
        micro_batches: int = 1,
    ):
        self.share = batch_size // num_processes
        self.steps = range(start, stop)
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self.micro_batches = micro_batches

    def __len__(self) -> int:
        return len(self.steps) * self.micro_batches

    def __iter__(self) -> Iterator[list[tuple]]:
        keys = self._keys()
        while batch := list(islice(keys, self.share // self.micro_batches)):
            yield batch

    def position_after(self, step: int) -> tuple[int, int] | None:
        """Where in a stream this process goes on after a step, (epoch, examples taken of it)."""
        return None

    def _keys(self) -> Iterator[tuple]:
        """The keys of all steps."""
        raise NotImplementedError


class SeededBatches(Batches):
    """Batches of (epoch, index) pairs.

    The examples of an epoch come in a random order drawn from (seed, epoch); batches run across the ends of epochs.

    Args:
        num_examples: size of the split.
        is_wide: (num_examples,) bool. Where given, most batches hold wide images or others alone: inside every 100
            batches of an epoch's order, examples are sorted by it, and the batches are drawn in another order.
        steps: as for `Batches`.
    """

    def __init__(self, num_examples: int, is_wide: np.ndarray | None = None, **steps: int):
        super().__init__(**steps)
        self.num_examples = num_examples
        self.is_wide = is_wide

    def _keys(self) -> Iterator[tuple[int, int]]:
        orders: dict[int, torch.Tensor] = {}
        for step in self.steps:
            first = (step * self.num_processes + self.process_index) * self.share
            for position in range(first, first + self.share):
                epoch, place = divmod(position, self.num_examples)
                if epoch not in orders:
                    generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
                    order = torch.randperm(self.num_examples, generator=generator)
                    orders[epoch] = order if self.is_wide is None else self._grouped(order, generator)
                    orders.pop(epoch - 2, None)
                yield epoch, int(orders[epoch][place])

    def _grouped(self, order: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        is_wide, batch_size, windows = torch.from_numpy(self.is_wide), self.share * self.num_processes, []
        for window in order.split(_GROUPED_BATCHES * batch_size):
            window = torch.cat([window[is_wide[window]], window[~is_wide[window]]])
            batches = window.split(batch_size)
            # The last one may be smaller, and stays last, for the others to begin where batches do.
            places = torch.randperm(len(window) // batch_size, generator=generator).tolist()
            windows += [batches[place] for place in places] + list(batches[len(places) :])
        return torch.cat(windows)


class StreamedBatches(Batches):
    """Batches of (epoch, place in the epoch, encoded example) of a stream.

    A stream cannot be indexed, so its examples travel with the keys: this process reads them one after the other,
    still encoded, and the loader's workers decode and augment them. Examples and draws do not depend on the number of
    workers. Every epoch shuffles the order of the shards and, with a buffer, of the examples, by (seed, epoch).

    A process takes every n-th shard, or every n-th example where the shards do not divide. To start later than at
    step 0 it reads what came before in that epoch and drops it, because the buffer's content is the outcome of it.

    Args:
        dataset: what `load_split(..., streaming=True)` returns.
        buffer_size: examples to draw from; they are held in memory, encoded.
        position: where step `start` begins, as `position_after` gave it; `None` reads from step 0 on.
        source: what the dataset is called where it cannot be read.
        steps: as for `Batches`.

    Attributes:
        positions: where the last steps asked for and the next one begin: (epoch, examples of it taken before by this
            process).
    """

    _KEPT_POSITIONS = 4096  # a loader asks for batches some steps ahead

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        buffer_size: int,
        position: tuple[int, int] | None = None,
        source: str = "the dataset",
        **steps: int,
    ):
        super().__init__(**steps)
        self.dataset = dataset
        self.source = source
        self.buffer_size = buffer_size
        self.position = position
        self.positions = {} if position is None else {self.steps.start: position}

    def position_after(self, step: int) -> tuple[int, int] | None:
        return self.positions.get(step)

    def _keys(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        if self.position is None:
            keys = islice(self._keys_from(0, 0), self.steps.start * self.share, None)
        else:
            keys = self._keys_from(*self.position)
        for step in self.steps:
            for epoch, number, example in islice(keys, self.share):
                self.positions[step + 1] = (epoch, number + 1)
                yield epoch, number * self.num_processes + self.process_index, example
            self.positions.pop(step - self._KEPT_POSITIONS, None)

    def _keys_from(self, epoch: int, taken: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """(epoch, number in this process's share of it, example) without end."""
        while True:
            order = self.dataset.shuffle(seed=epoch_seed(self.seed, epoch), buffer_size=self.buffer_size)
            order = split_dataset_by_node(order, rank=self.process_index, world_size=self.num_processes)
            number = None
            for number, example in enumerate(read_rows(order, self.source)):
                if number >= taken:
                    yield epoch, number, example
            if number is None:
                raise InputError(f"the stream has no example for process {self.process_index}")
            epoch, taken = epoch + 1, 0


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of an epoch's order."""
    return seed * 1_000_003 + epoch


def batch_loader(
    dataset: SegmentationDataset,
    buffer_size: int,
    num_workers: int,
    pin_memory: bool,
    group_by_shape: bool = False,
    position: tuple[int, int] | None = None,
    **steps: int,
) -> torch.utils.data.DataLoader:
    """Load the batches of the steps that `SeededBatches` or `StreamedBatches` describe by `position` and `steps`.

    Raises:
        InputError: there is no example.
    """
    if dataset.streamed:
        sampler = StreamedBatches(dataset.dataset, buffer_size, position, dataset.source, **steps)
    elif not len(dataset):
        raise InputError("the split to train on is empty")
    else:
        sampler = SeededBatches(len(dataset), dataset.is_wide() if group_by_shape else None, **steps)
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=dataset.collate,
        num_workers=num_workers,
        worker_init_fn=_outlive_termination,
        generator=torch.Generator(),  # its own: the loader's draw would move the global one on every resume
        pin_memory=pin_memory,
    )


def read_batches(loader: torch.utils.data.DataLoader) -> Iterator[dict[str, Any]]:
    """The loader's batches; what is wrong with an example is said as briefly by a worker as by this process."""
    try:
        yield from loader
    except (InputError, OSError) as error:
        if "in DataLoader worker process" not in str(error):
            raise
        # torch puts the worker's traceback into the message; its last line is `Class: message`.
        kind = InputError if isinstance(error, InputError) else OSError
        raise kind(str(error).strip().splitlines()[-1].partition(": ")[2]) from error


def _outlive_termination(_: int) -> None:
    # Schedulers send SIGTERM to every process of a job; the one that trains still needs its workers to save. What ends
    # them is its own, second one.
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
