"""The recipes on transformers' own backbones: twenty steps of each, of a network as small as a test needs it; nightly
of the real one, by the command."""

import json
import math
from dataclasses import replace

import pytest
import torch
from tiny_training import build_trainer

from ccnet_hf import CCNetForSemanticSegmentation
from ccnet_hf.deployment.programs import quiet
from ccnet_hf.inference.loading import load_checkpoint
from ccnet_hf.recipes import RECIPES
from ccnet_hf.training.progress import LOG_FILE, read_log
from ccnet_hf.training.train import main as train


# What is smaller than in the recipe; the rest of the configuration, drop path included, is the recipe's.
TINY = {
    "ccnet-convnext-tiny-ade20k": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
    "ccnet-dinov3-vits-ade20k": {
        **{"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3},
        "out_features": ["stage2", "stage3"],
    },
    "ccnet-swin-tiny-cityscapes": {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4]},
}
STRIDES = {"ccnet-convnext-tiny-ade20k": 32, "ccnet-dinov3-vits-ade20k": 16, "ccnet-swin-tiny-cityscapes": 32}
SHORT = {"max_train_steps": 20, "eval_steps": 0, "warmup_steps": 2, "batch_size": 2, "scale": (128, 96)}


def tiny_network(name: str) -> CCNetForSemanticSegmentation:
    torch.manual_seed(0)
    recipe = RECIPES[name]
    backbone_config = recipe.model["backbone_config"] | TINY[name]
    config = recipe.config(backbone_config=backbone_config, hidden_size=32, auxiliary_channels=16, num_labels=3)
    return CCNetForSemanticSegmentation(config)


@pytest.fixture(scope="module", params=TINY)
def trained(request, tmp_path_factory):
    """The name of a recipe, what was trained by it, and where."""
    folder = tmp_path_factory.mktemp("trained")
    # A network without pretrained weights, that is not given 160,000 steps, learns and is averaged faster.
    hurried = {"learning_rate": 1e-2, "ema_decay": 0.8, "photometric_distortion": False}
    recipe = replace(RECIPES[request.param].training, **SHORT, **hurried, crop_size=(64, 96))
    trainer = build_trainer(folder, recipe, tiny_network(request.param))
    trainer.run()
    return request.param, trainer, folder


def test_commands_load_what_was_trained(trained):
    """Also of backbones whose tensors transformers calls otherwise in files than in memory."""
    _, _, folder = trained
    model, _ = load_checkpoint(str(folder), "float32", "cpu")
    expected = CCNetForSemanticSegmentation.from_pretrained(folder).state_dict()
    torch.testing.assert_close(dict(model.state_dict()), dict(expected), rtol=0, atol=0)


def test_twenty_steps_lower_the_loss(trained):
    _, trainer, folder = trained
    losses = [row["loss"] for row in read_log(folder / LOG_FILE)]
    assert len(losses) == 20 and all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    rates = [group["initial_lr"] for group in trainer.optimizer.param_groups]
    recipe = trainer.recipe
    assert len(set(rates)) == {1.0: 1, 0.9: 1 + 6, 0.65: 1 + 4}[recipe.layer_decay]
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, recipe.weight_decay}


def test_what_is_saved_is_the_average_and_gives_its_logits(trained):
    _, trainer, folder = trained
    saved = CCNetForSemanticSegmentation.from_pretrained(folder).eval()
    pixel_values = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        expected = trainer.average.module.eval()(pixel_values).logits
        torch.testing.assert_close(saved(pixel_values).logits, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(trainer.model.eval()(pixel_values).logits, expected, rtol=1e-2)


def test_logits_cover_images_of_any_size(trained):
    """Also of one that is no multiple of the stride, of one below it, and more than training has shown."""
    name, trainer, _ = trained
    model, stride = trainer.average.module.eval(), STRIDES[name]
    for height, width in ((64, 96), (65, 97), (5, 40), (160, 33)):
        with torch.no_grad():
            logits = model(torch.randn(2, 3, height, width)).logits
        assert logits.shape == (2, 3, -(-height // stride), -(-width // stride)) and logits.isfinite().all()


def test_an_exported_program_gives_the_logits(trained):
    exporters = pytest.importorskip("transformers.exporters", reason="transformers has exporters from 5.24 on")
    pytest.importorskip("torch", minversion="2.11", reason="the exporters need PyTorch 2.11")
    model = trained[1].average.module.eval()
    with quiet():
        exported = exporters.DynamoExporter().export(
            model, {"pixel_values": torch.randn(1, 3, 64, 96)}, exporters.DynamoConfig(dynamic=False)
        )
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(pixel_values).logits
        found = exported(pixel_values=pixel_values).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize("name", TINY)
def test_the_real_network_trains_by_its_command(name, coloured_folder, tmp_path):
    arguments = (
        f"--variant {name} --dataset_name {coloured_folder} --output_dir {tmp_path / 'model'} "
        "--backbone_checkpoint none --max_train_steps 20 --warmup_steps 2 --batch_size 2 --eval_steps 20 "
        "--crop_size 64 96 --scale 128 96 --logging_steps 1 --dataloader_num_workers 0 --report_to none "
        "--ema_decay 0.8"
    )
    assert train(arguments.split()) == 0
    rows = read_log(tmp_path / "model" / LOG_FILE)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 20 and sum(losses[-5:]) < sum(losses[:5])
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["backbone_config"]["model_type"] == RECIPES[name].model["backbone_config"]["model_type"]
    assert 0 <= rows[-1]["eval_mean_iou"] <= 1
