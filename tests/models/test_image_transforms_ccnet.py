"""How images and segmentation maps come into both image processors: upright, finite, whole, or refused by name."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from turned import encode_turned, turn

from ccnet_hf.models.image_processing_ccnet import CCNetImageProcessor
from ccnet_hf.models.image_processing_pil_ccnet import CCNetImageProcessorPil
from ccnet_hf.models.image_transforms_ccnet import image_size, rescale_output_size, resize_bilinear, resize_nearest


@pytest.fixture(params=[CCNetImageProcessor, CCNetImageProcessorPil], ids=["torchvision", "pil"])
def processor(request):
    return request.param(size={"height": 7, "width": 5})


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (10, 13, 3), dtype=np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 19, (10, 13), dtype=np.uint8)


# Orientation


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_opened_and_by_their_path(processor, image, labels, tmp_path, orientation, suffix):
    expected = processor(image, labels, return_tensors="pt")
    file = tmp_path / f"turned.{suffix}"
    file.write_bytes(encode_turned(image, orientation, suffix))
    loaded = Image.open(file)
    loaded.load()
    for given in (Image.open(file), loaded, Image.open(file).convert("RGB"), str(file)):
        batch = processor(given, labels, return_tensors="pt")
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        assert torch.equal(batch["labels"], expected["labels"])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_segmentation_map_of_the_stored_size_is_turned_with_its_image(
    processor, image, labels, tmp_path, orientation
):
    expected = processor(image, labels, return_tensors="pt")["labels"]
    file = tmp_path / "turned.png"
    file.write_bytes(encode_turned(image, orientation))
    stored = turn(labels, orientation)
    for given in (Image.open(file), str(file)):
        for segmentation_map in (stored, torch.tensor(stored), Image.fromarray(stored)):
            found = processor(given, segmentation_map, return_tensors="pt")["labels"]
            # One that has the size of the upright image, too, is taken to belong to that.
            alike = processor(image, stored, return_tensors="pt")["labels"] if orientation < 5 else expected
            assert torch.equal(found, alike)
    with pytest.raises(ValueError, match="map 0 is 4x4"):
        processor(Image.open(file), np.zeros((4, 4), np.uint8))


@pytest.mark.parametrize("image_orientation", [1, 3, 6])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_segmentation_map_heeds_its_own_orientation(processor, image, labels, orientation, image_orientation):
    expected = processor(image, labels, return_tensors="pt")["labels"]
    turned_image = Image.open(io.BytesIO(encode_turned(image, image_orientation)))
    segmentation_map = Image.open(io.BytesIO(encode_turned(labels, orientation)))
    assert torch.equal(processor(turned_image, segmentation_map, return_tensors="pt")["labels"], expected)


def test_no_segmentation_map_is_turned_twice(processor, image, labels):
    """Such as an upright one to which its image's EXIF block was copied."""
    copied = Image.open(io.BytesIO(encode_turned(turn(labels, 8), 6)))
    assert np.array_equal(np.asarray(copied), labels)
    with pytest.raises(ValueError, match=r"map 0 is 13x10 .* is 10x13"):
        processor(Image.open(io.BytesIO(encode_turned(image, 6))), copied)


def test_of_a_square_image_the_map_is_upright(processor):
    image = np.random.default_rng(0).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    labels = np.arange(100, dtype=np.uint8).reshape(10, 10)
    turned = Image.open(io.BytesIO(encode_turned(image, 6)))
    expected = processor(image, labels, return_tensors="pt")["labels"]
    assert torch.equal(processor(turned, labels, return_tensors="pt")["labels"], expected)


# Values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_an_image_with_one_pixel_that_is_no_number_is_refused(processor, image, kind, dtype, value):
    image = image.astype(dtype)
    processor(kind(image), return_tensors="pt")
    image[3, 4, 2] = value
    with pytest.raises(ValueError, match=rf"got {value} at \(channel, row, column\) \(2, 3, 4\)"):
        processor(kind(image), return_tensors="pt")


def test_what_float32_cannot_hold_is_refused(processor, image):
    image = image.astype(np.float64)
    image[3, 4, 2] = 1e300
    with pytest.raises(ValueError, match=r"finite numbers of float32, got 1e\+300 at"):
        processor(image, return_tensors="pt")


@pytest.mark.parametrize("value", [np.nan, np.inf, -1, 256])
def test_a_floating_point_image_lies_in_its_range(processor, image, value):
    grey = image[..., 0].astype(np.float32)
    processor(Image.fromarray(grey), return_tensors="pt")
    grey[3, 4] = value
    with pytest.raises(ValueError, match=r"must lie in 0\.\.255, got values from .*(nan|inf|-1|256)"):
        processor(Image.fromarray(grey), return_tensors="pt")


