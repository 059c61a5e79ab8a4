"""The kernel-builder project against what its documentation asks: https://huggingface.co/docs/kernels.

Checked against "Writing kernels" and "Kernel requirements" of kernels 0.17, build format edition 5. That the project's
operators work is in test_binding.py.
"""

import ast
import importlib.util
import inspect
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

import ccnet_hf
from ccnet_hf import RecurrentCrissCrossAttention
from ccnet_hf.kernels import kernel_builder, libraries
from ccnet_hf.kernels.__main__ import main
from ccnet_hf.kernels.kernel_builder import write_project


# Key -> whether it is required. The parser of edition 5 refuses every other key.
GENERAL = {"name": True, "version": True, "edition": True, "license": True, "backends": True}
GENERAL |= dict.fromkeys(("upstream", "source", "minver", "cuda", "hub", "kernel-depends", "python-depends"), False)
TORCH = {"src": True} | dict.fromkeys(("include", "minver", "maxver", "pyext", "stable-abi", "cxx-flags"), False)
CUDA_KERNEL = {"backend": True, "depends": True, "src": True}
CUDA_KERNEL |= dict.fromkeys(("cuda-capabilities", "cuda-flags", "cuda-minver", "cxx-flags", "include"), False)
BACKENDS = {"cann", "cpu", "cuda", "metal", "neuron", "rocm", "tpu", "xpu"}

NAMESPACE = "_criss_cross_attention_cuda_1a2b3c4"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return write_project(tmp_path_factory.mktemp("hub") / "project", "me/criss-cross-attention")


