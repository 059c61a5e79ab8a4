"""The fake Hub refuses what the Hub refuses: without this, a push that passes on it would prove little."""

import hashlib
import json
import urllib.error
import urllib.request

import pytest
from fake_hub import FakeHub
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from tiny_zoo import connect, quiet


CONTENT = b"weights" * 1000
OID = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with FakeHub() as hub, quiet():
        connect(hub, monkeypatch, tmp_path / "no_token")
        hub.create("me/model")
        yield hub


def ask(hub: FakeHub, method: str, path: str, content: bytes = b"", **headers: str) -> tuple[int, bytes]:
    headers = {"Authorization": "Bearer hf_write"} | {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(hub.url + path, content or None, headers, method=method)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def commit(hub: FakeHub, *operations: dict, **header) -> tuple[int, bytes]:
    lines = [{"key": "header", "value": {"summary": "test", **header}}, *operations]
    return ask(hub, "POST", "/api/models/me/model/commit/main", "\n".join(map(json.dumps, lines)).encode())


def lfs_file(size: int = len(CONTENT)) -> dict:
    return {"key": "lfsFile", "value": {"path": "model.safetensors", "algo": "sha256", "oid": OID, "size": size}}


def test_objects_are_checked_by_hash_and_size(hub):
    assert ask(hub, "PUT", f"/lfs/model/me/model/{OID}", CONTENT[:-1])[0] == 400
    assert commit(hub, lfs_file())[0] == 400  # it never came
    assert ask(hub, "PUT", f"/lfs/model/me/model/{OID}", CONTENT)[0] == 200
    assert commit(hub, lfs_file(size=3))[0] == 400
    assert len(hub.repositories["model", "me/model"].commits) == 1
    assert commit(hub, lfs_file())[0] == 200
    assert hub.repositories["model", "me/model"].files == {"model.safetensors": CONTENT}


def test_parent_is_checked(hub):
    repository = hub.repositories["model", "me/model"]
    first = repository.head.oid
    file = {"key": "file", "value": {"path": "a", "content": "YQ==", "encoding": "base64"}}
    assert commit(hub, file, parentCommit=first)[0] == 200
    assert commit(hub, file, parentCommit=first)[0] == 412
    assert len(repository.commits) == 2


def test_token_is_checked(hub, monkeypatch):
    hub.create("me/secret", private=True, files={"config.json": b"{}"})
    api = HfApi()
    assert api.model_info("me/secret").private
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("me/new")
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(HfHubHTTPError, match="401"):
        api.create_repo("me/new")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("me/secret")
    assert api.model_info("me/model").sha == hub.repositories["model", "me/model"].head.oid


def test_names_are_taken_once(hub):
    with pytest.raises(HfHubHTTPError, match="409"):
        HfApi().create_repo("me/model")
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi().create_repo("google/model")


def test_download(hub, tmp_path):
    """Small and large files, by branch and by commit, again without the content, and from the middle."""
    repository = hub.repositories["model", "me/model"]
    files = [CommitOperationAdd("model.safetensors", CONTENT), CommitOperationAdd("sub/config.json", b"{}")]
    HfApi().create_commit("me/model", files, commit_message="test")
    for revision in ("main", repository.head.oid):
        for path, content in repository.files.items():
            file = hf_hub_download("me/model", path, revision=revision, cache_dir=tmp_path)
            assert open(file, "rb").read() == content
    assert hub.count("cdn") == 1  # the second time its hash was known
    path = f"/cdn/model/me/model/{OID}"
    request = urllib.request.Request(hub.url + path, headers={"Range": "bytes=6995-"})
    with urllib.request.urlopen(request) as response:
        assert (response.status, response.read()) == (206, CONTENT[6995:])
        assert response.headers["Content-Range"] == "bytes 6995-6999/7000"
    assert ask(hub, "GET", path)[0] == 400  # a token must not leave the Hub
