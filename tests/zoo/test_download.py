"""Downloads of checkpoints, from a server on loopback that misbehaves."""

import hashlib
import multiprocessing
import os
import random
import signal
import socket
import time
from types import SimpleNamespace

import pytest
from file_server import FileServer

from ccnet_hf import network
from ccnet_hf.network import ATTEMPTS
from ccnet_hf.zoo import download as download_module
from ccnet_hf.zoo.download import download_checkpoint


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
    monkeypatch.setattr(network, "time", SimpleNamespace(sleep=waits.append))
    return waits


def names(folder) -> list[str]:
    """What a folder holds, but for the locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


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
    with pytest.raises(OSError, match=f"{ATTEMPTS} times in a row"):
        download_checkpoint(server.url(NAME), tmp_path)
    assert names(tmp_path) == [f"{NAME}.part"]
    assert download_checkpoint(server.url(NAME), tmp_path).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=2000000-"


@pytest.mark.parametrize("fault", ["no range", "other range"])
def test_a_server_that_does_not_do_ranges(fault, server, tmp_path):
    server.faults = [("cut", 1_000_000), fault]
    assert download_checkpoint(server.url(NAME), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("name", [NAME, "model.pth"])
@pytest.mark.parametrize("left", ["all", "more", "others"])
def test_a_partial_file_with_nothing_left_to_ask_for(left, name, server, tmp_path):
    """Killed before it got its name, it is complete, as its hash or its size says; or it is something else."""
    content = {"all": CONTENT, "more": CONTENT + b"more", "others": bytes(len(CONTENT))}[left]
    (tmp_path / f"{name}.part").write_bytes(content)
    found = download_checkpoint(server.url(name), tmp_path).read_bytes()
    is_kept = left == "all" or (left == "others" and name != NAME)
    assert found == (content if is_kept else CONTENT)
    assert server.ranges == [f"bytes={len(content)}-", *([] if is_kept else [None])]
    assert names(tmp_path) == [name]


def test_a_server_without_ranges_that_knows_no_size(server, tmp_path):
    """It says that nothing is left, and not how much there was: the file is downloaded again."""
    server.states_size = False
    (tmp_path / "model.pth.part").write_bytes(CONTENT)
    assert download_checkpoint(server.url("model.pth"), tmp_path).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-", None]


def test_a_server_that_gives_nothing_at_all(server, tmp_path):
    server.faults = [416] * 100
    with pytest.raises(OSError, match="times in a row"):
        download_checkpoint(server.url(NAME), tmp_path)
    assert len(server.ranges) == ATTEMPTS


def download(url, folder, results):
    results.put(download_checkpoint(url, folder).read_bytes() == CONTENT)


def test_two_processes_download_one_file_once(server, tmp_path):
    server.faults = [("pause", 1_000_000, 3.0)]
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [context.Process(target=download, args=(server.url(NAME), tmp_path, results)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert results.get() and results.get()
    assert server.ranges == [None] and names(tmp_path) == [NAME]


@pytest.mark.parametrize("received", [1_000_000, len(CONTENT)])
def test_killed_while_it_downloads(received, server, tmp_path, monkeypatch):
    if received == len(CONTENT):  # complete, without its name
        monkeypatch.setattr(download_module.os, "replace", lambda *args: os.kill(os.getpid(), signal.SIGKILL))
    else:
        server.faults = [("pause", received, 60.0)]
    process = multiprocessing.get_context("fork").Process(
        target=download_checkpoint, args=(server.url(NAME), tmp_path)
    )
    process.start()
    deadline = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < deadline:
        if received < len(CONTENT) and (tmp_path / f"{NAME}.part").exists():
            process.kill()
        process.join(0.02)
    assert process.exitcode == -signal.SIGKILL and names(tmp_path) == [f"{NAME}.part"]
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert download_checkpoint(server.url(NAME), tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == [NAME]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_not_tried_again(status, server, tmp_path):
    server.faults = [status]
    with pytest.raises(OSError, match=f"the server answers {status}"):
        download_checkpoint(server.url(NAME), tmp_path)
    assert len(server.ranges) == 1 and names(tmp_path) == []


def test_a_server_that_stays_broken(server, tmp_path):
    server.faults = [500] * 100
    with pytest.raises(OSError, match="the server answers 500"):
        download_checkpoint(server.url(NAME), tmp_path)
    assert len(server.ranges) == ATTEMPTS and names(tmp_path) == []


def test_no_server(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OSError, match=r"refused.*times in a row"):
        download_checkpoint(f"http://127.0.0.1:{port}/{NAME}", tmp_path)


def test_a_silent_server(tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(OSError, match=r"timed out.*times in a row"):
            download_checkpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/{NAME}", tmp_path)


def test_another_file_than_the_name_promises(server, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(ValueError, match=r"is not the file its name promises.*was removed"):
        download_checkpoint(server.url(NAME), tmp_path)
    assert names(tmp_path) == []


def test_a_full_disk_is_not_tried_again(server, tmp_path, full_disk, waits):
    with full_disk(1_500_000), pytest.raises(OSError, match=rf"{NAME} cannot be written: file too large"):
        download_checkpoint(server.url(NAME), tmp_path)
    assert waits == [] and len(server.ranges) == 1
    assert download_checkpoint(server.url(NAME), tmp_path).read_bytes() == CONTENT
    assert server.ranges[1] == "bytes=1500000-"


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=rf"{NAME} cannot be written: (not a directory|file exists)"):
        download_checkpoint(server.url(NAME), tmp_path / "file" / "folder")
    assert server.ranges == []


def test_a_name_without_a_hash(server, tmp_path):
    assert download_checkpoint(server.url("model.pth"), tmp_path).read_bytes() == CONTENT
