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
"""Mask R-CNN with criss-cross attention in its trunk, of torchvision's own parts."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map_only
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper
from transformers import initialization as init
from transformers.image_transforms import center_to_corners_format, corners_to_center_format
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
)
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_ccnet_instance import CCNetInstanceConfig
from .modeling_ccnet_backbone import CCNetBackbone
from .modeling_ccnet_resnet import PresentModulesMixin, build_backbone


Size = tuple[int, int]  # (height, width)

# Anchors are right where the strides of all feature maps divide the input.
SIZE_DIVISOR = 32
BOX_POOL_SIZE = 7
SAMPLING_RATIO = 2

# Objects may reach over the border of a crop; larger numbers are pixels.
LARGEST_FRACTION = 8


@dataclass
class CCNetInstanceSegmenterOutput(ModelOutput):
    """
    Output of [`CCNetForInstanceSegmentation`]. Detections stand in the order of falling score and are padded to
    `config.box_detections_per_img`, N, with the score 0.

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*, returned when `labels` is given):
            Sum of the losses in `loss_dict`.
        loss_dict (`dict[str, torch.Tensor]`, *optional*, returned when `labels` is given):
            `loss_objectness` and `loss_rpn_box_reg` of the region proposals, means over the drawn anchors;
            `loss_classifier` and `loss_box_reg` of the boxes, means over the drawn proposals; `loss_mask`, the mean
            over the pixels of the positive ones' masks.
        scores (`torch.Tensor` of shape `(batch_size, N)`, *optional*, returned unless a loss is trained):
            Probability of the class.
        class_labels (`torch.LongTensor` of shape `(batch_size, N)`, *optional*, likewise):
            The class, 1 to `num_labels - 1`.
        pred_boxes (`torch.Tensor` of shape `(batch_size, N, 4)`, *optional*, likewise):
            Boxes (center x, center y, width, height) as fractions of the image, without its padding.
        pred_masks (`torch.Tensor` of shape `(batch_size, N, 28, 28)`, *optional*, likewise):
            Probability of being the object, over its box. The image processor makes masks of the image from them.
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    scores: torch.FloatTensor | None = None
    class_labels: torch.LongTensor | None = None
    pred_boxes: torch.FloatTensor | None = None
    pred_masks: torch.FloatTensor | None = None


