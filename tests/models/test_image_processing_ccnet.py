"""The two image processors: golden files of mmsegmentation, independent formulas, every kind of image, bad input."""

import base64
import json
import subprocess
import sys
from io import BytesIO
from math import floor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_files import load_golden
from PIL import Image
from PIL.ExifTags import Base

import ccnet_hf.models.image_processing_common_ccnet as common
import ccnet_hf.models.image_transforms_ccnet as transforms
import ccnet_hf.models.post_processing_ccnet as post_processing
from ccnet_hf.models.image_processing_ccnet import CCNetImageProcessor
from ccnet_hf.models.image_processing_pil_ccnet import CCNetImageProcessorPil
from ccnet_hf.models.image_transforms_ccnet import (
    convert_to_rgb,
    output_size,
    rescale_output_size,
    resize_bilinear,
    resize_nearest,
    resize_output_size,
)


IMAGES = ("60x90", "75x50", "33x120")
SCALES = ((128, 64), (64, 32), (101, 77))


@pytest.fixture(params=[CCNetImageProcessor, CCNetImageProcessorPil], ids=["torchvision", "pil"])
def processor_class(request):
    return request.param


@pytest.fixture
def golden():
    return load_golden("preprocess")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# Sizes and pixels against mmsegmentation


def test_sizes_of_the_keep_ratio_rule(golden):
    for height, width, longest, shortest, *expected in golden["sizes_scale_h_w_long_short_newh_neww"].tolist():
        assert list(resize_output_size(height, width, max(longest, shortest), min(longest, shortest))) == expected


def test_sizes_of_the_scale_factor_rule(golden):
    for height, width, ratio, *expected in golden["sizes_ratio_h_w_r_newh_neww"].tolist():
        assert list(rescale_output_size(int(height), int(width), ratio)) == expected


def test_a_side_never_vanishes():
    assert resize_output_size(1, 5000, longest=1000, shortest=500) == (1, 1000)
    assert rescale_output_size(1, 60, 0.25) == (1, 15)


def test_output_size_takes_both_forms():
    assert output_size(100, 200, {"height": 7, "width": 9}) == (7, 9)
    assert output_size(100, 200, {"shortest_edge": 50, "longest_edge": 80}) == (40, 80)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("longest,shortest", SCALES)
def test_resize_equals_opencv_bit_for_bit(golden, image, longest, shortest):
    source = golden[f"{image}/image_bgr_uint8"].transpose(2, 0, 1)
    expected = golden[f"{image}/scale{longest}x{shortest}/image_bgr_uint8"].transpose(2, 0, 1)
    assert np.array_equal(resize_bilinear(source, *expected.shape[1:]), expected)
    batch = torch.tensor(source)[None]
    assert np.array_equal(resize_bilinear(batch, *expected.shape[1:])[0].numpy(), expected)


@pytest.mark.parametrize("size", [(50, 90), (20, 31), (64, 1), (1, 7), (130, 31)], ids=str)
def test_an_image_is_the_same_resized_in_strips_and_whole(size, monkeypatch):
    """In strips where NumPy does it, whole by PyTorch on other devices than the CPU."""
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 37, 53), dtype=np.uint8)
    expected = resize_bilinear(image, *size)
    monkeypatch.setattr(transforms, "_STRIP_PIXELS", 3 * size[1])
    assert np.array_equal(resize_bilinear(image, *size), expected)
    monkeypatch.setattr(
        transforms,
        "_resize_strips",
        lambda pixels, *taps: transforms._resize_bytes(torch.tensor(pixels), *taps).numpy(),
    )
    assert np.array_equal(resize_bilinear(image, *size), expected)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("longest,shortest", SCALES)
def test_pixel_values_equal_the_golden_network_input(golden, processor_class, image, longest, shortest):
    processor = processor_class(size={"shortest_edge": shortest, "longest_edge": longest})
    rgb = Image.fromarray(golden[f"{image}/image_bgr_uint8"][..., ::-1])
    pixel_values = processor(rgb, return_tensors="pt")["pixel_values"]
    assert pixel_values.dtype == torch.float32
    np.testing.assert_allclose(pixel_values, golden[f"{image}/scale{longest}x{shortest}/input"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(20, 30), (64, 41), (5, 7), (37, 53)])
