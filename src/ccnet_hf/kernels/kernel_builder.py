"""Lay the kernels out as a kernel-builder project, for the `kernels` library of Hugging Face.

The layout and the schema of build.toml are those of https://huggingface.co/docs/kernels/builder/writing-kernels.
"""

import os
import shutil
from pathlib import Path
from string import Template

from huggingface_hub.utils import validate_repo_id

from ccnet_hf.errors import InputError, using
from ccnet_hf.files import atomic_folder

from .libraries import TORCH_TARGET, sources


_PROJECT = Path(__file__).parent / "hub_project"
_NAME = "criss_cross_attention"
_KERNEL_FOLDER = f"{_NAME}_cuda"
# kernel-builder gives every build operators in a namespace of its own, which its module `_ops` knows.
_NAMESPACE_OF_A_BUILD = {
    "import torch\n": "import torch\n\nfrom ._ops import ops\n",
    '_NAMESPACE = "ccnet_hf"': "_NAMESPACE = ops.name",
    "torch.ops.ccnet_hf.": "ops.",
}


def write_project(output: str | os.PathLike, repo_id: str | None = None) -> Path:
    """Write the project: `kernel-builder build-and-upload` in it builds and publishes the kernels.

    Args:
        output: folder that does not exist yet or is empty.
        repo_id: Hub repository to publish to; `None` leaves it out.

    Returns:
        The folder.

    Raises:
        InputError: a repository without a namespace, or with a name the Hub does not take; or a folder that holds
            something already.
        OSError: the folder cannot be written.
    """
    output = Path(output)
    if repo_id is not None:
        if repo_id.count("/") != 1:
            raise InputError(f"a Hub repository is written <namespace>/<name>, got {repo_id!r}")
        with using(""):
            validate_repo_id(repo_id)
    with atomic_folder(output) as unfinished:
        _write_files(unfinished, repo_id)
    return output


def _write_files(folder: Path, repo_id: str | None) -> None:
    shutil.copytree(_PROJECT, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for source in sources():
        target = folder / _KERNEL_FOLDER / source.name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)

    package = folder / "torch-ext" / _NAME
    operator = Path(__file__).parents[1] / "models" / f"{_NAME}.py"
    (package / operator.name).write_text(_with_namespace_of_a_build(operator.read_text()))
    shutil.copyfile(Path(__file__).parent / "fallback.py", package / "fallback.py")

    configuration = folder / "build.toml"
    configuration.write_text(
        Template(configuration.read_text()).substitute(
            hub=f'\n[general.hub]\nrepo-id = "{repo_id}"\n' if repo_id else "",
            torch_target=TORCH_TARGET,
            folder=_KERNEL_FOLDER,
            sources="\n".join(f'  "{_KERNEL_FOLDER}/{source.name}",' for source in sources()),
        )
    )


def _with_namespace_of_a_build(text: str) -> str:
    for old, new in _NAMESPACE_OF_A_BUILD.items():
        if old not in text:
            raise ValueError(f"{_NAME}.py no longer contains {old.strip()!r}, which a build's namespace replaces")
        text = text.replace(old, new, 1 if "\n" in old else -1)
    return text
