"""Video as it comes, and as files: against the model on whole clips, in the memory of a few frames."""

import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model, tiny_video_model
from turned import encode_turned

from ccnet_hf import CCNetForVideoSegmentation, CCNetImageProcessor, CCNetVideoProcessor
from ccnet_hf.inference.segment import main
from ccnet_hf.inference.video import CCNetVideoSession, VideoWriter, read_frames


av = pytest.importorskip("av", reason="video files need the extra `video`")
SIZE = {"height": 48, "width": 64}


@pytest.fixture
def model() -> CCNetForVideoSegmentation:
    model = tiny_video_model()
    with torch.no_grad():
        model.classifier.weight.normal_()
    return model


@pytest.fixture
def frames() -> list[Image.Image]:
    """Noise that changes a little from frame to frame."""
    generator = np.random.default_rng(0)
    first = generator.integers(0, 200, (30, 42, 3))
    return [Image.fromarray((first + generator.integers(0, 55, first.shape)).astype(np.uint8)) for _ in range(7)]


def write(path, frames) -> None:
    with VideoWriter(path, Fraction(10)) as writer:
        for frame in frames:
            writer.write(frame)


@pytest.mark.parametrize("num_frames", [1, 3, 5])
def test_a_session_gives_the_last_frame_of_every_clip(model, frames, num_frames):
    processor = CCNetVideoProcessor(size=SIZE)
    session = CCNetVideoSession(model, processor, num_frames)
    for index, frame in enumerate(frames):
        clip = frames[max(0, index + 1 - num_frames) : index + 1]
        with torch.no_grad():
            outputs = model(processor(clip, return_tensors="pt")["pixel_values_videos"])
        expected = processor.post_process_semantic_segmentation(outputs, [(30, 42)] * len(clip))[-1]
        found = session.step(frame)
        assert found.shape == (30, 42) and (found == expected).float().mean() > 0.999
        assert len(session._cache) == len(clip)


def test_what_is_cached_gives_the_clips_logits(model, frames):
    processor, model = CCNetVideoProcessor(size=SIZE), model.double()
    clip = processor(frames[:3], return_tensors="pt")["pixel_values_videos"].double()
    with torch.no_grad():
        expected = model(clip).logits[-1:]
        head, reduced = model.model.head, []
        for frame in clip[0]:
            features = model.model.backbone(frame[None]).feature_maps[-1]
            reduced.append(head.input_projection(features))
        attended, _ = head.attend(torch.cat(reduced), num_frames=3)
        found = model.classifier(head.join(features, attended[-1:]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_a_session_forgets(model, frames):
    session = CCNetVideoSession(model, CCNetVideoProcessor(size={"shortest_edge": 48, "longest_edge": 64}))
    assert session.num_frames == 5
    first = session.step(frames[0])
    session.step(frames[1])
    session.reset()
    assert torch.equal(session.step(frames[0]), first)
    with pytest.raises(ValueError, match="the frames of a video have one size"):
        session.step(frames[0].rotate(90, expand=True))
    assert torch.equal(session.label_map(frames[0]), first)
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match="num_frames must be an integer of at least 1"):
            CCNetVideoSession(model, CCNetVideoProcessor(), wrong)
    with pytest.raises(ValueError, match="num_frames must be at most 1,000, got 1000000000"):
        CCNetVideoSession(model, CCNetVideoProcessor(), 10**9)


def test_a_session_of_something_else_is_refused(model):
    with pytest.raises(ValueError, match="model must be a CCNetForVideoSegmentation, got CCNetForSemantic"):
        CCNetVideoSession(tiny_model(), CCNetVideoProcessor())
    with pytest.raises(ValueError, match="video_processor must be a CCNetVideoProcessor, got CCNetImageProcessor"):
        CCNetVideoSession(model, CCNetImageProcessor())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_frame_is_turned_upright_and_may_be_a_file(model, frames, tmp_path, orientation):
    session, file = CCNetVideoSession(model, CCNetVideoProcessor(size=SIZE)), tmp_path / "turned.png"
    expected = session.label_map(frames[0])
    assert expected.shape == (30, 42) and len(expected.unique()) > 1
    file.write_bytes(encode_turned(np.asarray(frames[0]), orientation))
    for given in (Image.open(file), file, str(file), np.asarray(frames[0])):
        session.reset()
        assert torch.equal(session.step(given), expected)


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(42, 30), (41, 31), (2, 2)])
def test_what_is_written_is_read(tmp_path, frames, size):
    """An odd side gets a row or column of black."""
    frames = [frame.resize(size) for frame in frames]
    write(tmp_path / "clip.mp4", frames)
    found = list(read_frames(tmp_path / "clip.mp4"))
    assert len(found) == 7 and found[0].size == tuple(side + side % 2 for side in size)


@pytest.fixture
def folders(model, tmp_path) -> dict[str, str]:
    """An image checkpoint and a video checkpoint."""
    image = tiny_model()
    with torch.no_grad():
        image.classifier.weight.normal_()
    for name, one, processor in (
        ("image", image, CCNetImageProcessor(size=SIZE)),
        ("video", model, CCNetVideoProcessor(size=SIZE)),
    ):
        one.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    return {name: str(tmp_path / name) for name in ("image", "video")}