def test_floats_are_resized_like_interpolate(size):
    image = np.random.default_rng(1).normal(size=(3, 37, 53)).astype(np.float32)
    expected = F.interpolate(torch.tensor(image)[None], size=size, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(resize_bilinear(image, *size), expected, atol=1e-4)
    np.testing.assert_allclose(resize_bilinear(torch.tensor(image), *size), expected, atol=1e-4)


@pytest.mark.parametrize("size", [(20, 30), (64, 41), (5, 7), (1, 1)])
def test_labels_are_resized_by_the_index_rule_of_opencv(size):
    labels = noise(37, 53).astype(np.int64)
    expected = [
        [labels[floor(i * 37 / size[0]), floor(j * 53 / size[1])] for j in range(size[1])] for i in range(size[0])
    ]
    assert resize_nearest(labels, *size).tolist() == expected
    assert resize_nearest(torch.tensor(labels), *size).tolist() == expected


def test_both_backends_agree():
    images = [noise(3, 61, 83, seed=seed) for seed in range(2)]
    options = {"size": {"shortest_edge": 40, "longest_edge": 70}, "return_tensors": "pt"}
    torchvision, pil = (backend()(images, **options) for backend in (CCNetImageProcessor, CCNetImageProcessorPil))
    torch.testing.assert_close(torchvision["pixel_values"], pil["pixel_values"], rtol=0, atol=1e-5)


# Segmentation maps


def test_labels_follow_the_image(processor_class):
    image, labels = noise(60, 90, 3), noise(60, 90)
    processor = processor_class(size={"shortest_edge": 32, "longest_edge": 64})
    batch = processor(image, labels, return_tensors="pt")
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].shape[1:] == batch["pixel_values"].shape[2:] == (32, 48)
    assert batch["labels"][0].tolist() == resize_nearest(labels, 32, 48).tolist()


@pytest.mark.parametrize("wrap", [np.array, torch.tensor, Image.fromarray], ids=["numpy", "torch", "pil"])
def test_reduced_labels_and_untouched_inputs(processor_class, wrap):
    labels = np.array([[0, 1, 2], [150, 255, 254]], dtype=np.uint8)
    image, segmentation_map = wrap(noise(2, 3, 3)), wrap(labels)
    before = np.asarray(image).copy(), np.asarray(segmentation_map).copy()
    processor = processor_class(do_reduce_labels=True, do_resize=False)
    batch = processor(image, segmentation_map, return_tensors="pt", input_data_format="channels_last")
    assert batch["labels"][0].tolist() == [[255, 0, 1], [149, 255, 253]]
    assert np.array_equal(np.asarray(image), before[0]) and np.array_equal(np.asarray(segmentation_map), before[1])
    unreduced = processor(image, segmentation_map, do_reduce_labels=False, input_data_format="channels_last")
    assert np.array_equal(unreduced["labels"][0], labels)


def test_palette_images_are_read_as_indices(processor_class):
    segmentation_map = Image.fromarray(noise(4, 5) % 3, mode="P")
    segmentation_map.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    batch = processor_class(do_resize=False)(noise(4, 5, 3), segmentation_map, return_tensors="np")
    assert np.array_equal(batch["labels"][0], noise(4, 5) % 3)


# Batches


def test_different_sizes_raise_and_are_named(processor_class):
    processor = processor_class(size={"shortest_edge": 32, "longest_edge": 64})
    with pytest.raises(ValueError, match=r"32x48, 48x32"):
        processor([noise(60, 90, 3), noise(90, 60, 3), noise(60, 90, 3)], return_tensors="pt")


