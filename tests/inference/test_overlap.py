"""Reading ahead and writing behind: order, bounds, errors."""

import threading

import pytest

from ccnet_hf.inference.overlap import WriteBehind, read_ahead


def test_results_come_in_order_and_errors_in_their_place():
    def read(number):
        if number == 3:
            raise ValueError("three")
        return number**2

    found = []
    for number, reading in read_ahead(read, range(6)):
        try:
            found.append(reading.result())
        except ValueError as error:
            found.append(f"{number}: {error}")
    assert found == [0, 1, 4, "3: three", 16, 25]


@pytest.mark.parametrize("number", [1, 3])
def test_no_more_is_read_than_may_wait(number):
    begun = []
    readings = read_ahead(begun.append, iter(range(100)), number)
    for handed_out in range(1, 5):
        _, reading = next(readings)
        reading.result()
        assert handed_out <= len(begun) <= handed_out + number
    readings.close()
    assert len(begun) <= 4 + number


def test_reading_happens_while_the_caller_works():
    """The second item is read before the first has been given back."""
    second = threading.Event()

    def read(number):
        if number == 1:
            second.set()
        return number

    readings = read_ahead(read, range(3))
    next(readings)
    assert second.wait(10)
    assert [item for item, _ in readings] == [1, 2]


def test_calls_are_made_in_order_and_all_at_the_end():
    made = []
    with WriteBehind() as writer:
        for number in range(20):
            writer.submit(made.append, number)
    assert made == list(range(20))


def test_only_so_many_calls_wait():
    go, made = threading.Event(), []

    def call(number):
        go.wait(10)
        made.append(number)

    with WriteBehind(number=2) as writer:
        writer.submit(call, 0)
        writer.submit(call, 1)
        third = threading.Thread(target=writer.submit, args=(call, 2))
        third.start()
        third.join(0.1)
        assert third.is_alive() and not made
        go.set()
        third.join(10)
        assert not third.is_alive()
    assert made == [0, 1, 2]


def test_an_error_of_a_call_reaches_the_caller():
    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), WriteBehind() as writer:
        writer.submit(fail)
    with pytest.raises(OSError, match="disk full"):
        with WriteBehind(number=1) as writer:
            writer.submit(fail)
            for _ in range(3):
                writer.submit(lambda: None)


def test_an_error_of_the_body_comes_before_those_of_calls():
    def fail():
        raise OSError("disk full")

    with pytest.raises(KeyError), WriteBehind() as writer:
        writer.submit(fail)
        raise KeyError("body")
