"""Fixtures every part of the suite may use."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from tqdm import tqdm

import ccnet_hf  # noqa: F401  registers the Auto classes


# Of transformers' own tests, see models/test_transformers_mixins.py.
_MARKERS = ("accelerate_tests", "flash_attn_3_test", "flash_attn_4_test", "flash_attn_test", "torch_compile_test")


# tqdm's own lock is shared with forked processes, and stays locked where a test kills one that holds it.
tqdm.set_lock(threading.RLock())


def pytest_configure(config):
    for name in _MARKERS:
        config.addinivalue_line("markers", f"{name}: of transformers' own tests")


@pytest.fixture(scope="session", autouse=True)
def openvino_cores_live_on() -> None:
    """Keep every `openvino.Core` that a test makes: after two have ended, in the order of their making, OpenVINO
    2026.4 leaves a freed stack for signals behind, and the end of the next child process kills this one, once a data
    loader has asked to hear of such ends."""
    try:
        import openvino
    except ModuleNotFoundError:
        return
    initialize, cores = openvino.Core.__init__, []

    def keep(core, *arguments, **options):
        cores.append(core)
        initialize(core, *arguments, **options)

    openvino.Core.__init__ = keep


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of reference material too large for the repository; tests that need it skip where it is missing."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("needs the reference material in ../shared, which this clone does not have")
    return path


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """`with full_disk(n):` a disk on which no file grows beyond n bytes: writing more fails, as where it is full.

    What fails is the same call of the operating system, with "file too large" for "no space left on device".
    """
    resource = pytest.importorskip("resource", reason="needs the limits that Unix has for a process")

    @contextmanager
    def limited(num_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
