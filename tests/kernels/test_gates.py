"""What the compiler makes of the CUDA kernels: within the registers written beside them, no spills, tensor cores."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from simulator.runner import SOURCES

from ccnet_hf.kernels.libraries import NVCC_FLAGS


pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc to compile the CUDA kernels"),
]

ARCHITECTURES = ("sm_80", "sm_90")
TYPES = {"f": "float", "6__half": "half", "13__nv_bfloat16": "bfloat16"}
DEPTHS = (32, 64, 128)
KERNELS = {
    "forward.cu": [("forward_kernel", type_, depth) for type_ in TYPES.values() for depth in DEPTHS],
    "backward.cu": [
        *(
            (kernel, type_, depth)
            for kernel in ("grad_value_kernel", "grad_scores_kernel")
            for type_ in TYPES.values()
            for depth in DEPTHS
        ),
        *(("delta_kernel", type_, None) for type_ in TYPES.values()),
    ],
}


def parse_symbol(symbol: str) -> tuple[str, str, int | None]:
    """A kernel's mangled name -> its name, type and depth."""
    name, type_, depth = re.search(
        r"criss_cross\d+(\w+?_kernel)I(f|6__half|13__nv_bfloat16)(?:Li(\d+)E)?", symbol
    ).groups()
    return name, TYPES[type_], depth and int(depth)


def read_budget(kernel: str, type_: str, depth: int | None) -> int:
    """The registers a thread may have, from the line `Budget in registers:` above the kernel's definition."""
    text = "".join(file.read_text() for file in sorted(SOURCES.glob("*.cuh")))
    lines = re.findall(r"// Budget in registers: (.*?)\.", text[: text.index(f" {kernel}(")])
    budgets = dict(entry.rsplit(" ", 1) for entry in lines[-1].split(", "))
    type_ = "float" if type_ == "float" else "half"
    return int(budgets.get(f"{type_}/{depth}") or budgets[type_])


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit, or the one that Triton, which comes with PyTorch, has in its package."""
    triton = importlib.util.find_spec("triton")
    folder = Path(triton.origin).parent / "backends" / "nvidia" / "bin" if triton else None
    return shutil.which(name) or (shutil.which(name, path=folder) if folder else None)


@pytest.fixture(scope="module", params=[(arch, file) for arch in ARCHITECTURES for file in KERNELS], ids=" ".join)
def compiled(request, tmp_path_factory) -> tuple[str, Path, str]:
    """One source file compiled for one architecture: the file, the machine code, what ptxas says of it."""
    architecture, file = request.param
    code = tmp_path_factory.mktemp("gates") / f"{file}.cubin"
    flags = [flag for flag in NVCC_FLAGS if not flag.startswith("-cudart")]  # of the linker
    command = ["nvcc", *flags, f"-arch={architecture}", "-Xptxas", "-v", "-cubin", file, "-o", code]
    done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return file, code, done.stderr


def test_registers_are_within_the_budget_and_nothing_spills(compiled):
    file, _, said = compiled
    found = {}
    for entry in said.split("Compiling entry function")[1:]:
        symbol = entry.split("'")[1]
        stack, stores, loads = map(
            int, re.search(r"(\d+) bytes stack.*?(\d+) bytes spill stores, (\d+)", entry).groups()
        )
        found[parse_symbol(symbol)] = int(re.search(r"Used (\d+) registers", entry).group(1))
        assert (stack, stores, loads) == (0, 0, 0), f"{symbol} spills"
        # All shared memory is dynamic, and bounded where it is asked for.
        assert "smem" not in entry, f"{symbol} has static shared memory"
    assert sorted(found, key=str) == sorted(KERNELS[file], key=str)
    for kernel, registers in found.items():
        assert registers <= read_budget(*kernel), f"{kernel} uses {registers} registers"


def test_half_precision_uses_tensor_cores_and_asynchronous_copies(compiled):
    file, code, _ = compiled
    cuobjdump = find_tool("cuobjdump")
    if cuobjdump is None or find_tool("nvdisasm") is None:
        pytest.skip("needs cuobjdump and nvdisasm, of the CUDA toolkit or of Triton")
    dump = subprocess.run([cuobjdump, "-sass", code], capture_output=True, text=True, check=True).stdout
    functions = dump.split("Function : ")[1:]
    assert len(functions) == len(KERNELS[file])
    for function in functions:
        kernel, type_, depth = parse_symbol(function.split("\n", 1)[0])
        counts = {name: len(re.findall(rf"\b{name}\b", function)) for name in ("HMMA", "LDSM", "LDGSTS", "STL", "LDL")}
        assert not counts["STL"] and not counts["LDL"], f"{kernel} {type_} {depth} uses local memory"
        if kernel == "delta_kernel":
            continue
        assert counts["LDGSTS"], f"{kernel} {type_} {depth} does not copy asynchronously"
        # Scores of 16 rows with 8 places take one instruction for 16 of depth; fp32 stays true fp32.
        least = 0 if type_ == "float" else depth // 16 * 4
        assert counts["HMMA"] >= least and bool(counts["HMMA"]) == bool(least) == bool(counts["LDSM"])


def test_a_budget_is_found_for_every_kernel():
    assert read_budget("grad_scores_kernel", "bfloat16", 64) < read_budget("grad_scores_kernel", "half", 128)
    for kernels in KERNELS.values():
        for kernel in kernels:
            assert 32 <= read_budget(*kernel) <= 255
