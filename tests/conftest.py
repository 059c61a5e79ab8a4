"""Fixtures every part of the suite may use."""

from pathlib import Path

import pytest

import ccnet_hf  # noqa: F401  registers the Auto classes


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of reference material too large for the repository; tests that need it skip where it is missing."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("needs the reference material in ../shared, which this clone does not have")
    return path
