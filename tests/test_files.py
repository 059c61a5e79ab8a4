"""Writing: complete or not at all, whoever else writes and whatever ends it."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from ccnet_hf.errors import InputError
from ccnet_hf.files import (
    atomic_file,
    atomic_folder,
    check_file,
    check_new,
    check_writable,
    exclusive,
    explained,
    publish_files,
    remove_folder,
    remove_leftovers,
    write_text,
)


def names(folder):
    """What a folder holds, but for the locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_keeps_its_old_content_until_the_new_one_is_complete(tmp_path):
    file = tmp_path / "deep" / "report.json"
    write_text(file, "old")
    with atomic_file(file) as unfinished:
        unfinished.write_text("new")
        assert unfinished.suffix == ".json" and file.read_text() == "old"
    assert file.read_text() == "new" and names(file.parent) == ["report.json"]


def test_a_failed_file_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), atomic_file(tmp_path / "file") as unfinished:
        unfinished.write_text("half")
        raise KeyError("bug")
    assert names(tmp_path) == []


def test_two_writers_of_one_file_do_not_share_a_name(tmp_path):
    with atomic_file(tmp_path / "file") as first, atomic_file(tmp_path / "file") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "file").read_text() == "first"


def test_a_folder_appears_complete(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    with atomic_folder(folder) as unfinished:
        (unfinished / "weights").write_text("all")
        (unfinished / "deep").mkdir()
        (unfinished / "deep" / "file").write_text("too")
        assert not any(folder.iterdir())
    assert names(folder) == ["deep", "weights"] and names(tmp_path) == ["model"]


def test_a_folder_with_files_is_replaced_only_if_asked_for(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(InputError, match="model exists"), atomic_folder(folder):
        pass
    with atomic_folder(folder, replace=True) as unfinished:
        (unfinished / "new").touch()
    assert names(folder) == ["new"] and names(tmp_path) == ["model"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(ZeroDivisionError), atomic_folder(folder, replace=True) as unfinished:
        (unfinished / "new").touch()
        raise ZeroDivisionError
    assert names(folder) == ["old"] and names(tmp_path) == ["model"]


def hold(path, held, release):
    with exclusive(path):
        held.set()
        release.wait(60)


def test_a_second_process_is_refused(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "model", held, release))
    process.start()
    try:
        assert held.wait(60)
        with pytest.raises(InputError, match=r"another process is writing .*model"), atomic_folder(tmp_path / "model"):
            pass
    finally:
        release.set()
        process.join()
    with atomic_folder(tmp_path / "model"):
        pass


WRITER = """
import sys, time
from ccnet_hf.files import atomic_folder
with atomic_folder(sys.argv[1], replace=True) as unfinished:
    (unfinished / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path):
    folder = tmp_path / "model"
    with subprocess.Popen([sys.executable, "-c", WRITER, folder], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert not folder.exists() and len(names(tmp_path)) == 1
    with atomic_folder(folder) as unfinished:
        (unfinished / "whole").touch()
    assert names(tmp_path) == ["model"] and names(folder) == ["whole"]


def test_a_folder_on_the_way_to_be_replaced_comes_back(tmp_path):
    (tmp_path / ".model.0123abcd.replaced").mkdir()
    (tmp_path / ".model.0123abcd.replaced" / "old").touch()
    (tmp_path / ".other.0123abcd.unfinished").mkdir()
    remove_leftovers(tmp_path, "model")
    assert names(tmp_path) == [".other.0123abcd.unfinished", "model"] and names(tmp_path / "model") == ["old"]
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["os", "torch", "safetensors"],
)
def test_a_full_disk_is_one_sentence(error, tmp_path):
    with pytest.raises(OSError, match=r"model cannot be written: .*\w") as caught, explained(tmp_path / "model"):
        raise error
    assert caught.value.errno == errno.ENOSPC and "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ConnectionError("reset"), ValueError("no")])
def test_other_faults_stay_what_they_are(error, tmp_path):
    with pytest.raises(type(error), match=str(error)), explained(tmp_path):
        raise error


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path):
    check_writable(tmp_path)
    check_writable(tmp_path / "new" / "folder")
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/folder cannot be written: not a directory"):
        check_writable(tmp_path / "file" / "folder")
    if os.path.exists("/dev/full"):
        with pytest.raises(OSError, match="no space left"), explained(tmp_path):
            with open("/dev/full", "w") as full:
                full.write("x")


def test_a_place_for_something_new_is_tried_without_making_anything(tmp_path, full_disk):
    check_file(tmp_path / "new" / "report.json")
    check_new(tmp_path / "new" / "model")
    (tmp_path / "file").touch()
    for check in (check_file, check_new, check_writable):
        with pytest.raises(OSError, match=r"file/deep/new cannot be written: not a directory"):
            check(tmp_path / "file" / "deep" / "new")
        with full_disk(1000), pytest.raises(OSError, match=r"new cannot be written: file too large"):
            check(tmp_path / "new")
    with pytest.raises(OSError, match=r"cannot be written: is a directory"):
        check_file(tmp_path)
    with pytest.raises(InputError, match=r"file exists; name a new folder"):
        check_new(tmp_path / "file")
    assert names(tmp_path) == ["file"]


def test_what_is_no_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for name in ("pipe", "link"):
        with pytest.raises(InputError, match=f"{name} is a pipe, a device or a socket, which would be replaced"):
            check_file(tmp_path / name)
        with pytest.raises(InputError, match=f"{name} is a pipe"):
            write_text(tmp_path / name, "text")
    assert pipe.is_fifo() and names(tmp_path) == ["link", "pipe"]


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path, full_disk):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file.txt").write_text("old")
    link, dangling = tmp_path / "link.json", tmp_path / "dangling"
    link.symlink_to("deep/file.txt")
    dangling.symlink_to("new/file")
    with atomic_file(link) as unfinished:
        unfinished.write_text("new")
        assert unfinished.suffix == ".json" and unfinished.parent == tmp_path / "deep" and link.read_text() == "old"
    check_file(dangling)
    write_text(dangling, "new")
    for file in (link, dangling):
        assert file.is_symlink() and file.read_text() == "new"
    with full_disk(10), pytest.raises(OSError, match=r"link.json cannot be written: file too large"):
        write_text(link, "x" * 100)
    assert link.read_text() == "new" and names(tmp_path / "deep") == ["file.txt"]


def test_links_that_lead_nowhere_are_found_before_the_work(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("none")
    loop = r"cannot be written: too many levels of symbolic links"
    for check in (check_file, check_writable):
        for path in (tmp_path / "loop", tmp_path / "loop" / "file"):
            with pytest.raises(OSError, match=loop):
                check(path)
        with pytest.raises(OSError, match=r"nowhere/file cannot be written: no such file"):
            check(tmp_path / "nowhere" / "file")
    with pytest.raises(OSError, match=r"nowhere cannot be written: no such file"):
        check_writable(tmp_path / "nowhere")
    for name in ("loop", "nowhere"):
        with pytest.raises(InputError, match=f"{name} exists; name a new folder"):
            check_new(tmp_path / name)


def test_a_name_that_no_file_can_have_is_found_before_the_work(tmp_path):
    for check in (check_file, check_writable, check_new):
        for name in ("a\0b", "a\0b/c"):
            with pytest.raises(InputError, match=r"a\\x00b.* is no name of a file or folder: it holds a NUL"):
                check(tmp_path / name)
    for write in (atomic_file, atomic_folder, exclusive):
        with pytest.raises(InputError, match="it holds a NUL"), write(tmp_path / "a\0b"):
            pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("folder", [".", "", "../here", ".."])
def test_the_current_folder_is_not_replaced(folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match=r"name one in it|exists; name a new folder"), atomic_folder(folder):
        pass
    assert [path.name for path in tmp_path.rglob("*") if not path.name.endswith(".lock")] == ["here"]


@pytest.mark.parametrize("length", [251, 255])
def test_names_as_long_as_they_may_be(length, tmp_path):
    file, folder = tmp_path / ("f" * (length - 4) + ".txt"), tmp_path / ("ä" * (length // 2))
    write_text(file, "text")
    with atomic_folder(folder) as unfinished:
        (unfinished / "file").touch()
    assert names(tmp_path) == [file.name, folder.name]


def test_leftovers_of_a_neighbour_are_its_own(tmp_path):
    for name in (".model.v2.0123abcd.unfinished", ".model[1].0123abcd.unfinished", ".model.0123abcd.unfinished.pt"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path, "model")
    assert names(tmp_path) == [".model.v2.0123abcd.unfinished", ".model[1].0123abcd.unfinished"]
    remove_leftovers(tmp_path, "model[1]")
    assert names(tmp_path) == [".model.v2.0123abcd.unfinished"]


def test_a_fault_of_another_file_is_not_called_the_targets(tmp_path):
    source = tmp_path / "source.png"
    with pytest.raises(FileNotFoundError, match=r"source\.png"), atomic_file(tmp_path / "target.png") as unfinished:
        unfinished.write_bytes(source.read_bytes())


def test_what_does_not_fit_is_one_sentence(tmp_path, full_disk):
    """Each library has its own way to say so."""
    content = {"weight": torch.zeros(10_000)}
    writers = {
        "text": lambda path: path.write_text("x" * 40_000),
        "torch": lambda path: torch.save(content, path),
        "safetensors": lambda path: save_file(content, path),
        "image": lambda path: Image.effect_noise((200, 200), 50).save(path, "PNG"),
    }
    with full_disk(10_000):
        for name, write in writers.items():
            with pytest.raises(OSError, match=rf"{name} cannot be written: .*\w"):
                with atomic_file(tmp_path / name) as unfinished:
                    write(unfinished)
            with pytest.raises(OSError, match="folder cannot be written"):
                with atomic_folder(tmp_path / "folder") as unfinished:
                    write(unfinished / name)
    assert names(tmp_path) == []


def wait_for(path, waiting, done):
    waiting.set()
    with exclusive(path, wait=True):
        done.set()


def test_a_process_may_wait_for_another(tmp_path):
    context = multiprocessing.get_context("spawn")
    waiting, done = context.Event(), context.Event()
    process = context.Process(target=wait_for, args=(tmp_path / "file", waiting, done))
    with exclusive(tmp_path / "file"):
        process.start()
        assert waiting.wait(60)
        assert not done.wait(0.5)
    assert done.wait(60)
    process.join()


def test_the_lock_of_a_folder_may_lie_in_it(tmp_path):
    with exclusive(tmp_path / "folder", inside=True):
        assert [path.name for path in tmp_path.rglob("*")] == ["folder", ".lock"]
        with pytest.raises(InputError, match="another process is writing"):
            with exclusive(tmp_path / "folder", inside=True):
                pass
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file cannot be written"), exclusive(tmp_path / "file", inside=True):
        pass


def test_the_lock_ends_with_its_process(tmp_path):
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "model"], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        with pytest.raises(InputError, match="another process"), exclusive(tmp_path / "model"):
            pass
        process.kill()
    deadline = time.monotonic() + 30
    while True:
        try:
            with exclusive(tmp_path / "model"):
                break
        except InputError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_files_join_a_folder_with_the_last_one_last(tmp_path, monkeypatch):
    folder, unfinished = tmp_path / "model", tmp_path / ".model.unfinished"
    for place in (folder, unfinished):
        place.mkdir()
    (folder / "mine").touch()
    (folder / "weights").write_text("old")
    for name in ("config", "weights", "zebra"):
        (unfinished / name).write_text("new")
    order, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: order.append(target.name) or replace(source, target))
    publish_files(unfinished, folder, last="config")
    assert order == ["weights", "zebra", "config"]
    assert names(folder) == ["config", "mine", "weights", "zebra"] and names(tmp_path) == ["model"]
    assert (folder / "weights").read_text() == "new"


def test_a_folder_that_is_removed_is_never_half_there(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "weights").touch()
    monkeypatch.setattr("shutil.rmtree", lambda *arguments, **options: None)  # killed before
    remove_folder(folder)
    assert not folder.exists() and len(names(tmp_path)) == 1
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_a_lock_inside_of_what_it_locks(tmp_path):
    with exclusive(tmp_path / "run", inside=True):
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        with pytest.raises(InputError, match="run; wait for it"), exclusive(tmp_path / "run", inside=True):
            pass
    with exclusive(tmp_path / "run", inside=True):
        pass
