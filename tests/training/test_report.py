"""What a training leaves to look at: curves of the log, and images beside truth and prediction."""

import numpy as np
from PIL import Image

from ccnet_hf.training.report import draw_predictions, training_curves


def test_curves_hold_the_finite_numbers_of_the_log():
    rows = [{"step": step, "loss": 1 / step, "decode_loss": 0.5, "lr": 0.01} for step in range(1, 4)]
    panels = {
        "losses": {"loss": [(1, 1.0), (2, 0.5), (3, 1 / 3)], "decode": [(1, 0.5), (2, 0.5), (3, 0.5)]},
        "learning rate": {"learning rate": [(1, 0.01), (2, 0.01), (3, 0.01)]},
    }
    assert training_curves(rows) == panels
    rows += [{"step": 3, "eval_mean_iou": 0.5, "eval_mean_accuracy": float("nan")}]
    assert training_curves(rows) == panels | {"scores": {"mIoU": [(3, 0.5)]}}
    assert training_curves([]) == training_curves([{"step": 1, "loss": float("nan")}]) == {}


def test_images_stand_beside_truth_and_prediction():
    palette = [(200, 0, 0), (0, 200, 0)]
    examples, predictions = [], []
    for size in ((40, 80), (60, 30)):
        truth = np.zeros(size, np.uint8)
        truth[: size[0] // 2] = 255
        examples.append((Image.new("RGB", size[::-1], (9, 9, 200)), truth, "name"))
        predictions.append(np.ones(size, np.uint8))
    image = draw_predictions(examples, predictions, palette, ["road", "sky"])
    assert image.width == 3 * 440 + 4 * 16
    for top, height in ((40, 220), (40 + 220 + 16, 880)):
        upper, lower = top + height // 4, top + 3 * height // 4
        assert image.getpixel((200, upper)) == image.getpixel((200, lower)) == (9, 9, 200)
        assert image.getpixel((656, upper)) == (0, 0, 0) and image.getpixel((656, lower)) == (200, 0, 0)
        assert image.getpixel((1112, upper)) == image.getpixel((1112, lower)) == (0, 200, 0)
    legend = np.asarray(image)[40 + 220 + 880 + 32 :]
    for color in palette:
        assert (legend == color).all(-1).any()
