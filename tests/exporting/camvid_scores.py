"""What the trained checkpoints score on CamVid, by the command that users score with."""

import json
from pathlib import Path

from ccnet_hf.cli import main


_CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
SMALL = str(_CHECKPOINTS / "ccnet-mobilenetv2-camvid")
LARGE = str(_CHECKPOINTS / "ccnet-efficientnet-camvid")


def score(model: str, camvid: str | Path, folder: Path, *options: str) -> float:
    """mIoU (0..1) on the test split of a checkpoint or an exported folder, on the CPU."""
    words = ["--model_name_or_path", model, "--dataset_name", str(camvid), "--split", "test", "--device", "cpu"]
    assert main(["eval", *words, "--output_json", str(folder / "scores.json"), *options]) == 0
    return json.loads((folder / "scores.json").read_text())["mean_iou"]
