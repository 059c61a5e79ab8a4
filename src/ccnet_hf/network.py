"""Trying again, in one way: what crosses a network may fail at any moment, and mostly succeeds a little later."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar


ATTEMPTS = 5  # in a row without progress
FIRST_WAIT = 1.0  # seconds; doubled after every further failure

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """What went wrong between this machine and a server.

    Attributes:
        reason: a clause that says it.
        is_transient: whether the same request may succeed later.
        wait: seconds that the server asks to wait.
    """

    reason: str
    is_transient: bool
    wait: float = 0.0


def retry(
    request: Callable[[], T],
    what: str,
    find_failure: Callable[[Exception], Failure | None],
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """Return what `request` returns, repeating it as long as what fails may pass.

    Waits twice as long every time, and at least as long as the server asks for.

    Args:
        request: is repeated, after whatever part of it failed.
        what: is asked for, in front of every complaint.
        find_failure: tells what an exception means; `None` for one that has nothing to do with the network, which is
            raised as it is.
        progress: bytes that have arrived so far; where there are more than at the last failure, attempts are counted
            anew.

    Raises:
        OSError: it failed `ATTEMPTS` times in a row, or in a way that does not pass. One sentence.
    """
    failures, arrived = 0, progress()
    while True:
        try:
            return request()
        except Exception as error:
            failure = find_failure(error)
            if failure is None:
                raise
            if not failure.is_transient:
                raise OSError(f"{what}: {failure.reason}") from error
            before, arrived = arrived, progress()
            failures = 1 if arrived > before else failures + 1
            if failures == ATTEMPTS:
                advice = "run the same command again, what has arrived is kept"
                raise OSError(f"{what}: {failure.reason}, {ATTEMPTS} times in a row; {advice}") from error
            wait = max(FIRST_WAIT * 2 ** (failures - 1), failure.wait)
            print(f"{what}: {failure.reason}, trying again in {wait:.0f} s", flush=True)
            time.sleep(wait)
