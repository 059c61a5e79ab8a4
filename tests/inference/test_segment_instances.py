"""The segmenting command with a model of instances."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_instance_model, tiny_model
from turned import encode_turned

from ccnet_hf import CCNetForInstanceSegmentation, CCNetImageProcessor, CCNetInstanceImageProcessor
from ccnet_hf.errors import InputError
from ccnet_hf.inference.instances import InstancePredictor
from ccnet_hf.inference.segment import main
from ccnet_hf.models.annotations_ccnet import mask_of_segmentation


@pytest.fixture
def folder(tmp_path):
    model = tiny_instance_model()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(3)
    model.save_pretrained(tmp_path / "model")
    CCNetInstanceImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path / "model")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    image.save(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes(b"broken")
    return tmp_path


def test_pictures_and_annotations(folder, capsys):
    command = ["--model_name_or_path", str(folder / "model"), "--output_dir", str(folder / "out")]
    assert main([str(folder / "photo.png"), *command]) == 0, capsys.readouterr().err
    with Image.open(folder / "out" / "photo_instances.png") as picture, Image.open(folder / "photo.png") as image:
        assert picture.size == image.size == (70, 50)
        model, image = tiny_instance_model(), image.convert("RGB")
    model = type(model).from_pretrained(folder / "model").eval()
    processor = CCNetInstanceImageProcessor.from_pretrained(folder / "model")
    (expected,) = InstancePredictor(model, processor, 0.5).instances([image])
    content = json.loads((folder / "out" / "photo_instances.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "photo.png", "height": 50, "width": 70}]
    assert len(content["annotations"]) == len(expected.scores) > 0
    for entry, score, mask in zip(content["annotations"], expected.scores.tolist(), expected.masks, strict=True):
        assert entry["score"] == pytest.approx(score, abs=1e-5) and entry["score"] > 0.5
        assert np.array_equal(mask_of_segmentation(entry["segmentation"], (50, 70)), mask.numpy())
    assert f"{len(expected.scores)} instances in 1 image" in capsys.readouterr().out


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_and_may_be_files(folder, orientation):
    model = CCNetForInstanceSegmentation.from_pretrained(folder / "model").eval()
    predictor = InstancePredictor(model, CCNetInstanceImageProcessor.from_pretrained(folder / "model"), 0.3)
    image = Image.open(folder / "photo.png")
    (expected,) = predictor.instances([image])
    assert expected.masks.shape[1:] == (50, 70) and len(expected.scores)
    file = folder / "turned.png"
    file.write_bytes(encode_turned(np.asarray(image), orientation))
    for found in predictor.instances([Image.open(file), file, str(file), np.array(image)]):
        assert torch.equal(found.labels, expected.labels) and torch.equal(found.masks, expected.masks)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-3)


def test_what_cannot_be_read(folder, capsys):
    command = ["--model_name_or_path", str(folder / "model"), "--output_dir", str(folder / "out")]
    images = [str(folder / "photo.png"), str(folder / "broken.png")]
    assert main([*images, *command]) == 1
    assert "broken.png" in capsys.readouterr().err
    assert main([*images, *command, "--skip_corrupt"]) == 0
    assert "1 skipped" in capsys.readouterr().out
    assert main([images[0], *command, "--flip"]) == 1


@pytest.mark.parametrize("images", [np.zeros((20, 30, 3), np.uint8), torch.zeros(3, 20, 30), "a.png", None])
def test_what_is_no_list_of_images_is_refused(images):
    predictor = InstancePredictor(tiny_instance_model(), CCNetInstanceImageProcessor())
    with pytest.raises(InputError, match=f"instances takes a list of images, got {type(images).__name__}"):
        list(predictor.instances(images))


def test_a_predictor_of_something_else_is_refused():
    model, processor = tiny_instance_model(), CCNetInstanceImageProcessor()
    with pytest.raises(InputError, match="model must be a CCNetForInstanceSegmentation, got CCNetForSemantic"):
        InstancePredictor(tiny_model(), processor)
    with pytest.raises(InputError, match="image_processor must be a CCNetInstanceImageProcessor, got CCNetImage"):
        InstancePredictor(model, CCNetImageProcessor())
    with pytest.raises(InputError, match="`threshold` must be a finite number, got nan"):
        InstancePredictor(model, processor, float("nan"))
