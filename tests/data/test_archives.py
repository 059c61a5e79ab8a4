"""Files of folders and archives are listed and read where they lie; what is broken or hostile is refused."""

import gzip
import io
import os
import random
import stat
import tarfile
import unicodedata
import warnings
import zipfile

import pytest
from distributions import pack, write

from ccnet_hf.data import archives
from ccnet_hf.data.archives import close_archives, list_files
from ccnet_hf.errors import InputError


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
    with pytest.raises(InputError, match=f"{name} cannot be read: "):
        list_files([archive], tmp_path / "scratch")
    assert not list(tmp_path.glob("scratch/*"))


def test_names_a_damaged_member_and_what_is_no_archive(tmp_path, folder):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        target.writestr("d.bin", b"0123456789")
    archive.write_bytes(archive.read_bytes().replace(b"0123456789", b"0123456780"))
    (file,) = list_files([archive], tmp_path / "scratch")
    with pytest.raises(ValueError, match=r"x\.zip:d\.bin cannot be read: Bad CRC"):
        file.read()
    (tmp_path / "y.tgz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"y\.tgz cannot be read: Not a gzipped file"):
        list_files([tmp_path / "y.tgz"], tmp_path / "scratch")
    (tmp_path / "z.tgz").write_bytes(gzip.compress(b"no tar file" * 100))
    with pytest.raises(InputError, match=r"z\.tgz cannot be read: "):
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


def add_link(archive, name, target):
    """Write a symbolic link into an open archive."""
    if isinstance(archive, zipfile.ZipFile):
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, target)
    else:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, target
        archive.addfile(info)


def open_new(archive):
    return zipfile.ZipFile(archive, "w") if archive.suffix == ".zip" else tarfile.open(archive, "w")


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_links_that_lead_to_links_are_read_and_those_that_lead_nowhere_named(tmp_path, name):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "real.png").write_bytes(b"content")
    (tmp_path / "source" / "lost.png").symlink_to("gone.png")
    with open_new(tmp_path / name) as archive:
        add_link(archive, "deep/second.png", "first.png")
        add_link(archive, "deep/first.png", "../real.png")
        add_link(archive, "lost.png", "second/gone.png")
        add_link(archive, "outside.png", "/etc/passwd")
        add_link(archive, "loop.png", "loop.png")
        add = archive.write if name == "x.zip" else archive.add
        add(tmp_path / "source" / "real.png", "real.png")
    files = {file.path: file for file in list_files([tmp_path / name], tmp_path / "scratch")}
    for path in ("real.png", "deep/first.png", "deep/second.png"):
        assert files.pop(path).read() == b"content"
    (files["on the disk"],) = [f for f in list_files([tmp_path / "source"], tmp_path / "scratch") if f.size == 0]
    assert files.keys() == {"lost.png", "outside.png", "loop.png", "on the disk"}
    for file in files.values():
        with pytest.raises(InputError, match=r"\.png cannot be read: it is a link to \S+, where there is no file"):
            file.read()


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_a_link_to_a_folder_or_an_archive_that_is_not_there_is_named(tmp_path, name):
    with open_new(tmp_path / name) as archive:
        add_link(archive, "inner.zip", "gone.zip")
    with pytest.raises(InputError, match=r"inner\.zip cannot be read: it is a link to gone\.zip, where"):
        list_files([tmp_path / name], tmp_path / "scratch")
    close_archives()
    write(tmp_path, "one.png", b"content")
    with open_new(tmp_path / name) as archive:
        (archive.write if name == "x.zip" else archive.add)(tmp_path / "one.png", "store/one.png")
        add_link(archive, "train", "store")
    with pytest.raises(InputError, match=r"its member train is a link to the folder store; unpack the archive"):
        list_files([tmp_path / name], tmp_path / "scratch")


