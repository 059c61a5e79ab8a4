"""A human parser and a video model pushed, then used from the Hub in fresh processes: by the package, and by the code
beside the weights without it. Neither may warn."""

import json

import numpy as np
import pytest
import torch
from fake_hub import FakeHub
from PIL import Image
from tiny_models import wake_attention
from tiny_zoo import connect, quiet, run

from ccnet_hf import CCNetForHumanParsing, CCNetForVideoSegmentation
from ccnet_hf.recipes import get_recipe
from ccnet_hf.zoo.push import main


PARSER, VIDEO = "ccnet-r101-lip", "ccnet-mobilenetv2-camvid-video"
IMAGE_SIZE = (40, 30)
CLIP_SIZE = (5, 256)  # a strip: the longer side decides, and the network sees small frames

SCRIPT = """
import json
import numpy as np, torch
from transformers import AutoModelForSemanticSegmentation, AutoVideoProcessor, pipeline

def see(arguments):
    segmenter = pipeline("image-segmentation", model="me/PARSER", **arguments)
    segments = segmenter("person.png")
    model = AutoModelForSemanticSegmentation.from_pretrained("me/VIDEO", **arguments)
    processor = AutoVideoProcessor.from_pretrained("me/VIDEO", **arguments)
    clip = np.load("clip.npy")
    with torch.no_grad():
        outputs = model(**processor(clip, return_tensors="pt"))
    maps = processor.post_process_semantic_segmentation(outputs, [clip.shape[1:3]] * len(clip))
    return {
        "classes": [type(one).__name__ for one in (segmenter.model, segmenter.image_processor, model, processor)],
        "modules": sorted({type(one).__module__.split(".")[0] for one in (segmenter.model, model)}),
        "segments": {segment["label"]: int((np.asarray(segment["mask"]) > 0).sum()) for segment in segments},
        "maps": [label_map.tolist() for label_map in maps],
    }
""".replace("PARSER", PARSER).replace("VIDEO", VIDEO)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with what trainings of the recipes leave, with few channels."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    backbone_config = get_recipe(PARSER).model["backbone_config"] | {"hidden_sizes": [8, 8, 16, 16], "stem_size": 8}
    narrow = {"backbone_config": backbone_config, "decoder_channels": 8, "shortcut_channels": 4, "edge_channels": 4}
    for name, model_class, attention, changes in (
        (PARSER, CCNetForHumanParsing, "context.attention", narrow),
        (VIDEO, CCNetForVideoSegmentation, "model.head.attention", {}),
    ):
        recipe = get_recipe(name)
        model = model_class(recipe.config(hidden_size=16, **changes))
        wake_attention(model.get_submodule(attention))
        torch.nn.init.normal_(model.classifier.weight)
        model.save_pretrained(folder / name)
        recipe.image_processor().save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def hub(checkpoints):
    """The fake Hub after a push of both."""
    with FakeHub() as hub, pytest.MonkeyPatch.context() as monkeypatch, quiet():
        connect(hub, monkeypatch, checkpoints / "no_token")
        assert main(["--variant", PARSER, VIDEO, "--checkpoints", str(checkpoints), "--namespace", "me"]) == 0
        yield hub


def test_what_arrives(hub, checkpoints):
    for name, own in ((PARSER, "modeling_ccnet_parsing.py"), (VIDEO, "modeling_ccnet_video.py")):
        files = hub.repositories["model", f"me/{name}"].files
        assert files["model.safetensors"] == (checkpoints / name / "model.safetensors").read_bytes()
        assert own in files and b"This project publishes neither weights nor a score of it" in files["README.md"]
        auto_map = json.loads(files["config.json"])["auto_map"]
        assert auto_map["AutoModelForSemanticSegmentation"].startswith(own.removesuffix(".py"))


@pytest.mark.parametrize("route", ["with the package", "as remote code"])
def test_both_are_used(hub, checkpoints, tmp_path, route):
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8))
    image.save(tmp_path / "person.png")
    clip = generator.integers(0, 256, (2, *CLIP_SIZE, 3), dtype=np.uint8)
    np.save(tmp_path / "clip.npy", clip)
    start, arguments = "import ccnet_hf", {}
    if route == "as remote code":
        start, arguments = "import sys; sys.modules['ccnet_hf'] = None", {"trust_remote_code": True}
    found = run(f"{start}\n{SCRIPT}\nprint(json.dumps(see({arguments})))", hub, tmp_path)

    assert found["classes"] == [
        *("CCNetForHumanParsing", "CCNetImageProcessor", "CCNetForVideoSegmentation", "CCNetVideoProcessor")
    ]
    assert found["modules"] == ["transformers_modules" if arguments else "ccnet_hf"]
    parser = CCNetForHumanParsing.from_pretrained(checkpoints / PARSER)
    labels = label_maps(parser, get_recipe(PARSER).image_processor(), image, [IMAGE_SIZE])[0]
    ids, counts = labels.unique(return_counts=True)
    assert len(ids) > 1
    assert found["segments"] == {parser.config.id2label[int(id)]: int(n) for id, n in zip(ids, counts, strict=True)}
    model = CCNetForVideoSegmentation.from_pretrained(checkpoints / VIDEO)
    expected = label_maps(model, get_recipe(VIDEO).image_processor(), clip, [CLIP_SIZE] * 2)
    assert found["maps"] == [label_map.tolist() for label_map in expected]


def label_maps(model, processor, images, target_sizes) -> list[torch.Tensor]:
    """What the model makes of an image or a clip in this process."""
    with torch.no_grad():
        outputs = model.eval()(**processor(images, return_tensors="pt"))
    return processor.post_process_semantic_segmentation(outputs, target_sizes)
