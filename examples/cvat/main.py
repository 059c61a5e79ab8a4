"""A serverless function for CVAT's automatic annotation: a mask for each class that a CCNet sees in an image.

CVAT runs it by Nuclio, which calls `init_context` once and `handler` for every image. The folder `model` beside this
file is a checkpoint or what `ccnet-hf export` made of one; `function.yaml` names its classes to CVAT.
"""

import base64
import json
import os
from pathlib import Path

import numpy as np

from ccnet_hf import InputError
from ccnet_hf.data.images import open_image, to_rgb
from ccnet_hf.inference.predictor_arguments import PredictorArguments


MODEL = os.environ.get("MODEL", str(Path(__file__).parent / "model"))


def init_context(context) -> None:
    """Load the model once, before the first image."""
    context.user_data.predictor = PredictorArguments(model_name_or_path=MODEL).load_predictor()


def handler(context, event):
    """Answer an image, base64 in the event's body, with masks as CVAT takes them."""
    predictor = context.user_data.predictor
    try:
        image = to_rgb(open_image(base64.b64decode(event.body["image"])))
    except InputError as error:
        return context.Response(body=f"the image: {error}", content_type="text/plain", status_code=400)
    label_map = predictor.label_map(image).numpy()
    masks = [
        {
            "type": "mask",
            "label": predictor.config.id2label[label],
            "confidence": None,
            "mask": cvat_mask(label_map == label),
        }
        for label in np.unique(label_map).tolist()
    ]
    return context.Response(body=json.dumps(masks), content_type="application/json", status_code=200)


def cvat_mask(mask: np.ndarray) -> list[int]:
    """What CVAT stores of a mask: the pixels of its box, row by row, then left, top, right and bottom of the box.

    Args:
        mask: (H, W) bool, with a pixel at least.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    inside = mask[top : bottom + 1, left : right + 1]
    return [*inside.astype(int).ravel().tolist(), int(left), int(top), int(right), int(bottom)]