@pytest.mark.parametrize("name", ["x.tar", "x.tgz"])
@pytest.mark.parametrize("kind", ["cut", "cut in a header", "cut in the end", "damaged", "concatenated"])
def test_a_tar_file_without_a_right_end_is_refused(tmp_path, name, kind):
    """`tarfile` takes for the end what it cannot read between two members."""
    whole = write_members(tmp_path / "whole.tar", [("one", b"1"), ("two", b"2")]).read_bytes()
    changed, message = {
        "cut": (whole[:1024], "it has no end, but is cut off at byte 1,024"),
        "cut in a header": (whole[:1300], "it is damaged at byte 1,024"),
        "cut in the end": (whole[:2100], "it has no end, but is cut off at byte 2,048"),
        "damaged": (whole[:1100] + b"\1" + whole[1101:], "it is damaged at byte 1,024"),
        "concatenated": (whole + whole, "something follows its end at byte 2,048"),
    }[kind]
    for content in (whole, whole[: 5 * 512]):  # with one block of zeros as well
        (tmp_path / name).write_bytes(gzip.compress(content) if name == "x.tgz" else content)
        assert read_all([tmp_path / name], tmp_path / f"scratch {len(content)}") == {"one": b"1", "two": b"2"}
    (tmp_path / name).write_bytes(gzip.compress(changed) if name == "x.tgz" else changed)
    with pytest.raises(InputError, match=f"{name} cannot be read: {message}"):
        list_files([tmp_path / name], tmp_path / "scratch")


@pytest.mark.parametrize("kind", ["folder", "x.zip", "x.tar"])
def test_names_are_in_one_form_of_unicode(tmp_path, kind):
    """macOS takes accents from their letters."""
    forms = [unicodedata.normalize(form, "a/größe.png") for form in ("NFC", "NFD")]
    source = tmp_path / kind
    if kind == "folder":
        write(source, forms[1], b"one")
    else:
        write_members(source, [(forms[1], b"one")])
    assert read_all([source], tmp_path / "scratch") == {forms[0]: b"one"}
    close_archives()
    if kind != "folder":
        write_members(source, [(forms[0], b"one"), (forms[1], b"two")])
        with pytest.raises(InputError, match=rf"{kind} holds \S+ twice with different content"):
            list_files([source], tmp_path / "scratch")


def test_backslashes_of_old_packers_are_read_as_slashes(tmp_path):
    info = zipfile.ZipInfo("x")
    info.filename = "a\\b\\c.png"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, b"content")
    assert read_all([tmp_path / "x.zip"], tmp_path / "scratch") == {"a/b/c.png": b"content"}


