"""The one reader of images and label maps: every kind, upright, whole, within the limits, refused by name."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, features
from turned import encode_turned, turn

from ccnet_hf.data.images import check_max_pixels, label_ids, open_image, read_image, to_rgb, turned_note
from ccnet_hf.models.image_transforms_ccnet import FORMATS, fit_labels, stored_orientation, upright


@pytest.fixture
def rgb() -> Image.Image:
    """Smooth colours with some noise, 24x36."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:24, :36]
    waves = [np.sin(x / random.uniform(5, 20) + y / random.uniform(5, 20)) for _ in range(3)]
    pixels = 128 + 90 * np.stack(waves, axis=-1) + random.uniform(-20, 20, size=(24, 36, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


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


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected(rgb, tmp_path, orientation, suffix):
    pixels = np.asarray(rgb)
    (tmp_path / f"turned.{suffix}").write_bytes(encode_turned(pixels, orientation, suffix))
    read = open_image(tmp_path / f"turned.{suffix}")
    assert stored_orientation(read) == orientation
    np.testing.assert_array_equal(np.asarray(read), pixels)
    assert upright(read) is read  # and is not turned again, nor after it became RGB
    np.testing.assert_array_equal(np.asarray(upright(to_rgb(read))), pixels)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / f"turned.{suffix}")), pixels)


def test_an_orientation_in_xmp_is_respected(rgb, tmp_path):
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    rgb.save(tmp_path / "turned.jpg", xmp=packet)
    assert open_image(tmp_path / "turned.jpg").size == (24, 36)


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"Exif\0\0rubbish", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 9]
)
def test_a_damaged_exif_block_turns_nothing(rgb, tmp_path, block):
    rgb.save(tmp_path / "photo.jpg", exif=block, quality=95)
    assert read_image(tmp_path / "photo.jpg").size == rgb.size


@pytest.mark.parametrize("orientation", [0, 9, 1000])
def test_an_orientation_that_does_not_exist_turns_nothing(rgb, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    rgb.save(file, "PNG", exif=exif)
    assert np.array_equal(np.asarray(open_image(file.getvalue())), np.asarray(rgb))


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_label_map_of_the_stored_size_is_turned_as_the_image(orientation, kind):
    upright_labels = np.arange(6).reshape(2, 3)
    stored = kind(turn(upright_labels, orientation))
    fitted = fit_labels(stored, 2, 3, orientation)
    if orientation < 5:  # it has the size of the upright image, and so belongs to that
        assert fitted is stored
    else:
        np.testing.assert_array_equal(np.asarray(fitted), upright_labels)
    of_upright = kind(upright_labels)
    assert fit_labels(of_upright, 2, 3, orientation) is of_upright
    if orientation != 1:  # one that has been turned by its own orientation is not turned again
        assert fit_labels(stored, 2, 3, orientation, own_orientation=orientation) is stored
    other = kind(np.zeros((4, 5), dtype=np.int64))
    assert fit_labels(other, 2, 3, orientation) is other


def test_of_a_square_image_the_label_map_is_upright():
    labels = np.arange(4).reshape(2, 2)
    assert fit_labels(labels, 2, 2, 6) is labels


def test_names_are_said_of_a_few():
    assert turned_note(list("abcde")).endswith("says: a, b, c and 2 more")
    assert turned_note(["a"]).endswith("says: a")


def test_images_above_the_limit_are_read_when_that_is_asked_for(rgb, tmp_path, monkeypatch):
    rgb.save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # Pillow refuses twice as many: 801 of the 864 pixels here
    source = (tmp_path / "large.png").read_bytes()
    for given in (tmp_path / "large.png", source):
        with pytest.raises(ValueError, match=r"864 pixels\) exceeds limit of 800 .*; --max_image_pixels allows"):
            open_image(given)
        with pytest.raises(ValueError, match="exceeds limit of 863 pixels"):
            open_image(given, 863)
        for allowed in (864, 0):
            assert open_image(given, allowed).size == rgb.size
    assert Image.MAX_IMAGE_PIXELS == 400
    with pytest.raises(ValueError, match=r"large\.png: cannot be read .* --max_image_pixels"):
        read_image(tmp_path / "large.png")
    assert read_image(tmp_path / "large.png", 0).size == rgb.size
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as users switch Pillow's limit off for themselves
    assert open_image(source).size == rgb.size
    with pytest.raises(ValueError, match="exceeds limit of 863 pixels"):
        open_image(source, 863)


def test_a_limit_below_nothing_is_refused():
    check_max_pixels(None)
    check_max_pixels(0)
    with pytest.raises(ValueError, match="max_image_pixels must be a number of pixels, or 0 for no limit, got -1"):
        check_max_pixels(-1)
    for wrong in (-1, "a", float("nan"), True):
        with pytest.raises(ValueError, match=r"^max_image_pixels must be a number of pixels, or 0 for no limit, got"):
            read_image(__file__, wrong)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 1e300])
def test_a_label_map_of_fractions_is_refused_with_the_value(value):
    labels = np.zeros((2, 3), dtype=np.float32)
    with np.errstate(over="ignore"):
        labels[1, 2] = value
    with pytest.raises(ValueError, match=rf"whole numbers; got {labels[1, 2]} at \(row, column\) \(1, 2\)"):
        label_ids(Image.fromarray(labels))
    labels[1, 2] = 7
    assert label_ids(Image.fromarray(labels)).tolist() == [[0, 0, 0], [0, 0, 7]]


def test_a_label_map_is_upright_by_its_own_exif():
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for orientation in range(1, 9):
        opened = Image.open(io.BytesIO(encode_turned(labels, orientation)))
        np.testing.assert_array_equal(label_ids(opened), labels)


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
        "deep.tiff": "32-bit integers must lie in 0..65535, got values from 70000 to 70000",
        "missing.png": "no such image",
    }.items():
        with pytest.raises(ValueError, match=reason) as error:
            read_image(tmp_path / name)
        assert name in str(error.value)


@pytest.mark.parametrize("name", FORMATS)
def test_the_formats_that_are_read(rgb, name):
    if name == "AVIF" and not features.check("avif"):
        pytest.skip("needs Pillow with AVIF")
    file = io.BytesIO()
    rgb.save(file, name)
    assert Image.open(file).format == name and open_image(file.getvalue()).size == rgb.size


def test_a_camera_s_jpeg_of_several_pictures_is_read(rgb):
    file = io.BytesIO()
    rgb.save(file, "MPO", save_all=True, append_images=[rgb.transpose(Image.Transpose.ROTATE_90)])
    assert open_image(file.getvalue()).size == rgb.size


@pytest.mark.parametrize("name", ["EPS", "ICO", "ICNS", "TGA", "PCX"])
def test_other_formats_are_refused_unopened(rgb, name, monkeypatch):
    """Pillow hands an EPS to Ghostscript, whatever the file is called, and decodes an ICO before its size is known."""
    file = io.BytesIO()
    rgb.resize((64, 64)).save(file, name)
    opened = []
    _, accept = Image.OPEN[name]
    monkeypatch.setitem(Image.OPEN, name, (lambda *file: opened.append(file), accept))
    for limit in (None, 100):
        with pytest.raises(ValueError, match=r"it is not an image in AVIF, BMP, .* TIFF or WEBP"):
            open_image(file.getvalue(), limit)
    assert not opened


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
