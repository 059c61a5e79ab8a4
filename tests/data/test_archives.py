"""Files of folders and archives are listed and read where they lie; what is broken or hostile is refused."""

import gzip
import io
import os
import tarfile
import zipfile

import pytest
from distributions import pack, write

from ccnet_hf.data.archives import close_archives, list_files


@pytest.fixture(autouse=True)
def _close():
    yield
    close_archives()


def read_all(sources, scratch):
    return {file.path: file.read() for file in list_files(sources, scratch)}


CONTENT = {"a/b.txt": b"one", "a/c/d.bin": bytes(range(256)) * 40, "e.txt": b""}


@pytest.fixture
def folder(tmp_path):
    for path, content in CONTENT.items():
        write(tmp_path / "raw", path, content)
    return tmp_path / "raw"


@pytest.mark.parametrize("archive", ["x.zip", "x.tar", "x.tgz", "x.tar.gz", "X.ZIP"])
def test_reads_every_kind(tmp_path, folder, archive):
    assert read_all([folder], tmp_path / "scratch") == CONTENT
    pack(folder, tmp_path / archive.lower()).rename(tmp_path / archive)
    assert read_all([tmp_path / archive], tmp_path / "scratch") == CONTENT


def test_archives_in_folders_and_in_archives(tmp_path, folder):
    pack(folder, tmp_path / "outer" / "deep" / "inner.tgz")
    outer = pack(tmp_path / "outer", tmp_path / "source" / "outer.zip")
    assert read_all([tmp_path / "source"], tmp_path / "scratch") == CONTENT
    copies = {path: path.stat().st_mtime_ns for path in (tmp_path / "scratch").iterdir()}
    assert read_all([outer], tmp_path / "scratch") == CONTENT
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "scratch").iterdir()} == copies


def test_leaves_out_what_systems_add(tmp_path, folder):
    write(folder, "__MACOSX/a/._b.txt", b"x")
    write(folder, "a/.DS_Store", b"x")
    assert read_all([folder], tmp_path / "scratch") == CONTENT
    assert read_all([pack(folder, tmp_path / "x.zip")], tmp_path / "scratch") == CONTENT


def test_dots_before_names_and_links(tmp_path, folder):
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, ".")
    assert {path.removeprefix("./") for path in read_all([archive], tmp_path / "scratch")} == set(CONTENT)
    (folder / "a" / "back").symlink_to(folder, target_is_directory=True)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "data").symlink_to(folder, target_is_directory=True)
    assert set(read_all([tmp_path / "linked"], tmp_path / "scratch")) == {f"data/{path}" for path in CONTENT}


@pytest.mark.parametrize("member", ["../outside.txt", "/etc/outside.txt", "a/../../outside.txt", "..\\outside.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_refuses_members_that_point_outside(tmp_path, kind, member):
    archive = tmp_path / f"evil.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as target:
            target.writestr(member, "x")
    else:
        with tarfile.open(archive, "w") as target:
            info = tarfile.TarInfo(member)
            info.size = 1
            target.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(ValueError, match=r"evil\.\w+ is refused: its member '.*outside.txt' points outside"):
        list_files([archive], tmp_path / "scratch")
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
def test_names_a_truncated_archive(tmp_path, folder, name):
    write(folder, "last.bin", bytes(range(256)) * 400)
    archive = pack(folder, tmp_path / name)
    archive.write_bytes(archive.read_bytes()[: -archive.stat().st_size // 3])
    with pytest.raises(ValueError, match=f"{name} is not a whole .*archive"):
        list_files([archive], tmp_path / "scratch")
    assert not list((tmp_path / "scratch").glob("*.tar"))


def test_names_a_damaged_member_and_what_is_no_archive(tmp_path, folder):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        target.writestr("d.bin", b"0123456789")
    archive.write_bytes(archive.read_bytes().replace(b"0123456789", b"0123456780"))
    (file,) = list_files([archive], tmp_path / "scratch")
    with pytest.raises(ValueError, match=r"x.zip:d.bin: cannot be read \(Bad CRC"):
        file.read()
    (tmp_path / "y.tgz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"y\.tgz is not a whole archive"):
        list_files([tmp_path / "y.tgz"], tmp_path / "scratch")
    (tmp_path / "z.tgz").write_bytes(gzip.compress(b"no tar file" * 100))
    with pytest.raises(ValueError, match="is not a whole tar archive"):
        list_files([tmp_path / "z.tgz"], tmp_path / "scratch")


def test_links_in_a_tar_archive_are_read(tmp_path):
    """GNU tar writes a second name of one file as a link."""
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "one.png").write_bytes(b"content")
    os.link(source / "one.png", source / "two.png")
    (source / "deep" / "three.png").symlink_to("../one.png")
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(source, arcname=".")
    found = read_all([tmp_path / "data.tar"], tmp_path / "scratch")
    assert found == dict.fromkeys(("./one.png", "./two.png", "./deep/three.png"), b"content")


def test_a_folder_may_have_two_names(tmp_path):
    (tmp_path / "source" / "leftImg8bit").mkdir(parents=True)
    (tmp_path / "source" / "leftImg8bit" / "one.png").write_bytes(b"content")
    (tmp_path / "source" / "images").symlink_to("leftImg8bit")
    (tmp_path / "source" / "leftImg8bit" / "again").symlink_to("..")  # without an end
    paths = {file.path for file in list_files([tmp_path / "source"], tmp_path / "scratch")}
    assert paths == {"leftImg8bit/one.png", "images/one.png"}
