"""Model cards: rendered from the recipes, equal to the committed ones, valid on the Hub."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tiny_zoo import ZOO

from ccnet_hf.data.benchmarks import get_benchmark
from ccnet_hf.recipes import CONVERTED_PARSERS, RECIPES, get_recipe
from ccnet_hf.zoo.__main__ import main
from ccnet_hf.zoo.cards import render_card, repository_names


CARDS = Path(__file__).resolve().parents[2] / "model_cards"

every_variant = pytest.mark.parametrize("recipe", ZOO, ids=lambda recipe: recipe.name)


def test_committed_cards_are_the_rendered_ones(tmp_path):
    assert main(["cards", "--output_dir", str(tmp_path)]) == 0
    rendered = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()}
    committed = {file.name: file.read_text(encoding="utf-8") for file in CARDS.iterdir()}
    assert rendered.keys() == committed.keys()
    changed = [name for name in rendered if rendered[name] != committed[name]]
    assert not changed, f"run `python -m ccnet_hf.zoo cards`; these differ: {changed}"


@every_variant
def test_metadata_is_what_the_hub_understands(recipe):
    data = ModelCard(render_card(recipe)).data
    assert (data.pipeline_tag, data.library_name) == ("image-segmentation", "transformers")
    assert data.license == "other" and data.license_name and data.license_link.startswith("http")
    assert len(data.datasets) == 1
    assert data.model_name == recipe.name
    single_scale, multi_scale = data.eval_results  # as huggingface_hub's EvalResult
    assert single_scale.metric_value == recipe.reported["mean_iou"]
    assert multi_scale.metric_value == recipe.reported["mean_iou_multi_scale_flip"]
    for result in data.eval_results:
        assert result.dataset_name == get_benchmark(recipe.benchmark).title
        assert result.metric_type == "mean_iou"
        source = "PaddleSeg/blob/d7975e7c/configs/ccnet/README.md"
        assert result.source_url.endswith(f"{recipe.mmseg_config}.py" if recipe.mmseg_config else source)
        assert result.verified is None  # nobody has measured it here


WITHOUT_WEIGHTS = [recipe for recipe in RECIPES.values() if recipe.task != "semantic" or recipe.backbone_terms]


@pytest.mark.parametrize("recipe", WITHOUT_WEIGHTS, ids=lambda recipe: recipe.name)
def test_cards_of_models_without_weights(recipe):
    card = render_card(recipe, namespace="me")
    assert "This project publishes neither weights nor a score of it" in card and "$" not in card
    data = ModelCard(card).data
    assert data.eval_results is None and "ccnet" in data.tags
    has_attention = recipe.model.get("context_module") != "pyramid"
    assert ("criss-cross-attention" in data.tags) == has_attention
    assert f'"me/{recipe.name}"' in card
    if recipe.backbone_terms:
        assert f"(https://huggingface.co/{recipe.backbone_checkpoint})" in card and recipe.backbone_terms in card
    is_converted = recipe.name in CONVERTED_PARSERS
    assert ("convert_checkpoint.py" in card) == is_converted and f"--variant {recipe.name}" in card


@every_variant
def test_text(recipe):
    card = render_card(recipe)
    assert "$" not in card
    assert f"`<namespace>/{recipe.name}`" in card
    assert f"| single scale | {recipe.reported['mean_iou']:.2f} |" in card
    assert "Not measured by this project" in card
    assert f"{recipe.training.max_train_steps:,} iterations" in card
    sliding = recipe.model["inference"]["mode"] == "slide"
    assert ("does not reproduce these scores" in card) == sliding
    assert ("sliding windows of 769x769 with stride 513x513" in card) == sliding
    assert ("Corners are aligned" in card) == sliding
    with_package, without_package = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert [len(list(filter(None, code.splitlines()))) for code in (with_package, without_package)] == [3, 3]
    assert "import ccnet_hf" in with_package and "trust_remote_code" not in with_package
    assert "import ccnet_hf" not in without_package and "trust_remote_code=True" in without_package


def test_figures_are_the_zoos(shared_dir):
    """Figures in the text against the reference file, not against the table they come from."""
    variants = json.loads((shared_dir / "reference/zoo.json").read_text())["variants"]
    assert len(variants) == 16
    by_config = {recipe.mmseg_config: recipe for recipe in ZOO}
    for variant in variants:
        card = render_card(by_config[variant["mmseg_config"]])
        assert f"| single scale | {variant['reported']['miou']:.2f} |" in card
        assert f"| multi-scale and flip | {variant['reported']['miou_ms_flip']:.2f} |" in card
        assert variant["checkpoint_url"] in card
        assert f"with {variant['batch_size']['total']} images" in " ".join(card.split())
        assert f"ResNet-{variant['backbone_depth']} " in card


def test_card_of_a_short_name():
    recipe = get_recipe("ccnet-r101-cityscapes")
    name, short_name = repository_names(recipe)
    assert (name, short_name) == ("ccnet-r101-cityscapes-769x769-80k", "ccnet-r101-cityscapes")
    card = render_card(recipe, short_name, namespace="our-lab")
    assert ModelCard(card).data.model_name == short_name
    assert 'pipeline("image-segmentation", model="our-lab/ccnet-r101-cityscapes")' in card
    assert f"`our-lab/{name}` holds the same checkpoint" in card
    assert "<namespace>" not in card
