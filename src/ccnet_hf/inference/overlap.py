"""Reading and writing while the network computes: one thread for each, a few items at a time, order kept."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    read: Callable[[Item], Result], items: Iterable[Item], number: int = 2
) -> Iterator[tuple[Item, Future[Result]]]:
    """Read items in a thread, up to `number` of them before they are asked for.

    Args:
        read: called with each item, one at a time and in order, in a thread of its own.
        items: may be endless; only as many are taken as are read.
        number: of results that wait, at most.

    Yields:
        Each item with the future of its result, which raises what `read` raised.
    """
    executor = ThreadPoolExecutor(max_workers=1)
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, executor.submit(read, item)))
            if len(waiting) > number:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        executor.shutdown(cancel_futures=True)


class WriteBehind:
    """Calls made in a thread, in the order given, while others are prepared; a context.

    Leaving it waits for all calls, and raises what the first that failed has raised. Where the body has failed, calls
    that have not begun are dropped.

    Args:
        number: of calls that wait, at most; `submit` waits for the first of them then.
    """

    def __init__(self, number: int = 2):
        self.number = number
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._waiting: deque[Future[Any]] = deque()

    def submit(self, function: Callable[..., Any], *args: Any) -> None:
        """Call `function(*args)` in the thread. Raises what an earlier call has raised."""
        while len(self._waiting) >= self.number or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._executor.submit(function, *args))

    def __enter__(self) -> "WriteBehind":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            while kind is None and self._waiting:
                self._waiting.popleft().result()
        finally:
            self._executor.shutdown(cancel_futures=True)


__all__ = ["WriteBehind", "read_ahead"]
