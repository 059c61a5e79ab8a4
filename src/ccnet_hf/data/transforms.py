"""Training augmentation with mmsegmentation's definitions, and for human parsing with CE2P's, as torchvision v2
transforms of image and label together.

The random numbers come from torch's default generator, so whoever seeds it (see `SegmentationDataset`) owns the draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ccnet_hf.models.image_letterbox_ccnet import letterbox_map, warp_bilinear, warp_nearest
from ccnet_hf.models.image_transforms_ccnet import resize_output_size


# Of `RandomLetterbox`, as CE2P sets them.
_EXTENT_DEVIATION = 0.25
_ROTATION_PROBABILITY, _ANGLE_DEVIATION, _LARGEST_ANGLE = 0.6, 30.0, 60.0  # degrees


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


def _normal() -> float:
    return float(torch.randn(()))


def _coin() -> bool:
    return bool(torch.rand(()) < 0.5)


class RandomResize(v2.Transform):
    """Resize by the keep-ratio rule to `scale` times a ratio drawn uniformly; labels nearest, images bilinear.

    Args:
        scale: (long, short) edges to fit into.
        ratio_range: (low, high) of the ratio.
        ratio_step: draw one of low, low + step, ..., high; 0 draws any number in between.
    """

    def __init__(self, scale: tuple[int, int], ratio_range: tuple[float, float], ratio_step: float = 0.0):
        super().__init__()
        self.scale = scale
        self.ratio_range = ratio_range
        self.ratio_step = ratio_step

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        low, high = self.ratio_range
        if self.ratio_step:
            steps = math.floor((high - low) / self.ratio_step + 1e-6)  # 1.4 / 0.1 is a little less than 14
            ratio = low + self.ratio_step * int(torch.randint(steps + 1, ()))
        else:
            ratio = _uniform(low, high)
        longest, shortest = (int(edge * ratio) for edge in self.scale)
        return {"size": list(resize_output_size(height, width, longest=longest, shortest=shortest))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        # torchvision resizes every Mask nearest, whatever is asked; OpenCV's bilinear does not antialias.
        return F.resize(inpt, params["size"], interpolation=F.InterpolationMode.BILINEAR, antialias=False)


class RandomCrop(v2.Transform):
    """Cut a window of `size`, redrawn up to ten times until it shows more than one class and none fills it.

    The eleventh draw is taken as it comes. An image smaller than the window stays as small as it is.

    Args:
        size: (height, width) of the window.
        cat_max_ratio: largest fraction of the labelled pixels one class may have; 1.0 takes the first draw.
        ignore_index: label of pixels that do not count.
    """

    def __init__(self, size: tuple[int, int], cat_max_ratio: float = 1.0, ignore_index: int = 255):
        super().__init__()
        self.size = size
        self.cat_max_ratio = cat_max_ratio
        self.ignore_index = ignore_index

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        (label,) = (value for value in flat_inputs if isinstance(value, tv_tensors.Mask))
        height, width = label.shape[-2:]
        crop_height, crop_width = min(self.size[0], height), min(self.size[1], width)
        for _ in range(11):
            top = int(torch.randint(height - crop_height + 1, ()))
            left = int(torch.randint(width - crop_width + 1, ()))
            if self.cat_max_ratio >= 1.0 or self._is_mixed(
                label[..., top : top + crop_height, left : left + crop_width]
            ):
                break
        return {"top": top, "left": left, "height": crop_height, "width": crop_width}

    def _is_mixed(self, label: torch.Tensor) -> bool:
        counts = torch.bincount(label.flatten(), minlength=self.ignore_index + 1)
        counts[self.ignore_index] = 0
        return int((counts > 0).sum()) > 1 and int(counts.max()) < self.cat_max_ratio * int(counts.sum())

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.crop(inpt, **params)


class RandomHorizontalFlip(v2.RandomHorizontalFlip):
    """Mirror image and label with probability 1/2, and exchange the labels that mean left and right.

    Args:
        label_pairs: training ids that are exchanged, e.g. of the left and the right arm.
    """

    def __init__(self, label_pairs: Sequence[tuple[int, int]] = ()):
        super().__init__()
        self.label_pairs = label_pairs

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        flipped = super().transform(inpt, params)
        if not self.label_pairs or not isinstance(inpt, tv_tensors.Mask):
            return flipped
        exchanged = torch.arange(256, dtype=torch.uint8)
        for left, right in self.label_pairs:
            exchanged[left], exchanged[right] = right, left
        return tv_tensors.wrap(exchanged[flipped.long()].to(inpt.dtype), like=inpt)


class RandomLetterbox(v2.Transform):
    """Warp the whole image into the middle of a window, enlarged or reduced and, more often than not, turned, all by
    one affine map: CE2P's augmentation (Liu et al., AAAI 2019). Outside is black, and no label.

    The extent of what the window shows is drawn from N(1, 0.25) and clipped to `extent_range`, 1 being as much as
    shows the whole image; the angle with probability 0.6 from N(0, 30) degrees, clipped to 60.

    Args:
        size: (height, width) of the window.
        extent_range: (low, high) of the extent; the larger, the smaller the image gets.
        ignore_index: label of pixels outside.
    """

    def __init__(self, size: tuple[int, int], extent_range: tuple[float, float], ignore_index: int = 255):
        super().__init__()
        self.size = size
        self.extent_range = extent_range
        self.ignore_index = ignore_index

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        low, high = self.extent_range
        extent = min(max(1 + _EXTENT_DEVIATION * _normal(), low), high)
        angle = 0.0
        if bool(torch.rand(()) < _ROTATION_PROBABILITY):
            angle = min(max(_ANGLE_DEVIATION * _normal(), -_LARGEST_ANGLE), _LARGEST_ANGLE)
        return {"matrix": letterbox_map(*flat_inputs[0].shape[-2:], self.size, extent, angle)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        plain = inpt.as_subclass(torch.Tensor)
        if isinstance(inpt, tv_tensors.Mask):
            warped = warp_nearest(plain, params["matrix"], self.size, fill=self.ignore_index)
        else:
            warped = warp_bilinear(plain, params["matrix"], self.size)
        return tv_tensors.wrap(warped, like=inpt)


class PhotometricDistortion(v2.Transform):
    """Brightness, contrast, saturation and hue of a uint8 RGB image, each with probability 1/2 (Liu et al., SSD); of a
    clip (T, 3, H, W), the same of every frame.

    Brightness adds U(-32, 32); contrast multiplies by U(0.5, 1.5), before or after the colours by a coin's flip;
    saturation multiplies the S of HSV by U(0.5, 1.5); hue turns H by one of the 36 steps -18..17 of 180 to a circle.
    After each the values are clipped and truncated to uint8.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {
            "brightness": _uniform(-32, 32) if _coin() else None,
            "contrast_first": _coin(),
            "contrast": _uniform(0.5, 1.5) if _coin() else None,
            "saturation": _uniform(0.5, 1.5) if _coin() else None,
            "hue": int(torch.randint(-18, 18, ())) if _coin() else None,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        image = inpt
        if params["brightness"] is not None:
            image = _to_uint8(image.float() + params["brightness"])
        if params["contrast"] is not None and params["contrast_first"]:
            image = _to_uint8(image.float() * params["contrast"])
        if params["saturation"] is not None:
            # At constant hue and value, a channel's distance from the largest one is proportional to the saturation.
            value, smallest = image.float().amax(-3, keepdim=True), image.float().amin(-3, keepdim=True)
            most = value / (value - smallest).clamp(min=1e-6)  # the factor that makes the saturation 1
            image = _to_uint8(value - (value - image.float()) * most.clamp(max=params["saturation"]))
        if params["hue"] is not None:
            # Pillow turns an image to HSV and back some ten times faster than torchvision does a tensor.
            frames = image.unsqueeze(0) if image.dim() == 3 else image
            turned = [F.pil_to_tensor(F.adjust_hue(F.to_pil_image(one), params["hue"] / 180)) for one in frames]
            image = torch.stack(turned).reshape(image.shape)
        if params["contrast"] is not None and not params["contrast_first"]:
            image = _to_uint8(image.float() * params["contrast"])
        return tv_tensors.wrap(image, like=inpt)


def _to_uint8(image: torch.Tensor) -> torch.Tensor:
    return image.clamp_(0, 255).to(torch.uint8)


class PadToSize(v2.Transform):
    """Pad right and bottom to at least `size`: images with 0, labels with `ignore_index`.

    Before normalisation that is black, after it the mean colour.
    """

    def __init__(self, size: tuple[int, int], ignore_index: int = 255):
        super().__init__()
        self.size = size
        self.ignore_index = ignore_index

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = inpt.shape[-2:]
        right, bottom = max(0, self.size[1] - width), max(0, self.size[0] - height)
        if right == bottom == 0:
            return inpt
        return F.pad(inpt, [0, 0, right, bottom], fill=self.ignore_index if isinstance(inpt, tv_tensors.Mask) else 0)
