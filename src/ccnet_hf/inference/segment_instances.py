"""Instances of images as pictures and as COCO's annotations: what the segmenting command does with such a model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ccnet_hf.data.images import read_image
from ccnet_hf.errors import InputError
from ccnet_hf.files import atomic_file, write_text
from ccnet_hf.inference.instances import InstancePredictor, Instances
from ccnet_hf.models.annotations_ccnet import run_length_encoding
from ccnet_hf.visualization.instances import draw_instances


SHOWN_SCORE = 0.5


def segment_instances(
    predictor: InstancePredictor,
    images: Sequence[tuple[Path, str]],
    output_dir: Path,
    skip_corrupt: bool,
    max_image_pixels: int | None,
) -> None:
    """Write `STEM_instances.png` and `STEM_instances.json` of every image, and print how many objects of each class
    are seen in them with a score above 0.5.

    Args:
        predictor: of the model.
        images: file and stem of each.
        output_dir: where to.
        skip_corrupt: go on after an unreadable image.
        max_image_pixels: as for `read_image`.

    Raises:
        InputError: an image cannot be read, or none of them.
        OSError: a file cannot be written.
    """
    predictor.threshold = SHOWN_SCORE
    names, counts, skipped = predictor.config.id2label, Counter(), []
    for path, stem in tqdm(images, desc="segmenting", unit="image", disable=None):
        try:
            image = read_image(path, max_image_pixels)
        except InputError as error:
            if not skip_corrupt:
                raise
            skipped.append(str(error))
            continue
        (found,) = predictor.instances([image])
        counts.update(names[label] for label in found.labels.tolist())
        write_text(output_dir / f"{stem}_instances.json", json.dumps(coco_content(path, image, found, names)) + "\n")
        with atomic_file(output_dir / f"{stem}_instances.png") as unfinished:
            draw_instances(image, found, names).save(unfinished)
    number = len(images) - len(skipped)
    for name, count in counts.most_common():
        print(f"{count:5} {name}")
    if skipped:
        print(f"{len(skipped)} skipped:", *skipped, sep="\n  ")
    if not number:
        raise InputError("no image could be read")
    print(f"\n{sum(counts.values())} instances in {number} image{'s' * (number > 1)}, results in {output_dir}")


def coco_content(path: Path, image: Image.Image, found: Instances, names: Mapping[int, str]) -> dict[str, Any]:
    """The instances of an image as the content of one of COCO's files, with a score for each."""
    annotations = []
    rows = zip(found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), found.masks, strict=True)
    for number, (score, label, (left, top, right, bottom), mask) in enumerate(rows, start=1):
        annotations.append(
            {
                "id": number,
                "image_id": 1,
                "category_id": label,
                "bbox": [left, top, right - left, bottom - top],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": run_length_encoding(mask),
                "score": score,
            }
        )
    return {
        "images": [{"id": 1, "file_name": path.name, "height": image.height, "width": image.width}],
        "annotations": annotations,
        "categories": [{"id": label, "name": names[label]} for label in sorted(set(found.labels.tolist()))],
    }
