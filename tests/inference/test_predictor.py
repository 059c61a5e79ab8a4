"""Whole, sliding and augmented inference against the definitions, written out in the plainest loops."""

import io
import itertools
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_models import tiny_instance_model, tiny_model, tiny_parsing_model
from turned import encode_turned

from ccnet_hf import CCNetForSemanticSegmentation, CCNetInstanceImageProcessor
from ccnet_hf.data.benchmarks import get_benchmark
from ccnet_hf.data.images import read_image
from ccnet_hf.errors import InputError
from ccnet_hf.inference import Predictor, predict_logits
from ccnet_hf.inference.logits import window_positions
from ccnet_hf.models.image_processing_ccnet import CCNetImageProcessor
from ccnet_hf.recipes import get_recipe


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def resize(logits: torch.Tensor, size: tuple[int, int], align_corners: bool = False) -> torch.Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


@torch.no_grad()
def whole_by_definition(model, pixel_values, align_corners=False):
    return resize(model(pixel_values).logits, pixel_values.shape[-2:], align_corners)


def axis_windows(side: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """Walk along the axis; the first window to touch the end is moved back to end there and is the last."""
    windows, start = [], 0
    while start + crop < side:
        windows.append((start, start + crop))
        start += stride
    return [*windows, (max(side - crop, 0), side)]


@torch.no_grad()
def slide_by_definition(model, pixel_values, crop_size, stride, align_corners=False):
    """One image, one window and one pixel row at a time."""
    height, width = pixel_values.shape[-2:]
    images = []
    for image in pixel_values:
        total = torch.zeros(model.config.num_labels, height, width)
        count = torch.zeros(height, width)
        for top, bottom in axis_windows(height, crop_size[0], stride[0]):
            for left, right in axis_windows(width, crop_size[1], stride[1]):
                crop = image[None, :, top:bottom, left:right]
                logits = resize(model(crop).logits, crop.shape[-2:], align_corners)[0]
                for row in range(top, bottom):
                    total[:, row, left:right] += logits[:, row - top]
                    count[row, left:right] += 1
        images.append(total / count)
    return torch.stack(images)


@pytest.mark.parametrize("crop, stride", [(1, 1), (8, 8), (8, 5), (13, 1), (13, 9), (769, 513), (512, 341)])
def test_window_positions_walk_along_each_axis(crop, stride):
    for side in [1, 2, 7, 8, 9, 12, 13, 14, 21, 22, 23, 64, 100, 512, 513, 769, 1024, 2048]:
        expected = axis_windows(side, crop, stride)
        windows = window_positions(side, 3, (crop, 4), (stride, 2))
        assert windows == [(top, 0, bottom, 3) for top, bottom in expected]
        assert window_positions(3, side, (4, crop), (2, stride)) == [(0, left, 3, right) for left, right in expected]
        assert {bottom - top for top, _, bottom, _ in windows} == {min(crop, side)}
        assert set().union(*(range(top, bottom) for top, _, bottom, _ in windows)) == set(range(side))


def test_cityscapes_windows():
    """Counted by hand: 1024x2048 with 769 windows a stride of 513 apart."""
    windows = window_positions(1024, 2048, (769, 769), (513, 513))
    assert windows == [
        (top, left, top + 769, left + 769) for top, left in itertools.product((0, 255), (0, 513, 1026, 1279))
    ]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(40, 56), (33, 47), (1, 1), (1, 30)])
