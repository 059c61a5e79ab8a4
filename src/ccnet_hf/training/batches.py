"""Which examples make which batch: a pure function of seed and step, so a resumed run goes on as if never stopped."""

from __future__ import annotations

from collections.abc import Iterator

import torch


class SeededBatches(torch.utils.data.Sampler):
    """Batches of (epoch, index) pairs for the steps `start..stop - 1` of one process.

    The examples of an epoch come in a random order drawn from (seed, epoch); batches run across the ends of epochs.

    Args:
        num_examples: size of the split.
        batch_size: examples per step over all processes.
        start: first step.
        stop: step after the last.
        seed: of the order.
        process_index, num_processes: this process takes its equal share of every batch.
        micro_batches: parts a process's share comes in, for gradient accumulation.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        start: int,
        stop: int,
        seed: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
        micro_batches: int = 1,
    ):
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.steps = range(start, stop)
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self.micro_batches = micro_batches

    def __len__(self) -> int:
        return len(self.steps) * self.micro_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders: dict[int, torch.Tensor] = {}
        share = self.batch_size // self.num_processes
        part = share // self.micro_batches
        for step in self.steps:
            first = step * self.batch_size + self.process_index * share
            keys = []
            for position in range(first, first + share):
                epoch, place = divmod(position, self.num_examples)
                if epoch not in orders:
                    generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                    orders[epoch] = torch.randperm(self.num_examples, generator=generator)
                    orders.pop(epoch - 2, None)
                keys.append((epoch, int(orders[epoch][place])))
            for begin in range(0, share, part):
                yield keys[begin : begin + part]
