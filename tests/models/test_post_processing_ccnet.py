"""Segmentation maps of batches that were made by a call with other arguments than the processor's own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_model

from ccnet_hf import CCNetImageProcessor
from ccnet_hf.models import label_maps_ccnet as label_maps
from ccnet_hf.models import post_processing_ccnet as post_processing
from ccnet_hf.models.image_processing_pil_ccnet import CCNetImageProcessorPil
from ccnet_hf.models.post_processing_ccnet import argmax_of_resized_logits, may_come_from, resize_logits


SIZE = {"shortest_edge": 40, "longest_edge": 80}
TARGETS = [(48, 72), (72, 48), (40, 88)]  # resized to 40x60, 60x40, 36x80


@pytest.fixture(params=[CCNetImageProcessor, CCNetImageProcessorPil], ids=["torchvision", "pil"])
def processor_class(request):
    return request.param


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def images(targets=TARGETS) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*target, 3), dtype=np.uint8) for target in targets]


@torch.no_grad()
def segmented(model, processor, call: dict, post: dict, targets=TARGETS) -> list[torch.Tensor]:
    outputs = model(**processor(images(targets), return_tensors="pt", **call))
    return processor.post_process_semantic_segmentation(outputs, target_sizes=targets, **post)


OVERRIDES = {
    "padding": ({"do_pad": True}, {}),
    "padding that is named again": ({"do_pad": True}, {"do_pad": True}),
    "padding to a size": ({"do_pad": True, "pad_size": {"height": 96, "width": 104}},) * 2,
    "another size": ({"do_pad": True, "size": {"shortest_edge": 64, "longest_edge": 96}},) * 2,
    "one size for all": ({"size": {"height": 40, "width": 56}},) * 2,
    "a number for a size": ({"size": 48},) * 2,
    "no resizing": ({"do_pad": True, "do_resize": False},) * 2,
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_arguments_of_the_call_count_as_the_processors_own(name, model, processor_class):
    call, post = OVERRIDES[name]
    maps = segmented(model, processor_class(size=SIZE), call, post)
    expected = segmented(model, processor_class(**{"size": SIZE} | call), {}, {})
    assert all(torch.equal(found, wanted) for found, wanted in zip(maps, expected, strict=True))


def test_a_processor_that_pads_may_be_told_not_to(model):
    targets = [(48, 72)] * 2
    padding = {"do_pad": True, "pad_size": {"height": 96, "width": 104}}
    maps = segmented(model, CCNetImageProcessor(size=SIZE, **padding), *[{"do_pad": False}] * 2, targets)
    expected = segmented(model, CCNetImageProcessor(size=SIZE), {}, {}, targets)
    assert all(torch.equal(found, wanted) for found, wanted in zip(maps, expected, strict=True))


def test_two_batches_in_flight(model):
    processor = CCNetImageProcessor(size=SIZE)
    calls = [{"do_pad": True}, {"size": {"height": 40, "width": 56}}]
    with torch.no_grad():
        outputs = [model(**processor(images(), return_tensors="pt", **call)) for call in calls]
    for call, output in reversed(list(zip(calls, outputs, strict=True))):
        maps = processor.post_process_semantic_segmentation(output, target_sizes=TARGETS, **call)
        expected = segmented(model, CCNetImageProcessor(**{"size": SIZE} | call), {}, {})
        assert all(torch.equal(found, wanted) for found, wanted in zip(maps, expected, strict=True))


@pytest.mark.parametrize(
    "call",
    [
        {"size": {"height": 240, "width": 336}},
        {"do_pad": True, "pad_size": {"height": 384, "width": 960}},
        {"do_pad": True, "do_resize": False},
    ],
    ids=lambda call: " ".join(call),
)
def test_logits_of_other_sizes_are_refused_with_both_ways(call, model):
    processor, targets = (
        CCNetImageProcessor(size={"shortest_edge": 240, "longest_edge": 480}),
        [(300, 450), (450, 300)],
    )
    with pytest.raises(ValueError, match=r"cannot be of images that are 240x360, .*`do_pad`.* or the `input_sizes`"):
        segmented(model, processor, call, {}, targets)
    maps = segmented(model, processor, call, call, targets)
    assert [tuple(found.shape) for found in maps] == targets


@pytest.mark.parametrize(
    ("own", "call"),
    [
        ({}, {"do_pad": True, "pad_size": {"height": 256, "width": 384}}),  # as if the stride were half of what it is
        ({}, {"do_pad": True, "pad_size": {"height": 136, "width": 200}}),  # as if the network rounded up
        ({"do_pad": True, "pad_size": {"height": 256, "width": 384}}, {"do_pad": False}),
        ({"do_pad": True}, {"pad_size": {"height": 256, "width": 384}}),
        ({"size": {"height": 64, "width": 96}}, {"do_resize": False}),
    ],
)
def test_outputs_know_the_size_of_their_images(own, call, model):
    targets = [(128, 192), (120, 192)] if own == {"do_pad": True} else [(128, 192)]
    processor = CCNetImageProcessor(**{"do_resize": "size" in own} | own)
    with pytest.raises(ValueError, match=r"of a batch of .* cannot be of images that are"):
        segmented(model, processor, call, {}, targets)
    maps = segmented(model, processor, call, call, targets)
    expected = segmented(model, CCNetImageProcessor(**{"do_resize": "size" in own} | own | call), {}, {}, targets)
    assert all(torch.equal(found, wanted) for found, wanted in zip(maps, expected, strict=True))


def test_padding_need_not_be_said_where_the_sizes_of_the_images_are(model):
    """The outputs tell what they were padded to."""
    processor, call = CCNetImageProcessor(do_resize=False), {"do_pad": True, "pad_size": {"height": 256, "width": 384}}
    maps = segmented(model, processor, call, {"input_sizes": [(128, 192)]}, [(128, 192)])
    assert torch.equal(maps[0], segmented(model, processor, call, call, [(128, 192)])[0])


def test_logits_that_are_no_numbers_are_refused():
    logits = torch.zeros(1, 3, 5, 8)
    logits[0, 1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="`outputs` has NaN among its `logits`"):
        CCNetImageProcessor().post_process_semantic_segmentation(SimpleNamespace(logits=logits))


def test_segmentation_maps_are_bounded():
    outputs = SimpleNamespace(logits=torch.zeros(1, 3, 5, 8))
    with pytest.raises(ValueError, match=r"`target_sizes` must hold sizes of at most 1,073,741,824 pixels each, got"):
        CCNetImageProcessor(do_resize=False).post_process_semantic_segmentation(outputs, [(60000, 60000)])


def test_an_unusual_stride_needs_the_input_sizes():
    processor, outputs = CCNetImageProcessor(size=240), SimpleNamespace(logits=torch.randn(1, 3, 12, 12))
    with pytest.raises(ValueError, match="or the `input_sizes`"):
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(300, 300)])
    maps = processor.post_process_semantic_segmentation(outputs, [(300, 300)], input_sizes=[(240, 240)])
    assert maps[0].shape == (300, 300)


def test_input_sizes_larger_than_the_batch_are_refused(model):
    with pytest.raises(ValueError, match="100x100 after resizing, in a batch of 40x60"):
        segmented(
            model,
            CCNetImageProcessor(size=SIZE),
            {},
            {"input_sizes": [(100, 100)], "do_pad": True, "pad_size": (40, 60)},
            [(48, 72)],
        )


@pytest.mark.parametrize("stride", [1, 4, 8, 14, 16, 32])
def test_what_logits_may_come_from(stride):
    for height, width in [(65, 97), (512, 1024), (769, 769), (33, 2049)]:
        for rounding in (lambda side: max(side // stride, 1), lambda side: -(-side // stride)):
            assert may_come_from((rounding(height), rounding(width)), (height, width))
        if stride > 1 and height > 20 * stride:
            assert not may_come_from((height // stride, 3 * width // stride), (height, width))


@pytest.mark.parametrize(
    "sizes",
    [(48, 72), 48, "48", [[]], [None], [48], [(48.5, 72)], [("48", "72")], [(True, 72)], [(48, 72, 3)], [(0, 72)]],
)
@pytest.mark.parametrize("name", ["target_sizes", "input_sizes"])
def test_sizes_of_another_kind_are_named(name, sizes):
    outputs = SimpleNamespace(logits=torch.zeros(1, 3, 5, 8))
    with pytest.raises(ValueError, match=f"`{name}` must hold"):
        CCNetImageProcessor(size=SIZE).post_process_semantic_segmentation(outputs, **{name: sizes})


@pytest.mark.parametrize("sizes", [[[48, 72]], np.array([[48, 72]]), torch.tensor([[48, 72]]), ((48.0, 72),)])
def test_sizes_of_any_container(sizes):
    outputs = SimpleNamespace(logits=torch.zeros(1, 3, 5, 8))
    (found,) = CCNetImageProcessor(size=SIZE).post_process_semantic_segmentation(outputs, target_sizes=sizes)
    assert found.shape == (48, 72)


@pytest.mark.parametrize("outputs", [torch.zeros(1, 3, 5, 8), (torch.zeros(1, 3, 5, 8),), None])
def test_outputs_of_another_kind_are_named(outputs):
    with pytest.raises(ValueError, match="`outputs` must be what the model returns"):
        CCNetImageProcessor().post_process_semantic_segmentation(outputs)


SIZES = [
    {"input_size": (136, 200)},
    {"input_size": (136, 200), "target_size": (91, 173)},
    {"input_size": (100, 136), "padded_size": (136, 200), "target_size": (211, 80)},
    {"input_size": (17, 25), "target_size": (119, 160)},
    {"target_size": (15, 120)},
    {"target_size": (15, 20)},
    {"input_size": (9, 300), "target_size": (40, 100)},
    {"input_size": (5, 7), "target_size": (90, 100)},
    {},
]


def logits_of(kind: str, classes: int = 21) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(classes, 17, 25, generator=generator)
    if kind == "smooth":
        return F.interpolate(torch.randn(1, classes, 3, 4, generator=generator), size=(17, 25), mode="bicubic")[0]
    if kind == "equal":
        return torch.ones_like(logits)
    if kind == "ties":
        return logits.sign()
    if kind == "two equal classes":
        logits[7] = logits[11] = logits[7] + 1
    elif kind == "a class far below":
        logits[5] = -1e9
    elif kind == "few":
        logits[3:18] -= 20
    elif kind == "far apart":
        logits[5] = 1e8 * logits[4]
    elif kind == "tiny":
        logits *= 1e-34
    elif kind == "huge":
        logits *= 1e38
    elif kind == "not finite":
        logits[4, 3:5] = -torch.inf
        logits[2, :, 7] = torch.inf
        logits[9, 11:, 12] = logits[3, 12:, 12:14] = torch.nan
    elif kind == "channels last":
        return logits[None].contiguous(memory_format=torch.channels_last)[0]
    return logits.to(getattr(torch, kind, torch.float32))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "sizes", SIZES, ids=lambda sizes: " ".join("x".join(map(str, size)) for size in sizes.values())
)
@pytest.mark.parametrize(
    "kind",
    [
        *("noise", "smooth", "equal", "ties", "two equal classes", "a class far below", "few", "far apart", "tiny"),
        *("huge", "not finite", "channels last", "bfloat16", "float16", "float64"),
    ],
)
def test_labels_are_those_of_all_classes_resized(kind, sizes, align_corners, monkeypatch):
    monkeypatch.setattr(label_maps, "_TILE_COLUMNS", 70)
    monkeypatch.setattr(label_maps, "_BLOCK_ELEMENTS", 3000)
    logits = logits_of(kind)
    expected = resize_logits(logits, align_corners, **sizes).argmax(dim=0)
    found = argmax_of_resized_logits(logits, align_corners, **sizes)
    assert found.dtype == torch.int64 and torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["noise", "smooth", "few", "channels last", "bfloat16"])
def test_pixels_that_rounding_leaves_undecided_are_resized_by_pytorch(kind, monkeypatch):
    """With every pixel undecided by the tiles, and in float64 those that 1e-3 would change, the labels stay."""
    monkeypatch.setattr(label_maps, "_TILE_ERRORS", 1e-3 / label_maps._ROUNDING)
    monkeypatch.setattr(label_maps, "_RESIZE_ERRORS", 1e-3 / label_maps._ROUNDING)
    monkeypatch.setattr(label_maps, "_UNDECIDED_FRACTION", 1)
    logits, sizes = logits_of(kind), {"input_size": (136, 200), "target_size": (150, 173)}
    resized = []
    monkeypatch.setattr(
        post_processing,
        "resize_logits",
        lambda part, *args, **kwargs: resized.append(len(part)) or resize_logits(part, *args, **kwargs),
    )
    expected = resize_logits(logits, False, **sizes).argmax(dim=0)
    assert torch.equal(argmax_of_resized_logits(logits, False, **sizes), expected)
    assert 0 < sum(resized) <= len(logits)


@pytest.mark.parametrize("classes", [2, 3, 4, 11, 19])
@pytest.mark.parametrize("kind", ["noise", "ties", "not finite"])
def test_any_number_of_classes_at_a_time_gives_the_same_labels(kind, classes, monkeypatch):
    """PyTorch resizes three channels by another kernel than any other number of them."""
    logits, sizes = logits_of(kind, max(classes, 10))[-classes:], {"input_size": (136, 200), "target_size": (91, 173)}
    expected = resize_logits(logits, False, **sizes).argmax(dim=0)
    monkeypatch.setattr(post_processing, "label_map", lambda *args: None)
    for at_a_time in (1, 3, 4, 8, 1000):
        monkeypatch.setattr(post_processing, "MAX_CPU_CHUNK_ELEMENTS", at_a_time * 136 * 200)
        assert torch.equal(argmax_of_resized_logits(logits, False, **sizes), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_labels_of_logits_of_a_single_row_or_column(shape):
    logits = torch.randn(13, *shape, generator=torch.Generator().manual_seed(0))
    expected = resize_logits(logits, False, (90, 100)).argmax(dim=0)
    assert torch.equal(argmax_of_resized_logits(logits, False, (90, 100)), expected)


def test_more_classes_than_a_byte_holds():
    logits = torch.randn(300, 20, 20, generator=torch.Generator().manual_seed(0))
    labels = argmax_of_resized_logits(logits, False, (160, 160))
    assert labels.max() > 255 and torch.equal(labels, resize_logits(logits, False, (160, 160)).argmax(dim=0))


def test_classes_are_resized_by_pytorch_only_where_rounding_decides(monkeypatch):
    logits = torch.randn(32, 20, 20, generator=torch.Generator().manual_seed(0))
    logits[4] += 20
    monkeypatch.setattr(post_processing, "resize_logits", None)
    assert argmax_of_resized_logits(logits, False, (160, 160)).unique().tolist() == [4]