def test_whole(tiny_network, size, align_corners):
    model = tiny_network(align_corners=align_corners)
    pixel_values = noise(2, 3, *size)
    logits = predict_logits(model, pixel_values)
    assert logits.shape == (2, 5, *size) and logits.dtype == torch.float32
    torch.testing.assert_close(logits, whole_by_definition(model, pixel_values, align_corners))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "size, crop_size, stride",
    [
        ((40, 56), (24, 24), (16, 16)),
        ((41, 55), (24, 17), (13, 11)),
        ((33, 20), (24, 32), (16, 32)),  # wider than the image
        ((1, 30), (16, 16), (8, 8)),
        ((24, 24), (24, 24), (24, 24)),
    ],
)
def test_slide(tiny_network, size, crop_size, stride, align_corners):
    model = tiny_network(mode="slide", crop_size=list(crop_size), stride=list(stride), align_corners=align_corners)
    pixel_values = noise(2, 3, *size)
    expected = slide_by_definition(model, pixel_values, crop_size, stride, align_corners)
    torch.testing.assert_close(predict_logits(model, pixel_values), expected)
    if min(size) > 1 and size != crop_size:
        assert not torch.allclose(expected, whole_by_definition(model, pixel_values, align_corners), atol=1e-2)


def test_a_window_larger_than_the_image_is_the_whole_image(tiny_network):
    model = tiny_network()
    pixel_values = noise(1, 3, 20, 30)
    slide = predict_logits(model, pixel_values, mode="slide", crop_size=(64, 64), stride=(32, 32))
    torch.testing.assert_close(slide, predict_logits(model, pixel_values, mode="whole"))


def test_arguments_outrank_the_config(tiny_network):
    model = tiny_network(mode="slide", crop_size=[24, 24], stride=[16, 16])
    pixel_values = noise(1, 3, 40, 40)
    torch.testing.assert_close(
        predict_logits(model, pixel_values, mode="whole", align_corners=True),
        whole_by_definition(model, pixel_values, align_corners=True),
    )
    torch.testing.assert_close(
        predict_logits(model, pixel_values, crop_size=(32, 32)),
        slide_by_definition(model, pixel_values, (32, 32), (16, 16)),
    )


@pytest.mark.parametrize("crop_batch_size, batch_sizes", [(1, [1] * 12), (5, [5, 5, 2]), (100, [12])])
def test_windows_of_all_images_share_batches(tiny_network, crop_batch_size, batch_sizes):
    model = tiny_network(mode="slide", crop_size=[24, 24], stride=[16, 16])
    pixel_values = noise(2, 3, 40, 50)
    expected = slide_by_definition(model, pixel_values, (24, 24), (16, 16))
    model.batch_sizes.clear()
    logits = predict_logits(model, pixel_values, crop_batch_size=crop_batch_size)
    assert model.batch_sizes == batch_sizes
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_logits_are_resized_and_summed_in_float32_at_least(tiny_network, mode, dtype):
    model = tiny_network(mode="slide", crop_size=[24, 24], stride=[8, 8]).to(dtype)
    pixel_values = noise(1, 3, 41, 50)
    logits = predict_logits(model, pixel_values, mode=mode)
    assert logits.dtype == torch.promote_types(dtype, torch.float32)

    class Upcast:  # the same half precision network, everything after it in float64
        config = model.config

        def __call__(self, crop):
            output = model(crop.to(dtype))
            output.logits = output.logits.double()
            return output

    if mode == "whole":
        expected = whole_by_definition(Upcast(), pixel_values)
    else:
        expected = slide_by_definition(Upcast(), pixel_values, (24, 24), (8, 8))
    torch.testing.assert_close(logits.double(), expected.double(), rtol=1e-5, atol=1e-5)


