"""Images of every kind, found and read; names of the results."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from ccnet_hf.inference.images import find_images, read_image, to_rgb, unique_stems


@pytest.fixture
def rgb(make_image) -> Image.Image:
    return make_image(24, 36)


def test_eight_bit_colour_is_read_as_it_is(rgb, tmp_path):
    rgb.save(tmp_path / "image.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "image.png")), np.asarray(rgb))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"])
def test_every_mode_becomes_rgb(rgb, mode):
    image = Image.new(mode, (3, 2)) if mode in ("PA", "LAB") else rgb.convert(mode)
    converted = to_rgb(image)
    assert converted.mode == "RGB" and converted.size == image.size
    if mode in ("RGBA", "CMYK", "YCbCr", "HSV"):
        difference = np.abs(np.asarray(converted).astype(int) - np.asarray(rgb)).mean()
        assert difference < 6


def test_sixteen_bit_grey_keeps_its_upper_eight(tmp_path):
    values = np.array([[0, 255, 256, 65535], [1000, 30000, 50000, 65279]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "grey.png")
    expected = np.repeat((values // 256).astype(np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "grey.png")), expected)


def test_transparency_is_dropped(rgb, tmp_path, recwarn):
    alpha = Image.new("L", rgb.size, 10)
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    rgba.save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "rgba.png")), np.asarray(rgb))
    palette = rgb.quantize(16)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(16)))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "palette.png")), np.asarray(palette.convert("RGB")))
    assert not recwarn


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected(rgb, tmp_path, orientation):
    """The stored pixels are the upright ones turned the other way round, by the table of the EXIF standard."""
    pixels = np.asarray(rgb)
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "turned.png")), pixels)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_narrow_images(size, tmp_path):
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "narrow.png")
    assert read_image(tmp_path / "narrow.png").size == size


@pytest.mark.skipif(not features.check("jpg"), reason="needs Pillow with JPEG")
def test_cmyk_jpeg(rgb, tmp_path):
    rgb.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert np.abs(np.asarray(read_image(tmp_path / "print.jpg")).astype(int) - np.asarray(rgb)).mean() < 12


def test_unreadable_files_are_named(rgb, tmp_path):
    rgb.save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)).save(tmp_path / "deep.tiff")
    for name, reason in {
        "truncated.png": "truncated",
        "text.png": "not an image",
        "empty.png": "not an image",
        "float.tiff": "floating point",
        "deep.tiff": "exceed 16 bits",
        "missing.png": "no such image",
    }.items():
        with pytest.raises(ValueError, match=reason) as error:
            read_image(tmp_path / name)
        assert name in str(error.value)


@pytest.mark.parametrize("fraction", np.linspace(0.02, 0.98, 25))
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tif", "webp"])
def test_a_file_cut_anywhere_is_read_or_refused_by_name(rgb, tmp_path, suffix, fraction):
    path = tmp_path / f"cut.{suffix}"
    rgb.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    try:
        assert read_image(path).size == rgb.size
    except ValueError as error:
        assert str(path) in str(error)


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
