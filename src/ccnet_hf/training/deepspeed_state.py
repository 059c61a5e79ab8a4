"""The part of a training state that DeepSpeed keeps itself: weights and optimizer, in pickles of its own.

DeepSpeed opens them with `torch.load(weights_only=False)`, which runs the code that a pickle may hold. Here torch is
told to open them as tensors, plain containers and four classes of DeepSpeed's that hold numbers, whatever DeepSpeed
asks for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ccnet_hf.errors import reading


DEEPSPEED_FOLDER = "deepspeed"
_CLASSES = (
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)
_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's; it goes before what torch.load is called with


def save_deepspeed(engine: Any, folder: Path) -> None:
    """Let a `DeepSpeedEngine` write its part of the state in `folder`; all processes take part."""
    engine.save_checkpoint(str(folder), tag=DEEPSPEED_FOLDER, save_latest=False)


def load_deepspeed(engine: Any, folder: Path) -> None:
    """Let a `DeepSpeedEngine` load what [`save_deepspeed`] wrote; all processes take part.

    Raises:
        InputError: a pickle asks for more than numbers, or DeepSpeed cannot use what is there.
    """
    part = folder / DEEPSPEED_FOLDER
    classes = [getattr(import_module(module), name) for module, name in _CLASSES]
    with safe_globals(classes), _weights_only():
        for file in sorted(part.glob("*.pt")):
            with reading(file):
                if others := get_unsafe_globals_in_checkpoint(file):
                    raise ValueError(f"its pickle asks for {others[0]}")
        with reading(part):
            found, _ = engine.load_checkpoint(str(folder), tag=DEEPSPEED_FOLDER)
            if found is None:
                raise ValueError("DeepSpeed finds no state in it")


@contextmanager
def _weights_only() -> Iterator[None]:
    before = os.environ.get(_FORCE_WEIGHTS_ONLY)
    os.environ[_FORCE_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE_WEIGHTS_ONLY]
        else:
            os.environ[_FORCE_WEIGHTS_ONLY] = before
