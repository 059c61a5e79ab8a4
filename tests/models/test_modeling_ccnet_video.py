"""CCNet for video: against the image model, a softmax in loops and other orders of frames, and in transformers."""

import itertools
import json
import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from model_cases import DenseModelTests
from PIL import Image
from tiny_models import tiny_model, tiny_video_model, wake_attention
from transformers import AutoConfig, AutoModelForSemanticSegmentation, AutoVideoProcessor
from transformers.loss.loss_utils import ForSemanticSegmentationLoss
from turned import encode_turned

from ccnet_hf import (
    CCNetForVideoSegmentation,
    CCNetImageProcessor,
    CCNetVideoConfig,
    CCNetVideoProcessor,
)
from ccnet_hf.models import image_processing_common_ccnet
from ccnet_hf.models.loss_ccnet import ccnet_losses
from ccnet_hf.models.modeling_ccnet_video import CCNetClipAttention


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.randn(2, 3, 3, 65, 97, generator=torch.Generator().manual_seed(1))


def test_defaults():
    assert CCNetVideoConfig().recurrence == 3 and CCNetVideoConfig().num_frames == 5
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        CCNetVideoConfig(num_frames=0)


def test_shapes_and_loss(clips):
    model = tiny_video_model()
    labels = torch.randint(0, 5, (2, 3, 65, 97), generator=torch.Generator().manual_seed(2))
    labels[:, 1] = 255  # a frame without labels
    outputs = model(clips, labels=labels, output_attentions=True, output_hidden_states=True)
    assert outputs.logits.shape == outputs.auxiliary_logits.shape == (6, 5, 9, 13)
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 3, 9, 13, 3 + 9 + 13)] * 3
    losses = ccnet_losses(model.config, labels.flatten(0, 1), outputs.logits, outputs.auxiliary_logits)
    torch.testing.assert_close(outputs.loss, sum(losses.values()))
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_loss_function_of_the_users(clips):
    """As of the image model, of the labels of frames."""
    model = tiny_video_model()
    labels = torch.randint(0, 5, (2, 3, 65, 97), generator=torch.Generator().manual_seed(2))
    plain = model(clips, labels=labels).loss
    model.loss_function = ForSemanticSegmentationLoss
    torch.testing.assert_close(model(clips, labels=labels).loss, plain)
    model.loss_function = lambda logits, labels, **kwargs: logits.square().mean() + labels.shape[0]
    outputs = model(clips, labels=labels)
    assert outputs.loss == outputs.logits.square().mean() + 6


@pytest.mark.parametrize("recurrence", [0, 1, 2, 3])
def test_one_frame_is_the_image_model(recurrence, clips):
    image, video = tiny_model(recurrence=recurrence).double(), tiny_video_model(recurrence=recurrence).double()
    video.load_state_dict(image.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(
            video(clips[:, :1].double()).logits, image(clips[:, 0].double()).logits, rtol=0, atol=1e-9
        )


def test_a_clip_is_a_softmax_over_time_rows_and_columns():
    torch.manual_seed(0)
    layer = CCNetClipAttention(8, 4, recurrence=1).double()
    wake_attention(layer)
    clip = torch.randn(1, 8, 3, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        found = layer(clip)[0]
        query, key, value = layer._project(clip)
    assert query.shape == (1, 4, 3, 4, 5)
    positions = list(itertools.product(range(3), range(4), range(5)))
    for here in positions:
        seen = [there for there in positions if sum(a != b for a, b in zip(here, there, strict=True)) <= 1]
        assert len(seen) == 3 + 4 + 5 - 2
        weights = [math.exp(query[0, :, *here].dot(key[0, :, *there]).item()) for there in seen]
        context = sum(w * value[0, :, *there] for w, there in zip(weights, seen, strict=True)) / sum(weights)
        expected = layer.gamma * context + clip[0, :, *here]
        torch.testing.assert_close(found[0, :, *here], expected, rtol=0, atol=1e-12)


def test_another_order_of_frames_is_another_order_of_results(clips):
    model, order = tiny_video_model().double(), [2, 0, 1]
    with torch.no_grad():
        expected = model(clips.double()).logits.unflatten(0, (2, 3))[:, order]
        found = model(clips[:, order].double()).logits.unflatten(0, (2, 3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    alone = model(clips[:, :1].double()).logits
    assert not torch.allclose(alone, expected[:, 1], atol=1e-3), "other frames matter"


def test_three_rounds_reach_every_pixel_of_every_frame():
    """A change in one corner of the first frame, felt in the opposite corner of the last one."""
    for recurrence, felt in ((1, False), (2, False), (3, True)):
        torch.manual_seed(0)
        layer = CCNetClipAttention(8, 4, recurrence).double()
        wake_attention(layer)
        clip = torch.randn(1, 8, 3, 4, 5, dtype=torch.float64)
        other = clip.clone()
        other[..., 0, 0, 0] += 1
        with torch.no_grad():
            change = (layer(other)[0] - layer(clip)[0])[..., 2, 3, 4]
        assert (change != 0).any() == felt


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 65, 97), "pixel_values_videos must be"),
        ((2, 3, 65, 97), "pixel_values_videos must be"),
        ((1, 0, 3, 9, 9), "with pixels"),
    ],
)
def test_what_is_no_clip_is_named(shape, message):
    with pytest.raises(ValueError, match=message):
        tiny_video_model()(torch.randn(shape))


