"""The Triton yardstick, in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


pytest.importorskip("triton")

_CHECK = """
import torch
from triton_attention import triton_attention
from ccnet_hf import criss_cross_attention

torch.manual_seed(0)
for shape in ((2, 5, 3), (1, 1, 18), (1, 18, 1)):
    for dtype, error in ((torch.float32, 1e-5), (torch.float16, 2e-3)):
        query, key, value = (torch.randn(shape[0], size, *shape[1:]).to(dtype) for size in (16, 16, 32))
        query /= 4
        expected = criss_cross_attention(*(tensor.double() for tensor in (query, key, value)))
        actual = triton_attention(query, key, value, queries=16, keys=16, channels=16).double()
        found = ((actual - expected).norm() / expected.norm()).item()
        print(shape, dtype, found)
        if not found <= error:
            raise SystemExit(1)
"""


def test_computes_the_same():
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root / "scripts"), str(root / "src")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    finished = subprocess.run([sys.executable, "-c", _CHECK], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.count("\n") == 6
