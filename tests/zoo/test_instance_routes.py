"""Mask R-CNN pushed, then used in fresh processes from the Hub and by its folder's name: with the package, and by the
code beside its weights without it. Neither may warn."""

import json

import numpy as np
import pytest
import torch
from fake_hub import FakeHub
from PIL import Image
from tiny_models import wake_attention, wake_instances
from tiny_zoo import connect, quiet, run

from ccnet_hf import CCNetForInstanceSegmentation
from ccnet_hf.recipes import get_recipe
from ccnet_hf.zoo.push import main
from ccnet_hf.zoo.verify import main as verify


VARIANT = "ccnet-r50-coco"
THRESHOLD = 0.05
IMAGE_SIZE = (20, 256)  # a strip: the longer side decides, and the network sees a small image

SCRIPT = """
import json
from transformers import AutoModelForInstanceSegmentation, pipeline

def see(name, **arguments):
    segmenter = pipeline("image-segmentation", model=name, **arguments)
    detector = pipeline("object-detection", model=name, **arguments)
    model = AutoModelForInstanceSegmentation.from_pretrained(name, **arguments)
    segments = segmenter("street.png", threshold=THRESHOLD)
    boxes = detector("street.png", threshold=THRESHOLD)
    return {
        "segments": [[segment["label"], segment["score"], segment["mask"].size] for segment in segments],
        "boxes": [[box["label"], box["score"], list(box["box"].values())] for box in boxes],
        "classes": [type(model).__name__, type(segmenter.image_processor).__name__],
        "module": type(segmenter.model).__module__.split(".")[0],
    }
""".replace("THRESHOLD", str(THRESHOLD))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with what a training of the recipe leaves, with few channels."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    recipe = get_recipe(VARIANT)
    backbone_config = recipe.model["backbone_config"] | {"hidden_sizes": [8, 8, 16, 16], "stem_size": 8}
    model = CCNetForInstanceSegmentation(
        recipe.config(
            backbone_config=backbone_config,
            fpn_channels=8,
            box_hidden_size=16,
            mask_num_convolutions=1,
            rpn_post_nms_top_n_test=50,
            box_detections_per_img=20,
        )
    )
    wake_attention(model.backbone.stages[2].attention)
    wake_instances(model)
    model.save_pretrained(folder / VARIANT)
    recipe.image_processor().save_pretrained(folder / VARIANT)
    return folder


@pytest.fixture(scope="module")
def hub(checkpoints):
    """The fake Hub after the first push of the checkpoint, one of changed weights, and one of nothing new."""
    with FakeHub() as hub, pytest.MonkeyPatch.context() as monkeypatch, quiet():
        connect(hub, monkeypatch, checkpoints / "no_token")
        push = ["--variant", VARIANT, "--checkpoints", str(checkpoints), "--namespace", "me"]
        assert main(push) == 0
        folder = checkpoints / VARIANT
        model = CCNetForInstanceSegmentation.from_pretrained(folder)
        torch.nn.init.constant_(model.backbone.stages[2].attention.gamma, 0.9)
        model.save_pretrained(folder)
        assert main(push) == 0
        assert main(push) == 0
        yield hub


def test_what_arrives_and_is_pushed_again(hub, checkpoints):
    repository = hub.repositories["model", f"me/{VARIANT}"]
    assert len(repository.commits) == 3  # the Hub's own and two with the weights
    assert repository.files["model.safetensors"] == (checkpoints / VARIANT / "model.safetensors").read_bytes()
    assert {"README.md", "modeling_ccnet_instance.py", "annotations_ccnet.py"} <= repository.files.keys()
    auto_map = json.loads(repository.files["config.json"])["auto_map"]
    assert auto_map["AutoModelForInstanceSegmentation"] == "modeling_ccnet_instance.CCNetForInstanceSegmentation"
    assert "image_processor_type" not in json.loads(repository.files["preprocessor_config.json"])


def test_a_trained_model_has_no_file_to_be_verified_by(checkpoints, capsys):
    assert verify([str(checkpoints / VARIANT)]) == 1
    assert f"{VARIANT} has no published file to compare with" in capsys.readouterr().err


@pytest.mark.parametrize("route", ["with the package", "as remote code"])
def test_both_pipelines(hub, checkpoints, tmp_path, route):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8))
    image.save(tmp_path / "street.png")
    (tmp_path / "folder").symlink_to(checkpoints / VARIANT)
    start, arguments = "import ccnet_hf", {}
    if route == "as remote code":
        start, arguments = "import sys; sys.modules['ccnet_hf'] = None", {"trust_remote_code": True}
    names = [f"me/{VARIANT}", "folder"]
    script = f"{start}\n{SCRIPT}\nprint(json.dumps([see(name, **{arguments}) for name in {names}]))"
    from_hub, from_folder = run(script, hub, tmp_path)

    recipe, model = get_recipe(VARIANT), CCNetForInstanceSegmentation.from_pretrained(checkpoints / VARIANT).eval()
    processor = recipe.image_processor()
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    (boxes,) = processor.post_process_object_detection(outputs, THRESHOLD, [IMAGE_SIZE])
    thresholds = (THRESHOLD, 0.5, 0.5)  # those of the pipeline
    (segments,) = processor.post_process_instance_segmentation(outputs, *thresholds, target_sizes=[IMAGE_SIZE])
    names = model.config.id2label
    assert len(boxes["scores"]) > 5 and segments["segments_info"]
    for found in (from_hub, from_folder):
        assert found["classes"] == ["CCNetForInstanceSegmentation", "CCNetInstanceImageProcessor"]
        assert found["module"] == ("transformers_modules" if arguments else "ccnet_hf")
        assert [label for label, *_ in found["boxes"]] == [names[label] for label in boxes["labels"].tolist()]
        assert [score for _, score, _ in found["boxes"]] == pytest.approx(boxes["scores"].tolist(), abs=1e-5)
        assert [label for label, *_ in found["segments"]] == [
            names[segment["label_id"]] for segment in segments["segments_info"]
        ]
        assert all(size == [IMAGE_SIZE[1], IMAGE_SIZE[0]] for *_, size in found["segments"])