def test_labels_of_another_length_are_named(clips):
    with pytest.raises(ValueError, match=r"labels must be \(batch, frames, height, width\)"):
        tiny_video_model()(clips, labels=torch.zeros(2, 2, 65, 97, dtype=torch.int64))


class TestCCNetForVideoSegmentation(DenseModelTests):
    model_class = CCNetForVideoSegmentation
    classifiers: ClassVar = {"classifier", "auxiliary_head.classifier"}

    def build(self, **options):
        return tiny_video_model(**options)

    def inputs(self):
        labels = torch.randint(0, 5, (1, 2, 65, 97), generator=torch.Generator().manual_seed(2))
        labels[:, :, :7] = 255
        clips = torch.randn(1, 2, 3, 65, 97, generator=torch.Generator().manual_seed(1))
        return {"pixel_values_videos": clips, "labels": labels}


# --- files ---------------------------------------------------------------------------------------------------------


def test_an_image_model_begins_a_video_model(tmp_path, caplog):
    image = tiny_model(recurrence=2)
    image.save_pretrained(tmp_path)
    CCNetImageProcessor(
        size={"height": 64, "width": 96}, image_mean=[0.1, 0.2, 0.3], align_corners=True
    ).save_pretrained(tmp_path)
    model, found = CCNetForVideoSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values()) and model.config.model_type == "ccnet_video"
    assert model.config.recurrence == model.model.head.attention.recurrence == 2
    assert CCNetForVideoSegmentation.from_pretrained(tmp_path, recurrence=3).model.head.attention.recurrence == 3
    content = json.loads((tmp_path / "config.json").read_text())
    del content["recurrence"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert CCNetForVideoSegmentation.from_pretrained(tmp_path).config.recurrence == 2
    assert "instantiate" not in caplog.text
    processor = CCNetVideoProcessor.from_pretrained(tmp_path)
    assert list(processor.image_mean) == [0.1, 0.2, 0.3] and processor.align_corners


def test_saved_and_loaded_by_the_auto_classes(tmp_path, clips):
    model = tiny_video_model()
    model.save_pretrained(tmp_path)
    CCNetVideoProcessor(size={"height": 64, "width": 96}).save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CCNetVideoConfig)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(clips).logits, model(clips).logits)
    processor = AutoVideoProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, CCNetVideoProcessor) and dict(processor.size)["height"] == 64
    files = {path.name for path in tmp_path.glob("*.py")}
    assert {"modeling_ccnet_video.py", "video_processing_ccnet.py", "layers_ccnet.py"} <= files


# --- the processor -------------------------------------------------------------------------------------------------


