"""A processor that pads, and views whose logits are averaged, against the definitions and PaddleSeg's own numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_files import assert_close, load_golden

from ccnet_hf import InputError
from ccnet_hf.inference import Predictor
from ccnet_hf.models.image_processing_ccnet import CCNetImageProcessor
from ccnet_hf.models.image_processing_pil_ccnet import CCNetImageProcessorPil


HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.fixture
def image_processor():
    """Images of 52x78 become 40x60, and 41x65 with their padding."""
    pad_size = {"height": 41, "width": 65}
    return CCNetImageProcessor(
        size={"shortest_edge": 40, "longest_edge": 72}, do_pad=True, pad_size=pad_size, **HALVES
    )


def resize(tensor: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(tensor, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("processor_class", [CCNetImageProcessor, CCNetImageProcessorPil])
def test_padding_is_paddlesegs(processor_class):
    golden = load_golden("paddle_preprocess")
    height, width = golden["32x50/target_hw"].tolist()
    processor = processor_class(do_resize=False, do_pad=True, pad_size={"height": height, "width": width}, **HALVES)
    found = processor(golden["32x50/image_rgb_uint8"], return_tensors="np")["pixel_values"][0]
    exact = processor_class is CCNetImageProcessorPil  # torchvision multiplies once: the last bit of values up to 1
    assert_close(found, golden["32x50/input"], 0 if exact else 6e-8, "input")
    assert not found[:, 32:].any() and not found[:, :, 50:].any()


@pytest.mark.parametrize("scale", [0.75, 1.25])
def test_views_are_paddlesegs(scale, tiny_network):
    golden = load_golden("paddle_preprocess")
    predictor = Predictor(tiny_network(), CCNetImageProcessor(), scales=[scale], average="logits")
    view = predictor._view(torch.from_numpy(golden["32x50/input"]), scale, flipped=False)
    assert_close(view, golden[f"32x50/scale{scale}"], 1e-5, "view")


def test_the_plain_protocol_is_that_of_the_image_processor(tiny_network, image_processor, make_image):
    """Padded, and without the padding brought to the size of the image, as `post_process_semantic_segmentation`."""
    model, image = tiny_network(), make_image(52, 78)
    pixel_values = image_processor(image, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape[-2:] == (41, 65)
    with torch.no_grad():
        outputs = model(pixel_values)
        by_hand = resize(resize(outputs.logits, (41, 65))[..., :40, :60], (52, 78))[0]
    (expected,) = image_processor.post_process_semantic_segmentation(
        outputs, [(52, 78)], return_segmentation_scores=True
    )
    predictor = Predictor(model, image_processor)
    scores = predictor.scores(image)
    torch.testing.assert_close(scores, by_hand)
    torch.testing.assert_close(scores, expected.segmentation_scores)
    assert torch.equal(predictor.label_map(image), expected.segmentation)
    assert torch.equal(predictor.steps(image)()(), expected.segmentation)


@pytest.mark.parametrize("windows", [{}, {"mode": "slide", "crop_size": (24, 32), "stride": (16, 24)}])
def test_images_of_several_sizes_in_one_batch(windows, tiny_network, image_processor, make_image):
    images = [make_image(52, 78), make_image(40, 50, seed=1), make_image(78, 52, seed=2)]
    predictor = Predictor(tiny_network(), image_processor, **windows)
    for image, label_map in zip(images, predictor.label_maps(images), strict=True):
        assert torch.equal(label_map, predictor.label_map(image))


def test_an_image_that_is_larger_than_the_padding_is_seen_without(tiny_network, image_processor, make_image):
    model, image = tiny_network(), make_image(78, 52)
    without = CCNetImageProcessor(size=dict(image_processor.size), **HALVES)
    assert without(image, return_tensors="pt")["pixel_values"].shape[-2:] == (60, 40)  # higher than 41
    torch.testing.assert_close(
        Predictor(model, image_processor).scores(image), Predictor(model, without).scores(image)
    )


@pytest.mark.parametrize(("scales", "flip"), [((1.0,), True), ((0.75, 1.0, 1.3), False), ((0.5, 1.0), True)])
def test_averaged_logits(scales, flip, tiny_network, image_processor, make_image):
    """Of the padded input resized by each ratio: the padding of a mirrored view lies at the left."""
    model, image = tiny_network(mode="whole", average="logits"), make_image(52, 78)
    padded = image_processor(image, return_tensors="pt")["pixel_values"]
    total, views = 0, 0
    for scale in scales:
        size = int(41 * scale + 0.5), int(65 * scale + 0.5)
        for mirrored in (False, True) if flip else (False,):
            view = resize(padded, size)
            with torch.no_grad():
                logits = resize(model(view.flip(-1) if mirrored else view).logits, size)
            total = total + resize(logits.flip(-1) if mirrored else logits, (41, 65))
            views += 1
    expected = resize((total / views)[..., :40, :60], (52, 78))[0]
    predictor = Predictor(model, image_processor, scales=scales, flip=flip)
    assert predictor.average == "logits"
    torch.testing.assert_close(predictor.scores(image), expected)
    assert (predictor.label_map(image) == expected.argmax(0)).float().mean() > 0.999


def test_who_says_what_is_averaged(tiny_network, image_processor, make_image):
    """The caller, then the configuration; probabilities if nobody."""
    image, plain, configured = make_image(52, 78), tiny_network(), tiny_network(mode="whole", average="logits")
    configured.load_state_dict(plain.state_dict())
    views = {"scales": (0.75, 1.25), "flip": True}
    assert Predictor(plain, image_processor).average == "probabilities"
    logits = Predictor(configured, image_processor, **views).scores(image)
    torch.testing.assert_close(logits, Predictor(plain, image_processor, average="logits", **views).scores(image))
    probabilities = Predictor(configured, image_processor, average="probabilities", **views).scores(image)
    torch.testing.assert_close(probabilities, Predictor(plain, image_processor, **views).scores(image))
    torch.testing.assert_close(probabilities.sum(0), torch.ones(52, 78))
    assert np.abs(logits.sum(0) - 1).max() > 0.1
    with pytest.raises(InputError, match="average must be one of probabilities, logits, got 'votes'"):
        Predictor(plain, image_processor, average="votes")
