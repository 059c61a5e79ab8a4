"""What image processors are given: forms that mean the same, and what is refused with its name."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from ccnet_hf import CCNetImageProcessor
from ccnet_hf.models import image_processing_common_ccnet as common
from ccnet_hf.models.image_processing_pil_ccnet import CCNetImageProcessorPil


@pytest.fixture(params=[CCNetImageProcessor, CCNetImageProcessorPil], ids=["torchvision", "pil"])
def processor_class(request):
    return request.param


def noise(*shape: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape, dtype=np.uint8)


IMAGE, IDS = noise(6, 9, 3), noise(6, 9, high=5)


# Images and segmentation maps


MAP_FORMS = {
    "a channel behind": IDS[..., None],
    "a channel in front": IDS[None],
    "a batch with a channel behind": IDS[None, ..., None],
    "a batch with a channel in front": IDS[None, None],
    "a list of one with a channel": [IDS[..., None]],
    "nested lists": IDS.tolist(),
    "a list of nested lists": [IDS.tolist()],
    "a list in a list": [[IDS]],
    "a tensor with a channel": torch.tensor(IDS)[..., None],
    "16 bits": Image.fromarray(IDS.astype(np.uint16)),
}


@pytest.mark.parametrize("form", MAP_FORMS)
def test_segmentation_maps_of_any_form(processor_class, form):
    processor = processor_class(size={"height": 12, "width": 5})
    expected = processor(IMAGE, IDS, return_tensors="pt")["labels"]
    assert torch.equal(processor(IMAGE, MAP_FORMS[form], return_tensors="pt")["labels"], expected)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(3, 1), (1, 3), (2, 2), (1, 1)])
def test_batches_of_segmentation_maps_of_any_size(processor_class, count, height, width):
    """Also where the axis of the batch, of the channel and of the image are as long as each other."""
    processor = processor_class(do_resize=False)
    ids = noise(count, height, width, high=5)
    images = list(noise(count, height, width, 3))
    for form in (ids, ids[..., None], ids[:, None], list(ids), list(ids[..., None]), ids.tolist()):
        batch = processor(images, form, input_data_format="channels_last", return_tensors="pt")
        assert torch.equal(batch["labels"], torch.tensor(ids).long())


def test_images_as_nested_lists(processor_class):
    processor = processor_class(size={"height": 12, "width": 5})
    expected = processor([IMAGE] * 2, return_tensors="pt")["pixel_values"]
    forms = ([IMAGE.tolist()] * 2, [[IMAGE], [IMAGE.tolist()]])
    for form in forms:
        assert torch.equal(processor(form, return_tensors="pt")["pixel_values"], expected)
    assert processor([IMAGE.tolist(), IMAGE[:4].tolist()], return_tensors="pt")["pixel_values"].shape == (2, 3, 12, 5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "number 0 is None"),
        ([IMAGE, None], "An image is a PIL image, .*; number 1 is None"),
        ([IMAGE, {"image": IMAGE}], "number 1 is of type dict"),
        (5, "of type int"),
        (object(), "of type object"),
        ([[[1, 2], [3]]], "axes"),
        (np.array("street"), "axes"),
        (IMAGE.astype(object), "real numbers"),
    ],
)
def test_what_is_no_image_is_named(processor_class, images, message):
    with pytest.raises(ValueError, match=message):
        processor_class()(images)


@pytest.mark.parametrize(
    ("segmentation_maps", "message"),
    [
        ([IDS, None], "A segmentation map is a PIL image, .*; number 1 is None"),
        ([IDS], "1 segmentation maps for 2 images"),
        ([IDS, IMAGE], r"holds class ids, got an array of shape \(6, 9, 3\)"),
        ([IDS, IMAGE[:4]], r"holds class ids, got an array of shape \(4, 9, 3\)"),
        ([IDS, 5], "number 1 is of type int"),
        ([IDS, np.zeros((2, 2, 6, 9), int)], r"shape \(2, 2, 6, 9\)"),
        ([IDS, IDS.astype(int) - 1], "Segmentation map 1 has the id -1"),
        ([IDS, torch.full((6, 9), -100)], "Segmentation map 1 has the id -100"),
    ],
)
def test_what_is_no_segmentation_map_is_named(processor_class, segmentation_maps, message):
    with pytest.raises(ValueError, match=message):
        processor_class()([IMAGE] * 2, segmentation_maps)


def test_an_id_that_would_become_the_ignored_one_is_refused(processor_class):
    ids = IDS.astype(np.int64)
    processor = processor_class(do_resize=False, do_reduce_labels=True)
    ids[1, 2], ids[3, 4] = 257, 255
    labels = processor(IMAGE, ids, return_tensors="pt")["labels"][0]
    assert (labels[1, 2], labels[3, 4]) == (256, 255)
    ids[0, 0] = 256
    with pytest.raises(ValueError, match="map 0 has the id 256, which `do_reduce_labels` would make 255"):
        processor(IMAGE, ids)


# Floating point images in 0..1


@pytest.fixture
def warnings(caplog, monkeypatch):
    """What is logged; each warning appears once in a process, so the memory of them is new."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    common.logger.warning_once.cache_clear()
    yield lambda: [record.message for record in caplog.records if "0..1" in record.message]
    common.logger.warning_once.cache_clear()


