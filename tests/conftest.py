"""Fixtures that every test may ask for."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The reference material beside the checkout; tests that need it are skipped where there is none."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("needs ../shared, the reference material, which is not part of the repository")
    return path
