"""The golden files: a small set in `tests/goldens`, all of them in the reference material beside the checkout."""

from pathlib import Path

import numpy as np
import pytest


SMALL_SET = Path(__file__).resolve().parent / "goldens"
ALL = Path(__file__).resolve().parents[2] / "shared" / "reference" / "goldens"


def load_golden(name: str) -> dict[str, np.ndarray]:
    """Arrays of the golden file `name`; skips the test where the file is not at hand."""
    for folder in (SMALL_SET, ALL):
        if (folder / f"{name}.npz").is_file():
            with np.load(folder / f"{name}.npz") as file:
                return dict(file)
    pytest.skip(f"needs {name}.npz of ../shared/reference/goldens, which is not part of the repository")


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float, what: str = "") -> None:
    """Largest difference at most `tolerance` times the largest magnitude of `expected`, and equal shapes."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    error = np.abs(actual.astype(np.float64) - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"{what}: off by {error:.2e} of the largest magnitude, {tolerance:.0e} allowed"


def assert_same_statistics(actual: np.ndarray, expected: np.ndarray, tolerance: float, what: str = "") -> None:
    """Mean, unbiased deviation, least and largest value, L1 and L2 norm of the whole tensor."""
    values = np.asarray(actual, dtype=np.float64)
    magnitude = np.abs(values).max()
    mean, deviation, least, largest, l1, l2 = expected
    pairs = {
        "mean": (values.mean(), mean, magnitude),
        "deviation": (values.std(ddof=1), deviation, magnitude),
        "least": (values.min(), least, magnitude),
        "largest": (values.max(), largest, magnitude),
        "L1": (np.abs(values).sum(), l1, l1),
        "L2": (np.sqrt(np.square(values).sum()), l2, l2),
    }
    for name, (found, wanted, scale) in pairs.items():
        assert abs(found - wanted) <= tolerance * scale, f"{what}: {name} is {found}, expected {wanted}"