def test_channels_last_input_stays_channels_last(tiny_network):
    model = tiny_network(mode="slide", crop_size=[24, 24], stride=[16, 16])
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"].is_contiguous(memory_format=torch.channels_last)),
        with_kwargs=True,
    )
    seen: list[bool] = []
    predict_logits(model, noise(2, 3, 40, 40).to(memory_format=torch.channels_last))
    assert seen and all(seen)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"mode": "sliding"}, "mode must be 'whole' or 'slide', got 'sliding'"),
        ({"mode": "slide"}, "needs crop_size and stride, got None and None"),
        ({"mode": "slide", "crop_size": (8, 8)}, r"needs crop_size and stride, got \(8, 8\) and None"),
        (
            {"mode": "slide", "crop_size": (8, 8), "stride": (4, 9)},
            r"stride \(4, 9\) is larger than crop_size \(8, 8\)",
        ),
        (
            {"mode": "slide", "crop_size": (8, 8), "stride": (0, 4)},
            r"stride must be two positive numbers, .* got \(0, 4\)",
        ),
        (
            {"mode": "slide", "crop_size": (8,), "stride": (4, 4)},
            r"crop_size must be two positive numbers, .* got \(8,\)",
        ),
        ({"crop_size": (8, 8)}, r"crop_size \(8, 8\) and stride None belong to mode 'slide'"),
        ({"crop_batch_size": 0}, "crop_batch_size must be at least 1, got 0"),
        ({"crop_batch_size": 2.5}, "crop_batch_size must be an integer, got 2.5"),
        ({"crop_batch_size": "4"}, "crop_batch_size must be an integer, got '4'"),
        ({"mode": "slide", "crop_size": 8, "stride": 4}, "crop_size must be two positive numbers, .* got 8"),
        ({"mode": "slide", "crop_size": "88", "stride": 4}, "crop_size must be two positive numbers, .* got '88'"),
        ({"mode": "slide", "crop_size": (8, 8), "stride": 4}, "stride must be two positive numbers, .* got 4"),
        ({"mode": "slide", "crop_size": (8.5, 8), "stride": (4, 4)}, "crop_size must be two positive numbers"),
        ({"mode": 5}, "mode must be 'whole' or 'slide', got 5"),
    ],
)
def test_wrong_windows_are_refused(tiny_network, arguments, message):
    with pytest.raises(ValueError, match=message):
        predict_logits(tiny_network(), noise(1, 3, 16, 16), **arguments)
    with pytest.raises(ValueError, match=message):
        Predictor(tiny_network(), None, **arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scales": ()}, r"at least one, got \(\)"),
        ({"scales": (1.0, 0.0)}, r"positive numbers, at least one, got \(1.0, 0.0\)"),
        ({"scales": (float("nan"),)}, "positive numbers"),
        ({"scales": 1.0}, "positive numbers, at least one, got 1.0"),
        ({"scales": "1.0"}, "positive numbers, at least one, got '1.0'"),
        ({"scales": [None]}, "positive numbers"),
        ({"flip_label_pairs": 5}, "flip_label_pairs must be pairs of labels, .* got 5"),
        ({"flip_label_pairs": [3]}, "flip_label_pairs must be pairs"),
        ({"flip_label_pairs": [(1, 2, 3)]}, "flip_label_pairs must be pairs"),
        ({"flip_label_pairs": [("left", "right")]}, "flip_label_pairs must be pairs"),
        ({"flip_label_pairs": [(3, 5)]}, r"\(3, 5\), labels are 0..4"),
        ({"flip_label_pairs": [(1, 2), (2, 3)]}, "label 2 or 3 twice"),
    ],
)
def test_wrong_views_are_refused(tiny_network, arguments, message):
    with pytest.raises(ValueError, match=message):
        Predictor(tiny_network(), None, **arguments)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 3, 0, 16), (1, 3, 16, 0), (0, 3, 16, 16)])
def test_wrong_input_shape_is_refused(tiny_network, shape):
    with pytest.raises(ValueError, match=f"pixel_values must be a tensor .* got shape {re.escape(str(shape))}"):
        predict_logits(tiny_network(), noise(*shape))


@pytest.mark.parametrize("pixel_values", [None, [[1.0]], "street.png", np.zeros((1, 3, 16, 16))])
def test_input_of_another_kind_is_refused(tiny_network, pixel_values):
    with pytest.raises(ValueError, match="pixel_values must be a tensor"):
        predict_logits(tiny_network(), pixel_values)


@pytest.mark.parametrize(
    "images", [Image.new("RGB", (6, 4)), np.zeros((4, 6, 3), np.uint8), torch.zeros(3, 4, 6), "street.png"]
)
def test_one_image_is_not_taken_for_several(tiny_network, images):
    """The rows of an array would be."""
    with pytest.raises(ValueError, match="label_maps takes a list of images, label_map one; got"):
        Predictor(tiny_network(), CCNetImageProcessor()).label_maps(images)


