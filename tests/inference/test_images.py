"""Images that a user names are found; names of the results."""

from pathlib import Path

import pytest

from ccnet_hf.inference.images import find_images, unique_stems


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_folders_patterns_and_files_are_found_once_and_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "b.png", "a.JPG", "notes.txt", ".hidden.png", "deep/c.png", "deep/d.tif", "odd[1].png", "raw.dat")
    assert list(map(str, find_images(["."]))) == ["a.JPG", "b.png", "odd[1].png"]
    assert list(map(str, find_images(["b.png", ".", "./b.png"]))) == ["b.png", "a.JPG", "odd[1].png"]
    assert list(map(str, find_images(["**/*.png"]))) == ["b.png", "deep/c.png", "odd[1].png"]
    assert list(map(str, find_images(["odd[1].png", "raw.dat", "deep"]))) == [
        "odd[1].png",
        "raw.dat",
        "deep/c.png",
        "deep/d.tif",
    ]


@pytest.mark.parametrize(
    "name, message",
    [
        ("gone.png", "no such file or folder: gone.png"),
        ("*.gif", "no file matches"),
        ("empty", "no images in folder"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "empty/readme.txt", "a.png")
    with pytest.raises(ValueError, match=message):
        find_images(["a.png", name])


def test_the_output_folder_is_no_input(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(ValueError, match="both input and output"):
        find_images([str(tmp_path)], exclude=tmp_path / ".." / tmp_path.name)


@pytest.mark.parametrize(
    "paths, stems",
    [
        (["x.png", "y.png"], ["x", "y"]),
        (["x.png", "x.jpg", "deep/x.png"], ["x", "x_2", "x_3"]),
        (["x.png", "x.jpg", "x_2.png"], ["x", "x_3", "x_2"]),
        (["x.png", "X.png"], ["x", "X_2"]),
    ],
)
def test_results_of_images_with_one_name_are_told_apart(paths, stems):
    assert unique_stems(map(Path, paths)) == stems
