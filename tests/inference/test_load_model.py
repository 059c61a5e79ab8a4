"""What a checkpoint's folder may hold wrongly, each answered in one sentence that names the file."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from transformers import SegformerConfig

from ccnet_hf import CCNetImageProcessor
from ccnet_hf.errors import InputError
from ccnet_hf.inference import Predictor
from ccnet_hf.inference.loading import find_device, load_checkpoint, load_config, load_model, read_json


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    CCNetImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(checkpoint, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, "model")
    return Path("model")


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_backbone(folder: Path, **values) -> None:
    file = folder / "config.json"
    change(file, backbone_config=json.loads(file.read_text())["backbone_config"] | values)


def change_weight(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file) | {name: tensor}
    save_file({key: value for key, value in weights.items() if value is not None}, file, metadata={"format": "pt"})


def split_weights(folder: Path) -> None:
    """As `save_pretrained` does with large models."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: f"model-0000{1 + key.startswith('model.')}-of-00002.safetensors" for key in weights}
    for file in set(names.values()):
        part = {key: tensor for key, tensor in weights.items() if names[key] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def index_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def lora(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")


def only_pickles(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def pickle_weights(folder: Path, **tensors: torch.Tensor) -> None:
    """As older versions of PyTorch's libraries did, with some of them changed."""
    weights = load_file(folder / "model.safetensors") | tensors
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


class Evil:
    def __reduce__(self):
        return print, ("it ran",)


def evil_pickle(folder: Path) -> None:
    pickle_weights(folder)
    torch.save({"a": Evil()}, folder / "pytorch_model.bin")


def name_other_weights(folder: Path) -> None:
    """The configuration names a file that holds no numbers for one weight."""
    weights = load_file(folder / "model.safetensors") | {"classifier.bias": torch.zeros(5, dtype=torch.bool)}
    save_file(weights, folder / "other.safetensors", metadata={"format": "pt"})
    change(folder / CONFIG, transformers_weights="other.safetensors")


def beside(folder: Path, **image_processor) -> None:
    """What a processor of several parts leaves, which comes before the image processor's own file."""
    (folder / COMMON).write_text(json.dumps({"image_processor": image_processor}))


VARIANCE = "model.backbone.stem.convolutions.0.normalization.running_var"
COMMON = "processor_config.json"
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
CONFIG_FAULTS = {
    "another model": (lambda d: SegformerConfig().save_pretrained(d), "its model type is 'segformer', not 'ccnet'"),
    "no type": (lambda d: (d / CONFIG).write_text("{}"), "its model type is None, not 'ccnet'"),
    "a long type": (
        lambda d: change(d / CONFIG, model_type="x" * 10**6),
        "its model type is 'xxx.{,40}', not",
    ),
    "a list": (lambda d: (d / CONFIG).write_text("[1]"), "cannot be read: it holds no object, but list"),
    "no JSON": (lambda d: (d / CONFIG).write_text("model_type: ccnet"), "cannot be read: Expecting value"),
    "empty": (lambda d: (d / CONFIG).write_bytes(b""), "cannot be read: Expecting value"),
    "binary": (lambda d: (d / CONFIG).write_bytes(b"\x89PNG\xff\0"), "cannot be read: 'utf-8' codec"),
    "UTF-16": (lambda d: (d / CONFIG).write_text("{}", encoding="utf-16"), "cannot be read: 'utf-8' codec"),
    "nested": (lambda d: (d / CONFIG).write_text("[" * 10**5), "cannot be read: it is nested too deeply"),
    "huge": (lambda d: (d / CONFIG).write_text(" " * 2**25), "cannot be read: it has more than 16,777,216 bytes"),
    "a folder": (lambda d: ((d / CONFIG).unlink(), (d / CONFIG).mkdir()), "model holds no config.json"),
    "text for a number": (lambda d: change(d / CONFIG, recurrence="two"), "cannot be read: .*recurrence"),
    "a list for a switch": (lambda d: change(d / CONFIG, align_corners=[]), "cannot be read: .*align_corners"),
    "NaN": (lambda d: change(d / CONFIG, classifier_dropout_prob=float("nan")), "cannot be read: classifier_dropout"),
    "labels that are no numbers": (lambda d: change(d / CONFIG, id2label={"a": "b"}), "cannot be read: "),
    "labels with a gap": (
        lambda d: change(d / CONFIG, id2label={"0": "a", "7": "b"}),
        r"cannot be read: id2label must name the labels 0 to 1, got \[0, 7\]",
    ),
    "names that are no text": (lambda d: change(d / CONFIG, id2label={"0": "a", "1": [2]}), "cannot be read: "),
    "a billion labels": (
        lambda d: change(d / CONFIG, id2label=None, num_labels=10**9),
        "cannot be read: num_labels must be at most 65,536, got 1000000000",
    ),
    "a billion rounds": (lambda d: change(d / CONFIG, recurrence=10**9), "recurrence must be at most 100, got 10+"),
    "a billion layers": (
        lambda d: change_backbone(d, depths=[1, 2, 10**9, 1]),
        "depths is at most 1000, got 1000000000",
    ),
    "an unknown backbone": (
        lambda d: change_backbone(d, model_type="nonet"),
        "must name a model_type",
    ),
    "a backbone that is no object": (lambda d: change(d / CONFIG, backbone_config=[1]), "cannot be read: "),
    "a name of a method": (lambda d: change(d / CONFIG, to_dict=5), "there is no field 'to_dict'"),
    "a name of a property": (lambda d: change(d / CONFIG, use_return_dict=False), "no field 'use_return_dict'"),
    "an unknown dtype": (lambda d: change(d / CONFIG, dtype="float3"), "cannot be read: "),
}
PROCESSOR_FAULTS = {
    "none": (lambda d: (d / PROCESSOR).unlink(), "model holds no preprocessor_config.json"),
    "another processor": (
        lambda d: change(d / PROCESSOR, image_processor_type="SegformerImageProcessor"),
        "is of a SegformerImageProcessor, not of a CCNetImageProcessor",
    ),
    "a list": (lambda d: (d / PROCESSOR).write_text("[]"), "cannot be read: it holds no object, but list"),
    "no size": (lambda d: change(d / PROCESSOR, size={"depth": 3}), "cannot be read: "),
    "a size without end": (
        lambda d: change(d / PROCESSOR, size={"height": 10**9, "width": 10**9}),
        "cannot be read: size is at most 268,435,456 pixels a side",
    ),
    "text for a mean": (lambda d: change(d / PROCESSOR, image_mean="grey"), "cannot be read: "),
    "two means": (lambda d: change(d / PROCESSOR, image_mean=[0.5, 0.5]), "one number per channel each"),
    "a mean that is NaN": (
        lambda d: change(d / PROCESSOR, image_mean=[float("nan")] * 3),
        "`image_mean` must be finite numbers",
    ),
    "a deviation of 0": (lambda d: change(d / PROCESSOR, image_std=[0, 1, 1]), "cannot be read: "),
    "a factor that is text": (lambda d: change(d / PROCESSOR, rescale_factor="1/255"), "cannot be read: "),
    "a palette of one number": (lambda d: change(d / PROCESSOR, palette=5), "cannot be read: "),
    "a name of a method": (lambda d: change(d / PROCESSOR, preprocess=1), "there is no field 'preprocess'"),
    "a feature extractor": (
        lambda d: (d / PROCESSOR).write_text('{"feature_extractor_type": "ViTFeatureExtractor"}'),
        "is of a ViTImageProcessor.*, not of a CCNetImageProcessor",
    ),
    "one for instances": (
        lambda d: change(d / PROCESSOR, image_processor_type="CCNetInstanceImageProcessor"),
        "is of a CCNetInstanceImageProcessor, not of a CCNetImageProcessor",
    ),
}
COMMON_FAULTS = {
    "another processor": (
        lambda d: beside(d, image_processor_type="ViTImageProcessor", size={"height": 8, "width": 8}),
        "is of a ViTImageProcessor, not of a CCNetImageProcessor",
    ),
    "no JSON": (lambda d: (d / COMMON).write_text("{"), "cannot be read: Expecting property name"),
    "no object": (
        lambda d: (d / COMMON).write_text('{"image_processor": []}'),
        "cannot be read: its image_processor is no object, but list",
    ),
    "text for a mean": (lambda d: beside(d, image_mean="grey"), "cannot be read: "),
}
WEIGHT_FAULTS = {
    "none": (lambda d: (d / "model.safetensors").unlink(), "model holds no model.safetensors"),
    "an adapter": (lora, r"model holds no config.json but that of an adapter \(LoRA\)"),
    "cut": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-100]),
        "model/model.safetensors cannot be read: ",
    ),
    "a header without end": (
        lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 100),
        "model/model.safetensors cannot be read: ",
    ),
    "pickles of something else": (only_pickles, "model cannot be read: .*weights are missing"),
    "one less": (lambda d: change_weight(d, "classifier.bias", None), "weights are missing, classifier.bias among"),
    "another shape": (
        lambda d: change_weight(d, "classifier.bias", torch.zeros(6)),
        r"classifier.bias has shape \(6,\) in model.safetensors, \(5,\) by config.json",
    ),
    "a configuration of more channels": (
        lambda d: change(d / CONFIG, hidden_size=1000),
        r"has shape \(\d.*\) in model.safetensors, \(\d.*\) by config.json",
    ),
    "complex": (
        lambda d: change_weight(d, "classifier.bias", torch.zeros(5, dtype=torch.complex64)),
        "classifier.bias in model.safetensors is of dtype C64, not F16",
    ),
    "bool": (
        lambda d: change_weight(d, "classifier.bias", torch.zeros(5, dtype=torch.bool)),
        "classifier.bias in model.safetensors is of dtype BOOL, not F16",
    ),
    "NaN": (
        lambda d: change_weight(d, "classifier.bias", torch.full((5,), torch.nan)),
        "model cannot be read: classifier.bias has values that are not finite",
    ),
    "a negative variance": (
        lambda d: change_weight(d, VARIANCE, torch.full((4,), -1.0)),
        rf"model cannot be read: {VARIANCE}, a variance, has negative values \(in model.safetensors\)",
    ),
    "pickled bool": (
        lambda d: pickle_weights(d, **{"classifier.bias": torch.zeros(5, dtype=torch.bool)}),
        r"model/pytorch_model.bin holds no state dict: entry 'classifier.bias' is no plain tensor, but of dtype torch",
    ),
    "pickled integers": (
        lambda d: pickle_weights(d, **{"classifier.bias": torch.zeros(5, dtype=torch.int64)}),
        "classifier.bias in pytorch_model.bin is of dtype I64, not F16",
    ),
    "pickled and of another shape": (
        lambda d: pickle_weights(d, **{"classifier.bias": torch.zeros(6)}),
        r"classifier.bias has shape \(6,\) in pytorch_model.bin, \(5,\) by config.json",
    ),
    "a pickle that runs code": (
        evil_pickle,
        "model/pytorch_model.bin was refused: its pickle asks for .*print, and only tensors and plain containers are",
    ),
    "a pickle that is cut": (
        lambda d: (
            pickle_weights(d),
            (d / "pytorch_model.bin").write_bytes((d / "pytorch_model.bin").read_bytes()[:-3000]),
        ),
        "model/pytorch_model.bin was refused: it is damaged or no PyTorch checkpoint",
    ),
    "a file that the configuration names": (
        name_other_weights,
        "classifier.bias in other.safetensors is of dtype BOOL, not F16",
    ),
    "a file that the configuration names and is not there": (
        lambda d: change(d / CONFIG, transformers_weights="none.safetensors"),
        "config.json: transformers_weights must name a safetensors file or its index in model, got 'none.safetensors'",
    ),
    "a pickle that the configuration names": (
        lambda d: (pickle_weights(d), change(d / CONFIG, transformers_weights="pytorch_model.bin")),
        "config.json: transformers_weights must name a safetensors file or its index in model, got 'pytorch_mod",
    ),
    "an index without metadata": (
        lambda d: (
            split_weights(d),
            (d / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index_of(d)})),
        ),
        "model.safetensors.index.json cannot be read: it has no metadata",
    ),
    "an index of no weights": (
        lambda d: (split_weights(d), (d / "model.safetensors.index.json").write_text('{"weight_map": {}}')),
        "model.safetensors.index.json cannot be read: it has no weight_map",
    ),
    "an index without its files": (
        lambda d: (split_weights(d), (d / "model-00002-of-00002.safetensors").unlink()),
        "model.safetensors.index.json names 'model-00002-of-00002.safetensors', which is not in model",
    ),
    "an index that leaves the folder": (
        lambda d: (
            split_weights(d),
            change(d / "model.safetensors.index.json", weight_map={"a": "../other.safetensors"}),
        ),
        "model.safetensors.index.json names '../other.safetensors', which is not in model",
    ),
    "an index of nothing": (
        lambda d: (split_weights(d), (d / "model.safetensors.index.json").write_text('{"weight_map": [1]}')),
        "model.safetensors.index.json cannot be read: it has no weight_map",
    ),
}
FAULTS = [
    pytest.param(damage, file, message, id=f"{file or 'weights'}: {name}")
    for file, faults in (
        (CONFIG, CONFIG_FAULTS),
        (PROCESSOR, PROCESSOR_FAULTS),
        (COMMON, COMMON_FAULTS),
        ("", WEIGHT_FAULTS),
    )
    for name, (damage, message) in faults.items()
]