@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_command_writes_an_overlay(kind, folders, frames, tmp_path, capsys):
    write(tmp_path / "clip.mp4", frames)
    frames[0].save(tmp_path / "still.png")
    arguments = ["--model_name_or_path", folders[kind], "--output_dir", str(tmp_path / "out")]
    assert main([str(tmp_path / "clip.mp4"), str(tmp_path / "still.png"), *arguments]) == 0
    output = capsys.readouterr().out
    assert "7 frames segmented" in output and "1 image segmented" in output
    shown = list(read_frames(tmp_path / "out" / "clip_overlay.mp4"))
    assert len(shown) == 7 and shown[0].size == (42, 30)
    assert np.asarray(Image.open(tmp_path / "out" / "still_labels.png")).shape == (30, 42)


def test_a_single_frame_of_odd_size(folders, frames, tmp_path, capsys):
    """Files of other programs may have such a size; H.264 cannot, and gets a row and a column of black."""
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 41, 31, "bgr0"
        frame = av.VideoFrame.from_image(frames[0].resize((41, 31)))
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    arguments = ["--model_name_or_path", folders["video"], "--output_dir", str(tmp_path / "out")]
    assert main([str(tmp_path / "clip.mkv"), *arguments]) == 0
    assert "1 frame segmented" in capsys.readouterr().out
    (shown,) = read_frames(tmp_path / "out" / "clip_overlay.mp4")
    assert shown.size == (42, 32)
    pixels = np.asarray(shown.convert("L")).astype(float)
    assert 4 * pixels[:, -1].mean() < pixels[:31, :41].mean()


def test_few_rounds_are_said_in_one_line(folders, frames, tmp_path, capsys):
    write(tmp_path / "clip.mp4", frames[:1])
    config = tmp_path / "video" / "config.json"
    config.write_text(config.read_text().replace('"recurrence": 3', '"recurrence": 2'))
    arguments = ["--model_name_or_path", folders["video"], "--output_dir", str(tmp_path / "out")]
    assert main([str(tmp_path / "clip.mp4"), *arguments]) == 0
    assert "the checkpoint has 2 rounds of attention" in capsys.readouterr().out
    assert main([str(tmp_path / "clip.mp4"), *arguments, "--num_frames", "1"]) == 0
    output = capsys.readouterr().out
    assert "rounds of attention" not in output and "1 frame segmented" in output


@pytest.mark.parametrize("damage", ["truncated", "empty", "no video", "sound"])
def test_a_damaged_video_is_one_line(damage, folders, frames, tmp_path, capsys):
    path = tmp_path / "clip.mp4"
    write(path, frames * 20)
    content = path.read_bytes()
    if damage == "sound":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=8000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.rate = 8000
            for packet in (*stream.encode(sound), *stream.encode()):
                container.mux(packet)
    else:
        cut = {"truncated": content[: len(content) // 2], "empty": b"", "no video": b"not a video" * 99}
        path.write_bytes(cut[damage])
    arguments = ["--model_name_or_path", folders["image"], "--output_dir", str(tmp_path / "out")]
    assert main([str(path), *arguments]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(path) in line and not list((tmp_path / "out").glob("*.mp4"))
    assert main([str(path), *arguments, "--skip_corrupt"]) == 1
    captured = capsys.readouterr()
    assert "1 file skipped" in captured.out and "no video could be read" in captured.err


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("image", ["--num_frames", "3"], "--num_frames is for video checkpoints"),
        ("video", ["--flip"], "a video checkpoint sees whole frames"),
        ("video", ["--num_frames", "0"], "num_frames must be an integer of at least 1, got 0"),
    ],
)
def test_options_of_the_other_kind_are_refused(kind, options, message, folders, frames, tmp_path, capsys):
    write(tmp_path / "clip.mp4", frames[:2])
    arguments = ["--model_name_or_path", folders[kind], "--output_dir", str(tmp_path / "out"), *options]
    assert main([str(tmp_path / "clip.mp4"), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_without_av_the_extra_is_named(folders, frames, tmp_path, capsys, monkeypatch):
    write(tmp_path / "clip.mp4", frames[:2])
    monkeypatch.setitem(sys.modules, "av", None)
    arguments = ["--model_name_or_path", folders["image"], "--output_dir", str(tmp_path / "out")]
    assert main([str(tmp_path / "clip.mp4"), *arguments]) == 2
    assert "av is not installed: pip install 'ccnet-hf[video]'" in capsys.readouterr().err


def test_the_processor_reads_files(frames, tmp_path):
    write(tmp_path / "clip.mp4", frames)
    processor = CCNetVideoProcessor(size=SIZE)
    found = processor(str(tmp_path / "clip.mp4"), return_tensors="pt")["pixel_values_videos"]
    decoded = [np.asarray(frame) for frame in read_frames(tmp_path / "clip.mp4")]
    expected = processor(np.stack(decoded), return_tensors="pt")["pixel_values_videos"]
    assert found.shape == (1, 7, 3, 48, 64)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.mp4 cannot be read"):
        processor(str(tmp_path / "broken.mp4"))