class CCNetForInstanceSegmentation(PresentModulesMixin, PreTrainedModel):
    """
    Mask R-CNN with recurrent criss-cross attention in its trunk (paper section 4.5). The feature pyramid, the region
    proposal network and the heads are torchvision's own modules, under their own names.

    Args:
        config: of the whole model, the backbone included.

    Raises:
        ValueError: the configuration's anchors do not go with the backbone's feature maps.
    """

    config: CCNetInstanceConfig
    config_class = CCNetInstanceConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # The losses normalise themselves; the Trainer must go on dividing by its accumulation steps.
    accepts_loss_kwargs = False
    _no_split_modules = [
        "CCNetResNetStem",
        "CCNetResNetBottleneck",
        "FeatureMapAttention",
        "FeaturePyramidNetwork",
        "RegionProposalNetwork",
        "RoIHeads",
    ]
    # Frozen batch norms, which count no batches, may be thawed by loading, and the others frozen.
    _keys_to_ignore_on_load_missing = [r"\.num_batches_tracked$"]
    _keys_to_ignore_on_load_unexpected = [r"\.num_batches_tracked$"]

    def __init__(self, config: CCNetInstanceConfig):
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_config, CCNetBackbone)
        num_levels = len(self.backbone.channels) + 1
        if len(config.anchor_sizes) != num_levels:
            raise ValueError(
                f"anchor_sizes must be {num_levels}, one for each feature map of the backbone and one more, "
                f"got {config.anchor_sizes}"
            )
        self.fpn = FeaturePyramidNetwork(
            self.backbone.channels, config.fpn_channels, LastLevelMaxPool(), _head_norm(config)
        )
        self.rpn = _region_proposal_network(config)
        self.roi_heads = _roi_heads(config, num_maps=num_levels - 1)
        self.post_init()

    def get_input_embeddings(self) -> None:
        """`None`: images come without a table of embeddings. Accelerate asks every model that FSDP2 shards."""
        return None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # Weights as torchvision's constructors give them, biases 0. Only modules with weights of their own are asked.
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=5**0.5)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if any(module is part for part in self.fpn.modules()):
                init.kaiming_uniform_(module.weight, a=1)
            elif any(module is part for part in self.rpn.modules()):
                init.normal_(module.weight, std=0.01)
            else:
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: Sequence[dict[str, torch.Tensor]] | None = None,
        **kwargs,
    ) -> tuple | CCNetInstanceSegmenterOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images, as the image processor gives them.
            pixel_mask (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
                1 for the pixels of an image and 0 for its padding, which lies at the right and below. Without it,
                every image fills its input.
            labels (`list[dict]`, *optional*):
                For each image its objects, as the image processor makes them: `class_labels` `(n,)` in
                1..num_labels - 1, `boxes` `(n, 4)` (center x, center y, width, height) as fractions of `size`, and
                `masks` `(n, height, width)` of the size of `size` or of the padded input. `size` is (height, width)
                and by default the image's. Objects with `iscrowd` and boxes without area do not count.

        Returns:
            [`CCNetInstanceSegmenterOutput`], or a tuple with `return_dict=False`. Without labels it has detections. In
            training with labels it has `loss` and `loss_dict` only, of anchors and proposals drawn at random. In
            evaluation with labels it has both; the anchors and proposals are then drawn the same way every time, and
            the images pass the heads twice.

        Raises:
            ValueError: pixel values or a mask of another shape, labels that do not go with the images, that lack an
                entry, that name no class, or whose boxes are no fractions.

        Example:

        ```python
        >>> import torch
        >>> from PIL import Image
        >>> from ccnet_hf import CCNetForInstanceSegmentation, CCNetInstanceImageProcessor

        >>> model = CCNetForInstanceSegmentation.from_pretrained(folder).eval()
        >>> processor = CCNetInstanceImageProcessor.from_pretrained(folder)
        >>> image = Image.open("examples/street.jpg")
        >>> inputs = processor(image, return_tensors="pt")
        >>> with torch.inference_mode():
        ...     outputs = model(**inputs)
        >>> size = [(image.height, image.width)]
        >>> result = processor.post_process_instance_segmentation(outputs, threshold=0.5, target_sizes=size)[0]
        ```
        """
        images = _image_list(pixel_values, pixel_mask)
        feature_maps = self.backbone(images.tensors).feature_maps
        features = self.fpn(OrderedDict((str(level), feature) for level, feature in enumerate(feature_maps)))
        # Boxes are computed in the dtype of the features, and half precision would move them by pixels.
        features = _in_full_precision(features)
        self._tell_strides(features, images.tensors)

        losses = detections = None
        if labels is not None:
            losses = self._losses(images, features, _targets(labels, images, self.config.num_labels))
        if labels is None or not self.training:
            detections = self._detections(images, features)
        return CCNetInstanceSegmenterOutput(
            loss=None if losses is None else sum(losses.values()), loss_dict=losses, **(detections or {})
        )

    def _losses(
        self, images: ImageList, features: dict[str, torch.Tensor], targets: list[dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        with self._heads(training=True), _fixed_randomness(images.tensors.device, enabled=not self.training):
            proposals, proposal_losses = self.rpn(images, features, targets)
            _, detection_losses = self.roi_heads(features, proposals, images.image_sizes, targets)
        return proposal_losses | detection_losses

    def _detections(self, images: ImageList, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with self._heads(training=False):
            proposals, _ = self.rpn(images, features)
            detections, _ = self.roi_heads(features, proposals, images.image_sizes)
        return _batch(detections, images.image_sizes, self.config.box_detections_per_img)

    @contextmanager
    def _heads(self, training: bool) -> Iterator[None]:
        """Have torchvision's heads give losses or detections, whatever mode the model is in; the layers inside them
        stay in that mode."""
        modes = [(head, head.training) for head in (self.rpn, self.roi_heads)]
        try:
            for head, _ in modes:
                head.training = training
            yield
        finally:
            for head, mode in modes:
                head.training = mode

    def _tell_strides(self, features: dict[str, torch.Tensor], pixel_values: torch.Tensor) -> None:
        """Set what torchvision would guess from the first images that it meets and their sizes without padding."""
        for pool in (self.roi_heads.box_roi_pool, self.roi_heads.mask_roi_pool):
            heights = [features[name].shape[-2] for name in pool.featmap_names]
            levels = [round(torch.tensor(pixel_values.shape[-2] / height).log2().item()) for height in heights]
            pool.scales = [2.0**-level for level in levels]
            pool.map_levels = initLevelMapper(
                levels[0], levels[-1], canonical_scale=pool.canonical_scale, canonical_level=pool.canonical_level
            )


def _head_norm(config: CCNetInstanceConfig) -> type[nn.Module] | None:
    # CODEPATH: torchvision's v2 file has batch norm in its heads; its COCO_V1 file and the paper's network have none.
    return nn.BatchNorm2d if config.head_batch_norm else None


def _region_proposal_network(config: CCNetInstanceConfig) -> RegionProposalNetwork:
    sizes = tuple((size,) for size in config.anchor_sizes)
    anchors = AnchorGenerator(sizes, (tuple(config.anchor_aspect_ratios),) * len(sizes))
    head = RPNHead(config.fpn_channels, anchors.num_anchors_per_location()[0], config.rpn_num_convolutions)
    return RegionProposalNetwork(
        anchors,
        _taking_any_precision(head, head),
        config.rpn_fg_iou_thresh,
        config.rpn_bg_iou_thresh,
        config.rpn_batch_size_per_image,
        config.rpn_positive_fraction,
        {"training": config.rpn_pre_nms_top_n_train, "testing": config.rpn_pre_nms_top_n_test},
        {"training": config.rpn_post_nms_top_n_train, "testing": config.rpn_post_nms_top_n_test},
        config.rpn_nms_thresh,
        config.rpn_score_thresh,
    )


def _roi_heads(config: CCNetInstanceConfig, num_maps: int) -> RoIHeads:
    channels, hidden_size, norm = config.fpn_channels, config.box_hidden_size, _head_norm(config)
    names = [str(level) for level in range(num_maps)]
    # CODEPATH: torchvision's v2 file has four convolutions before the box head; its COCO_V1 file and the paper's none.
    if config.box_num_convolutions:
        pooled, layers = (channels, BOX_POOL_SIZE, BOX_POOL_SIZE), [channels] * config.box_num_convolutions
        box_head = FastRCNNConvFCHead(pooled, layers, [hidden_size], norm_layer=norm)
    else:
        box_head = TwoMLPHead(channels * BOX_POOL_SIZE**2, hidden_size)
    box_predictor = FastRCNNPredictor(hidden_size, config.num_labels)
    mask_head = MaskRCNNHeads(channels, [channels] * config.mask_num_convolutions, dilation=1, norm_layer=norm)
    mask_predictor = MaskRCNNPredictor(channels, channels, config.num_labels)
    return RoIHeads(
        MultiScaleRoIAlign(names, BOX_POOL_SIZE, SAMPLING_RATIO),
        _taking_any_precision(box_head, box_predictor),
        box_predictor,
        config.box_fg_iou_thresh,
        config.box_bg_iou_thresh,
        config.box_batch_size_per_image,
        config.box_positive_fraction,
        None,  # torchvision's weights of the box regression
        config.box_score_thresh,
        config.box_nms_thresh,
        config.box_detections_per_img,
        MultiScaleRoIAlign(names, config.mask_pool_size, SAMPLING_RATIO),
        _taking_any_precision(mask_head, mask_predictor),
        mask_predictor,
    )


# --- precision -----------------------------------------------------------------------------------------------------


def _in_full_precision(values: Any) -> Any:
    """Tensors of half precision, in any containers, as float32; all others as they are."""

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

    return tree_map_only(torch.Tensor, cast, values)


def _taking_any_precision(first: nn.Module, last: nn.Module) -> nn.Module:
    """Have layers, from `first` to `last`, take and give full precision, whatever they compute in themselves: half
    precision weights, or by autocast. Returns `first`."""
    first.register_forward_pre_hook(_in_dtype_of_weights)
    last.register_forward_hook(_in_full_precision_again)
    return first


def _in_full_precision_again(module: nn.Module, arguments: tuple, output: Any) -> Any:
    return _in_full_precision(output)


def _in_dtype_of_weights(module: nn.Module, arguments: tuple) -> tuple:
    dtype = next((weight.dtype for weight in module.parameters()), torch.float32)
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(dtype), arguments)


@contextmanager
def _fixed_randomness(device: torch.device, enabled: bool) -> Iterator[None]:
    """Draw the same random numbers every time, and leave those that follow as they would have been."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices, enabled=enabled):
        if enabled:
            torch.default_generator.manual_seed(0)
            for cuda in devices:
                torch.cuda.default_generators[cuda.index].manual_seed(0)
        yield


# --- images, labels, detections ------------------------------------------------------------------------------------


def _image_list(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> ImageList:
    """Images padded to a multiple of `SIZE_DIVISOR`, with their sizes without any padding."""
    if pixel_values.dim() != 4 or 0 in pixel_values.shape:
        raise ValueError(
            "pixel_values must be (batch, channels, height, width), with pixels, got shape "
            f"{tuple(pixel_values.shape)}"
        )
    batch_size, _, height, width = pixel_values.shape
    sizes = [(height, width)] * batch_size
    if pixel_mask is not None:
        shape = tuple(pixel_mask.shape) if isinstance(pixel_mask, torch.Tensor) else type(pixel_mask).__name__
        if shape != (batch_size, height, width):
            raise ValueError(
                f"pixel_mask must be of shape {(batch_size, height, width)}, that of the pixel_values, got {shape}"
            )
        mask = pixel_mask.bool()
        sizes = torch.stack([mask.any(dim=2).sum(dim=1), mask.any(dim=1).sum(dim=1)], dim=1)
        sizes = [tuple(size) for size in sizes.tolist()]
        if min(map(min, sizes)) < 1:
            raise ValueError("pixel_mask has an image without pixels")
    padding = (0, -width % SIZE_DIVISOR, 0, -height % SIZE_DIVISOR)
    return ImageList(F.pad(pixel_values, padding) if any(padding) else pixel_values, sizes)


def _targets(
    labels: Sequence[dict[str, torch.Tensor]], images: ImageList, num_labels: int
) -> list[dict[str, torch.Tensor]]:
    """The objects of the images as torchvision's heads take them, without crowds and boxes that have no area."""
    kinds = {type(label) for label in labels} if isinstance(labels, (list, tuple)) else {type(labels)}
    if not isinstance(labels, (list, tuple)) or not all(issubclass(kind, Mapping) for kind in kinds):
        given = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"labels must be a list of one dictionary per image, got {given}")
    if len(labels) != len(images.image_sizes):
        raise ValueError(f"labels must be one dictionary per image, got {len(labels)} for {len(images.image_sizes)}")
    return [
        _target(label, size, images.tensors, num_labels)
        for label, size in zip(labels, images.image_sizes, strict=True)
    ]


def _target(
    label: dict[str, torch.Tensor], image_size: Size, pixel_values: torch.Tensor, num_labels: int
) -> dict[str, torch.Tensor]:
    missing = [name for name in ("class_labels", "boxes", "masks") if name not in label]
    if missing:
        raise ValueError(f"labels must have class_labels, boxes and masks; {', '.join(missing)} is missing")
    for name in ("class_labels", "boxes", "masks"):
        if not isinstance(label[name], torch.Tensor):
            raise ValueError(f"{name} of labels must be a tensor, got {type(label[name]).__name__}")
    device = pixel_values.device
    classes, boxes, masks = (label[name].to(device) for name in ("class_labels", "boxes", "masks"))
    height, width = (int(side) for side in label.get("size", image_size))
    if not len(classes) == len(boxes) == len(masks):
        raise ValueError(
            f"labels must have as many class_labels, boxes and masks, got {len(classes)}, {len(boxes)}, {len(masks)}"
        )
    if len(masks) and tuple(masks.shape[-2:]) not in ((height, width), tuple(pixel_values.shape[-2:])):
        raise ValueError(
            f"masks must be of size {(height, width)}, that of the image, or {tuple(pixel_values.shape[-2:])}, that "
            f"of the padded input, got {tuple(masks.shape[-2:])}"
        )
    if tuple(boxes.shape[1:]) != (4,) and len(boxes):
        raise ValueError(f"boxes must be of shape (n, 4), got {tuple(boxes.shape)}")
    boxes = boxes.float().reshape(-1, 4)
    possible = (boxes.abs() <= LARGEST_FRACTION).all(dim=1)  # NaN is not
    if not possible.all():
        raise ValueError(
            "boxes must be (center x, center y, width, height) as fractions of the image, not in pixels, got "
            f"{[round(value, 4) for value in boxes[~possible][0].tolist()]}"
        )
    boxes = center_to_corners_format(boxes) * boxes.new_tensor([width, height] * 2)
    boxes = boxes.clamp(min=0)
    boxes = torch.minimum(boxes, boxes.new_tensor([width, height] * 2))
    keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    if "iscrowd" in label:
        keep &= label["iscrowd"].to(device) == 0
    if classes.is_floating_point() and not (classes % 1 == 0).all():
        raise ValueError(f"class_labels must be whole numbers, got {classes[classes % 1 != 0][0]:g}")
    classes, boxes, masks = classes[keep].long(), boxes[keep], masks[keep].bool()  # some hold 0 and 255
    if len(classes) and not 1 <= int(classes.min()) <= int(classes.max()) < num_labels:
        wrong = classes[(classes < 1) | (classes >= num_labels)][0]
        raise ValueError(f"class_labels must be from 1 to {num_labels - 1}, 0 is the background; got {int(wrong)}")
    return {"boxes": boxes, "labels": classes, "masks": masks.reshape(-1, *masks.shape[-2:])}


def _batch(detections: list[dict[str, torch.Tensor]], image_sizes: list[Size], length: int) -> dict[str, torch.Tensor]:
    """Detections of torchvision's heads as tensors with a batch axis, padded to `length` with zeros."""
    results = []
    for detection, (height, width) in zip(detections, image_sizes, strict=True):
        boxes = corners_to_center_format(detection["boxes"] / detection["boxes"].new_tensor([width, height] * 2))
        results.append((detection["scores"], detection["labels"], boxes, detection["masks"][:, 0]))
    names = ("scores", "class_labels", "pred_boxes", "pred_masks")
    return {
        name: torch.stack([_padded(tensor, length) for tensor in tensors])
        for name, tensors in zip(names, zip(*results, strict=True), strict=True)
    }


def _padded(tensor: torch.Tensor, length: int) -> torch.Tensor:
    return torch.cat([tensor, tensor.new_zeros(length - len(tensor), *tensor.shape[1:])])


# The pipelines look up class names in these plain dictionaries, not in the registered classes.
for _names in (
    MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
):
    _names[CCNetInstanceConfig.model_type] = CCNetForInstanceSegmentation.__name__

CCNetForInstanceSegmentation.register_for_auto_class("AutoModelForInstanceSegmentation")

__all__ = ["CCNetForInstanceSegmentation", "CCNetInstanceSegmenterOutput"]
