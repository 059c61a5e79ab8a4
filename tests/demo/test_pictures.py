"""What the page does with pictures and videos, and what it keeps of them."""

from fractions import Fraction

import numpy as np
import pytest
from odd_pictures import REFUSED, SIZE, TAKEN, write_odd_pictures
from PIL import Image

from ccnet_hf.demo import pictures
from ccnet_hf.demo.checkpoints import Checkpoints, describe_runtime
from ccnet_hf.demo.demo_arguments import DemoArguments, main
from ccnet_hf.errors import InputError
from ccnet_hf.inference import Predictor
from ccnet_hf.visualization import blend


@pytest.fixture(scope="module")
def predictor(checkpoint) -> Predictor:
    return Checkpoints(DemoArguments(model_name_or_path=[str(checkpoint)])).predictor("tiny")


def test_a_picture_is_what_the_predictor_says(predictor, picture):
    image = pictures.read_picture(str(picture), 10_000)
    kept, labels = pictures.segment_picture(predictor, image)
    expected = predictor.label_map(image).numpy()
    assert np.array_equal(labels, expected) and np.array_equal(kept.label_map, expected)
    assert (kept.size, kept.image.size) == ((64, 96), (96, 64)) and kept.seconds > 0
    shares = {entry.label: entry.share for entry in kept.classes}
    assert len(shares) > 1 and sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert all(share == pytest.approx((expected == label).mean()) for label, share in shares.items())
    assert all(entry.name == predictor.config.id2label[entry.label] for entry in kept.classes)


def test_classes_that_are_switched_off_leave_the_picture_as_it_is(predictor, picture):
    image = pictures.read_picture(str(picture), 10_000)
    kept, labels = pictures.segment_picture(predictor, image)
    everything = [entry.label for entry in kept.classes]
    palette = np.array(labels.getpalette()).reshape(-1, 3).tolist()
    assert kept.overlay(everything, 0.3) == blend(image, kept.label_map, palette, 0.3)
    assert kept.overlay([], 0.3) == image
    first = kept.overlay(everything[:1], 0.5)
    changed = (np.asarray(first) != np.asarray(image)).any(axis=-1)
    assert changed[kept.label_map == everything[0]].mean() > 0.9
    borders = changed & (kept.label_map != everything[0])
    assert borders.mean() < 0.2  # the light line stands on either side


def test_of_a_large_picture_a_smaller_one_is_kept(predictor, monkeypatch, picture):
    monkeypatch.setattr(pictures, "LONGEST_SIDE", 48)
    image = pictures.read_picture(str(picture), 10_000)
    kept, labels = pictures.segment_picture(predictor, image)
    assert labels.size == image.size == (96, 64) and kept.size == (64, 96)
    assert kept.image.size == (48, 32) and kept.label_map.shape == (32, 48)
    assert kept.overlay([0], 0.5).size == (48, 32)


def test_odd_pictures(predictor, tmp_path):
    write_odd_pictures(tmp_path)
    for name, sentence in REFUSED.items():
        with pytest.raises(InputError) as refused:
            pictures.read_picture(str(tmp_path / name), DemoArguments().max_image_pixels)
        assert str(refused.value).startswith(sentence) and str(tmp_path) not in str(refused.value), name
    for name in TAKEN:
        image = pictures.read_picture(str(tmp_path / name), DemoArguments().max_image_pixels)
        pixels = np.asarray(image.convert("L"), dtype=int)
        assert (image.mode, image.size) == ("RGB", SIZE), name
        assert pixels[2:14, 2:22].min() > 150 and pixels[18:].max() < 60, name


def test_a_phone_s_picture_is_taken_by_default():
    held_a_minute = 20_000 * 2000  # pixels, a PNG of 39 KB
    assert 4032 * 3024 < DemoArguments().max_image_pixels < held_a_minute


