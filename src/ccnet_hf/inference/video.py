"""Video frame by frame: a session that remembers what it needs of the frames before, and files in and out."""

from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ccnet_hf.data.images import InputImage, upright_image
from ccnet_hf.errors import InputError
from ccnet_hf.limits import check_range
from ccnet_hf.models.configuration_ccnet_video import MAX_FRAMES, CCNetVideoConfig
from ccnet_hf.models.image_transforms_ccnet import image_size
from ccnet_hf.models.modeling_ccnet import run_backbone
from ccnet_hf.models.modeling_ccnet_video import CCNetForVideoSegmentation
from ccnet_hf.models.post_processing_ccnet import argmax_of_resized_logits
from ccnet_hf.models.video_processing_ccnet import CCNetVideoProcessor


VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


class CCNetVideoSession:
    """Segments a video as it comes, frame by frame.

    The network sees each frame once. What its attention needs of the last frames, a feature map each, is kept, so that
    memory does not grow; the label map of a frame is that of the last frame of a clip of it and those before.

    Args:
        model: a [`CCNetForVideoSegmentation`] in eval mode.
        video_processor: its [`CCNetVideoProcessor`].
        num_frames: of the clip; `None` takes `model.config.num_frames`.

    Raises:
        InputError: the model or the processor is for something else, or a clip has no frame or too many; and from
            `step`, a frame of another size than those before.
    """

    def __init__(
        self,
        model: CCNetForVideoSegmentation,
        video_processor: CCNetVideoProcessor,
        num_frames: int | None = None,
    ):
        if getattr(getattr(model, "config", None), "model_type", None) != CCNetVideoConfig.model_type:
            raise InputError(f"model must be a CCNetForVideoSegmentation, got {type(model).__name__}")
        if not hasattr(video_processor, "image_processor"):
            raise InputError(f"video_processor must be a CCNetVideoProcessor, got {type(video_processor).__name__}")
        num_frames = model.config.num_frames if num_frames is None else num_frames
        if not isinstance(num_frames, int) or isinstance(num_frames, bool) or num_frames < 1:
            raise InputError(f"num_frames must be an integer of at least 1, got {num_frames!r}")
        check_range("num_frames", num_frames, 1, MAX_FRAMES)
        self.model = model
        self.config = model.config
        self.image_processor = video_processor.image_processor()
        self.num_frames = num_frames
        self._cache: deque[torch.Tensor] = deque(maxlen=num_frames)

    def reset(self) -> None:
        """Forget all frames, as before another video or after a cut."""
        self._cache.clear()

    def label_map(self, image: InputImage) -> torch.Tensor:
        """The label map (H, W) of one image, as a clip of its own; the frames before are forgotten."""
        self.reset()
        return self.step(image)

    def steps(self, image: InputImage) -> Callable[[], Callable[[], torch.Tensor]]:
        """As `Predictor.steps`, but all of it is the second step."""

        def compute() -> Callable[[], torch.Tensor]:
            label_map = self.label_map(image)
            return lambda: label_map

        return compute

    @torch.no_grad()
    def step(self, frame: InputImage) -> torch.Tensor:
        """The label map (H, W), int64, of the next frame, at its own size.

        Args:
            frame: a PIL image, which is turned upright as its EXIF orientation says, an array or tensor as the image
                processor takes it, or an image file.
        """
        frame = upright_image(frame)
        model, head = self.model.model, self.model.model.head
        pixel_values = self.image_processor(frame, return_tensors="pt")["pixel_values"]
        weight = self.model.classifier.weight
        pixel_values = pixel_values.to(weight.device, weight.dtype)
        feature_maps, _ = run_backbone(model.backbone, pixel_values, output_hidden_states=False)
        reduced = head.input_projection(feature_maps[-1])
        if self._cache and self._cache[-1].shape != reduced.shape:
            raise InputError("the frames of a video have one size; reset() begins another video")
        self._cache.append(reduced)
        attended, _ = head.attend(torch.cat([*self._cache]), num_frames=len(self._cache))
        logits = self.model.classifier(head.join(feature_maps[-1], attended[-1:]))[0]
        return argmax_of_resized_logits(
            logits,
            self.model.config.align_corners,
            input_size=tuple(pixel_values.shape[-2:]),
            target_size=image_size(frame),
        )


def read_frames(path: Path) -> Iterator[Image.Image]:
    """The frames of a video file, one at a time.

    Raises:
        InputError: the file cannot be decoded, from the frame on that is damaged, or it has no frame.
        ModuleNotFoundError: av is not installed.
    """
    import av

    number = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path} has no video stream")
            for frame in container.decode(video=0):
                yield frame.to_image()
                number += 1
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read from frame {number + 1} on: {error}") from error
    if not number:
        raise InputError(f"{path} holds no frame")


def video_info(path: Path) -> tuple[Fraction, int | None]:
    """Frames per second of a video file, and how many frames it says it has, `None` where it does not.

    Raises:
        InputError: it is no video.
        ModuleNotFoundError: av is not installed.
    """
    import av

    if not path.is_file():
        raise InputError(f"no such video: {path}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path} has no video stream")
            stream = container.streams.video[0]
            return stream.average_rate or Fraction(25), stream.frames or None
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {error}") from error


class VideoWriter:
    """Writes frames into an MP4 file, H.264, one at a time. A context manager.

    Args:
        path: of the file.
        rate: frames per second.
    """

    def __init__(self, path: Path, rate: Fraction):
        import av

        self._av = av
        self._container = av.open(str(path), "w", format="mp4")
        self._rate, self._stream = rate, None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *exception) -> None:
        if exception[0] is None and self._stream is not None:
            for packet in self._stream.encode():
                self._container.mux(packet)
        self._container.close()

    def write(self, image: Image.Image) -> None:
        """Append a frame. The first one decides the size; H.264 wants even sides, so an odd one gets a row or column
        of black more."""
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            self._stream.width, self._stream.height = (side + side % 2 for side in image.size)
            self._stream.pix_fmt = "yuv420p"
        size = (self._stream.width, self._stream.height)
        if image.size != size:
            padded = Image.new("RGB", size)
            padded.paste(image.convert("RGB"), (0, 0))
            image = padded
        frame = self._av.VideoFrame.from_ndarray(np.asarray(image.convert("RGB")), format="rgb24")
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
