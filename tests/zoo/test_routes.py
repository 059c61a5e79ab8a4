"""All variants pushed, then used from the Hub in fresh processes: by the package, and by remote code without it.
The same of what transformers itself pushes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_hub import FakeHub
from PIL import Image
from tiny_models import tiny_model
from tiny_zoo import REPOSITORY_NAMES, ZOO, connect, quiet, run, write_checkpoint
from transformers import Trainer, TrainingArguments

from ccnet_hf.models.image_processing_ccnet import CCNetImageProcessor
from ccnet_hf.recipes import get_recipe
from ccnet_hf.zoo.push import main


PIXEL_VALUES = torch.linspace(-2, 2, 3 * 33 * 49).reshape(1, 3, 33, 49)

# A strip: test sizes enlarge its shorter side to a few pixels only.
IMAGE_SIZE = (256, 3)

COMMON = """
import json, re
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, pipeline

pixel_values = torch.linspace(-2, 2, 3 * 33 * 49).reshape(1, 3, 33, 49)

def run_card(name, index):
    card = open(hf_hub_download(f"me/{name}", "README.md"), encoding="utf-8").read()
    namespace = {}
    exec(re.findall(r"```python\\n(.*?)```", card, flags=re.DOTALL)[index], namespace)
    return [segment["label"] for segment in namespace["segments"]]

@torch.no_grad()
def load(name, **arguments):
    segmenter = pipeline("image-segmentation", model=f"me/{name}", **arguments)
    hidden_state = AutoModel.from_pretrained(f"me/{name}", **arguments)(pixel_values).last_hidden_state
    logits = segmenter.model(pixel_values).logits
    torch.save({"logits": logits, "hidden_state": hidden_state}, f"{name}.pt")
    return {
        "labels": sorted(segment["label"] for segment in segmenter("street.jpg")),
        "classes": [type(segmenter.model).__name__, type(segmenter.image_processor).__name__],
        "module": type(segmenter.model).__module__.split(".")[0],
        "palette": len(segmenter.image_processor.palette),
    }
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The fake Hub after `push_to_hub.py --all`, and what the models gave before."""
    folder = tmp_path_factory.mktemp("zoo")
    with FakeHub() as hub, pytest.MonkeyPatch.context() as monkeypatch, quiet():
        connect(hub, monkeypatch, folder / "no_token")
        hub.expected = {}
        for recipe in ZOO:
            model = write_checkpoint(recipe, folder)
            with torch.no_grad():
                hub.expected[recipe.name] = {
                    "logits": model(PIXEL_VALUES).logits,
                    "hidden_state": model.model(PIXEL_VALUES).last_hidden_state,
                }
        assert main(["--all", "--checkpoints", str(folder), "--namespace", "me"]) == 0
        yield hub


def run_in(folder: Path, script: str, hub: FakeHub):
    """As `tiny_zoo.run`, with an image in the folder."""
    image = np.random.default_rng(0).integers(0, 256, (*reversed(IMAGE_SIZE), 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / "street.jpg")
    return run(COMMON + script, hub, folder)


def assert_equal_outputs(name: str, hub: FakeHub, folder: Path) -> None:
    expected = hub.expected[get_recipe(name).name]
    found = torch.load(folder / f"{name}.pt")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_everything_is_there(hub):
    assert sorted(id for _, id in hub.repositories) == sorted(f"me/{name}" for name in REPOSITORY_NAMES)
    assert len(hub.repositories) == len(ZOO) + 6
    assert all(len(repository.commits) == 2 for repository in hub.repositories.values())
    (collection,) = hub.collections.values()
    assert [item["id"] for item in collection["items"]] == [id for _, id in hub.repositories]


def test_with_the_package(hub, tmp_path):
    """Every variant and short name, without a word about remote code."""
    script = f"""
