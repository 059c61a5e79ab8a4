"""Far marks of instances: images with discs that all have the class of one mark, which lies on one of them.

A small Mask R-CNN with criss-cross attention in its trunk, or without as the control, learns them with its own losses.
The disc with the mark teaches what its colours mean; of those far away, convolutions cannot know the class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from PIL import Image
from torch import nn
from torchvision.ops import box_iou
from torchvision.transforms.functional import to_pil_image
from tqdm.auto import tqdm
from transformers.image_transforms import center_to_corners_format

from ccnet_hf.experiments.far_marks_dataset import COLOURS
from ccnet_hf.inference.instances import Instances
from ccnet_hf.models.configuration_ccnet_instance import CCNetInstanceConfig
from ccnet_hf.models.configuration_ccnet_resnet import CCNetResNetConfig
from ccnet_hf.models.modeling_ccnet_instance import CCNetForInstanceSegmentation
from ccnet_hf.visualization.instances import draw_instances


SIDE = 96  # of an image, in pixels
SQUARE = 8  # side of the mark
NUM_DISCS = 4  # of an image, at most
FAR = 24  # least number of pixels between a disc's box and the mark that count as far
PARTS = ("marked", "in line", "elsewhere")

# Where the attention starts: at 0 the colour would have to mean something before it is carried, and to be carried
# before it means something.
_GAMMA = 0.5

_RADII = (7.0, 9.0)
_WHITE = 1.0
_TRIES = 40
_SAME_OBJECT = 0.5  # least intersection over union of a detection with a disc
_TEST_SEED = 2**31  # of examples that are scored and drawn, whatever the seed of the training is


def far_discs(
    num_examples: int, generator: torch.Generator
) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]], list[list[str | None]]]:
    """Draw images, the labels of their discs and where these lie, seen from the mark.

    Args:
        num_examples: how many, N.
        generator: of every random draw.

    Returns:
        Images (N, 3, SIDE, SIDE), float32, about -1..2; for each the labels as the model takes them, the class being
        1 + the index of the mark's colour in `COLOURS`; and for each disc one of `PARTS` or `None` between them:
        `"marked"` itself, `"in line"` with the mark (in its rows or columns and far along them), `"elsewhere"` (far
        from its rows and from its columns).
    """
    images = 0.3 * torch.randn(num_examples, 3, SIDE, SIDE, generator=generator)
    classes = torch.randint(len(COLOURS), (num_examples,), generator=generator)
    corners = torch.randint(SIDE - SQUARE + 1, (num_examples, 2), generator=generator)
    rows, columns = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    labels, parts = [], []
    for image, index, (top, left) in zip(images, classes.tolist(), corners.tolist(), strict=True):
        colour = torch.tensor(list(COLOURS.values())[index])
        discs, its_parts = [], []
        for center, radius, gaps in _places(torch.tensor([top, left]), generator):
            its_parts.append(_part(gaps) if discs else "marked")
            discs.append((*center, radius))
        y, x, radius = torch.tensor(discs).T
        masks = (rows - y[:, None, None]) ** 2 + (columns - x[:, None, None]) ** 2 < radius[:, None, None] ** 2
        image[:, masks.any(dim=0)] = _WHITE
        image[:, top : top + SQUARE, left : left + SQUARE] = colour[:, None, None]
        boxes = torch.stack([x, y, 2 * radius, 2 * radius], dim=1) / SIDE
        labels.append({"class_labels": torch.full((len(discs),), index + 1), "boxes": boxes, "masks": masks})
        parts.append(its_parts)
    return images, labels, parts


def _places(
    corner: torch.Tensor, generator: torch.Generator
) -> Iterator[tuple[list[float], float, tuple[float, float]]]:
    """Centers and radii of discs that do not touch each other, the one under the mark first, and their gaps to the
    mark's rows and columns."""
    placed: list[tuple[torch.Tensor, float]] = []
    for _ in range(_TRIES):
        radius = float(torch.empty(()).uniform_(*_RADII, generator=generator))
        center = radius + (SIDE - 2 * radius) * torch.rand(2, generator=generator)
        if not placed:
            center = (corner + SQUARE / 2).clamp(radius, SIDE - radius)
        gaps = (corner - center - radius).maximum(center - radius - corner - SQUARE).clamp(min=0)
        is_free = all(float((center - other).abs().max()) > radius + its_radius + 1 for other, its_radius in placed)
        if is_free:
            placed.append((center, radius))
            yield center.tolist(), radius, tuple(gaps.tolist())
        if len(placed) == NUM_DISCS:
            return


def _part(gaps: tuple[float, float]) -> str | None:
    smaller, larger = sorted(gaps)
    if larger < FAR:
        return None
    return "in line" if smaller == 0 else "elsewhere" if smaller >= FAR else None