SIZE = {"shortest_edge": 40, "longest_edge": 72}


@pytest.fixture
def image_processor():
    return CCNetImageProcessor(size=SIZE)


@pytest.mark.parametrize(
    "options", [{}, {"mode": "slide", "crop_size": (16, 16), "stride": (8, 8)}, {"scales": (1.0, 1.5), "flip": True}]
)
def test_the_steps_of_a_label_map_give_it(tiny_network, image_processor, make_image, options):
    """What waits for the last step is no larger than it must be."""
    network, image = tiny_network(), make_image(40, 56)
    predictor = Predictor(network, image_processor, **options)
    last = predictor.steps(image)()
    assert isinstance(last, partial) == (not options)
    assert torch.equal(last(), predictor.label_map(image))


def test_plain_protocol_goes_by_the_processors_size(tiny_network, image_processor, make_image):
    """Two resizes in a row: to the network input (40x60 by the keep-ratio rule), then to the image."""
    model, image = tiny_network(align_corners=True), make_image(52, 78)
    pixel_values = image_processor(image, return_tensors="pt").pixel_values
    assert pixel_values.shape[-2:] == (40, 60)
    expected = resize(whole_by_definition(model, pixel_values, True), (52, 78), align_corners=True)[0]
    predictor = Predictor(model, image_processor)
    torch.testing.assert_close(predictor.scores(image), expected)
    label_map = predictor.label_map(image)
    assert label_map.dtype == torch.int64 and label_map.shape == (52, 78)
    assert (label_map == expected.argmax(dim=0)).float().mean() > 0.999


def views_by_definition(model, image_processor, image, scales, flip, predict, swap=()):
    """Mean softmax over the views; the size of a view by the words of the definition."""
    height, width = image.height, image.width
    order = list(range(model.config.num_labels))
    for first, second in swap:
        order[first], order[second] = second, first
    views = []
    for ratio in scales:
        scale = int(height * ratio + 0.5), int(width * ratio + 0.5)
        factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
        size = {"height": int(height * factor + 0.5), "width": int(width * factor + 0.5)}
        pixel_values = image_processor(image, size=size, return_tensors="pt").pixel_values
        for flipped in (False, True) if flip else (False,):
            view = torch.from_numpy(np.ascontiguousarray(pixel_values.numpy()[..., ::-1])) if flipped else pixel_values
            logits = predict(model, view)
            if flipped:
                logits = torch.from_numpy(np.ascontiguousarray(logits.numpy()[..., ::-1]))[:, order]
            logits = resize(logits, (height, width), model.config.align_corners)[0].double()
            views.append(logits.exp() / logits.exp().sum(dim=0, keepdim=True))
    return sum(views) / len(views)


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize(
    "scales, flip", [((1.0,), True), ((0.5, 1.0, 1.75), False), ((0.75, 1.25), True), ((0.5,), False)]
)
def test_augmentation(tiny_network, image_processor, make_image, scales, flip, mode):
    model = tiny_network(mode="slide", crop_size=[24, 24], stride=[16, 16], align_corners=True)
    image = make_image(45, 67)

    def predict(model, view):
        if mode == "whole":
            return whole_by_definition(model, view, True)
        return slide_by_definition(model, view, (24, 24), (16, 16), True)

    expected = views_by_definition(model, image_processor, image, scales, flip, predict)
    predictor = Predictor(model, image_processor, mode=mode, scales=scales, flip=flip)
    scores = predictor.scores(image)
    assert scores.shape == (5, 45, 67)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-5)
    assert (predictor.label_map(image) == expected.argmax(dim=0)).float().mean() > 0.999


def test_mirroring_exchanges_left_and_right_labels(tiny_network, image_processor, make_image):
    model, image, pairs = tiny_network(), make_image(40, 56), [(1, 3), (4, 0)]
    expected = views_by_definition(model, image_processor, image, (1.0,), True, whole_by_definition, swap=pairs)
    scores = Predictor(model, image_processor, flip=True, flip_label_pairs=pairs).scores(image)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scores, Predictor(model, image_processor, flip=True).scores(image), atol=1e-2)


