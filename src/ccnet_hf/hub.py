"""Repositories, and how they come to the Hub over a connection that may break at any moment.

A repository appears in one commit on top of the newest one, so that no user ever meets half of it. The client does
not send what is there already; whatever broke, the same call again completes it.
"""

import fnmatch
import json
import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    DatasetCard,
    EvalResultEntry,
    HfApi,
    ModelCard,
    eval_result_entries_to_yaml,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # of the client's own HTTP library, whichever that is
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from ccnet_hf import network
from ccnet_hf.errors import InputError, using


CARD_FILE = "README.md"
_LONGEST_WAIT = 300.0  # seconds that the Hub may ask for
_TRANSIENT_STATUSES = (408, 412, 429, 500, 502, 503, 504)  # 412: somebody else has committed in between
_MODEL_CODE = "modeling_ccnet*.py"  # a model repository without any such file is not one of ours
_TRAINING_LOG = "training_log.jsonl"  # beside a model that train.py has pushed
_FILES_OF_AN_EMPTY_REPOSITORY = {".gitattributes", CARD_FILE}

T = TypeVar("T")


@dataclass(frozen=True)
class HubRepository:
    """A repository as it shall be on the Hub.

    Attributes:
        repo_id: namespace/name.
        repo_type: `"model"` or `"dataset"`.
        files: path in the repository -> its content, or the local file with it.
    """

    repo_id: str
    repo_type: Literal["model", "dataset"]
    files: dict[str, bytes | Path]

    @property
    def card(self) -> ModelCard | DatasetCard:
        text = self.files[CARD_FILE]
        text = text.read_text(encoding="utf-8") if isinstance(text, Path) else text.decode()
        return (DatasetCard if self.repo_type == "dataset" else ModelCard)(text)


def eval_result_files(card: str) -> dict[str, bytes]:
    """The scores in a model card's metadata as files of `.eval_results/`, from which the Hub shows them beside the
    model and on the dataset's leaderboard, once the dataset has one. Scores of data that is not on the Hub have none.

    Args:
        card: its text.

    Returns:
        Path in the repository -> content, a file for each score.
    """
    metadata = ModelCard(card).data
    datasets = metadata.get("datasets") or []
    files = {}
    for result in metadata.get("eval_results") or []:
        if result.dataset_type not in ([datasets] if isinstance(datasets, str) else datasets):
            continue
        entry = EvalResultEntry(
            dataset_id=result.dataset_type,
            task_id="default",
            value=result.metric_value,
            source_url=result.source_url,
            source_name=result.source_name,
            notes=", ".join(filter(None, [result.metric_name, result.dataset_split])),
        )
        name = re.sub("[^a-z0-9]+", "-", f"{result.dataset_type} {result.metric_name or result.metric_type}".lower())
        content = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
        files[f".eval_results/{name.strip('-')}.yaml"] = content.encode()
    return files


def check_license(repository: HubRepository, private: bool) -> None:
    """Refuse a repository whose card does not state the terms, and to publish data that has its own ones.

    Raises:
        InputError: as above, or the card's metadata cannot be read.
    """
    try:
        metadata = repository.card.data
    except Exception as error:  # whatever YAML and the card classes raise
        raise InputError(f"{repository.repo_id}: the metadata of {CARD_FILE} cannot be read ({error})") from error
    if not metadata.get("license"):
        raise InputError(f"{repository.repo_id}: {CARD_FILE} states no license in its metadata")
    if metadata.license == "other" and not (metadata.get("license_name") and metadata.get("license_link")):
        raise InputError(
            f"{repository.repo_id}: the license 'other' in {CARD_FILE} needs license_name and license_link too"
        )
    if repository.repo_type == "dataset" and metadata.license in ("other", "unknown") and not private:
        raise InputError(
            f"{repository.repo_id}: the data is under terms of its own ({metadata.get('license_name', 'unknown')}); "
            "it is pushed with --private only"
        )


def check_token(api: HfApi, repo_id: str) -> None:
    """Make sure, before anything is sent, that the token is valid and may write to the namespace of `repo_id`.

    Raises:
        InputError: that is not namespace/name, there is no token, it may only read, or its owner neither is the
            namespace nor may write to it.
        OSError: the Hub does not accept the token, or does not answer.
    """
    with using(""):
        validate_repo_id(repo_id)
    namespace, _, name = repo_id.rpartition("/")
    if not namespace:
        raise InputError(f"a repository on the Hub is namespace/name, got {name!r}")
    try:
        user = retry(api.whoami, "signing in")
    except LocalTokenNotFoundError as error:
        raise InputError("no token for the Hub: run `hf auth login` or set HF_TOKEN") from error
    token = user.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise InputError(f"the token of {user['name']} may only read; pushing needs one that may write")
    readers = ("read", "no_access")
    allowed = [user["name"], *(org["name"] for org in user.get("orgs", []) if org.get("roleInOrg") not in readers)]
    if namespace not in allowed:
        raise InputError(f"{user['name']}'s token may not write to {namespace!r}, only to {', '.join(allowed)}")