def build_model(recurrence: int) -> CCNetForInstanceSegmentation:
    """A Mask R-CNN on the stem and one stage of its ResNet, at a quarter of the image's size; a feature of the pyramid
    sees 13 pixels far by its convolutions. With `recurrence` 0 there is no attention."""
    backbone = CCNetResNetConfig(
        depths=[1],
        hidden_sizes=[32],
        stem_size=16,
        stem_type="conv7",
        attention_stage="stage1" if recurrence else None,
        attention_position="after",
        attention_recurrence=max(1, recurrence),
        attention_query_key_size=8,
        out_features=["stage1"],
    )
    names = dict(enumerate(["N/A", *COLOURS]))
    config = CCNetInstanceConfig(
        backbone_config=backbone,
        fpn_channels=32,
        box_hidden_size=64,
        mask_num_convolutions=1,
        mask_pool_size=7,
        anchor_sizes=[16, 24],  # of the map, and of one that is pooled from it
        anchor_aspect_ratios=[1.0],
        rpn_batch_size_per_image=64,
        rpn_pre_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_train=40,
        rpn_post_nms_top_n_test=20,
        box_batch_size_per_image=24,
        box_positive_fraction=0.5,
        box_detections_per_img=20,
        id2label=names,
        label2id={name: label for label, name in names.items()},
    )
    model = CCNetForInstanceSegmentation(config)
    if recurrence:
        nn.init.constant_(model.backbone.stages[0].attention.gamma, _GAMMA)
    return model


def train(
    model: CCNetForInstanceSegmentation, steps: int, seed: int, batch_size: int = 16, learning_rate: float = 2e-3
) -> None:
    """Train in place on fresh examples, and leave the model in eval mode."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in tqdm(range(steps), desc=f"seed {seed}", leave=False, disable=None):
        images, labels, _ = far_discs(batch_size, generator)
        loss = model(pixel_values=images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def score(model: CCNetForInstanceSegmentation, num_examples: int = 200) -> dict[str, float]:
    """Fractions of the discs: `"found"` of all; and of those found in each of `PARTS`, whose class is right. What a
    disc is taken for is its detection with the highest score; 1 / number of colours is chance."""
    images, labels, parts = far_discs(num_examples, torch.Generator().manual_seed(_TEST_SEED))
    number, found, right = Counter(), Counter(), Counter()
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        outputs = model(image[None])
        boxes, truth = (center_to_corners_format(b) for b in (outputs.pred_boxes[0], label["boxes"]))
        matches = (box_iou(boxes, truth) >= _SAME_OBJECT) & (outputs.scores[0] > 0)[:, None]
        predicted = outputs.class_labels[0][matches.int().argmax(dim=0)]
        is_right = (predicted == label["class_labels"]).tolist()
        for part, is_found, its_right in zip(parts[index], matches.any(dim=0).tolist(), is_right, strict=True):
            number[part] += 1
            found[part] += is_found
            right[part] += is_found and its_right
    return {"found": found.total() / number.total()} | {part: right[part] / max(1, found[part]) for part in PARTS}


@torch.no_grad()
def draw(model: CCNetForInstanceSegmentation | None, number: int = 3, scale: int = 3) -> list[Image.Image]:
    """The first images that are scored, with what the model sees in them, or with the truth without a model."""
    images, labels, _ = far_discs(number, torch.Generator().manual_seed(_TEST_SEED))
    pictures = []
    for image, label in zip(images, labels, strict=True):
        picture = to_pil_image(((image + 1) / 3).clamp(0, 1))
        picture = picture.resize((scale * SIDE, scale * SIDE), Image.Resampling.NEAREST)
        scores, classes, boxes = torch.ones(len(label["boxes"])), label["class_labels"], label["boxes"]
        if model is not None:
            outputs = model(image[None])
            kept = outputs.scores[0] >= 0.5 / len(COLOURS)
            # Of several classes that one place is taken for, the first.
            corners = center_to_corners_format(outputs.pred_boxes[0])
            again = (box_iou(corners, corners).triu(diagonal=1) >= _SAME_OBJECT).any(dim=0)
            kept &= ~again
            scores, classes, boxes = (t[0][kept] for t in (outputs.scores, outputs.class_labels, outputs.pred_boxes))
        none = torch.zeros(len(scores), picture.height, picture.width, dtype=torch.bool)
        instances = Instances(scores, classes, center_to_corners_format(boxes) * scale * SIDE, none)
        names = {index + 1: name for index, name in enumerate(COLOURS)}
        pictures.append(draw_instances(picture, instances, names, with_scores=model is not None))
    return pictures