import ccnet_hf
card = run_card("ccnet-r50-voc12aug", 0)
print(json.dumps([card, {{name: load(name) for name in {REPOSITORY_NAMES}}}]))
"""
    card, loaded = run_in(tmp_path, script, hub)
    assert card
    for name in REPOSITORY_NAMES:
        recipe = get_recipe(name)
        assert loaded[name]["classes"] == ["CCNetForSemanticSegmentation", "CCNetImageProcessor"]
        assert loaded[name]["module"] == "ccnet_hf"
        assert loaded[name]["palette"] == recipe.config().num_labels
        assert set(loaded[name]["labels"]) <= set(recipe.config().id2label.values())
        assert_equal_outputs(name, hub, tmp_path)
    assert not (tmp_path / "home/modules").exists() or not list((tmp_path / "home/modules").rglob("modeling_*.py"))


def test_as_remote_code_then_with_the_package(hub, tmp_path):
    """Two repositories while `ccnet_hf` cannot be imported; then the package in the same process, and a third one."""
    first, second, third = "ccnet-r50-cityscapes", "ccnet-r50-voc12aug-512x512-40k", "ccnet-r50-ade20k"
    script = f"""
import sys
sys.modules["ccnet_hf"] = None
trusted = {{"trust_remote_code": True}}
remote = [load(name, **trusted) for name in ("{first}", "{second}")]
processors = [
    [type(processor).__name__, dict(processor.size)]
    for backend in ("torchvision", "pil")
    for processor in [AutoImageProcessor.from_pretrained("me/{first}", backend=backend, **trusted)]
]
card = run_card("{first}", 1)
auto = AutoModelForSemanticSegmentation.from_pretrained("me/{first}", **trusted)
with torch.no_grad():
    torch.save({{"logits": auto(pixel_values).logits}}, "{first}-auto.pt")
del sys.modules["ccnet_hf"]
import ccnet_hf
print(json.dumps([remote, processors, card, load("{third}"), torch.ops.ccnet_hf.__name__]))
"""
    remote, processors, card, packaged, _ = run_in(tmp_path, script, hub)
    for loaded in remote:
        assert loaded["classes"] == ["CCNetForSemanticSegmentation", "CCNetImageProcessor"]
        assert loaded["module"] == "transformers_modules"
    assert packaged["module"] == "ccnet_hf"
    size = {"shortest_edge": 1025, "longest_edge": 2049}
    assert processors == [["CCNetImageProcessor", size], ["CCNetImageProcessorPil", size]]
    assert card
    for name in (first, second, third):
        assert_equal_outputs(name, hub, tmp_path)
    auto = torch.load(tmp_path / f"{first}-auto.pt")["logits"]
    torch.testing.assert_close(auto, hub.expected[get_recipe(first).name]["logits"], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def pushed_by_transformers(tmp_path_factory):
    """The fake Hub after `push_to_hub` of a model and its processor, and after a `Trainer`'s."""
    folder = tmp_path_factory.mktemp("pushed")
    model, image_processor = tiny_model(), CCNetImageProcessor(size=32, palette=[[0, 0, 0]] * 5)
    with FakeHub() as hub, pytest.MonkeyPatch.context() as monkeypatch, quiet():
        connect(hub, monkeypatch, folder / "no_token")
        model.push_to_hub("me/pushed")
        image_processor.push_to_hub("me/pushed")
        arguments = TrainingArguments(
            output_dir=str(folder / "trained"),
            hub_model_id="me/trained",
            push_to_hub=True,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, processing_class=image_processor).push_to_hub()
        with torch.no_grad():
            hub.logits = model.eval()(PIXEL_VALUES).logits
        yield hub


@pytest.mark.parametrize("route", ["with the package", "as remote code"])
def test_what_transformers_pushed(pushed_by_transformers, tmp_path, route):
    start, arguments = "import ccnet_hf", {}
    if route == "as remote code":
        start, arguments = "import sys; sys.modules['ccnet_hf'] = None", {"trust_remote_code": True}
    script = f"""
{start}
arguments = {arguments}
print(json.dumps([
    load(name, **arguments)
    | {{"pil": type(AutoImageProcessor.from_pretrained(f"me/{{name}}", backend="pil", **arguments)).__name__}}
    for name in ("pushed", "trained")
]))
"""
    for name, loaded in zip(("pushed", "trained"), run_in(tmp_path, script, pushed_by_transformers), strict=True):
        assert loaded["classes"] == ["CCNetForSemanticSegmentation", "CCNetImageProcessor"]
        assert loaded["module"] == ("transformers_modules" if arguments else "ccnet_hf")
        assert loaded["pil"] == "CCNetImageProcessorPil"
        assert loaded["palette"] == 5
        found = torch.load(tmp_path / f"{name}.pt")["logits"]
        torch.testing.assert_close(found, pushed_by_transformers.logits, rtol=0, atol=1e-6)
