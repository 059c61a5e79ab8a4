"""Human parsers trained and scored by the commands."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from tiny_training import tiny_model
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from ccnet_hf import CCNetForHumanParsing
from ccnet_hf.evaluation.eval import main as evaluate
from ccnet_hf.inference.segment import main as segment
from ccnet_hf.models.loss_ccnet_parsing import ccnet_parsing_losses
from ccnet_hf.recipes import RECIPES, get_recipe
from ccnet_hf.training.objective import ParsingObjective
from ccnet_hf.training.progress import LOG_FILE
from ccnet_hf.training.train import main as train


SIZES = {"hidden_size": 16, "decoder_channels": 16, "shortcut_channels": 8, "edge_channels": 8}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """The recipes of LIP with narrow networks and small images."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    for name in ("ccnet-r101-lip", "ce2p-r101-lip"):
        recipe = get_recipe(name)
        backbone = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "stem_size": 8}
        model = recipe.model | SIZES | {"backbone_config": recipe.model["backbone_config"] | backbone}
        training = replace(recipe.training, crop_size=(48, 48), batch_size=2, max_train_steps=2, eval_steps=2)
        changes = {"model": model, "training": training, "backbone_checkpoint": None}
        monkeypatch.setitem(RECIPES, name, replace(recipe, **changes))


def arguments(dataset: str, output_dir, variant: str = "ccnet-r101-lip", *more: str) -> list[str]:
    return (
        f"--variant {variant} --dataset_name {dataset} --output_dir {output_dir} --dataloader_num_workers 0 "
        "--report_to none --logging_steps 1"
    ).split() + list(more)


def test_trains_scores_segments_and_goes_on(coloured_folder, tmp_path, capsys):
    folder = tmp_path / "parser"
    assert train(arguments(coloured_folder, folder)) == 0
    output = capsys.readouterr().out
    assert "step 2: eval_mean_iou" in output
    steps = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    losses = {"loss", "fusion_loss", "parsing_loss", "edge_loss", "category_loss"}
    assert losses <= set(steps[0]) and all(np.isfinite(steps[0][name]) for name in losses)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert dict(processor.size) == {"height": 48, "width": 48} and processor.active_letterbox_inverse == "logits"
    assert isinstance(AutoModelForSemanticSegmentation.from_pretrained(folder), CCNetForHumanParsing)
    card = ModelCard.load(folder / "README.md")
    assert "human-parsing" in card.data.tags and "CE2P" in card.text and "criss-cross attention" in card.text

    scored = ["--model_name_or_path", str(folder), "--dataset_name", coloured_folder]
    for more in ([], ["--flip", "--scales", "0.75", "1"]):
        assert evaluate([*scored, "--output_json", str(tmp_path / "scores.json"), *more]) == 0
        line = capsys.readouterr().out
        assert "mIoU" in line and "mAcc" in line and "aAcc" in line
        assert json.loads((tmp_path / "scores.json").read_text())["num_examples"] == 3

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 40, 3), dtype=np.uint8))
    image.save(tmp_path / "person.png")
    out = tmp_path / "out"
    assert segment([str(tmp_path / "person.png"), "--model_name_or_path", str(folder), "--output_dir", str(out)]) == 0
    labels = np.asarray(Image.open(out / "person_labels.png"))
    assert labels.shape == (61, 40)
    segments = pipeline("image-segmentation", model=str(folder))(image)
    for found in segments:
        label = {name: index for index, name in processor_names(folder).items()}[found["label"]]
        assert np.array_equal(np.asarray(found["mask"]) > 0, labels == label)

    second = tmp_path / "second"
    more = ("--model_name_or_path", str(folder), "--learning_rate", "1e-12", "--num_labels", "4")
    assert train(arguments(coloured_folder, second, "ccnet-r101-lip", *more)) == 0
    weights = [load_file(path / "model.safetensors") for path in (folder, second)]
    assert [len(tensors["parsing_classifier.weight"]) for tensors in weights] == [20, 4]
    name = "edge_branch.classifier.weight"
    torch.testing.assert_close(weights[0][name], weights[1][name])


def processor_names(folder) -> dict[int, str]:
    return {int(k): v for k, v in json.loads((folder / "config.json").read_text())["id2label"].items()}


def test_the_control_has_neither_attention_nor_its_loss(coloured_folder, tmp_path):
    folder = tmp_path / "control"
    assert train(arguments(coloured_folder, folder, "ce2p-r101-lip", "--no-letterbox")) == 0
    assert not any("attention" in name or "category" in name for name in load_file(folder / "model.safetensors"))
    assert AutoImageProcessor.from_pretrained(folder).active_letterbox_inverse is None
    assert "criss-cross-attention" not in ModelCard.load(folder / "README.md").data.tags


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--loss_reduction", "all"),
            "--loss_reduction: models of type 'ccnet_parsing' have nothing",
        ),
        (("--ohem_threshold", "0.7"), "--ohem_threshold: models of type 'ccnet_parsing'"),
    ],
)
def test_what_human_parsing_has_not(coloured_folder, tmp_path, capfd, more, message):
    assert train(arguments(coloured_folder, tmp_path / "model", "ccnet-r101-lip", *more)) == 1
    assert message in capfd.readouterr().err.strip().splitlines()[-1]


def test_a_recipe_takes_models_of_its_own_kind(coloured_folder, tmp_path, capfd):
    tiny_model().save_pretrained(tmp_path / "semantic")
    more = ("--model_name_or_path", str(tmp_path / "semantic"))
    assert train(arguments(coloured_folder, tmp_path / "model", "ccnet-r101-lip", *more)) == 1
    assert (
        "is a model of type 'ccnet', and ccnet-r101-lip trains another"
        in capfd.readouterr().err.strip().splitlines()[-1]
    )


def test_the_loss_of_training_is_the_models():
    torch.manual_seed(0)
    recipe = get_recipe("ccnet-r101-lip")
    model = CCNetForHumanParsing(recipe.config(num_labels=3, classifier_dropout_prob=0.0)).train()
    batch = {"pixel_values": torch.randn(2, 3, 48, 48), "labels": torch.randint(0, 3, (2, 48, 48))}
    batch["labels"][0, :9] = 255
    outputs = model(**batch)
    objective = ParsingObjective(model.config)
    counts = objective.counts(batch)
    assert counts == {"valid_pixels": 2 * 48 * 48 - 9 * 48}
    torch.testing.assert_close(sum(objective(model, batch, counts).values()), outputs.loss)
    parts = (outputs.logits, outputs.parsing_logits, outputs.edge_logits, outputs.category_embeddings)
    weights = torch.tensor([1.0, 2.0, 3.0])
    weighted = ParsingObjective(model.config, weights)(model, batch, {"valid_pixels": 1000.0})
    expected = ccnet_parsing_losses(model.config, batch["labels"], *parts, class_weights=weights, valid_pixels=1000.0)
    assert list(weighted) == list(expected) and all(name.endswith("_loss") for name in weighted)
    torch.testing.assert_close(sum(weighted.values()), sum(expected.values()))
