# Copyright 2026 The authors of CCNet for Hugging Face. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Video processor of CCNet: what the image processor does to an image, of every frame of a clip."""

import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import PIL.Image
import torch
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.utils import TensorType, is_av_available, is_torchcodec_available
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoInput, VideoMetadata, load_video, make_batched_metadata

from .image_processing_ccnet import CCNetImageProcessor
from .image_processing_common_ccnet import CCNetImageProcessorKwargs, CCNetProcessorMixin
from .image_transforms_ccnet import Array, image_size, upright
from .post_processing_ccnet import Size


Frames = Array | list[PIL.Image.Image | Array | str]

# What a video processor shares with an image processor.
_SHARED = (
    *("do_convert_rgb", "do_resize", "size", "do_rescale", "rescale_factor", "do_normalize"),
    *("image_mean", "image_std", "align_corners", "do_reduce_labels", "palette"),
)


class CCNetVideoProcessorKwargs(VideosKwargs, total=False):
    r"""
    align_corners (`bool`, *optional*, defaults to `self.align_corners`):
        Of the resizes of logits in post-processing, by the processor's own value; no effect in a call.
    do_reduce_labels (`bool`, *optional*, defaults to `self.do_reduce_labels`):
        Whether label 0 of the data set is no class, for those who train; no effect in a call.
    palette (`list[list[int]]`, *optional*, defaults to `self.palette`):
        One RGB colour per class, for those who draw segmentation maps; no effect in a call.
    """

    align_corners: bool | None
    do_reduce_labels: bool | None
    palette: list[list[int]] | None