@pytest.mark.parametrize(("damage", "file", "message"), FAULTS)
def test_a_malformed_checkpoint_is_refused_in_one_sentence_that_names_the_file(folder, damage, file, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_checkpoint("model", device="cpu")
    told = str(caught.value)
    assert "\n" not in told and len(told) < 700
    assert file in told


def test_weights_in_several_files(folder):
    expected = load_checkpoint("model", device="cpu")[0].state_dict()
    split_weights(folder)
    found = load_checkpoint("model", device="cpu")[0].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_pickled_weights(folder):
    expected = load_checkpoint("model", device="cpu")[0].state_dict()
    pickle_weights(folder)
    model = load_checkpoint("model", device="cpu")[0]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())
    assert model.name_or_path == "model"


def test_a_processor_in_the_file_that_several_share(folder):
    beside(folder, **json.loads((folder / PROCESSOR).read_text()) | {"image_mean": [0.25, 0.25, 0.25]})
    (folder / PROCESSOR).unlink()
    assert load_checkpoint("model", device="cpu")[1].image_mean == (0.25, 0.25, 0.25)


def test_a_configuration_that_asks_for_tuples_is_predicted_with(folder):
    change(folder / CONFIG, return_dict=False)
    predictor = Predictor(*load_checkpoint("model", device="cpu"))
    assert predictor.label_map(np.zeros((8, 9, 3), np.uint8)).shape == (8, 9)