def test_a_benchmarks_own_classes_bring_its_pairs(tiny_network, image_processor, make_image):
    model, image = tiny_network(20), make_image(40, 56)
    names_unknown = Predictor(model, image_processor, flip=True).scores(image)
    # In the order of a JSON file sorted as text, where 10 comes before 2.
    model.config.id2label = dict(sorted(get_benchmark("lip").id2label.items(), key=str))
    scores = Predictor(model, image_processor, flip=True).scores(image)
    pairs = [(14, 15), (16, 17), (18, 19)]
    torch.testing.assert_close(
        scores, Predictor(model, image_processor, flip=True, flip_label_pairs=pairs).scores(image)
    )
    torch.testing.assert_close(scores[:14], names_unknown[:14])
    assert not torch.allclose(scores[14:], names_unknown[14:], atol=1e-3)


@pytest.mark.parametrize("arguments", [{}, {"scales": (0.5, 1.0), "flip": True}])
@pytest.mark.parametrize("inference", [{}, {"mode": "slide", "crop_size": [24, 24], "stride": [16, 16]}])
def test_several_images_at_once_as_one_by_one(tiny_network, image_processor, make_image, inference, arguments):
    """Mixed sizes in mixed order; some have one network input size by the plain protocol, though not one own size."""
    model = tiny_network(**inference)
    images = [make_image(*size, seed) for seed, size in enumerate([(40, 60), (30, 90), (40, 60), (80, 120), (1, 1)])]
    predictor = Predictor(model, image_processor, **arguments)
    together = predictor.label_maps(images)
    for image, label_map in zip(images, together, strict=True):
        assert label_map.shape == (image.height, image.width)
        assert (label_map == predictor.label_map(image)).float().mean() > 0.999


def test_images_of_equal_input_size_share_a_forward_pass(tiny_network, image_processor, make_image):
    model = tiny_network()
    Predictor(model, image_processor).label_maps([make_image(40, 60), make_image(30, 90), make_image(80, 120)])
    assert model.batch_sizes == [2, 1]


def test_arrays_are_taken_as_pil_images_are(tiny_network, image_processor, make_image):
    predictor, image = Predictor(tiny_network(), image_processor, scales=(0.5, 1.0)), make_image(45, 67)
    torch.testing.assert_close(predictor.scores(np.asarray(image)), predictor.scores(image))