@pytest.fixture(scope="module")
def kernel(project):
    """The Python package as the builder completes it, imported as the `kernels` library imports it: by its path."""
    package = project / "torch-ext" / "criss_cross_attention"
    (package / "_ops.py").write_text(f"import torch\n\nops = torch.ops.{NAMESPACE}\n")
    specification = importlib.util.spec_from_file_location(NAMESPACE, package / "__init__.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[NAMESPACE] = module
    specification.loader.exec_module(module)
    return module


def check_keys(table: dict, schema: dict[str, bool]) -> None:
    assert set(table) <= set(schema)
    assert {key for key, required in schema.items() if required} <= set(table)


def test_configuration(project):
    configuration = tomllib.loads((project / "build.toml").read_text())
    assert set(configuration) == {"general", "torch", "kernel"}
    general, binding = configuration["general"], configuration["torch"]
    check_keys(general, GENERAL)
    assert re.fullmatch(r"[a-z][-a-z0-9]*[a-z0-9]", general["name"])
    assert (general["edition"], general["version"]) == (5, 1) and set(general["backends"]) <= BACKENDS
    assert general["hub"] == {"repo-id": "me/criss-cross-attention"}
    check_keys(binding, TORCH)
    assert binding["stable-abi"] == libraries.TORCH_TARGET
    for kernel in configuration["kernel"].values():
        check_keys(kernel, CUDA_KERNEL)
        assert kernel["backend"] in general["backends"] and kernel["depends"] == ["torch"]
        assert all(re.fullmatch(r"\d+\.\d", capability) for capability in kernel["cuda-capabilities"])
        for folder in kernel["include"]:
            assert (project / folder).is_dir()
    # Every file is listed, and every listed file is there.
    listed = [*binding["src"], *(path for kernel in configuration["kernel"].values() for path in kernel["src"])]
    found = [path for path in project.rglob("*") if path.suffix in (".cpp", ".cu", ".cuh", ".h")]
    assert sorted(listed) == sorted(path.relative_to(project).as_posix() for path in found)


def test_files(project):
    name = tomllib.loads((project / "build.toml").read_text())["general"]["name"].replace("-", "_")
    for path in ("flake.nix", "CARD.md", f"torch-ext/{name}/__init__.py", "tests"):
        assert (project / path).exists()
    assert "REGISTER_EXTENSION(TORCH_EXTENSION_NAME)" in (project / "torch-ext" / "torch_binding.cpp").read_text()
    for source in libraries.sources():
        assert (project / f"{name}_cuda" / source.name).read_bytes() == source.read_bytes()
    # The builder writes these.
    assert not (project / "torch-ext" / "registration.h").exists()


def test_repository_is_optional(tmp_path):
    assert "hub" not in tomllib.loads((write_project(tmp_path) / "build.toml").read_text())["general"]


def test_python_imports(project):
    """Only the standard library, torch, and the kernel itself by relative imports."""
    for path in (project / "torch-ext").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            for name in names:
                assert name.split(".")[0] in {"torch", *sys.stdlib_module_names}, path


def test_operators_have_a_namespace_of_their_own(project, kernel):
    for path in (project / "torch-ext").rglob("*.py"):
        if path.name != "_ops.py":
            assert "ccnet_hf" not in path.read_text()
    operators = getattr(torch.ops, NAMESPACE)
    assert hasattr(operators, "criss_cross_attention") and hasattr(operators, "criss_cross_attention_torch")
    tensors = [torch.randn(1, count, 4, 5, dtype=torch.float64, requires_grad=True) for count in (8, 8, 16)]
    output = kernel.criss_cross_attention(*tensors)
    expected, _ = kernel.criss_cross_attention_with_weights(*tensors)
    torch.testing.assert_close(output, expected)
    grads = torch.autograd.grad(output.square().sum(), tensors)
    for grad, wanted in zip(grads, torch.autograd.grad(expected.square().sum(), tensors), strict=True):
        torch.testing.assert_close(grad, wanted)


def test_layers_are_pure(kernel):
    """What `kernelize` refuses otherwise: no constructor, no state, no method but `forward`, the same arguments."""
    (layer,) = [member for member in vars(kernel.layers).values() if inspect.isclass(member)]
    assert layer.__name__ == "RecurrentCrissCrossAttention" and issubclass(layer, nn.Module)
    assert layer.__init__ is nn.Module.__init__
    members = {name for name, _ in inspect.getmembers(layer)} - {name for name, _ in inspect.getmembers(nn.Module)}
    assert members == {"can_torch_compile", "has_backward"}
    parameters = inspect.signature(layer.forward).parameters.values()
    replaced = inspect.signature(RecurrentCrissCrossAttention.forward).parameters.values()
    assert [(parameter.name, parameter.kind, parameter.default) for parameter in parameters] == [
        (parameter.name, parameter.kind, parameter.default) for parameter in replaced
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layer_takes_the_place_of_the_models(kernel, dtype):
    torch.manual_seed(0)
    layer = RecurrentCrissCrossAttention(16, recurrence=3).to(dtype)
    nn.init.constant_(layer.gamma, 0.5)
    hidden_state = torch.randn(2, 16, 5, 6, dtype=dtype)
    expected = layer(hidden_state)[0], layer(hidden_state, output_attentions=True)
    # As `kernelize` does.
    layer.forward = kernel.layers.RecurrentCrissCrossAttention.forward.__get__(layer)
    tolerance = {"atol": 5e-2, "rtol": 5e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(layer(hidden_state)[0], expected[0], **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(layer(hidden_state)[0], expected[0].detach(), **tolerance)
    output, attentions = layer(hidden_state, output_attentions=True)
    assert layer(hidden_state)[1] is None and len(attentions) == 3
    torch.testing.assert_close((output, attentions), expected[1], **tolerance)


def test_model_offers_the_layer(monkeypatch):
    """With the `kernels` library installed, `from_pretrained(use_kernels=True)` finds the layer by this name."""
    offered = []

    def decorator(name):
        return lambda layer: offered.append((name, layer.__name__)) or layer

    monkeypatch.setattr(transformers.integrations, "use_kernel_forward_from_hub", decorator)
    path = Path(ccnet_hf.__file__).parent / "models" / "layers_ccnet.py"
    specification = importlib.util.spec_from_file_location("ccnet_hf.models.layers_ccnet_copy", path)
    specification.loader.exec_module(importlib.util.module_from_spec(specification))
    assert offered == [("RecurrentCrissCrossAttention", "RecurrentCrissCrossAttention")]


def test_command(tmp_path, capsys):
    assert main(["hub", "--output", str(tmp_path / "new"), "--repo_id", "me/kernel"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "new")
    assert main(["hub", "--output", str(tmp_path / "new")]) == 1
    assert "new exists; name a new folder" in capsys.readouterr().err
    assert main(["hub", "--output", str(tmp_path / "other"), "--repo_id", "kernel"]) == 1
    assert "<namespace>/<name>, got 'kernel'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_full_disk_leaves_nothing_half(tmp_path, capsys, full_disk):
    with full_disk(5000):
        assert main(["hub", "--output", str(tmp_path / "new")]) == 1
    error = capsys.readouterr().err
    assert "new cannot be written: " in error and "file too large" in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [".new.lock"]
    assert main(["hub", "--output", str(tmp_path / "new")]) == 0


def test_a_changed_operator_is_noticed():
    with pytest.raises(ValueError, match="no longer contains"):
        kernel_builder._with_namespace_of_a_build("import torch\n\nNAMESPACE = 'ccnet_hf'\n")