@pytest.mark.parametrize("value", [-1, 65536])
def test_a_32_bit_image_lies_in_its_range(processor, image, value):
    grey = image[..., 0].astype(np.int32)
    processor(Image.fromarray(grey), return_tensors="pt")
    grey[3, 4] = value
    with pytest.raises(ValueError, match=rf"32-bit integers must lie in 0\.\.65535, got values .*{value}"):
        processor(Image.fromarray(grey), return_tensors="pt")


@pytest.mark.parametrize(
    "image",
    [np.zeros((3, 4, 5), np.complex64), torch.zeros(3, 4, 5, dtype=torch.complex64), np.full((3, 4, 5), "text")],
    ids=["numpy", "torch", "text"],
)
def test_numbers_that_are_not_real_are_refused(processor, image):
    with pytest.raises(ValueError, match="An image holds real numbers, got"):
        processor(image, return_tensors="pt")
    with pytest.raises(ValueError, match="A segmentation map holds real numbers, got"):
        processor(np.zeros((4, 5, 3), np.uint8), image[0], return_tensors="pt")


@pytest.mark.parametrize("shape", [(0, 9, 3), (9, 0, 3), (3, 0, 9), (3, 9, 0), (0, 9), (9, 0), (1, 0, 9), (0, 0, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_an_axis_of_0_is_named(processor, shape, dtype):
    for image in (np.zeros(shape, dtype), torch.from_numpy(np.zeros(shape, dtype))):
        with pytest.raises(ValueError, match=rf"\({', '.join(map(str, shape))}\) has no pixels"):
            processor(image, return_tensors="pt")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "F", "I", "I;16", "1"])
def test_an_empty_pil_image_is_named(processor, mode):
    with pytest.raises(ValueError, match=r"0x5 pixels \(height x width\) has no pixels"):
        processor(Image.new(mode, (5, 0)), return_tensors="pt")


def test_nothing_is_resized_from_or_to_nothing():
    for resize in (resize_bilinear, resize_nearest):
        for shape, size in (((0, 5), (3, 3)), ((5, 0), (3, 3)), ((5, 5), (0, 3))):
            for image in (np.zeros(shape, np.uint8), torch.zeros(shape)):
                message = f"{shape[0]}x{shape[1]} pixels .* cannot be resized to {size[0]}x{size[1]}"
                with pytest.raises(ValueError, match=message):
                    resize(image, *size)
    with pytest.raises(ValueError, match="0x60 pixels"):
        rescale_output_size(0, 60, 1.5)


def test_the_size_of_every_kind_of_image(image):
    forms = (image, image.transpose(2, 0, 1), image[..., 0], torch.from_numpy(image), Image.fromarray(image))
    assert [image_size(form) for form in forms] == [(10, 13)] * 5
    with pytest.raises(ValueError, match="4 axes"):
        image_size(image[None])


# Segmentation maps


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whole_floats_are_class_ids(processor, image, labels, dtype):
    labels[0, 0] = 255
    expected = processor(image, labels, return_tensors="pt")["labels"]
    assert torch.equal(processor(image, torch.tensor(labels).to(dtype), return_tensors="pt")["labels"], expected)
    for given in (labels.astype(np.float16), labels.astype(np.float64), Image.fromarray(labels.astype(np.float32))):
        assert torch.equal(processor(image, given, return_tensors="pt")["labels"], expected)


@pytest.mark.parametrize("value", [1.7, 0.9990234375, -0.5, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_fractions_are_no_class_ids(processor, image, labels, dtype, value):
    floats = labels.astype(dtype)
    floats[3, 4] = value
    forms = [floats, torch.from_numpy(floats)]
    if dtype == "float32":
        forms.append(Image.fromarray(floats))
    for given in forms:
        with pytest.raises(ValueError, match=rf"whole numbers; got {float(floats[3, 4])} at .* \(3, 4\)"):
            processor(image, given, return_tensors="pt")


# Files


def test_files_that_cannot_be_read_are_named(processor, image, tmp_path, monkeypatch):
    file = tmp_path / "image.png"
    Image.fromarray(image).save(file)
    whole = file.read_bytes()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # Pillow warns, and refuses twice as many
    with pytest.raises(ValueError, match=r"image\.png: Image size .* Set `PIL\.Image\.MAX_IMAGE_PIXELS` to allow it"):
        processor(str(file), return_tensors="pt")
    monkeypatch.undo()
    for content in (whole[: len(whole) // 2], b"no image", b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"image\.png cannot be read: "):
            processor(str(file), return_tensors="pt")