@pytest.mark.parametrize(
    "image", [IMAGE / 255, torch.tensor(IMAGE / 255).half(), Image.fromarray((IMAGE[..., 0] / 255).astype(np.float32))]
)
def test_images_that_are_rescaled_twice_are_told_of_once(processor_class, image, warnings):
    processor = processor_class(size=8)
    for _ in range(3):
        processor(image)
    assert len(warnings()) == 1 and "do_rescale=False" in warnings()[0]


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        IMAGE.astype(np.float32),
        np.zeros((6, 9, 3), np.float32),
        (IMAGE > 127).astype(np.float32),
        np.full((6, 9, 3), 1.5),
        IMAGE / 255 - 0.5,
    ],
)
def test_images_of_the_right_range_are_not_told_of(processor_class, image, warnings):
    processor_class(size=8)(image)
    assert warnings() == []


def test_no_rescaling_no_warning(processor_class, warnings):
    processor_class(size=8)(IMAGE / 255, do_rescale=False)
    assert warnings() == []


# Arguments


WRONG = [
    ("size", "big"),
    ("size", True),
    ("size", [4, 5, 6]),
    ("size", 0),
    ("size", {"height": "4", "width": 5}),
    ("palette", 5),
    ("palette", [5]),
    ("palette", "red"),
    ("palette", [["r", "g", "b"]]),
    ("palette", [[0.5, 0.5, 0.5]]),
    ("image_mean", "imagenet"),
    ("image_mean", [float("nan")] * 3),
    ("image_std", 0.0),
    ("image_std", [1.0, 0.0, 1.0]),
    ("image_std", [1.0, 2.0]),
    ("rescale_factor", "1/255"),
    ("rescale_factor", float("inf")),
    ("do_resize", "no"),
    ("do_pad", 1),
    ("do_reduce_labels", "yes"),
    ("align_corners", 0),
    ("pad_size", {"height": 0, "width": 8}),
    ("pad_size", {"height": 8}),
    ("pad_size", "large"),
    ("resample", "cubic"),
    ("crop_size", 8),
    ("do_center_crop", True),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_arguments_of_another_kind_are_named(processor_class, name, value):
    with pytest.raises(ValueError, match=f"(?i){name.removesuffix('_size')}"):
        processor_class(**{name: value})
    with pytest.raises(ValueError, match=f"(?i){name.removesuffix('_size')}"):
        processor_class(size=8)(IMAGE, **{name: value})


def test_palettes_of_any_container(processor_class):
    for palette in (((1, 2, 3),), np.array([[1, 2, 3]]), [np.array([1, 2, 3], np.uint8)]):
        assert processor_class(palette=palette).palette == [[1, 2, 3]]


def test_names_that_look_like_an_argument(processor_class, tmp_path):
    """Refused in Python, where they would have no effect; kept where another version may have written them."""
    with pytest.raises(ValueError, match="no argument 'reduce_labels'; did you mean do_reduce_labels"):
        processor_class(reduce_labels=True)
    with pytest.raises(ValueError, match="no argument 'do_reduce_label'"):
        processor_class.from_dict({}, do_reduce_label=True)
    later = processor_class(size=8).to_dict() | {"do_reduce_label": [3], "mosaic": 4}
    loaded = processor_class.from_dict(later)
    assert loaded.to_dict() == later and not loaded.do_reduce_labels


def test_images_are_not_enlarged_without_bound(processor_class):
    with pytest.raises(ValueError, match=r"make 100000x100000 .* of an image of 6x9; .* at most 268,435,456 pixels"):
        processor_class(size=100_000)(IMAGE)
    narrow = {"shortest_edge": 8, "longest_edge": 10**9}  # as good as no longest edge
    assert processor_class(size=narrow)(IMAGE, return_tensors="pt")["pixel_values"].shape == (1, 3, 8, 12)
