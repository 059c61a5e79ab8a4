"""The one door for what comes from outside: whatever a file or a value of a user's makes a reader raise becomes
`InputError`, which every command shows in one line.

Everything else that is raised is a mistake of the package's and keeps its traceback.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager


_LONGEST_REASON = 400  # characters; some libraries print the whole file


class InputError(ValueError):
    """A file or a value that a user gave cannot be used; the message names it, says why, and what is allowed.

    The files that travel with a checkpoint raise a plain `ValueError` instead.
    """


@contextmanager
def reading(source: str | os.PathLike, trial: Callable[[], object] | None = None) -> Iterator[None]:
    """Turn whatever is raised while a file or folder from outside is read into an `InputError` that names it.

    Its body should read and check, and nothing else: a mistake of the package's own in it would be taken for a fault
    of the file. An `InputError` passes as it is, and is expected to name what it is about.

    Args:
        source: what is read, as the user knows it.
        trial: where the package's own code cannot be kept out of the body, the same with something that is surely
            right. It is called after the body has failed; where it fails too, the mistake is the package's, and what
            the body raised passes as it is.

    Raises:
        InputError: the body raised something; the cause is kept.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # libraries raise whatever the bytes led them to
        if trial is not None and _fails(trial):
            raise
        raise InputError(f"{os.fspath(source)} cannot be read: {describe(error, source)}") from error


def _fails(trial: Callable[[], object]) -> bool:
    try:
        trial()
    except Exception:
        return True
    return False


@contextmanager
def using(values: str) -> Iterator[None]:
    """Turn the complaint of a configuration, processor or model about what a user gave it into an `InputError`.

    Args:
        values: whose or which values they are, in front of the complaint; empty where the complaint says enough.

    Raises:
        InputError: the body raised `ValueError` or `TypeError`, or transformers refused the type of a field.
    """
    try:
        yield
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"{values}: {describe(error)}" if values else describe(error)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is no more memory, of the machine or of an accelerator."""
    if isinstance(error, MemoryError):
        return True
    # PyTorch's on a GPU and on a CPU; both are plain `RuntimeError`s to those who do not import it.
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "allocate memory", "Storage size calculation overflowed")
    )


@contextmanager
def enough_memory(what: str, advice: str = "") -> Iterator[None]:
    """Say what needs more memory than there is.

    Args:
        what: the body makes or computes.
        advice: a clause on what needs less.

    Raises:
        InputError: that, instead of the exceptions that PyTorch and NumPy have for it.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"{what} needs more memory than there is{advice and '; '}{advice}") from error


def describe(error: BaseException, source: str | os.PathLike | None = None) -> str:
    """What an exception says, as one clause on one line of bounded length; a file that it is about is named unless it
    is `source`, which whoever asks names."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, OSError) and error.strerror:
        is_named = error.filename is None or (source is not None and str(error.filename) == os.fspath(source))
        return error.strerror.lower() + ("" if is_named else f": {error.filename}")
    said = " ".join(str(error).split())
    if not said:
        return type(error).__name__
    if isinstance(error, LookupError | AttributeError):  # whose texts are mere names
        said = f"{type(error).__name__}: {said}"
    return said if len(said) <= _LONGEST_REASON else f"{said[:_LONGEST_REASON]} ..."
