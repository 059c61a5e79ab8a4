"""The image processors in letterbox mode: CE2P's way into the network and both ways back."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden_files import load_golden
from PIL import Image
from transformers import AutoImageProcessor

from ccnet_hf import CCNetImageProcessor, CCNetImageProcessorPil
from ccnet_hf.models.image_letterbox_ccnet import (
    letterbox_labels,
    undo_letterbox_of_labels,
    undo_letterbox_of_logits,
)


CASES = ("enlarged", "reduced", "same", "shifted")


@pytest.fixture(params=[CCNetImageProcessor, CCNetImageProcessorPil], ids=["torchvision", "pil"])
def processor_class(request):
    return request.param


@pytest.fixture(scope="module")
def golden():
    return load_golden("letterbox")


def noise(*shape: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape, dtype=np.uint8)


def parser(kind: type, side: int = 48, **options):
    fields = {"size": {"height": side, "width": side}, "do_letterbox": True, "align_corners": True}
    return kind(**fields | options)


def outputs_of(*shape: int) -> SimpleNamespace:
    return SimpleNamespace(logits=torch.randn(shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", CASES)
def test_pixels_and_labels_are_those_of_opencv(golden, processor_class, name):
    """Black before normalisation and 255 around the image."""
    expected, expected_labels = golden[f"{name}/warped"], golden[f"{name}/warped_labels"]
    processor = parser(processor_class, len(expected))
    image, labels = Image.fromarray(golden[f"{name}/image"]), Image.fromarray(golden[f"{name}/labels"])
    batch = processor(image, labels, return_tensors="pt")
    assert batch["labels"].dtype == torch.int64 and np.array_equal(batch["labels"][0], expected_labels)
    mean, std = np.array(processor.image_mean), np.array(processor.image_std)
    np.testing.assert_allclose(
        batch["pixel_values"][0].permute(1, 2, 0), (expected / 255 - mean) / std, rtol=0, atol=1e-5
    )
    raw = processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    assert np.array_equal(raw[0].permute(1, 2, 0), expected)


def test_images_of_any_shape_make_a_batch(processor_class):
    images, labels = [noise(30, 20, 3), noise(17, 48, 3), noise(48, 48, 3), noise(1, 9, 3)], []
    labels = [noise(*image.shape[:2], high=5) for image in images]
    batch = parser(processor_class)(images, labels, return_tensors="pt")
    assert batch["pixel_values"].shape == (4, 3, 48, 48) and batch["labels"].shape == (4, 48, 48)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        alone = parser(processor_class)(image, label, return_tensors="pt")
        assert torch.equal(batch["pixel_values"][index], alone["pixel_values"][0])
        assert torch.equal(batch["labels"][index], alone["labels"][0])


def test_both_backends_agree():
    images = [noise(61, 83, 3), noise(20, 33, 3).astype(np.float32) / 255]
    for image, options in ((images[0], {}), (images[1], {"do_rescale": False})):
        torchvision, pil = (
            parser(kind, 64)(image, return_tensors="pt", **options)["pixel_values"]
            for kind in (CCNetImageProcessor, CCNetImageProcessorPil)
        )
        torch.testing.assert_close(torchvision, pil, rtol=0, atol=1e-5)


def test_reduced_labels(processor_class):
    labels = noise(48, 24, high=3)
    batch = parser(processor_class, do_reduce_labels=True)(noise(48, 24, 3), labels, return_tensors="pt")
    expected = np.where(labels == 0, 255, labels - 1)
    assert np.array_equal(batch["labels"][0, :, 12:36], expected)
    assert (batch["labels"][0, :, :12] == 255).all() and (batch["labels"][0, :, 36:] == 255).all()


def test_logits_come_back_and_then_classes_are_chosen(processor_class):
    outputs, sizes = outputs_of(2, 5, 12, 12), [(70, 40), (20, 48)]
    processor = parser(processor_class)
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    scored = processor.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    for logits, size, found, with_scores in zip(outputs.logits, sizes, maps, scored, strict=True):
        at_input = torch.nn.functional.interpolate(logits[None], (48, 48), mode="bilinear", align_corners=True)[0]
        expected = undo_letterbox_of_logits(at_input, size)
        assert torch.equal(found, expected.argmax(0)) and found.shape == size
        assert torch.equal(with_scores.segmentation, found)
        torch.testing.assert_close(with_scores.segmentation_scores, expected)


def test_the_papers_choose_classes_first(processor_class):
    outputs, sizes = outputs_of(2, 5, 12, 12), [(70, 40), (25, 40)]
    processor = parser(processor_class, letterbox_inverse="labels")
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    scored = processor.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    differing = parser(processor_class).post_process_semantic_segmentation(outputs, target_sizes=sizes)
    for logits, size, found, with_scores, other in zip(outputs.logits, sizes, maps, scored, differing, strict=True):
        at_input = torch.nn.functional.interpolate(logits[None], (48, 48), mode="bilinear", align_corners=True)[0]
        assert torch.equal(found, undo_letterbox_of_labels(at_input.argmax(0), size))
        assert torch.equal(with_scores.segmentation, found) and with_scores.segmentation_scores.shape == (5, *size)
        assert 0 < (found != other).float().mean() < 0.2


@pytest.mark.parametrize("inverse", ["logits", "labels"])
@pytest.mark.parametrize("size", [(48, 31), (20, 48), (48, 48)])
def test_a_perfect_network_gives_the_labels_back(processor_class, inverse, size):
    """At scale 1 both ways, to the pixel: with logits at the size of the input."""
    labels = noise(*size, high=5)
    logits = torch.nn.functional.one_hot(
        torch.tensor(letterbox_labels(labels, (48, 48), fill=0)).long(), num_classes=5
    ).permute(2, 0, 1)[None]
    processor = parser(processor_class, letterbox_inverse=inverse)
    (found,) = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits.float()), [size])
    between_pixels = (48 - size[0]) % 2 or (48 - size[1]) % 2
    if inverse == "labels" or not between_pixels:
        assert np.array_equal(found, labels)


def test_the_call_may_switch_it(processor_class):
    image, outputs = noise(30, 20, 3), outputs_of(1, 5, 12, 12)
    plain = processor_class(size={"height": 48, "width": 48}, align_corners=True)
    letterboxed = parser(processor_class)
    for one, other, switch in ((plain, letterboxed, True), (letterboxed, plain, False)):
        found = one(image, return_tensors="pt", do_letterbox=switch)["pixel_values"]
        assert torch.equal(found, other(image, return_tensors="pt")["pixel_values"])
        (segmented,) = one.post_process_semantic_segmentation(outputs, [(30, 20)], do_letterbox=switch)
        assert torch.equal(segmented, other.post_process_semantic_segmentation(outputs, [(30, 20)])[0])
    assert letterboxed(image, do_resize=False, return_tensors="pt")["pixel_values"].shape[2:] == (30, 20)
    assert parser(processor_class, do_resize=False).active_letterbox_inverse is None
    assert (plain.active_letterbox_inverse, letterboxed.active_letterbox_inverse) == (None, "logits")


def test_it_is_saved_and_loaded(processor_class, tmp_path):
    parser(processor_class, letterbox_inverse="labels").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert content["do_letterbox"] is True and content["letterbox_inverse"] == "labels"
    for backend in ("torchvision", "pil"):
        loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        assert loaded.active_letterbox_inverse == "labels"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": {"shortest_edge": 40, "longest_edge": 80}}, "`do_letterbox` needs a `size` of 'height' and 'width'"),
        ({"letterbox_inverse": "nearest"}, "`letterbox_inverse` must be 'logits' or 'labels', got 'nearest'"),
        ({"do_letterbox": "yes"}, "do_letterbox[`'].*'yes'"),
        ({"size": {"height": 1, "width": 48}}, "at least 2x2 pixels, got 1x48"),
    ],
)
def test_what_cannot_be_is_named(processor_class, options, message):
    with pytest.raises(ValueError, match=message):
        parser(processor_class, **options)(noise(30, 20, 3))
    with pytest.raises(ValueError, match=message):
        parser(processor_class)(noise(30, 20, 3), **options)
