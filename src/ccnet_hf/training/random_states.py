"""The states of a process's random number generators, as JSON holds them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def get_random_states(device: torch.device) -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, and of the one of `device` where it has its own."""
    generator, key, *rest = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": [generator, key.tolist(), *rest],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
    }
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state().cpu().numpy().tobytes().hex()
    return states


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Set what [`get_random_states`] gave, as JSON brings it back. The generator of a kind of device that has no state
    there stays as it is.

    Raises:
        Exception: of any kind, where the states are something else.
    """
    version, key, gauss = states["python"]
    random.setstate((version, tuple(key), gauss))
    generator, key, position, has_gauss, gauss = states["numpy"]
    if not 0 <= position <= len(key):  # NumPy would read beyond its table
        raise ValueError(f"NumPy's position {position} is outside its state")
    np.random.set_state((generator, np.array(key, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(_bytes(states["torch"]))
    if device.type != "cpu" and device.type in states:
        torch.get_device_module(device).set_rng_state(_bytes(states[device.type]))


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
