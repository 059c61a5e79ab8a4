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
"""What every loss does with its labels first: ids of any integer dtype, checked, and the logits at their size."""

from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig


class Targets(NamedTuple):
    """What outputs are compared with.

    Args:
        labels: (B, H, W), int64, in 0..num_labels - 1 or the ignored id.
        class_weights: (num_labels,) factors of the classes' cross entropy, or `None`.
        valid_pixels: what a mean over labelled pixels divides by instead of their number in `labels`, or `None`.
    """

    labels: torch.Tensor
    class_weights: torch.Tensor | None = None
    valid_pixels: torch.Tensor | float | None = None


def class_ids(labels: torch.Tensor) -> torch.Tensor:
    """Labels of any integer dtype, or bool, as int64.

    Raises:
        ValueError: they are not integers.
    """
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, the ids of classes, got {labels.dtype}")
    return labels.long()


def checked_class_ids(config: PreTrainedConfig, labels: torch.Tensor) -> torch.Tensor:
    """As [`class_ids`], of a model's labels: every id is one of its classes, or `config.semantic_loss_ignore_index`.

    Raises:
        ValueError: labels of another dtype, or, on a CPU, an id that is neither a class nor ignored. On CUDA, where
            looking would wait for the device, that ends the process with a message that says what is allowed.
    """
    labels = class_ids(labels)
    _check_range(labels, config.num_labels, config.semantic_loss_ignore_index)
    return labels


def _check_range(labels: torch.Tensor, num_labels: int, ignore_index: int) -> None:
    """Refuse ids that are neither a class nor ignored, which cross entropy would read past its end for."""
    if torch.compiler.is_compiling() or labels.device.type not in ("cpu", "cuda"):
        return
    allowed = f"labels must be from 0 to {num_labels - 1}, or {ignore_index} where pixels are ignored"
    wrong = ((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)
    if labels.device.type == "cuda":
        torch._assert_async(~wrong.any(), allowed)
    elif wrong.any():
        raise ValueError(f"{allowed}, got {int(labels[wrong][0])}")


def check_labels(outputs: torch.Tensor, labels: torch.Tensor) -> None:
    if labels.dim() != 3 or labels.shape[0] != outputs.shape[0] or 0 in labels.shape[1:]:
        raise ValueError(
            "labels must be (batch, height, width), with pixels and the logits' batch size, got labels "
            f"{tuple(labels.shape)} for logits {tuple(outputs.shape)}"
        )


def resized(logits: torch.Tensor, labels: torch.Tensor, align_corners: bool) -> torch.Tensor:
    """Logits at the labels' size, in fp32 or, if they are, float64."""
    check_labels(logits, labels)
    if logits.dtype != torch.float64:
        logits = logits.float()
    return nn.functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)


def nearest_labels(labels: torch.Tensor, size: list[int], align_corners: bool) -> torch.Tensor:
    """Labels (B, H, W) at the nearest pixel to every place of a (B, *size) map; halves go up. Exact, in integers."""
    indices = []
    for full, small in zip(labels.shape[-2:], size, strict=True):
        place = torch.arange(small, device=labels.device)
        if align_corners:
            steps = max(1, small - 1)
            indices.append((2 * place * (full - 1) + steps) // (2 * steps))
        else:
            indices.append((2 * place + 1) * full // (2 * small))
    return labels[:, indices[0][:, None], indices[1]]


__all__ = ["Targets", "check_labels", "checked_class_ids", "class_ids", "nearest_labels", "resized"]
