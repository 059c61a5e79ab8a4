"""The Triton yardstick: right in Triton's interpreter, and accepted by its compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


pytest.importorskip("triton")
pytest.importorskip("torch", minversion="2.11", reason="the Triton of older PyTorch compiles it differently")

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

_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_attention import _attend_along_axis

constants = dict(QUERY_SIZE=64, QUERIES=64, KEYS=32, CHANNELS=128)
types = dict.fromkeys(("query", "key", "value", "earlier", "output"), "*bf16")
types |= dict.fromkeys(("earlier_logsumexp", "logsumexp"), "*fp32") | dict.fromkeys(("lines", "length"), "i32")
types |= dict.fromkeys(("query_strides", "value_strides", "sum_strides"), ("i32", "i32", "i32"))
for is_first in (True, False):
    values = constants | dict(IS_FIRST=is_first)
    source = ASTSource(_attend_along_axis, types | dict.fromkeys(values, "constexpr"), values)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    print(compiled.metadata.shared, "bytes of shared memory", len(compiled.asm["cubin"]), "of code")
"""


def run(code: str, **environment: str) -> str:
    root = Path(__file__).parents[2]
    environment["PYTHONPATH"] = os.pathsep.join([str(root / "scripts"), str(root / "src")])
    finished = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.mark.nightly
def test_computes_the_same():
    assert run(_CHECK, TRITON_INTERPRET="1").count("\n") == 6


@pytest.mark.slow
def test_compiles_for_an_h200(tmp_path):
    """With the sizes of the benchmark; no GPU is needed for that."""
    assert run(_COMPILE, TRITON_CACHE_DIR=str(tmp_path)).count("of code\n") == 2
