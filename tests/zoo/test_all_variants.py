"""All 16 variants of mmsegmentation: checkpoint as it writes it -> folder -> Auto classes -> checkpoint."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from golden_files import assert_close, load_golden
from reference_weights import key_shapes, mmsegmentation_state_dict, reference_tensor
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from ccnet_hf.recipes import RECIPES
from ccnet_hf.zoo import convert_checkpoint, export_checkpoint


pytestmark = pytest.mark.nightly

# By depth and number of classes, so that a checkpoint is written once for all variants that share it.
NAMES = sorted(
    (name for name, recipe in RECIPES.items() if recipe.mmseg_config),
    key=lambda name: (name.split("-")[1], name.split("-")[2]),
)
FORWARDS = {(50, 19): ("r50_c19_1x3x65x97", 2e-5), (101, 150): ("r101_c150_1x3x65x97", 2e-4)}


@pytest.fixture(scope="module")
def zoo(shared_dir) -> dict:
    return json.loads((shared_dir / "reference" / "zoo.json").read_text())


@lru_cache(maxsize=1)
def of_depth(depth: int) -> dict[str, torch.Tensor]:
    return mmsegmentation_state_dict(depth, 19)


def state_dict(depth: int, num_labels: int) -> dict[str, torch.Tensor]:
    """The reference weights; what does not depend on the number of classes is made once."""
    common = of_depth(depth)
    return {
        key: common[key] if common[key].shape == shape else reference_tensor(key, shape)
        for key, shape in key_shapes(depth, num_labels)
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Iterator:
    """`checkpoint(depth, dataset)`: a file with all that a training of mmsegmentation leaves in it."""
    folder, written = tmp_path_factory.mktemp("checkpoints"), {}

    def write(depth: int, dataset: dict) -> Path:
        key = depth, dataset["num_classes"]
        if key not in written:
            for old in written.values():
                old.unlink(missing_ok=True)
            weights = state_dict(*key)
            meta = {
                "mmseg_version": "0.5.0+unknown",
                "config": "norm_cfg = dict(type='SyncBN', requires_grad=True)\n",
                "CLASSES": tuple(dataset["classes"]),
                "PALETTE": dataset["palette_rgb"],
                "env_info": "sys.platform: linux",
                "iter": 40000,
                "epoch": 53,
                "hook_msgs": {"best_mIoU": 0.7776},
            }
            momentum = {"momentum_buffer": torch.ones(32, 3, 3, 3)}
            group = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False, "params": [0]}
            optimizer = {"state": {0: momentum}, "param_groups": [group]}
            written[key] = folder / f"{depth}_{key[1]}.pth"
            torch.save({"meta": meta, "state_dict": weights, "optimizer": optimizer}, written[key])
        return written[key]

    yield write
    for file in written.values():
        file.unlink(missing_ok=True)
    of_depth.cache_clear()


def check_config(model, processor, variant: dict, dataset: dict) -> None:
    """Against zoo.json alone."""
    config, head = model.config, variant["decode_head"]
    assert [config.id2label[index] for index in range(config.num_labels)] == [
        label.strip() for label in dataset["classes"]
    ]
    assert config.semantic_loss_ignore_index == dataset["ignore_index"] == head["ignore_index"]
    assert config.align_corners == processor.align_corners == head["align_corners"]
    assert config.loss_reduction == ("valid" if head["loss"]["avg_non_ignore"] else "all")
    assert config.recurrence == head["recurrence"]
    assert list(config.backbone_config.depths) == variant["backbone"]["stage_blocks"]
    test = variant["test_cfg"]
    expected = {"mode": test["mode"], "crop_size": test["crop_size_hw"], "stride": test["stride_hw"]}
    assert config.inference == {name: value for name, value in expected.items() if value is not None}

    assert [list(colour) for colour in processor.palette] == dataset["palette_rgb"]
    assert processor.do_reduce_labels == dataset["reduce_zero_label"]
    (resize,) = (step for step in variant["test_pipeline"] if step["type"] == "Resize")
    assert [processor.size["longest_edge"], processor.size["shortest_edge"]] == resize["params"]["scale"]
    for name, values in (("mean", processor.image_mean), ("std", processor.image_std)):
        assert [255 * value for value in values] == pytest.approx(variant["data_preprocessor"][name], rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name, zoo, checkpoint, tmp_path):
    (variant,) = (entry for entry in zoo["variants"] if entry["mmseg_config"] == RECIPES[name].mmseg_config)
    depth, dataset = variant["backbone_depth"], zoo["datasets"][variant["dataset"]]
    folder, exported = tmp_path / name, tmp_path / "exported.pth"
    convert_checkpoint(name, checkpoint(depth, dataset), folder)

    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    check_config(model, AutoImageProcessor.from_pretrained(folder), variant, dataset)
    forward = FORWARDS.get((depth, dataset["num_classes"]))
    if forward is not None:
        golden, tolerance = load_golden(f"{forward[0]}_forward"), forward[1]
        with torch.no_grad():
            logits = model(torch.from_numpy(golden["input"])).logits
        assert_close(logits, golden["decode_logits"], tolerance, "logits")
    del model

    export_checkpoint(folder, exported)
    found = torch.load(exported, weights_only=True, mmap=True)
    meta = found["meta"]["dataset_meta"]
    assert [label.strip() for label in dataset["classes"]] == list(meta["classes"])
    assert dataset["palette_rgb"] == meta["palette"]
    expected = state_dict(depth, dataset["num_classes"])
    assert found["state_dict"].keys() == expected.keys()
    for key, tensor in expected.items():
        back = found["state_dict"][key]
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape), key
        bits = torch.int64 if tensor.dtype == torch.int64 else torch.int32
        assert torch.equal(back.view(bits), tensor.view(bits)), key
    del found
    exported.unlink()
    for file in folder.iterdir():
        file.unlink()