def test_padding_is_the_mean_colour_and_255(processor_class):
    processor = processor_class(do_resize=False, do_pad=True)
    images, labels = [noise(4, 6, 3), noise(5, 3, 3)], [noise(4, 6) % 19, noise(5, 3) % 19]
    batch = processor(images, labels, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 5, 6) and batch["labels"].shape == (2, 5, 6)
    for index, (height, width) in enumerate([(4, 6), (5, 3)]):
        alone = processor(images[index], labels[index], return_tensors="pt")
        assert torch.equal(batch["pixel_values"][index, :, :height, :width], alone["pixel_values"][0])
        assert torch.equal(batch["labels"][index, :height, :width], alone["labels"][0])
        outside = torch.ones(5, 6, dtype=torch.bool)
        outside[:height, :width] = False
        assert (batch["pixel_values"][index][:, outside] == 0).all() and (batch["labels"][index][outside] == 255).all()


def test_padding_to_a_given_size(processor_class):
    processor = processor_class(do_resize=False, do_pad=True, pad_size={"height": 8, "width": 9})
    assert processor(noise(4, 6, 3), return_tensors="pt")["pixel_values"].shape == (1, 3, 8, 9)
    with pytest.raises(ValueError, match=r"`pad_size` .* of an image of 4x6; images are enlarged to at most"):
        processor(noise(4, 6, 3), pad_size={"height": 10**5, "width": 10**6})


# Every kind of image


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "F", "I", "I;16"])
def test_images_of_any_mode(processor_class, mode):
    image = Image.new(mode, (7, 5)) if mode == "I;16" else Image.fromarray(noise(5, 7, 3)).convert(mode)
    batch = processor_class(size={"height": 4, "width": 6})(image, return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 4, 6) and batch["pixel_values"].isfinite().all()


def test_files_come_in_as_they_are(processor_class, tmp_path):
    """Of 16-bit images the upper byte, as of those that are opened; segmentation maps with their class ids."""
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (5, 7)).astype(np.uint16))
    ids = Image.fromarray(np.random.default_rng(1).integers(0, 3, (5, 7)).astype(np.uint8))
    grey.save(tmp_path / "grey.png")
    ids.save(tmp_path / "ids.png")
    processor = processor_class(do_resize=False)
    opened = processor([grey], segmentation_maps=[ids], return_tensors="pt")
    read = processor([str(tmp_path / "grey.png")], segmentation_maps=[str(tmp_path / "ids.png")], return_tensors="pt")
    assert torch.equal(opened["pixel_values"], read["pixel_values"]) and torch.equal(opened["labels"], read["labels"])
    assert len(opened["labels"].unique()) == 3 and opened["pixel_values"].std() > 0.1


@pytest.mark.parametrize("kind", ["base64", "data address", "address"])
def test_encoded_images_come_in_as_files_do(processor_class, kind, monkeypatch):
    """Upright, with all their bits, and segmentation maps with their class ids."""
    random = np.random.default_rng(0)
    grey = random.integers(0, 2**16, (5, 7)).astype(np.uint16)
    turned = {}
    for name, array in (("grey", grey), ("ids", random.integers(0, 3, (5, 7)).astype(np.uint8))):
        exif = Image.Exif()
        exif[Base.Orientation] = 6
        Image.fromarray(array).save(content := BytesIO(), "PNG", exif=exif)
        turned[name] = content.getvalue()

    def get(address, **kwargs):
        content = turned[address.rpartition("/")[2]]
        return httpx.Response(200, content=content, request=httpx.Request("GET", address))

    monkeypatch.setattr(common, "get_session", lambda: SimpleNamespace(get=get))
    forms = {
        "base64": lambda name: base64.encodebytes(turned[name]).decode(),
        "data address": lambda name: "data:image/png;base64," + base64.b64encode(turned[name]).decode(),
        "address": lambda name: f"https://localhost/{name}",
    }
    processor = processor_class(do_resize=False)
    opened = [Image.open(BytesIO(turned[name])) for name in ("grey", "ids")]
    expected = processor(opened[0], opened[1], return_tensors="pt")
    found = processor(forms[kind]("grey"), forms[kind]("ids"), return_tensors="pt")
    assert found["pixel_values"].shape == (1, 3, 7, 5) and found["pixel_values"].std() > 0.1
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert torch.equal(found["labels"], expected["labels"]) and len(found["labels"].unique()) == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/file.png", "no/such/file.png cannot be read: there is no such file, and it is neither an address"),
        ("bm8gaW1hZ2U=", "bm8gaW1hZ2U= cannot be read: it is no image of a format that is read"),
        ("data:image/png;base64,%%%", "data:image/png;base64,%%% cannot be read: "),
        ("https://localhost/missing.png", "https://localhost/missing.png cannot be read: .*404"),
        ("https://nowhere/image.png", "https://nowhere/image.png cannot be read: no route"),
        (".", "[.] cannot be read: .*directory"),
    ],
)
def test_what_cannot_be_had_is_named(processor_class, source, message, monkeypatch):
    def get(address, **kwargs):
        if "nowhere" in address:
            raise httpx.ConnectError("no route")
        return httpx.Response(404, request=httpx.Request("GET", address))

    monkeypatch.setattr(common, "get_session", lambda: SimpleNamespace(get=get))
    with pytest.raises(ValueError, match=message):
        processor_class()(source)