def test_offloaded_weights(tmp_path):
    """Part of the model waits on the disk; the input goes where the rest is."""
    tiny_model(num_labels=3).save_pretrained(tmp_path / "model")
    whole = CCNetForSemanticSegmentation.from_pretrained(tmp_path / "model").eval()
    device_map = dict.fromkeys(("model.head", "dropout", "classifier", "auxiliary_head"), "cpu")
    offloaded = CCNetForSemanticSegmentation.from_pretrained(
        tmp_path / "model",
        device_map=device_map | {"model.backbone": "disk"},
        offload_folder=str(tmp_path / "offload"),
    ).eval()
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    pixel_values = noise(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(predict_logits(offloaded, pixel_values), predict_logits(whole, pixel_values))


@pytest.mark.parametrize("arguments", [{}, {"scales": (0.5, 1.0), "flip": True}], ids=["plain", "augmented"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(tiny_network, image_processor, make_image, tmp_path, orientation, arguments):
    predictor = Predictor(tiny_network(), image_processor, **arguments)
    image = make_image(40, 60)
    expected = predictor.label_map(image)
    file = tmp_path / "turned.png"
    file.write_bytes(encode_turned(np.asarray(image), orientation))
    for given in (Image.open(file), Image.open(io.BytesIO(file.read_bytes())).convert("RGB"), file, str(file)):
        assert torch.equal(predictor.label_map(given), expected)
        assert torch.equal(predictor.label_maps([given, image])[0], expected)
        assert predictor.scores(given).shape[1:] == (40, 60)


@pytest.mark.parametrize("arguments", [{}, {"scales": (0.5, 1.0), "flip": True}], ids=["plain", "augmented"])
def test_images_that_cannot_be_one_are_refused(tiny_network, image_processor, arguments):
    predictor = Predictor(tiny_network(), image_processor, **arguments)
    image = np.zeros((20, 30, 3), np.float32)
    for value in (np.nan, np.inf):
        image[3, 4, 2] = value
        with pytest.raises(ValueError, match=rf"got {value} at"):
            predictor.label_map(image)
    for shape in ((0, 30, 3), (20, 0, 3)):
        with pytest.raises(ValueError, match=f"{shape[0]}"):
            predictor.label_map(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"no such image: gone\.png"):
        predictor.label_map("gone.png")


# --- human parsing -------------------------------------------------------------------------------------------------


def parser(inverse: str = "logits") -> tuple[torch.nn.Module, CCNetImageProcessor]:
    """A small human parser and its processor."""
    model = tiny_parsing_model()
    with torch.no_grad():
        model.classifier.weight.normal_(generator=torch.Generator().manual_seed(0))
    size = {"height": 48, "width": 48}
    return model, CCNetImageProcessor(size=size, do_letterbox=True, letterbox_inverse=inverse, align_corners=True)


@pytest.mark.parametrize("inverse", ["logits", "labels"])
def test_human_parsing_is_brought_out_of_its_letterbox(inverse, make_image):
    model, processor = parser(inverse)
    images = [make_image(60, 35), make_image(31, 77, seed=1), make_image(20, 20, seed=2)]
    predictor = Predictor(model, processor)
    for image, found in zip(images, predictor.label_maps(images), strict=True):
        size = (image.height, image.width)
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        assert outputs.logits.shape[-2:] == (12, 12)
        (expected,) = processor.post_process_semantic_segmentation(outputs, [size], return_segmentation_scores=True)
        assert torch.equal(found, expected.segmentation) and len(found.unique()) > 1
        torch.testing.assert_close(predictor.scores(image), expected.segmentation_scores)


@pytest.mark.parametrize("inverse", ["logits", "labels"])
@pytest.mark.parametrize(("scales", "flip"), [((1.0,), True), ((0.75, 1.0, 1.5), False), ((0.5, 1.0), True)])
def test_augmented_human_parsing_averages_logits_in_the_letterbox(inverse, scales, flip, make_image):
    """As SCHP tests; left and right parts change places in the mirrored view."""
    model, processor = parser(inverse)
    image = make_image(60, 35)
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    total = 0
    for scale in scales:
        side = int(48 * scale)
        view = F.interpolate(pixel_values, (side, side), mode="bilinear", align_corners=True)
        for mirrored in (False, True) if flip else (False,):
            with torch.no_grad():
                logits = model(view.flip(-1) if mirrored else view).logits
            logits = logits[:, [0, 2, 1, 3, 4]].flip(-1) if mirrored else logits
            total = total + F.interpolate(logits, (48, 48), mode="bilinear", align_corners=True)
    mean = SimpleNamespace(logits=total / (len(scales) * (1 + flip)))
    (expected,) = processor.post_process_semantic_segmentation(mean, [(60, 35)], return_segmentation_scores=True)
    predictor = Predictor(model, processor, scales=scales, flip=flip, flip_label_pairs=[(1, 2)])
    torch.testing.assert_close(predictor.scores(image), expected.segmentation_scores, rtol=1e-4, atol=1e-5)
    assert (predictor.label_map(image) == expected.segmentation).float().mean() > 0.999
    plain = Predictor(model, processor)
    assert not torch.allclose(predictor.scores(image), plain.scores(image), atol=1e-3)


def test_the_classes_of_lip_bring_their_pairs(make_image):
    lip = get_recipe("ccnet-r101-lip").config()
    model, processor = parser()
    model = tiny_parsing_model(num_labels=20, id2label=lip.id2label, label2id=lip.label2id)
    with torch.no_grad():
        model.classifier.weight.normal_(generator=torch.Generator().manual_seed(0))
    pairs = [(14, 15), (16, 17), (18, 19)]
    image = make_image(50, 40)
    found = Predictor(model, processor, flip=True).scores(image)
    torch.testing.assert_close(found, Predictor(model, processor, flip=True, flip_label_pairs=pairs).scores(image))
    assert not torch.allclose(found, Predictor(model, processor, flip=True, flip_label_pairs=[]).scores(image))


def test_logits_of_nan_are_no_class(image_processor, make_image):
    model, pixel_values = tiny_model(), noise(1, 3, 40, 56)
    windows = {"mode": "slide", "crop_size": (32, 32), "stride": (16, 16)}
    for arguments in ({}, windows):
        with pytest.raises(InputError, match="logits hold NaN"):
            predict_logits(model, pixel_values * float("nan"), **arguments)
    model.classifier.bias.data[0] = float("nan")
    for arguments in ({}, windows, {"flip": True}, {"flip": True, "average": "logits"}):
        predictor = Predictor(model, image_processor, **arguments)
        for predict in (predictor.scores, predictor.label_map, lambda image: predictor.steps(image)()()):  # noqa: B023
            with pytest.raises(InputError, match="logits hold NaN"):
                predict(make_image(40, 56))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integers_are_no_network_input(tiny_network, dtype):
    for arguments in ({}, {"mode": "slide", "crop_size": (8, 8), "stride": (8, 8)}):
        with pytest.raises(InputError, match=f"pixel_values must be floating point, .* got {dtype}"):
            predict_logits(tiny_network(), torch.ones(1, 3, 16, 16, dtype=dtype), **arguments)


@pytest.mark.parametrize("flip", ["no", None, 1, 0.5])
def test_flip_is_true_or_false(tiny_network, image_processor, flip):
    with pytest.raises(InputError, match="flip must be True or False, got"):
        Predictor(tiny_network(), image_processor, flip=flip)


def test_models_and_processors_of_another_kind_are_named(image_processor):
    for model, given in ((None, "NoneType"), ("ccnet", "'ccnet'"), (tiny_instance_model(), "CCNetForInstance")):
        with pytest.raises(InputError, match=f"`model` must be a model of semantic segmentation .* got {given}"):
            Predictor(model, image_processor)
        with pytest.raises(InputError, match="`model` must be a model of semantic segmentation"):
            predict_logits(model, noise(1, 3, 16, 16))
    for processor, given in ((None, "NoneType"), (CCNetInstanceImageProcessor(), "CCNetInstanceImageProcessor")):
        with pytest.raises(InputError, match=f"`image_processor` must be the model's .* got {given}"):
            Predictor(tiny_model(), processor)


@pytest.mark.parametrize("image", [None, b"image", io.BytesIO(), [[1, 2], [3, 4]], 5])
def test_what_is_no_image_is_named(tiny_network, image_processor, image):
    predictor = Predictor(tiny_network(), image_processor)
    for use in (
        predictor.label_map,
        predictor.scores,
        predictor.steps,
        lambda image: predictor.attention(image, (0, 0)),
    ):
        with pytest.raises(InputError, match="`image` must be a PIL image, an array, a tensor or the path of a file"):
            use(image)


def test_a_file_above_the_limit_of_pixels_names_what_python_has(
    tiny_network, image_processor, make_image, tmp_path, monkeypatch
):
    make_image(40, 56).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    predictor = Predictor(tiny_network(), image_processor)
    advice = r"ccnet_hf\.data\.images\.read_image\(path, max_image_pixels\) gives larger images, 0 any"
    with pytest.raises(InputError, match=rf"large\.png: cannot be read \(Image size \(2240 pixels\) .*; {advice}"):
        predictor.label_map(tmp_path / "large.png")
    assert predictor.label_map(read_image(tmp_path / "large.png", 0)).shape == (40, 56)