def test_attention_of_a_pixel(predictor, picture):
    image = pictures.read_picture(str(picture), 10_000)
    raw, ratios, gammas = pictures.attend_to_picture(predictor, image, (50, 20))
    assert list(raw) == ["round 1, gamma 0.7", "round 2, gamma 0.7", "both rounds", "both rounds, cut at 99 %"]
    assert list(ratios) == ["round 1, to uniform", "round 2, to uniform", "both rounds, to uniform"]
    assert gammas == pytest.approx([0.7, 0.7]) and {view.size for view in [*raw.values(), *ratios.values()]} == {
        (96, 64)
    }
    with pytest.raises(InputError, match="not on the image"):
        pictures.attend_to_picture(predictor, image, (96, 20))


def write_video(path, num_frames: int) -> None:
    from ccnet_hf.inference.video import VideoWriter

    with VideoWriter(path, Fraction(10)) as writer:
        for number in range(num_frames):
            writer.write(Image.fromarray(np.full((32, 48, 3), 20 * number, dtype=np.uint8)))


def test_a_video(predictor, tmp_path):
    pytest.importorskip("av")
    write_video(tmp_path / "video.mp4", 4)
    seen = []
    number, seconds, classes = pictures.segment_clip(
        predictor, str(tmp_path / "video.mp4"), tmp_path / "out.mp4", 4, lambda *progress: seen.append(progress)
    )
    assert number == 4 and seconds > 0 and sum(entry.share for entry in classes) == pytest.approx(1)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)] and (tmp_path / "out.mp4").stat().st_size > 0


def test_videos_that_are_none_or_too_long(predictor, tmp_path, monkeypatch):
    pytest.importorskip("av")
    write_video(tmp_path / "long.mp4", 4)
    (tmp_path / "notes.mp4").write_text("no video")

    def message(name: str) -> str:
        with pytest.raises(InputError) as refused:
            pictures.segment_clip(predictor, str(tmp_path / name), tmp_path / "out.mp4", 3, lambda *progress: None)
        assert str(tmp_path) not in str(refused.value) and not (tmp_path / "out.mp4").exists()
        return str(refused.value)

    assert message("long.mp4").startswith("long.mp4 has more than 3 frames")
    assert message("notes.mp4").startswith("notes.mp4 cannot be read")
    monkeypatch.setattr(pictures, "video_info", lambda path: (Fraction(10), None))  # a file that does not say
    assert message("long.mp4").startswith("long.mp4 has more than 3 frames")


def test_checkpoints_have_names_without_their_folders(checkpoint, tmp_path):
    other = tmp_path / "other"
    other.symlink_to(checkpoint)
    (tmp_path / "elsewhere").mkdir()
    twin = tmp_path / "elsewhere" / "tiny"
    twin.symlink_to(checkpoint)
    assert Checkpoints(DemoArguments(model_name_or_path=[str(checkpoint), str(other)])).names == ["tiny", "other"]
    both = Checkpoints(DemoArguments(model_name_or_path=[str(checkpoint), str(twin), str(twin)]))
    assert both.names == [str(checkpoint), str(twin)]
    assert both.predictor(str(twin)) is both.predictor(str(twin), "attention")
    assert both.predictor(str(twin)) is not both.predictor(str(twin), "video")
    with pytest.raises(InputError, match=r"no checkpoint '/etc' here"):
        both.predictor("/etc")


def test_attention_is_asked_of_the_model_as_it_is(checkpoint, picture):
    checkpoints = Checkpoints(DemoArguments(model_name_or_path=[str(checkpoint)], runtime="eager"))
    assert describe_runtime(checkpoints.predictor("tiny")) == "eager, float32 on cpu"
    assert describe_runtime(checkpoints.predictor("tiny", "attention")) == "PyTorch, float32 on cpu"


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--model_name_or_path", "nowhere"], 1, "nowhere"),
        (["--port", "70000"], 2, "--port must be at most 65,535"),
        (["--max_waiting", "0"], 2, "--max_waiting must be at least 1"),
    ],
)
def test_wrong_options_are_one_line(options, status, message, capsys):
    try:
        returned = main(options)
    except SystemExit as exit_:
        returned = exit_.code
    error = capsys.readouterr().err
    assert returned == status and message in error and error.count("\n") == 1