def test_black_and_white_arrays_are_as_in_pillow(processor_class):
    mask = np.random.default_rng(0).random((5, 7)) < 0.5
    expected = processor_class(do_resize=False)(Image.fromarray(mask), return_tensors="pt")["pixel_values"]
    for image in (mask, torch.from_numpy(mask), mask[..., None].repeat(3, -1)):
        assert torch.equal(processor_class(do_resize=False)(image, return_tensors="pt")["pixel_values"], expected)


def test_names_that_look_like_an_argument_of_the_call(processor_class):
    with pytest.raises(ValueError, match="has no argument 'reduce_labels'; did you mean do_reduce_labels"):
        processor_class()(noise(4, 6, 3), reduce_labels=True)


def test_pixel_values_are_always_float32(processor_class):
    processor = processor_class(do_rescale=False, do_normalize=False, do_resize=False)
    pixel_values = processor(noise(5, 7, 3), return_tensors="pt")["pixel_values"]
    assert pixel_values.dtype == torch.float32 and pixel_values.max() > 200


def test_colours_of_other_modes():
    small = Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32))
    assert np.asarray(convert_to_rgb(small))[0].tolist() == [[0] * 3, [7] * 3, [255] * 3]
    sixteen_bits = Image.fromarray(np.array([[0, 255, 256, 65535]], dtype=np.uint16))
    assert np.asarray(convert_to_rgb(sixteen_bits))[0].tolist() == [[0] * 3, [0] * 3, [1] * 3, [255] * 3]
    transparent = Image.fromarray(np.array([[[10, 20, 30, 0], [40, 50, 60, 255]]], dtype=np.uint8))
    assert np.asarray(convert_to_rgb(transparent))[0].tolist() == [[10, 20, 30], [40, 50, 60]]
    palette = Image.fromarray(np.array([[1, 0]], dtype=np.uint8), mode="P")
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.info["transparency"] = b"\x00\xff"
    assert np.asarray(convert_to_rgb(palette))[0].tolist() == [[4, 5, 6], [1, 2, 3]]