def write_members(archive, members):
    """Write pairs of name and content as they are, names twice too."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names twice
            for name, content in members:
                target.writestr(name, content)
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix == ".tgz" else "w") as target:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                target.addfile(info, io.BytesIO(content))
    return archive


@pytest.mark.parametrize("second", ["a/b.txt", "./a/b.txt", "a//b.txt"])
@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
def test_one_name_twice(tmp_path, name, second):
    """The later one would win, and nobody knows whether it should."""
    archive = write_members(tmp_path / name, [("a/b.txt", b"one"), ("c", b"see"), (second, b"one")])
    assert read_all([archive], tmp_path / "scratch") == {"a/b.txt": b"one", "c": b"see"}
    for content in (b"two", b"longer"):
        close_archives()
        write_members(archive, [("a/b.txt", b"one"), ("c", b"see"), (second, content)])
        with pytest.raises(InputError, match=rf"{name} holds .*a/+b\.txt twice with different content"):
            list_files([archive], tmp_path / "scratch")


def test_one_name_twice_as_link_and_file(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as target:
        for name, content in (("one", b"1"), ("two", b"2")):
            info = tarfile.TarInfo(name)
            info.size = 1
            target.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("two")
        link.type, link.linkname = tarfile.SYMTYPE, "one"
        target.addfile(link)
    with pytest.raises(InputError, match=r"x\.tar holds two twice"):
        list_files([tmp_path / "x.tar"], tmp_path / "scratch")


def change_zip(archive, offset, value):
    """Overwrite bytes in every entry of the table of contents."""
    content = bytearray(archive.read_bytes())
    place = content.find(b"PK\x01\x02")
    while place >= 0:
        content[place + offset : place + offset + len(value)] = value
        place = content.find(b"PK\x01\x02", place + 4)
    archive.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (8, b"\x01\x00", r"x\.zip cannot be read: its member \S+ is encrypted; unpack the archive"),
        (10, b"\x09\x00", r"x\.zip cannot be read: its member \S+ is compressed by method 9, which is not known here"),
        (24, b"\xfe\xff\xff\xff", r"x\.zip:\S+ cannot be read: it has 4,294,967,294 bytes, and at most 1,073,741,824"),
        (24, b"\x01\x00\x00\x00", r"x\.zip:\S+ cannot be read: "),
        (42, b"\xf0\xff\xff\x0f", r"x\.zip:\S+ cannot be read: "),
        (16, b"\x00\x00\x00\x00", r"x\.zip:\S+ cannot be read: Bad CRC"),
        (8, b"\x00\x08", r"x\.zip(:\S+)? cannot be read: "),  # says that the name is UTF-8, and it is not
    ],
    ids=["encrypted", "method", "absurd size", "small size", "no such place", "checksum", "name"],
)
def test_a_zip_file_that_tells_stories(tmp_path, offset, value, reason):
    archive = write_members(tmp_path / "x.zip", [("b\xe4" if offset == 8 and value[0] == 0 else "b", bytes(5000))])
    if "b\xe4".encode() in archive.read_bytes() and value == b"\x00\x08":
        archive.write_bytes(archive.read_bytes().replace("b\xe4".encode(), b"b\xe4!"))
    change_zip(archive, offset, value)
    with pytest.raises(InputError, match=reason):
        for file in list_files([archive], tmp_path / "scratch"):
            file.read()


def test_archives_without_end(tmp_path):
    archive = write_members(tmp_path / "0.zip", [("a.txt", b"one")])
    for depth in range(1, 6):
        outer = tmp_path / f"{depth}.{'zip' if depth % 2 else 'tgz'}"
        archive = write_members(outer, [(archive.name, archive.read_bytes())])
        if depth == 3:
            assert read_all([archive], tmp_path / "scratch") == {"a.txt": b"one"}
    inside = r"5\.zip:4\.tgz:3\.zip:2\.tgz:1\.zip: more than 4 archives lie in each other"
    with pytest.raises(InputError, match=inside):
        list_files([archive], tmp_path / "scratch")


@pytest.mark.parametrize("kind", ["tgz", "zip in zip", "tgz in tar"])
def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archives, "_ALWAYS_UNPACKED", 100_000)
    if kind == "tgz":
        archive = write_members(tmp_path / "x.tgz", [("zeros", bytes(10**7))])
    else:
        inner = "y.zip" if kind == "zip in zip" else "y.tgz"
        content = [(inner, bytes(10**7) if inner == "y.zip" else gzip.compress(bytes(10**7)))]
        archive = write_members(tmp_path / ("x.zip" if kind == "zip in zip" else "x.tar"), content)
    with pytest.raises(InputError, match=r"x\.\S+ is refused: it unpacks to more than [\d,]+ bytes, far more than"):
        list_files([archive], tmp_path / "scratch")
    assert not [path for path in tmp_path.glob("scratch/*") if path.stat().st_size > 2_000_000]


def test_a_file_that_is_read_as_a_whole_has_a_bound(tmp_path, monkeypatch):
    write(tmp_path / "raw", "a.png", bytes(2000))
    files = [
        *list_files([tmp_path / "raw"], tmp_path / "scratch"),
        *list_files([pack(tmp_path / "raw", tmp_path / "x.zip")], tmp_path / "scratch"),
        *list_files([pack(tmp_path / "raw", tmp_path / "x.tar")], tmp_path / "scratch"),
    ]
    monkeypatch.setattr(archives, "_MAX_FILE_BYTES", 1000)
    for file in files:
        with pytest.raises(InputError, match=r"cannot be read: it has 2,000 bytes, and at most 1,000 are read"):
            file.read()


@pytest.mark.parametrize("name", ["raw", "x.zip", "x.tar"])
def test_a_file_that_has_changed_or_gone_is_named(tmp_path, name):
    write(tmp_path / "raw", "a.png", random.Random(0).randbytes(2000))
    source = tmp_path / "raw" if name == "raw" else pack(tmp_path / "raw", tmp_path / name)
    (file,) = list_files([source], tmp_path / "scratch")
    container = file.container
    close_archives()
    container.write_bytes(container.read_bytes()[:700])
    with pytest.raises(InputError, match=r"a\.png cannot be read: "):
        file.read()
    close_archives()
    container.unlink()
    with pytest.raises(InputError, match=r"a\.png cannot be read: no such file"):
        file.read()


def test_a_sparse_member_is_named(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as target:
        info = tarfile.TarInfo("huge.bin")
        info.type = tarfile.GNUTYPE_SPARSE
        target.addfile(info)
    with pytest.raises(InputError, match=r"x\.tar cannot be read: its member huge\.bin is stored as a sparse file"):
        list_files([tmp_path / "x.tar"], tmp_path / "scratch")


def test_headers_without_end(tmp_path):
    """A long name that has a long name, and so on: `tarfile` descends once for each."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2
    block = header.tobuf(tarfile.GNU_FORMAT) + b"x\0" + bytes(510)
    (tmp_path / "x.tar").write_bytes(block * 2000 + bytes(1024))
    with pytest.raises(InputError, match=r"x\.tar cannot be read: "):
        list_files([tmp_path / "x.tar"], tmp_path / "scratch")


