"""The Hub repository of a model that is trained."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from ccnet_hf.errors import InputError, using
from ccnet_hf.hub import CARD_FILE, HubRepository, eval_result_files, publish, retry
from ccnet_hf.remote_code import CONFIG_FILE, processor_file, published_files
from ccnet_hf.training.progress import LOG_FILE
from ccnet_hf.training.report import CURVES_FILE


def create_repository(name: str, private: bool) -> str:
    """Make sure that there is a repository to upload to; returns its whole name.

    Raises:
        InputError: the name is none, or there is a public one and `private` is asked for.
        OSError: the Hub is out of reach or refuses.
    """
    api = HfApi()
    with using("--hub_model_id"):
        validate_repo_id(name)
    repo_id = retry(lambda: api.create_repo(name, private=private or None, exist_ok=True), name).repo_id
    if private and not retry(lambda: api.repo_info(repo_id), repo_id).private:
        raise InputError(f"{repo_id} exists and is public, and --hub_private_repo asks for a private one")
    return repo_id


def upload(output_dir: Path, repo_id: str) -> None:
    """Put the model, its code, its card and what its training logged on the Hub.

    Raises:
        OSError: the Hub is out of reach or refuses; the message says how to go on.
    """
    # Not the trackers' files, which name local folders, nor the predictions, which show the dataset's images.
    config = json.loads((output_dir / CONFIG_FILE).read_text())
    processor_name = processor_file(config["model_type"])
    processor = json.loads((output_dir / processor_name).read_text())
    patterns = (CONFIG_FILE, "model*.safetensors*", processor_name, CARD_FILE, CURVES_FILE, LOG_FILE)
    files = {path.name: path for pattern in patterns for path in sorted(output_dir.glob(pattern))}
    files |= published_files(config, processor)
    if CARD_FILE in files:
        files |= eval_result_files(files[CARD_FILE].read_text(encoding="utf-8"))
    repository = HubRepository(repo_id, "model", files)
    try:
        publish(HfApi(), repository, private=False, overwrite=True)  # it exists; this leaves it as private as it is
    except OSError as error:
        raise OSError(f"{error}; the same command with --resume_from_checkpoint last goes on here") from error
    print(f"uploaded: https://huggingface.co/{repo_id}")