def test_arrays_of_any_layout_give_the_same(processor_class):
    image = noise(6, 9, 3)
    read_only = image.copy()
    read_only.flags.writeable = False
    forms = [
        Image.fromarray(image),
        image.transpose(2, 0, 1),
        torch.tensor(image),
        torch.tensor(image).permute(2, 0, 1),
        image[..., ::-1].copy()[..., ::-1],
        read_only,
        image.astype(np.int64),
        np.dstack([image, noise(6, 9, seed=1)]),
        [[image]],
        image[None],
    ]
    processor = processor_class(size={"height": 4, "width": 5})
    expected = processor(image, return_tensors="pt")["pixel_values"]
    for index, form in enumerate(forms):
        assert torch.equal(processor(form, return_tensors="pt")["pixel_values"], expected), index
    as_floats = processor(image / 255, do_rescale=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(as_floats, expected, rtol=0, atol=1 / 255 / 0.224)  # not rounded after resizing


def test_grey_arrays_become_three_equal_channels(processor_class):
    grey = noise(6, 9)
    processor = processor_class(do_resize=False)
    expected = processor(np.dstack([grey] * 3), return_tensors="pt")["pixel_values"]
    for form in (grey, grey[None], grey[..., None], [torch.tensor(grey)], Image.fromarray(grey)):
        assert torch.equal(processor(form, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize("height,width", [(1, 1), (1, 9), (9, 1), (3, 2), (4, 3), (1, 3), (2, 3)])
def test_tiny_images(processor_class, height, width):
    image = noise(height, width, 3)
    processor = processor_class(size={"shortest_edge": 8, "longest_edge": 16})
    size = resize_output_size(height, width, 16, 8)
    batch = processor(image, noise(height, width), input_data_format="channels_last", return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, *size) and batch["labels"].shape == (1, *size)
    if height != 3:  # an array (3, width, 3) is taken to have its channels first, as everywhere in transformers
        assert torch.equal(processor(image, return_tensors="pt")["pixel_values"], batch["pixel_values"])


def test_other_numbers_of_channels(processor_class):
    processor = processor_class(size={"height": 4, "width": 5}, image_mean=[0.5] * 4, image_std=[0.5] * 4)
    assert processor(noise(6, 9, 4), return_tensors="pt")["pixel_values"].shape == (1, 4, 4, 5)
    with pytest.raises(ValueError, match="3 channels, but `image_mean` has 4"):
        processor(noise(6, 9, 3))


# Bad input


@pytest.mark.parametrize(
    "image,message",
    [
        (np.zeros((6, 9, 5), np.uint8), r"\(6, 9, 5\) holds its channels"),
        (np.zeros((0, 9, 3), np.uint8), "no pixels"),
        (np.full((6, 9, 3), 300, np.int64), "0..255, got values from 300 to 300"),
        (np.zeros((2, 2, 2, 6, 9, 3), np.uint8), "6 axes"),
        (np.zeros(5, np.uint8), "1 axes"),
        ([], "No images"),
    ],
)
def test_bad_images_raise(processor_class, image, message):
    with pytest.raises(ValueError, match=message):
        processor_class()(image, return_tensors="pt")


@pytest.mark.parametrize(
    "segmentation_maps,message",
    [
        (np.zeros((5, 9), np.uint8), "map 0 is 5x9 .* is 6x9"),
        ([np.zeros((6, 9), np.uint8)] * 2, "2 segmentation maps for 1 images"),
        (np.full((6, 9), 0.5, np.float32), "class ids"),
        (Image.new("RGB", (9, 6)), "mode RGB"),
    ],
)
def test_bad_segmentation_maps_raise(processor_class, segmentation_maps, message):
    with pytest.raises(ValueError, match=message):
        processor_class()(noise(6, 9, 3), segmentation_maps, return_tensors="pt")


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"size": {"longest_edge": 9}}, "'shortest_edge' and 'longest_edge', got longest_edge"),
        ({"size": {"height": 9}}, "got"),
        ({"size": {"max_height": 9, "max_width": 9}}, "got max_height, max_width"),
        ({"size": {"height": 0, "width": 9}}, "positive integers"),
        ({"size": {"height": 2.5, "width": 9}}, "positive integers"),
        ({"size": {"shortest_edge": 9, "longest_edge": 8}}, "'shortest_edge' above"),
        ({"palette": [[1, 2]]}, r"three integers in 0..255, got \[1, 2\]"),
        ({"palette": [[1, 2, 256]]}, "256"),
        ({"resample": 3}, "bilinear"),
    ],
)
def test_bad_arguments_raise_at_construction(processor_class, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor_class(**arguments)


# Saving


def test_everything_survives_saving(processor_class, tmp_path):
    arguments = {
        "size": {"shortest_edge": 512, "longest_edge": 2048},
        "align_corners": True,
        "palette": [[128, 64, 128], [244, 35, 232]],
        "do_reduce_labels": True,
        "do_pad": True,
        "image_mean": [0.1, 0.2, 0.3],
    }
    processor = processor_class(**arguments)
    processor.save_pretrained(tmp_path)
    for other_class in (CCNetImageProcessor, CCNetImageProcessorPil):
        reloaded = other_class.from_pretrained(tmp_path)
        assert reloaded.to_dict() == processor.to_dict()
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {key: saved[key] for key in arguments} == arguments
    assert saved["image_processor_type"] == "CCNetImageProcessor"


def test_defaults(processor_class):
    processor = processor_class()
    assert processor.size == {"shortest_edge": 1024, "longest_edge": 2048}
    np.testing.assert_allclose(np.array(processor.image_mean) * 255, [123.675, 116.28, 103.53], atol=1e-9)
    np.testing.assert_allclose(np.array(processor.image_std) * 255, [58.395, 57.12, 57.375], atol=1e-9)
    assert (processor.do_pad, processor.do_reduce_labels, processor.align_corners) == (False, False, False)
    assert processor.palette is None


def test_transformers_finds_the_accepted_arguments_by_name(processor_class):
    """Its shared tests look for them beside the processor, under the name of the torchvision one."""
    module = sys.modules[processor_class.__module__]
    assert processor_class.valid_kwargs is module.CCNetImageProcessorKwargs


def test_overrides_on_loading(processor_class):
    saved = processor_class(palette=[[1, 2, 3]]).to_dict()
    changed = processor_class.from_dict(saved, size=33, align_corners=True)
    assert changed.size == {"height": 33, "width": 33} and changed.align_corners and changed.palette == [[1, 2, 3]]


def test_pil_backend_needs_no_torchvision():
    """Its modules alone, as remote code loads them: ccnet_hf as a whole needs torchvision."""
    script = (
        "import sys, types; sys.modules['torchvision'] = None\n"
        f"package = types.ModuleType('alone'); package.__path__ = [{str(Path(common.__file__).parent)!r}]\n"
        "sys.modules['alone'] = package\n"
        "import numpy as np\n"
        "from alone.image_processing_pil_ccnet import CCNetImageProcessorPil\n"
        "batch = CCNetImageProcessorPil(size=8)(np.zeros((5, 6, 3), np.uint8), return_tensors='pt')\n"
        "print(tuple(batch['pixel_values'].shape))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "(1, 3, 8, 8)", result.stderr


# Post-processing


def outputs_of(*shape: int, seed: int = 0) -> SimpleNamespace:
    return SimpleNamespace(logits=torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("align_corners", [False, True])
def test_logits_are_resized_to_the_input_and_then_to_the_image(processor_class, align_corners):
    outputs = outputs_of(2, 7, 4, 6)
    processor = processor_class(size={"shortest_edge": 32, "longest_edge": 64}, align_corners=align_corners)
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[(60, 90), (60, 90)])
    at_input = F.interpolate(outputs.logits, size=(32, 48), mode="bilinear", align_corners=align_corners)
    at_image = F.interpolate(at_input, size=(60, 90), mode="bilinear", align_corners=align_corners)
    assert [result.dtype for result in maps] == [torch.int64] * 2
    assert torch.equal(torch.stack(maps), at_image.argmax(dim=1))
    at_once = F.interpolate(outputs.logits, size=(60, 90), mode="bilinear", align_corners=align_corners)
    assert not torch.equal(torch.stack(maps), at_once.argmax(dim=1))


def test_sizes_may_be_a_tensor_and_input_sizes_may_be_given(processor_class):
    outputs = outputs_of(1, 5, 4, 6)
    processor = processor_class(size=99)
    by_hand = processor.post_process_semantic_segmentation(outputs, [(60, 90)], input_sizes=torch.tensor([[32, 48]]))
    by_rule = processor_class(size={"shortest_edge": 32, "longest_edge": 64}).post_process_semantic_segmentation(
        outputs, target_sizes=torch.tensor([[60, 90]])
    )
    assert torch.equal(by_hand[0], by_rule[0])
    assert processor.post_process_semantic_segmentation(outputs, input_sizes=[(32, 48)])[0].shape == (32, 48)


def test_without_sizes_maps_are_as_large_as_the_logits(processor_class):
    outputs = outputs_of(2, 5, 4, 6)
    maps = processor_class().post_process_semantic_segmentation(outputs)
    assert torch.equal(torch.stack(maps), outputs.logits.argmax(dim=1))


def test_padding_is_cut_off(processor_class):
    """Logits of a padded batch that depend on the place alone: what lies in the padding must not be seen."""
    processor = processor_class(size={"shortest_edge": 32, "longest_edge": 48}, do_pad=True)
    sizes = [(64, 96), (96, 64)]  # resized to 32x48 and 48x32, padded to 48x48
    logits = torch.zeros(2, 2, 6, 6)
    logits[:, 1] = 1
    logits[0, 0, 4:] = logits[1, 0, :, 4:] = 9  # class 0 in the padding only, 1 elsewhere
    maps = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), target_sizes=sizes)
    at_padded = F.interpolate(logits[:1], size=(48, 48), mode="bilinear")[..., :32, :48]
    expected = F.interpolate(at_padded, size=(64, 96), mode="bilinear").argmax(dim=1)[0]
    assert torch.equal(maps[0], expected) and torch.equal(maps[1], expected.T)
    assert (expected[:48] == 1).all()

    unpadded = processor_class().post_process_semantic_segmentation(
        SimpleNamespace(logits=logits), target_sizes=sizes, input_sizes=[(32, 48), (48, 32)]
    )
    assert all(torch.equal(a, b) for a, b in zip(maps, unpadded, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [13, 16, 27])
def test_chunks_change_nothing(monkeypatch, dtype, classes):
    outputs = outputs_of(1, classes, 5, 7)
    outputs.logits = outputs.logits.to(dtype).to(memory_format=torch.channels_last)
    outputs.logits[:, 12] = outputs.logits[:, 3]  # equal logits: the first class wins
    processor = CCNetImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}, align_corners=True)
    whole = processor.post_process_semantic_segmentation(outputs, target_sizes=[(40, 50)])[0]
    scores = processor.post_process_semantic_segmentation(
        outputs, target_sizes=[(40, 50)], return_segmentation_scores=True
    )[0]
    assert scores.segmentation_scores.shape == (classes, 40, 50) and scores.segmentation_scores.dtype == torch.float32
    for at_a_time in (1, 9, 17):
        monkeypatch.setattr(post_processing, "MAX_CPU_CHUNK_ELEMENTS", at_a_time * 40 * 50)
        chunked = processor.post_process_semantic_segmentation(outputs, target_sizes=[(40, 50)])[0]
        assert torch.equal(chunked, whole) and torch.equal(chunked, scores.segmentation)