def test_an_archive_in_an_archive_may_have_a_long_name(tmp_path):
    inner = write_members(tmp_path / "inner.zip", [("a", b"one")])
    outer = write_members(tmp_path / "outer.tar", [("n" * 250 + ".zip", inner.read_bytes())])
    (file,) = list_files([outer], tmp_path / "scratch")
    assert file.read() == b"one" and str(file) == f"{outer}:{'n' * 250}.zip:a"


def test_a_full_disk_is_not_called_a_damaged_archive(tmp_path, folder, full_disk):
    write(folder, "last.bin", random.Random(0).randbytes(100_000))
    archive = pack(folder, tmp_path / "x.tgz")
    with full_disk(50_000), pytest.raises(OSError, match=r"scratch/\w+\.tar cannot be written: file too large"):
        list_files([archive], tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []
    assert len(read_all([archive], tmp_path / "scratch")) == 4


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz", "nested.zip", "bzip2.zip", "lzma.zip"])
def test_damage_anywhere_is_one_error_that_names_the_archive(tmp_path, folder, name):
    """Seeded: bytes changed, cut off, repeated. A tar file without compression has no checksums, and notices less."""
    write(folder, "b.bin", random.Random(0).randbytes(3000) + bytes(3000))
    method = {"bzip2.zip": zipfile.ZIP_BZIP2, "lzma.zip": zipfile.ZIP_LZMA}.get(name)
    archive = tmp_path / name
    if method:
        with zipfile.ZipFile(archive, "w", method) as target:
            for path in sorted(folder.rglob("*.*")):
                target.write(path, path.relative_to(folder))
    elif name == "nested.zip":
        pack(folder, tmp_path / "outer" / "inner.tgz")
        pack(tmp_path / "outer", archive)
    else:
        pack(folder, archive)
    whole = archive.read_bytes()
    generator = random.Random(1)
    refused = 0
    for case in range(80):
        content = bytearray(whole)
        place = generator.randrange(len(content))
        if case % 4 == 0:
            content = content[:place]
        elif case % 4 == 1:
            content[place : place + 4] = generator.randbytes(4)
        elif case % 4 == 2:
            content[place] ^= 1 << generator.randrange(8)
        else:
            content[place:place] = content[: generator.randrange(2000)]
        archive.write_bytes(content)
        close_archives()
        try:
            read_all([archive], tmp_path / f"scratch{case}")
        except InputError as error:
            assert str(archive) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused >= 20
