"""The compiled library needs a newer PyTorch than the package: with an older one its tests are skipped."""

from pathlib import Path

import pytest

from ccnet_hf.kernels.libraries import why_torch_is_too_old


def pytest_collection_modifyitems(items):
    if not (reason := why_torch_is_too_old()):
        return
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason=f"the compiled library: {reason}"))