def test_no_resize_holds_many_classes_of_a_large_image(monkeypatch):
    """150 classes at 512x1024 would be 315 MB at once."""
    largest = 0

    def recording_interpolate(*args, interpolate=F.interpolate, **kwargs):
        nonlocal largest
        result = interpolate(*args, **kwargs)
        largest = max(largest, result.numel() * result.element_size())
        return result

    monkeypatch.setattr(F, "interpolate", recording_interpolate)
    processor = CCNetImageProcessor(size={"height": 128, "width": 256})
    processor.post_process_semantic_segmentation(outputs_of(1, 150, 16, 32), target_sizes=[(512, 1024)])
    assert 0 < largest <= 64 * 2**20


def test_post_processing_checks_its_sizes(processor_class):
    processor, outputs = processor_class(), outputs_of(2, 3, 4, 6)
    with pytest.raises(ValueError, match="`target_sizes` must hold one size per image: got 1 for 2"):
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(6, 9)])
    with pytest.raises(ValueError, match="`input_sizes` must hold one size per image: got 3 for 2"):
        processor.post_process_semantic_segmentation(outputs, [(6, 9)] * 2, input_sizes=[(6, 9)] * 3)
    with pytest.raises(ValueError, match=r"positive integers, got \(6, 0\)"):
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(6, 9), (6, 0)])