def test_code_of_a_folder_is_never_run(folder):
    code = {"AutoConfig": "evil.Config", "AutoImageProcessor": "evil.Processor", "AutoModel": "evil.Model"}
    (folder / "evil.py").write_text("raise SystemExit('it ran')\n")
    for name in (CONFIG, PROCESSOR):
        change(folder / name, auto_map=code)
    assert load_checkpoint("model", device="cpu")[0].config.num_labels == 5


def test_the_dtype_that_is_asked_for(folder):
    config = load_config("model")
    assert load_model("model", config, "bfloat16").dtype == torch.bfloat16
    assert load_model("model", config).dtype == torch.float32
    change_weight(folder, "classifier.bias", torch.full((5,), 1e6))  # no number of float16
    with pytest.raises(InputError, match=r"classifier\.bias has values that are not finite"):
        load_model("model", config, "float16")


@pytest.mark.parametrize("name", ["", "gpu", "0", "cuda:x", "cuda:99", "meta", "privateuseone"])
def test_devices_that_are_not_there(name):
    with pytest.raises(InputError, match=f"(unknown|cannot use) device '?{name}'?") as caught:
        find_device(name)
    assert "\n" not in str(caught.value)


def test_a_device_that_is_there():
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")
    assert (
        find_device("auto").type
        == (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")).type
    )


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"scales": (1000.0,)}, None, "scale 1000 makes 2400 megapixels of an image of 40x60"),
        ({"scales": (1.0, 1e300)}, None, "scale 1e[+]300 makes inf megapixels of an image of 40x60"),
        ({}, {"height": 10**6, "width": 10**6}, "the size of the image processor makes 1e[+]06 megapixels"),
        ({}, {"shortest_edge": 10**5, "longest_edge": 10**6}, "the size of the image processor makes 1.5e[+]04 mega"),
    ],
)
def test_images_are_not_enlarged_without_end(options, size, message):
    processor = CCNetImageProcessor(size=size or {"shortest_edge": 32, "longest_edge": 64})
    predictor = Predictor(tiny_model(), processor, **options)
    with pytest.raises(InputError, match=rf"^{message}.* \(height x width\); 268.4 are allowed$"):
        predictor.label_map(np.zeros((40, 60, 3), np.uint8))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no file without an end")
def test_a_file_without_an_end_is_not_read_to_its_end(folder):
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"holds no config\.json"):
        load_config("model")
    with pytest.raises(InputError, match="/dev/zero cannot be read: it has more than 16,777,216 bytes"):
        read_json(Path("/dev/zero"))