def publish(api: HfApi, repository: HubRepository, private: bool, overwrite: bool = False) -> bool:
    """Make a repository on the Hub hold `repository`, in one commit.

    Args:
        api: client of the Hub.
        repository: what it shall hold.
        private: whether only its owners may see it, if it is created now.
        overwrite: write also into a repository that holds something else.

    Returns:
        Whether anything was sent; not where the repository was up to date.

    Raises:
        InputError: the name is taken by something else, or by a public repository where a private one was asked for.
        OSError: the Hub refused, or could not be reached in several attempts.
    """
    return retry(lambda: _publish(api, repository, private, overwrite), repository.repo_id)


def _publish(api: HfApi, repository: HubRepository, private: bool, overwrite: bool) -> bool:
    repo_id, repo_type = repository.repo_id, repository.repo_type
    api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    info = api.repo_info(repo_id, repo_type=repo_type)
    if private and not info.private:
        raise InputError(f"{repo_id} exists and is public; make it private or choose another name")
    entries = api.list_repo_tree(repo_id, recursive=True, revision=info.sha, repo_type=repo_type)
    present = {entry.path for entry in entries if isinstance(entry, RepoFile)}
    if not overwrite:
        _check_name(repository, present - _FILES_OF_AN_EMPTY_REPOSITORY)
    commit = api.create_commit(
        repo_id,
        [CommitOperationAdd(path, content) for path, content in repository.files.items()],
        commit_message="Publish with ccnet_hf",
        repo_type=repo_type,
        parent_commit=info.sha,
    )
    return commit.oid != info.sha  # of what has not changed, the client makes no commit


def _check_name(repository: HubRepository, present: Set[str]) -> None:
    """Refuse to write over something else. A file that does not belong to a dataset would even become part of it."""
    foreign = present - repository.files.keys()
    if repository.repo_type == "model" and fnmatch.filter(present, _MODEL_CODE) and _TRAINING_LOG not in foreign:
        return
    if foreign or (present and repository.repo_type == "model"):
        raise InputError(
            f"the name {repository.repo_id} is taken: it holds {', '.join(sorted(foreign or present)[:5])}, which are "
            "not part of what is pushed; remove them or choose another name"
        )


def collect(api: HfApi, title: str, description: str, repo_ids: Sequence[str], private: bool) -> str:
    """Put model repositories of one namespace into its collection called `title`, and return the collection's address.

    Raises:
        OSError: as for `publish`.
    """
    namespace = repo_ids[0].split("/")[0]
    collection = retry(
        lambda: api.create_collection(
            title, namespace=namespace, description=description, private=private, exists_ok=True
        ),
        f"the collection {title!r}",
    )
    present = {item.item_id for item in collection.items}
    for repo_id in repo_ids:
        if repo_id not in present:
            retry(
                lambda repo_id=repo_id: api.add_collection_item(collection.slug, repo_id, "model", exists_ok=True),
                f"{repo_id} in the collection {title!r}",
            )
    return collection.url


def retry(request: Callable[[], T], what: str) -> T:
    """As `ccnet_hf.network.retry`, for requests to the Hub.

    Raises:
        OSError: it failed several times, or the Hub refused it for good. One sentence, which begins with `what`.
    """
    return network.retry(request, what, _find_failure)


def _find_failure(error: Exception) -> network.Failure | None:
    if isinstance(error, LocalTokenNotFoundError | OfflineModeIsEnabled):
        return None
    cause = _cause(error)
    return None if cause is None else network.Failure(_describe(cause), _is_transient(cause), _retry_after(cause))


def _cause(error: BaseException) -> Exception | None:
    """What went wrong between us and the Hub, also where the client wraps it; `None` if it was something else."""
    cause = error
    while cause is not None:
        # A gateway in trouble answers with a page where the client expects JSON.
        if isinstance(cause, HTTPError | ConnectionError | TimeoutError | json.JSONDecodeError):
            return cause
        cause = cause.__cause__
    return error if isinstance(error, RuntimeError) else None  # of hf_xet, which uploads large files


def _is_transient(cause: Exception) -> bool:
    return not isinstance(cause, HfHubHTTPError) or cause.response.status_code in _TRANSIENT_STATUSES


def _retry_after(cause: Exception) -> float:
    stated = cause.response.headers.get("Retry-After", "") if isinstance(cause, HfHubHTTPError) else ""
    return min(float(stated), _LONGEST_WAIT) if stated.isdigit() else 0.0


def _describe(cause: Exception) -> str:
    if isinstance(cause, json.JSONDecodeError):
        return "the Hub answered something that is no JSON"
    if not isinstance(cause, HfHubHTTPError):
        return f"the connection to the Hub broke ({str(cause) or type(cause).__name__})"
    status = cause.response.status_code
    meaning = {
        401: "the Hub does not accept the token (expired or revoked?): run `hf auth login` or renew HF_TOKEN",
        403: "the token may not write there",
        429: "the Hub asks for patience (429)",
    }
    reason = cause.server_message or str(cause).splitlines()[0]
    return meaning.get(status, f"the Hub answered {status} ({' '.join(reason.split())})")
