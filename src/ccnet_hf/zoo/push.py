"""The command that publishes converted checkpoints and prepared datasets on the Hub."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from ccnet_hf.command import run_command
from ccnet_hf.errors import InputError, using
from ccnet_hf.hub import HubRepository, check_license, check_token, collect, publish
from ccnet_hf.recipes import get_recipe, zoo_recipes
from ccnet_hf.zoo.repository import model_repositories


COLLECTION = "CCNet"
COLLECTION_DESCRIPTION = "CCNet checkpoints of mmsegmentation and PaddleSeg for transformers, converted by ccnet_hf."


@dataclass
class PushArguments:
    variant: list[str] | None = field(
        default=None,
        metadata={
            "help": "zoo variants to publish, each under its name and its short one; `python -m ccnet_hf.zoo list`"
        },
    )
    all: bool = field(default=False, metadata={"help": "publish all variants, and gather them in a collection"})
    checkpoints: str | None = field(
        default=None, metadata={"help": "folder that holds the converted checkpoints, one folder per variant"}
    )
    namespace: str | None = field(default=None, metadata={"help": "user or organisation on the Hub"})
    dataset: str | None = field(
        default=None, metadata={"help": "folder written by prepare_dataset.py, to publish instead of checkpoints"}
    )
    hub_dataset_id: str | None = field(default=None, metadata={"help": "namespace/name of the dataset on the Hub"})
    private: bool = field(default=False, metadata={"help": "create private repositories"})
    dry_run: bool = field(default=False, metadata={"help": "show what would go where, and send nothing"})

    def __post_init__(self):
        if sum([bool(self.variant), self.all, bool(self.dataset)]) != 1:
            raise InputError("give one of --variant, --all and --dataset")
        needed = ("hub_dataset_id",) if self.dataset else ("checkpoints", "namespace")
        missing = [f"--{name}" for name in needed if not getattr(self, name)]
        if missing:
            raise InputError(f"{'--dataset needs' if self.dataset else 'checkpoints need'} {' and '.join(missing)}")
        if self.dataset and self.hub_dataset_id.count("/") != 1:
            raise InputError(f"--hub_dataset_id must be namespace/name, got {self.hub_dataset_id!r}")
        with using("--hub_dataset_id" if self.dataset else "--namespace"):
            validate_repo_id(self.hub_dataset_id if self.dataset else f"{self.namespace}/ccnet")


def push(arguments: PushArguments) -> None:
    """Publish checkpoints or a dataset on the Hub. What is there already is not sent again."""
    repositories = list_repositories(arguments)
    for repository in repositories:
        check_license(repository, arguments.private)
    if arguments.dry_run:
        for repository in repositories:
            print("\n".join(describe(repository)))
        return
    api = HfApi()
    check_token(api, repositories[0].repo_id)
    for repository in repositories:
        sent = publish(api, repository, arguments.private)
        print(f"{repository.repo_id}: {'published' if sent else 'up to date'}", flush=True)
    if arguments.all:
        repo_ids = [repository.repo_id for repository in repositories]
        print(f"collection: {collect(api, COLLECTION, COLLECTION_DESCRIPTION, repo_ids, arguments.private)}")


def list_repositories(arguments: PushArguments) -> list[HubRepository]:
    """Everything the arguments ask to publish, read from the folders and checked.

    Raises:
        InputError: an unknown variant, or a folder that is not what it should be.
    """
    if arguments.dataset:
        from ccnet_hf.data.preparation.card import dataset_repository  # here, for checkpoints need no extra

        return [dataset_repository(Path(arguments.dataset), arguments.hub_dataset_id)]
    recipes = zoo_recipes()
    if not arguments.all:
        recipes = {recipe.name: recipe for recipe in map(get_recipe, arguments.variant)}.values()
    for recipe in recipes:
        if not recipe.checkpoint_file and recipe.task == "semantic":
            raise InputError(f"{recipe.name} names no published checkpoint that could be converted")
    return [
        repository
        for recipe in recipes
        for repository in model_repositories(recipe, Path(arguments.checkpoints), arguments.namespace)
    ]


def describe(repository: HubRepository) -> list[str]:
    """One line for the repository, and one per file with its size in bytes."""
    sizes = {
        path: content.stat().st_size if isinstance(content, Path) else len(content)
        for path, content in repository.files.items()
    }
    header = f"{repository.repo_type} {repository.repo_id}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB"
    return [header, *(f"  {size:>13,}  {path}" for path, size in sizes.items())]


def main(argv: Sequence[str] | None = None, prog: str = "push_to_hub.py") -> int:
    return run_command(PushArguments, push, argv, prog)
