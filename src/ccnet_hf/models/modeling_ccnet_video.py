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
"""CCNet for video: the image model on every frame, with attention along time as along rows and columns."""

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_ccnet_video import CCNetVideoConfig
from .layers_ccnet import RecurrentCrissCrossAttention
from .modeling_ccnet import (
    CCNetForSemanticSegmentation,
    CCNetHead,
    CCNetModel,
    CCNetModelOutput,
    CCNetSemanticSegmenterOutput,
)


class CCNetClipAttention(RecurrentCrissCrossAttention):
    """
    Recurrent criss-cross attention over clips (B, C, T, H, W): a pixel looks along its column and its row, and at its
    own place in all frames, T + H + W - 2 positions. The weights are those of the image model's layer.
    """

    def __init__(self, hidden_size: int, query_key_size: int | None = None, recurrence: int = 3):
        super().__init__(hidden_size, query_key_size, recurrence)  # its convolutions are 2-D, for a file's weights
        self.num_axes = 3

    def _project(self, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        frames = as_frames(hidden_state)
        projections = (self.query, self.key, self.value)
        query, key, value = (as_clips(projection(frames), hidden_state.shape[2]) for projection in projections)
        return query, key, value


def as_clips(frames: torch.Tensor, num_frames: int) -> torch.Tensor:
    """(B * T, C, H, W) as (B, C, T, H, W), without a copy."""
    return frames.unflatten(0, (-1, num_frames)).transpose(1, 2)


def as_frames(clips: torch.Tensor) -> torch.Tensor:
    """(B, C, T, H, W) as (B * T, C, H, W), without a copy where it came from `as_clips`."""
    return clips.transpose(1, 2).flatten(0, 1)


class CCNetVideoHead(CCNetHead):
    """[`CCNetHead`] on frames that belong together."""

    attention_class = CCNetClipAttention

    def forward(
        self, feature_map: torch.Tensor, output_attentions: bool = False, num_frames: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """As [`CCNetHead.forward`], of the feature maps of frames (B * T, C, H, W)."""
        attended, attentions = self.attend(self.input_projection(feature_map), output_attentions, num_frames)
        return self.join(feature_map, attended), attended, attentions

    def attend(
        self, reduced: torch.Tensor, output_attentions: bool = False, num_frames: int = 1
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """All rounds over the reduced feature maps of frames (B * T, hidden_size, H, W)."""
        if self.attention is None:
            return reduced, () if output_attentions else None
        clips, attentions = self.attention(as_clips(reduced, num_frames), output_attentions)
        return as_frames(clips), attentions


class CCNetVideoModel(CCNetModel):
    """The image model on the frames of clips; see [`CCNetForVideoSegmentation`]."""

    config: CCNetVideoConfig
    config_class = CCNetVideoConfig
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    head_class = CCNetVideoHead

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | CCNetModelOutput:
        """As [`CCNetModel.forward`], of clips (B, T, C, H, W); every output but the attentions has one entry a frame,
        (B * T, ...)."""
        check_clips(pixel_values_videos)
        frames, num_frames = pixel_values_videos.flatten(0, 1), pixel_values_videos.shape[1]
        return self.encode(frames, output_attentions, output_hidden_states, num_frames)


def check_clips(pixel_values_videos: torch.Tensor) -> None:
    """Raise ValueError for what is no batch of clips."""
    if pixel_values_videos.dim() != 5 or 0 in pixel_values_videos.shape[1:]:
        raise ValueError(
            "pixel_values_videos must be (batch, frames, channels, height, width), with pixels, got shape "
            f"{tuple(pixel_values_videos.shape)}"
        )


class CCNetForVideoSegmentation(CCNetForSemanticSegmentation):
    """
    CCNet with 3-D criss-cross attention (paper, TPAMI version): every frame of a clip gets class scores, and gathers
    context from the others, too. A clip of one frame gives what the image model gives.

    `from_pretrained` takes the folder of a [`CCNetForSemanticSegmentation`] as it is, and keeps its recurrence unless
    `recurrence=` is given. Time has no order to the attention: frames in another order give the same results in that
    order.

    Args:
        config: of the whole model, the backbone included.
    """

    config: CCNetVideoConfig
    config_class = CCNetVideoConfig
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    model_class = CCNetVideoModel
    _no_split_modules = [*CCNetForSemanticSegmentation._no_split_modules, "CCNetVideoHead"]

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | CCNetSemanticSegmenterOutput:
        r"""
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, num_channels, height, width)`):
                Normalised clips, as the video processor gives them.
            labels (`torch.LongTensor` of shape `(batch_size, num_frames, height, width)`, *optional*):
                Class of every pixel, or `config.semantic_loss_ignore_index`, which all pixels of a frame without
                labels are. With them the output has `loss`.
            output_attentions (`bool`, *optional*):
                Whether to return the weights of every round of attention.
            output_hidden_states (`bool`, *optional*):
                Whether to return the backbone's hidden states.

        Returns:
            [`CCNetSemanticSegmenterOutput`], or a tuple with `return_dict=False`: `logits` of shape
            `(batch_size * num_frames, num_labels, h, w)`, frame by frame, and so all others, but for `attentions`,
            `(batch_size, num_frames, h, w, num_frames + h + w)` of every round: a pixel's weights over its place in
            all frames, its column and its row.

        Raises:
            ValueError: clips or labels of another shape.
        """
        check_clips(pixel_values_videos)
        if labels is not None:
            if labels.dim() != 4 or labels.shape[:2] != pixel_values_videos.shape[:2]:
                raise ValueError(
                    f"labels must be (batch, frames, height, width) for clips {tuple(pixel_values_videos.shape)}, "
                    f"got {tuple(labels.shape)}"
                )
            labels = labels.flatten(0, 1)
        outputs = self.model(
            pixel_values_videos,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        return self.classify(outputs, labels, **kwargs).of_images(pixel_values_videos)


# So that `save_pretrained` writes this code beside the weights.
CCNetForVideoSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")

MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[CCNetVideoConfig.model_type] = CCNetForVideoSegmentation.__name__

__all__ = ["CCNetForVideoSegmentation", "CCNetVideoModel"]