class CCNetVideoProcessor(CCNetProcessorMixin, BaseVideoProcessor):
    r"""Prepares clips for [`CCNetForVideoSegmentation`], frame by frame as [`CCNetImageProcessor`] does images, and
    makes segmentation maps of its outputs.

    It takes arrays and tensors `(frames, height, width, channels)` or `(frames, channels, height, width)`, lists of
    frames, and video files, which torchcodec or av decodes. `from_pretrained` takes the folder of an image model, too.

    Args:
        do_resize (`bool`, *optional*, defaults to `True`): Whether to resize.
        size (`dict[str, int]`, *optional*, defaults to `{"shortest_edge": 1024, "longest_edge": 2048}`):
            As of [`CCNetImageProcessor`].
        do_rescale (`bool`, *optional*, defaults to `True`): Whether to multiply values by `rescale_factor`.
        rescale_factor (`float`, *optional*, defaults to `1/255`): That factor.
        do_normalize (`bool`, *optional*, defaults to `True`):
            Whether to subtract `image_mean` and divide by `image_std`.
        image_mean (`list[float]`, *optional*): One number per channel, after rescaling; ImageNet's by default.
        image_std (`list[float]`, *optional*): Likewise.
        align_corners (`bool`, *optional*, defaults to `False`): Of the resizes of logits in post-processing.
        do_reduce_labels (`bool`, *optional*, defaults to `False`):
            Whether label 0 of the data set is no class, for those who train.
        palette (`list[list[int]]`, *optional*): One RGB colour per class.
    """

    remote_classes: ClassVar[dict[str, str]] = {"AutoVideoProcessor": "video_processing_ccnet.CCNetVideoProcessor"}
    model_input_names = ["pixel_values_videos"]
    valid_kwargs = CCNetVideoProcessorKwargs
    do_resize = True
    size = {"shortest_edge": 1024, "longest_edge": 2048}
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_convert_rgb = True
    do_sample_frames = False
    align_corners = False
    do_reduce_labels = False
    palette = None

    @classmethod
    def from_dict(cls, video_processor_dict: dict[str, Any], **kwargs):
        """As every processor's; of an image processor's file, what a clip has no use for is left out."""
        useless = {*CCNetImageProcessorKwargs.__annotations__} - {*CCNetVideoProcessorKwargs.__annotations__}
        useless |= {"do_pad", "pad_size", "image_processor_type", "disable_grouping"}
        known = {name: value for name, value in video_processor_dict.items() if name not in useless}
        return super().from_dict(known, **kwargs)

    def image_processor(self) -> CCNetImageProcessor:
        """The image processor that does the same to a single frame."""
        return CCNetImageProcessor(**{name: _plain(getattr(self, name)) for name in _SHARED})

    def fetch_videos(self, video_url_or_urls: Any, sample_indices_fn=None) -> tuple[Any, Any]:
        """Frames and metadata of video files, one or several.

        Raises:
            ValueError: neither torchcodec nor av is installed, or a file cannot be decoded.
        """
        if isinstance(video_url_or_urls, list):
            return tuple(zip(*(self.fetch_videos(one, sample_indices_fn) for one in video_url_or_urls), strict=True))
        backend = "pyav" if is_av_available() else "torchcodec"
        if backend == "torchcodec" and not is_torchcodec_available():
            raise ValueError("video files need av or torchcodec: pip install av")
        try:
            return load_video(video_url_or_urls, backend=backend, sample_indices_fn=sample_indices_fn or _all_frames)
        except OSError:
            raise
        except Exception as error:  # the decoders raise whatever the broken bytes led to
            raise ValueError(f"{os.fspath(video_url_or_urls)} cannot be read: {error}") from error

    def preprocess(self, videos: VideoInput, **kwargs: Unpack[CCNetVideoProcessorKwargs]) -> BatchFeature:
        """Makes one batch of clips.

        Args:
            videos: An array or tensor, a list of frames as [`CCNetImageProcessor`] takes images, the path or address
                of a video file, or a list of these.
            **kwargs: Override the processor's attributes for this call.

        Returns:
            [`BatchFeature`] with `pixel_values_videos` (float32, `(batch, frames, channels, height, width)`).

        Raises:
            ValueError: If clips or frames differ in size after resizing, an input is no clip, an argument is not what
                it must be, or a frame is nothing that the image processor takes.
        """
        return super().preprocess(videos, **kwargs)

    def _standardize_kwargs(self, **kwargs) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(**kwargs)
        if kwargs.get("do_pad"):
            raise ValueError("`do_pad` has no effect: clips are not padded.")
        return kwargs

    def _decode_and_sample_videos(
        self,
        videos: VideoInput,
        video_metadata: Any,
        do_sample_frames: bool | None = None,
        sample_indices_fn: Callable | None = None,
    ) -> tuple[list[Frames], list[VideoMetadata]]:
        """The clips as their frames, which are as they were given, and what is known of them."""
        clips = list(_clips(videos))
        if not clips:
            raise ValueError("No clips given.")
        for index, clip in enumerate(clips):
            if len(clip) == 0:
                raise ValueError(f"Clip {index} has no frames.")
        if video_metadata is None:
            video_metadata = [_metadata(clip) for clip in clips]
        video_metadata = list(make_batched_metadata(clips, video_metadata))
        for index, (clip, metadata) in enumerate(zip(clips, video_metadata, strict=True)):
            if isinstance(clip, str):
                clips[index], video_metadata[index] = self.fetch_videos(clip, sample_indices_fn)
            elif do_sample_frames:
                metadata.frames_indices = sample_indices_fn(metadata=metadata)
                clips[index] = [clip[number] for number in metadata.frames_indices]
        return clips, video_metadata

    def _prepare_input_videos(
        self,
        videos: list[Frames],
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: str | None = None,
    ) -> list[tuple[Frames, dict[str, Any]]]:
        """The clips with how their frames are read, which the image processor does."""
        reading = {"do_convert_rgb": do_convert_rgb, "input_data_format": input_data_format, "device": device}
        return [(frames, reading) for frames in videos]

    def _preprocess(
        self,
        videos: list[tuple[Frames, dict[str, Any]]],
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        of_images = CCNetImageProcessor()
        processed = []
        for frames, reading in videos:
            features = [
                of_images._preprocess_image_like_inputs(frame, None, return_tensors=None, **reading, **kwargs)
                for frame in frames
            ]
            frames = [feature["pixel_values"][0] for feature in features]
            sizes = [tuple(frame.shape[-2:]) for frame in frames]
            if len(set(sizes)) > 1:
                different = ", ".join(f"{height}x{width}" for height, width in dict.fromkeys(sizes))
                raise ValueError(f"the frames of a clip must have one size, got {different} (height x width)")
            processed.append(torch.stack(frames))
        shapes = sorted({tuple(video.shape) for video in processed})
        if return_tensors is not None and len(shapes) > 1:
            raise ValueError(f"the clips of a batch must have one number of frames and one size, got {shapes}")
        return BatchFeature(data={"pixel_values_videos": processed}, tensor_type=return_tensors)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: list[Size] | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Segmentation maps of the model's outputs, as [`CCNetImageProcessor`] makes them: one for every frame.

        Args:
            outputs: with `logits` of shape `(batch * frames, num_labels, h, w)`.
            target_sizes: `(height, width)` of every frame.
            return_segmentation_scores: whether to return the resized logits, too.
        """
        return self.image_processor().post_process_semantic_segmentation(
            outputs, target_sizes, return_segmentation_scores=return_segmentation_scores
        )


def _plain(value: Any) -> Any:
    return {k: v for k, v in dict(value).items() if v is not None} if isinstance(value, dict | SizeDict) else value


def _clips(videos: Any, depth: int = 0) -> Iterator[Frames | str]:
    """The clips in nested lists: arrays `(frames, ...)`, lists of frames, and the paths or addresses of video files.
    In lists of lists of lists, paths are those of frames."""
    if isinstance(videos, (list, tuple)):
        are_files = depth == 2 and all(isinstance(video, (str, os.PathLike)) for video in videos)
        if videos and (are_files or all(map(_is_frame, videos))):
            yield list(videos)
            return
        for video in videos:
            yield from _clips(video, depth + 1)
    elif isinstance(videos, (str, os.PathLike)):
        yield os.fspath(videos)
    elif _is_frame(videos):
        yield [videos]
    elif isinstance(videos, Array) and videos.ndim in (4, 5):
        yield from [videos] if videos.ndim == 4 else videos
    else:
        given = f"shape {tuple(videos.shape)}" if isinstance(videos, Array) else type(videos).__name__
        raise ValueError(
            "A clip is an array (frames, height, width, channels) or (frames, channels, height, width), a list of "
            f"frames, or the path of a video file, got {given}."
        )


def _is_frame(value: Any) -> bool:
    return isinstance(value, PIL.Image.Image) or (isinstance(value, Array) and value.ndim in (2, 3))


def _metadata(clip: Frames | str) -> dict[str, Any]:
    """What transformers knows of a clip that comes without metadata; a file's own replaces it."""
    frame = upright(clip[0]) if isinstance(clip[0], PIL.Image.Image) else clip[0]
    try:
        height, width = (None, None) if isinstance(frame, (str, os.PathLike)) else image_size(frame)
    except ValueError:  # of channels that only `input_data_format` finds
        height, width = None, None
    size, indices = {"height": height, "width": width}, list(range(len(clip)))
    return {"total_num_frames": len(clip), "fps": None, "duration": None, "frames_indices": indices, **size}


def _all_frames(metadata: Any, **kwargs) -> list[int]:
    return list(range(metadata.total_num_frames))


CCNetVideoProcessor.register_for_auto_class()

__all__ = ["CCNetVideoProcessor"]
