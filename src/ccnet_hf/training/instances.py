"""What a training of instance segmentation minimises, how its images are changed, and its picture of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from ccnet_hf.data.instances import InstanceDataset
from ccnet_hf.inference.instances import InstancePredictor, Instances
from ccnet_hf.inference.segment_instances import SHOWN_SCORE
from ccnet_hf.models.annotations_ccnet import mask_of_segmentation
from ccnet_hf.recipes import TrainingRecipe
from ccnet_hf.training.objective import Objective
from ccnet_hf.training.training_arguments import ModelArguments
from ccnet_hf.visualization.instances import draw_instances, side_by_side


_NUM_IMAGES = 4


class InstanceObjective(Objective):
    """The five losses of a `CCNetForInstanceSegmentation`.

    Each is a mean over what the forward pass has drawn: anchors, proposals, positive proposals. Over several passes of
    a step their means are averaged. Anchors and proposals are as many for every image, so that is the mean of the
    joined batch; of `mask_loss`, which is a mean over the pixels of positive proposals, it is not where their numbers
    differ.
    """

    def counts(self, batch: Mapping[str, Any]) -> dict[str, int]:
        """Nothing that is known before the forward pass."""
        return {}

    def forward(
        self, model: Callable[..., Any], batch: Mapping[str, Any], counts: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        """As [`Objective.forward`], of a batch of `pixel_values`, `pixel_mask` and `labels`."""
        outputs = model(pixel_values=batch["pixel_values"], pixel_mask=batch["pixel_mask"], labels=batch["labels"])
        return {f"{name.removeprefix('loss_')}_loss": loss for name, loss in outputs.loss_dict.items()}


def instance_objective(
    config: PreTrainedConfig,
    dataset: InstanceDataset,
    arguments: ModelArguments,
    accelerator: Accelerator,
    is_resumed: bool,
) -> InstanceObjective:
    """The objective of a training; it takes nothing of the arguments."""
    return InstanceObjective()


class MirrorInstances:
    """Mirrors an image and its objects with probability 1/2."""

    def __call__(
        self, pixel_values: torch.Tensor, label: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Args:
            pixel_values: (3, h, w).
            label: with `boxes` (n, 4), center x, center y, width, height as fractions, and `masks` (n, h, w).
        """
        if torch.rand(()) < 0.5:
            return pixel_values, label
        boxes = label["boxes"].clone()
        boxes[:, 0] = 1 - boxes[:, 0]
        return pixel_values.flip(-1), label | {"boxes": boxes, "masks": label["masks"].flip(-1)}


def instance_augmentation(
    recipe: TrainingRecipe, config: PreTrainedConfig, image_processor: BaseImageProcessor
) -> MirrorInstances:
    """What is trained on is mirrored; nothing else is drawn, as in maskrcnn-benchmark."""
    return MirrorInstances()


def draw_instance_examples(
    model: PreTrainedModel, image_processor: BaseImageProcessor, dataset: InstanceDataset
) -> Image.Image | None:
    """Draw some examples with their objects beside what the model sees in them; `None` without any."""
    predictor, rows = InstancePredictor(model, image_processor, SHOWN_SCORE), []
    names = model.config.id2label
    for image, objects, *_ in dataset.first(_NUM_IMAGES):
        (found,) = predictor.instances([image])
        truth = _instances_of(objects, (image.height, image.width))
        rows.append(
            [image, draw_instances(image, truth, names, with_scores=False), draw_instances(image, found, names)]
        )
    return side_by_side(rows) if rows else None


def _instances_of(annotations: list[dict[str, Any]], size: tuple[int, int]) -> Instances:
    """The objects of an image, as if they had been seen with certainty."""
    boxes = torch.tensor([entry["bbox"] for entry in annotations], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = [torch.from_numpy(mask_of_segmentation(entry["segmentation"], size)) for entry in annotations]
    return Instances(
        scores=torch.ones(len(annotations)),
        labels=torch.tensor([entry["category_id"] for entry in annotations], dtype=torch.int64),
        boxes=boxes,
        masks=torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool),
    )
