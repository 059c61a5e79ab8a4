"""Downloads of checkpoints, from a server on loopback that misbehaves."""

import hashlib
import random
import socket

import pytest
from file_server import FileServer

from ccnet_hf.zoo import download
from ccnet_hf.zoo.download import ATTEMPTS, download_checkpoint


CONTENT = random.Random(0).randbytes(3_000_000)
NAME = f"ccnet_20200616_142517-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


@pytest.fixture
def server():
    with FileServer(CONTENT) as server:
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """The seconds waited between attempts; none passes. Loopback never goes through a proxy."""
    waits = []
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download.time, "sleep", waits.append)
    return waits


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_arrives_and_is_not_asked_for_again(server, tmp_path, waits):
    folder = tmp_path / "new" / "folder"
    file = download_checkpoint(server.url(NAME), folder)
    assert file == folder / NAME and file.read_bytes() == CONTENT
    assert names(folder) == [NAME]
    assert download_checkpoint(server.url(NAME), folder) == file
    assert server.ranges == [None] and waits == []


def test_a_cut_download_goes_on_where_it_was_cut(server, tmp_path, waits):
    server.faults = [("cut", 1_200_000), ("cut", 300_000), 500, 503, 429]
    file = download_checkpoint(server.url(NAME), tmp_path)
    assert file.read_bytes() == CONTENT and names(tmp_path) == [NAME]
    assert server.ranges == [None, "bytes=1200000-", *["bytes=1500000-"] * 4]
    assert waits == [1, 1, 2, 4, 8]  # after new bytes, counting starts again


def test_progress_is_no_failure(server, tmp_path):
    server.faults = [("cut", 1000)] * 3 * ATTEMPTS
    assert download_checkpoint(server.url(NAME), tmp_path).read_bytes() == CONTENT


def test_a_later_call_goes_on_too(server, tmp_path):
    server.faults = [("cut", 2_000_000), *[500] * ATTEMPTS]
    with pytest.raises(OSError, match=f"{ATTEMPTS} attempts in a row failed"):
        download_checkpoint(server.url(NAME), tmp_path)
    assert names(tmp_path) == [f"{NAME}.part"]
    assert download_checkpoint(server.url(NAME), tmp_path).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=2000000-"


@pytest.mark.parametrize("fault", ["no range", "other range"])
def test_a_server_that_does_not_do_ranges(fault, server, tmp_path):
    server.faults = [("cut", 1_000_000), fault]
    assert download_checkpoint(server.url(NAME), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"more"])
def test_a_partial_file_with_nothing_left_to_ask_for(left, server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(left)
    assert download_checkpoint(server.url(NAME), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_not_tried_again(status, server, tmp_path):
    server.faults = [status]
    with pytest.raises(OSError, match=f"the server answers {status}"):
        download_checkpoint(server.url(NAME), tmp_path)
    assert len(server.ranges) == 1 and names(tmp_path) == []


def test_a_server_that_stays_broken(server, tmp_path):
    server.faults = [500] * 100
    with pytest.raises(OSError, match="HTTP Error 500"):
        download_checkpoint(server.url(NAME), tmp_path)
    assert len(server.ranges) == ATTEMPTS and names(tmp_path) == []


def test_no_server(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OSError, match=r"attempts in a row failed.*refused"):
        download_checkpoint(f"http://127.0.0.1:{port}/{NAME}", tmp_path)


def test_a_silent_server(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(OSError, match=r"attempts in a row failed.*timed out"):
            download_checkpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/{NAME}", tmp_path)


def test_another_file_than_the_name_promises(server, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(ValueError, match=r"is not the file its name promises.*was removed"):
        download_checkpoint(server.url(NAME), tmp_path)
    assert names(tmp_path) == []


def test_a_full_disk_is_not_tried_again(server, tmp_path, monkeypatch, waits):
    def fail(**options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "tqdm", fail)
    with pytest.raises(OSError, match="No space left"):
        download_checkpoint(server.url(NAME), tmp_path)
    assert waits == []


def test_a_name_without_a_hash(server, tmp_path):
    assert download_checkpoint(server.url("model.pth"), tmp_path).read_bytes() == CONTENT
