"""The trained checkpoints in int8: what calibration on pictures of their dataset leaves of their scores."""

from pathlib import Path

import pytest
from camvid_scores import LARGE, SMALL, score

from ccnet_hf.cli import main


pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def calibration(shared_dir, tmp_path_factory) -> Path:
    """Forty pictures of the training split."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("pictures")
    split = datasets.load_dataset(str(shared_dir / "camvid"), split="train")
    for index in range(0, len(split), len(split) // 40):
        split[index]["image"].convert("RGB").save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def float32_score(shared_dir, tmp_path_factory):
    """A checkpoint's score on frames by the beginning of their names, computed once."""
    scores = {}

    def score_once(checkpoint: str, frames: str) -> float:
        if (checkpoint, frames) not in scores:
            options = ("--name_prefix", frames) if frames else ()
            folder = tmp_path_factory.mktemp("float32")
            scores[checkpoint, frames] = score(checkpoint, shared_dir / "camvid", folder, *options)
        return scores[checkpoint, frames]

    return score_once


@pytest.mark.parametrize(
    ("checkpoint", "program_format", "number", "frames"),
    [(SMALL, "onnx", "64", ""), (SMALL, "openvino", "64", ""), (LARGE, "openvino", "10", "0001TP")],
)
def test_int8_scores_as_float32(
    checkpoint, program_format, number, frames, shared_dir, calibration, float32_score, tmp_path
):
    exported, chosen = str(tmp_path / "exported"), ["--name_prefix", frames] if frames else []
    words = ["export", checkpoint, "--format", program_format, "--int8", "--calibration", str(calibration)]
    assert main([*words, "--calibration_images", number, "--output", exported]) == 0
    expected = float32_score(checkpoint, frames)
    assert score(exported, shared_dir / "camvid", tmp_path, *chosen) > expected - 0.003
