"""The package keeps to docs/architecture.md: which room may import which, and where the files are that it names."""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "ccnet_hf"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

# What the files that travel with a checkpoint may import: what a user of transformers has, and what transformers' own
# processors of COCO's annotations import when they meet them.
TRAVELLING = {"torch", "torchvision", "PIL", "numpy", "transformers", "huggingface_hub", *sys.stdlib_module_names}
TRAVELLING.add("pycocotools")

# Folders of files that are no part of the package as it lies here: the template of another project.
_FOREIGN = PACKAGE / "kernels" / "hub_project"


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py")) if not file.is_relative_to(_FOREIGN)}


class _WithoutTyping(ast.NodeTransformer):
    """Leaves out what stands under `if TYPE_CHECKING:`, which never runs."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)


def imported_names(module: str) -> list[tuple[str, str]]:
    """What a module imports anywhere in its text: the module it takes it from, and the name; none for `import m`."""
    file, found = FILES[module], []
    for node in ast.walk(_WithoutTyping().visit(ast.parse(file.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = [node.module] if node.module else []
            if node.level:
                package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
                source = [*package[: len(package) - node.level + 1], *source]
            found += [(".".join(source), alias.name) for alias in node.names]
    return found


def imports_of(module: str) -> set[str]:
    """The modules that one imports, by their full names. `from package import module` is an import of the module."""
    names = imported_names(module)
    return {f"{source}.{name}" if f"{source}.{name}" in FILES else source for source, name in names}


GRAPH = {module: {name for name in imports_of(module) if name.startswith("ccnet_hf")} for module in FILES}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def rows() -> list[list[str]]:
    """The rooms in the rows of the page's first table, from the one that imports nothing upward."""
    table = PAGE.partition("| rooms |")[2].partition("\n\n")[0]
    return [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()[2:]]


HEIGHT = {name: height for height, names in enumerate(rows()) for name in names}


def test_every_room_is_on_the_page():
    assert {room(module) for module in FILES} == HEIGHT.keys()


def test_the_graph_knows_every_kind_of_import():
    """Absolute, relative, of a module in a package, inside a function: or the rules below check nothing."""
    assert "ccnet_hf.models.configuration_ccnet" in GRAPH["ccnet_hf.models.modeling_ccnet"]
    assert "ccnet_hf.data.benchmarks" in GRAPH["ccnet_hf.inference.predictor"]
    assert "ccnet_hf.kernels" in GRAPH["ccnet_hf"]
    assert "ccnet_hf.evaluation.eval" in GRAPH["ccnet_hf.zoo.verify"]


@pytest.mark.parametrize("module", FILES)
def test_no_import_runs_upward(module):
    upward = {
        name for name in GRAPH[module] if room(name) != room(module) and HEIGHT[room(name)] >= HEIGHT[room(module)]
    }
    assert not upward


def test_no_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", [name for name in FILES if name.startswith("ccnet_hf.models.")])
def test_what_travels_is_flat_and_imports_nothing_else_of_the_package(module):
    for name in imports_of(module):
        if name.startswith("ccnet_hf"):
            assert name in FILES and name.startswith("ccnet_hf.models."), name
        else:
            assert name.partition(".")[0] in TRAVELLING, name
    assert FILES[module].parent == PACKAGE / "models"


def test_the_root_of_the_package_is_small():
    assert len(list(PACKAGE.glob("*.py"))) <= 11


@pytest.mark.parametrize("package", [name for name, file in FILES.items() if file.name == "__init__.py"])
def test_no_name_is_both_a_module_and_something_else_of_its_package(package):
    objects = {name for source, name in imported_names(package) if f"{source}.{name}" not in FILES}
    assert not {name for name in objects if f"{package}.{name}" in FILES}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w/]+(?:\.py|/))`", PAGE))))
def test_the_page_names_files_that_are_there(path):
    assert (PACKAGE / path).exists() or (ROOT / path).exists()