def frames(number: int = 4, height: int = 37, width: int = 53) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("form", ["array", "channels first", "tensor", "list of images", "two clips"])
def test_a_clip_is_processed_as_its_frames_are(form):
    fields = {"size": {"shortest_edge": 64, "longest_edge": 96}, "image_mean": [0.1, 0.2, 0.3]}
    processor, clip = CCNetVideoProcessor(**fields), frames()
    given = {
        "array": clip,
        "channels first": clip.transpose(0, 3, 1, 2),
        "tensor": torch.from_numpy(clip),
        "list of images": [Image.fromarray(frame) for frame in clip],
        "two clips": [clip, clip[::-1].copy()],
    }[form]
    found = processor(given, return_tensors="pt")["pixel_values_videos"]
    expected = CCNetImageProcessor(**fields)([*clip], return_tensors="pt")["pixel_values"]
    assert torch.equal(found[0], expected)
    if form == "two clips":
        assert torch.equal(found[1], expected.flip(0))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_frames_of_any_mode(mode):
    images = [Image.new(mode, (7, 5))] if mode == "I;16" else [Image.fromarray(one).convert(mode) for one in frames(2)]
    found = CCNetVideoProcessor(size={"height": 4, "width": 6})(images, return_tensors="pt")["pixel_values_videos"]
    expected = CCNetImageProcessor(size={"height": 4, "width": 6})(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_frames_are_turned_upright(orientation, suffix, tmp_path):
    (clip,), file = frames(1), tmp_path / f"turned.{suffix}"
    file.write_bytes(encode_turned(clip, orientation, suffix))
    processor = CCNetVideoProcessor(do_resize=False)
    expected = processor([clip], return_tensors="pt")["pixel_values_videos"]
    for given in ([Image.open(file)], Image.open(file), [[[str(file)]]]):
        assert torch.equal(processor(given, return_tensors="pt")["pixel_values_videos"], expected)
    metadata = processor([Image.open(file)], return_metadata=True)["video_metadata"]
    assert (metadata[0].height, metadata[0].width) == (37, 53)


def test_frames_are_sampled_whatever_the_clip_is():
    clip = frames(6)
    expected = CCNetVideoProcessor()(clip[[0, 2, 4]], return_tensors="pt")["pixel_values_videos"]
    for given in (clip, torch.from_numpy(clip), [*map(Image.fromarray, clip)]):
        found = CCNetVideoProcessor()(
            given, do_sample_frames=True, num_frames=3, return_metadata=True, return_tensors="pt"
        )
        assert torch.equal(found["pixel_values_videos"], expected)
        assert list(found["video_metadata"][0].frames_indices) == [0, 2, 4]


def broken(value: float) -> np.ndarray:
    clip = frames().astype(np.float32)
    clip[1, 3, 4] = value
    return clip


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (broken(np.nan), "finite numbers of float32, got nan at"),
        (broken(np.inf), "finite numbers of float32, got inf at"),
        (frames().astype(np.int16) * 2, r"must lie in 0\.\.255, got values from 0 to 510"),
        (frames().astype(complex), "holds real numbers, got complex128"),
        (frames(0), "Clip 0 has no frames"),
        (frames(1, 0), "has no pixels"),
        ([], "No clips given"),
        ([None], "a list of frames, or the path of a video file, got NoneType"),
        (np.zeros(3), r"got shape \(3,\)"),
        ([frames(1)[0], frames(1, 9)[0]], "the frames of a clip must have one size, got 37x53, 9x53"),
    ],
)
def test_what_the_image_processor_would_refuse_of_a_frame(clip, message):
    with pytest.raises(ValueError, match=message):
        CCNetVideoProcessor(do_resize=False)(clip, return_tensors="pt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": -1}, "`size` must hold positive integers"),
        ({"size": {"height": 0, "width": 8}}, "`size` must hold positive integers"),
        ({"size": True}, "size"),
        ({"image_mean": float("nan")}, "`image_mean` must be finite numbers, got nan"),
        ({"image_mean": [0.5, 0.5]}, "one number per channel"),
        ({"image_std": 0}, "image_std"),
        ({"palette": 5}, "palette"),
        ({"align_corners": 3}, "align_corners"),
        ({"crop_size": 8}, "`crop_size` have no effect"),
        ({"do_center_crop": True}, "`do_center_crop` and `crop_size` have no effect"),
        ({"do_pad": True}, "`do_pad` has no effect"),
        ({"resample": 0}, "`resample` must be bilinear"),
    ],
)
def test_arguments_are_checked_as_the_image_processors(arguments, message):
    with pytest.raises(ValueError, match=message):
        CCNetVideoProcessor(**arguments)
    with pytest.raises(ValueError, match=message) as refused:
        CCNetVideoProcessor()(frames(), return_tensors="pt", **arguments)
    assert "\n" not in str(refused.value)


def test_a_clip_of_0_to_1_that_is_rescaled_is_warned_about(monkeypatch):
    warnings = []
    monkeypatch.setattr(image_processing_common_ccnet.logger, "warning_once", warnings.append)
    CCNetVideoProcessor()(frames() / 255)
    assert warnings and "lies in 0..1" in warnings[0]


def test_segmentation_maps_are_made_frame_by_frame(clips):
    model, processor = tiny_video_model(), CCNetVideoProcessor(size={"height": 65, "width": 97})
    with torch.no_grad():
        outputs = model(clips)
    maps = processor.post_process_semantic_segmentation(outputs, [(30, 40)] * 6)
    expected = CCNetImageProcessor(size={"height": 65, "width": 97}).post_process_semantic_segmentation(
        outputs, [(30, 40)] * 6
    )
    assert len(maps) == 6 and all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


def test_names_that_look_like_an_argument_of_the_processor():
    with pytest.raises(ValueError, match="no argument 'reduce_labels'; did you mean do_reduce_labels"):
        CCNetVideoProcessor(reduce_labels=True)
    with pytest.raises(ValueError, match="no argument 'reduce_labels'"):
        CCNetVideoProcessor()(frames(), reduce_labels=True)
    with pytest.raises(ValueError, match="no argument 'align_corner'"):
        CCNetVideoProcessor.from_dict({}, align_corner=True)
    later = CCNetVideoProcessor().to_dict() | {"do_reduce_label": [3], "mosaic": 4}
    loaded = CCNetVideoProcessor.from_dict(later)
    assert loaded.to_dict() == later and not loaded.do_reduce_labels


def test_clips_that_differ_are_named():
    with pytest.raises(ValueError, match="one number of frames and one size"):
        CCNetVideoProcessor(size={"height": 32, "width": 32})([frames(2), frames(3)], return_tensors="pt")
