"""Which examples come when."""

from collections import Counter

import pytest

from ccnet_hf.training.batches import SeededBatches


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
