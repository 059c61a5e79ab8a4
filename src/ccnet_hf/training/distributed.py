"""What the processes of a training do as one: they know the same, and they fail together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed.tensor import DTensor, distribute_tensor

from ccnet_hf.errors import InputError


T = TypeVar("T")


def from_main_process(value: T) -> T:
    """The main process's `value`, in every process."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


@contextmanager
def together() -> Iterator[None]:
    """Let every process raise what one of them met, a bad file or a full disk; the others would wait for it without
    end. All processes meet at the end of the block, in which they must not wait for each other.

    Raises:
        InputError, OSError: what the block raised here, else what it raised in the first process that failed.
    """
    error = None
    try:
        yield
    except (InputError, OSError) as caught:
        error = caught
    mine = None if error is None else (isinstance(error, InputError), getattr(error, "errno", None), _said(error))
    failed = [failure for failure in gather_object([mine]) if failure is not None]
    if error is not None:
        raise error
    if failed:
        is_input_error, errno, said = failed[0]
        if is_input_error:
            raise InputError(said)
        raise OSError(said) if errno is None else OSError(errno, said)


def _said(error: InputError | OSError) -> str:
    return getattr(error, "strerror", None) or str(error)


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that the processes may have shared out among them; all processes ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_out(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, which every process has, shared out among them as `like` is; all of them ask together."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
