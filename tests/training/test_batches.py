"""Which examples come when."""

from collections import Counter

import datasets
import pytest
import torch

from ccnet_hf.data.loading import CorruptExample
from ccnet_hf.errors import InputError
from ccnet_hf.training.batches import SeededBatches, StreamedBatches, batch_loader, read_batches


def keys(**arguments) -> list[tuple[int, int]]:
    return [key for batch in SeededBatches(**arguments) for key in batch]


def test_every_epoch_shows_every_example_once_in_a_new_order():
    drawn = keys(num_examples=7, batch_size=3, start=0, stop=7)
    assert Counter(drawn) == Counter((epoch, index) for epoch in range(3) for index in range(7))
    assert [epoch for epoch, _ in drawn] == sorted(epoch for epoch, _ in drawn)
    first, second = drawn[:7], drawn[7:14]
    assert [index for _, index in first] != [index for _, index in second]


def test_a_later_start_gives_the_rest():
    whole = keys(num_examples=7, batch_size=4, start=0, stop=9, seed=3)
    assert keys(num_examples=7, batch_size=4, start=5, stop=9, seed=3) == whole[20:]
    assert keys(num_examples=7, batch_size=4, start=0, stop=9, seed=4) != whole


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_processes_share_each_batch(micro_batches):
    arguments = {"num_examples": 10, "batch_size": 8, "start": 1, "stop": 4}
    whole = [sorted(batch) for batch in SeededBatches(**arguments)]
    parts = [
        list(SeededBatches(**arguments, process_index=rank, num_processes=2, micro_batches=micro_batches))
        for rank in range(2)
    ]
    assert all(len(part) == len(whole) * micro_batches for part in parts)
    for step, batch in enumerate(whole):
        slices = [part[step * micro_batches : (step + 1) * micro_batches] for part in parts]
        assert sorted(key for share in slices for micro in share for key in micro) == batch
    assert len(SeededBatches(**arguments, micro_batches=micro_batches)) == 3 * micro_batches


def stream(size: int = 12, shards: int = 3) -> datasets.IterableDataset:
    return datasets.Dataset.from_dict({"number": list(range(size))}).to_iterable_dataset(num_shards=shards)


def numbers(**arguments) -> list[tuple[int, int]]:
    """(epoch, number) of all keys, in order."""
    batches = StreamedBatches(**({"dataset": stream(), "buffer_size": 4, "batch_size": 4, "start": 0} | arguments))
    return [(epoch, example["number"]) for batch in batches for epoch, _, example in batch]


def test_a_stream_shows_every_example_once_an_epoch_in_a_new_order():
    drawn = numbers(stop=9)
    assert Counter(drawn) == Counter((epoch, number) for epoch in range(3) for number in range(12))
    orders = [[number for _, number in drawn[start : start + 12]] for start in (0, 12, 24)]
    assert sorted(orders[0]) != orders[0] and orders[0] != orders[1] != orders[2]
    assert numbers(stop=9, seed=1) != drawn


def test_a_stream_is_replayed_to_its_place():
    arguments = {"batch_size": 5, "stop": 11}
    whole = list(StreamedBatches(stream(), 4, start=0, **arguments))
    assert list(StreamedBatches(stream(), 4, start=6, **arguments)) == whole[6:]
    assert len({(epoch, place) for batch in whole for epoch, place, _ in batch}) == 55


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_stream_goes_on_from_a_known_position(num_processes):
    """From every step, the beginning and the ends of epochs among them, without reading the epochs before."""
    arguments = {"batch_size": 6, "stop": 11, "process_index": 0, "num_processes": num_processes}
    sampler = StreamedBatches(stream(), 4, start=0, **arguments)
    whole = list(sampler)
    for start in range(1, 11):
        position = sampler.positions[start]
        later = StreamedBatches(stream(), 4, start=start, position=position, **arguments)
        later._keys_from = unread_before(position[0], later._keys_from)
        assert list(later) == whole[start:]
        assert later.positions[11] == sampler.positions[11]


def unread_before(epoch: int, keys_from):
    def checked(first_epoch, taken):
        assert first_epoch == epoch
        return keys_from(first_epoch, taken)

    return checked


@pytest.mark.parametrize("shards", [1, 4], ids=["examples are dealt", "shards are dealt"])
def test_processes_share_a_stream(shards):
    shares = [
        numbers(dataset=stream(12, shards), stop=3, process_index=rank, num_processes=2, micro_batches=2)
        for rank in range(2)
    ]
    assert [len(share) for share in shares] == [6, 6]
    assert sorted(shares[0] + shares[1]) == [(0, number) for number in range(12)]
    places = [
        {(epoch, place) for batch in batches for epoch, place, _ in batch}
        for batches in (
            StreamedBatches(stream(12, shards), 4, batch_size=4, start=0, stop=3, process_index=rank, num_processes=2)
            for rank in range(2)
        )
    ]
    assert not places[0] & places[1]  # their random draws differ


class Complaining(torch.utils.data.Dataset):
    streamed = False
    collate = None

    def __init__(self, error=None):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, key):
        raise self.error


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", [InputError, CorruptExample, OSError])
def test_what_is_wrong_is_said_in_one_line(num_workers, kind):
    loader = batch_loader(
        Complaining(kind("p1.png: label id 99 is outside 0..10")), 1, num_workers, False, batch_size=1, start=0, stop=1
    )
    with pytest.raises(OSError if kind is OSError else InputError, match=r"^p1\.png: label id 99 is outside 0\.\.10$"):
        next(read_batches(loader))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_mistake_of_the_package_in_a_worker_stays_one(num_workers):
    bug = ValueError("operands could not be broadcast")
    loader = batch_loader(Complaining(bug), 1, num_workers, False, batch_size=1, start=0, stop=1)
    with pytest.raises(ValueError, match="operands could not be broadcast") as caught:
        next(read_batches(loader))
    assert not isinstance(caught.value, InputError)
    assert num_workers == 0 or "Original Traceback" in str(caught.value)


def test_nothing_to_train_on():
    steps = {"batch_size": 1, "start": 0, "stop": 1}
    empty = Complaining()
    empty.__class__ = type("Empty", (Complaining,), {"__len__": lambda self: 0})
    with pytest.raises(ValueError, match="the split to train on is empty"):
        batch_loader(empty, 1, 0, False, **steps)
    with pytest.raises(ValueError, match="the stream has no example for process 0"):
        next(iter(StreamedBatches(stream(12).filter(lambda row: row["number"] > 99), 4, **steps)))
