"""Training and evaluation of instance segmentation through the commands' functions, on a few pictures of shapes."""

import json

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from tiny_models import tiny_instance_config

from ccnet_hf import CCNetForInstanceSegmentation, CCNetInstanceImageProcessor
from ccnet_hf.data.dataset_arguments import DatasetArguments
from ccnet_hf.data.instances import instance_dataset
from ccnet_hf.data.preparation.instances import instance_features
from ccnet_hf.evaluation.eval_arguments import main as eval_main
from ccnet_hf.evaluation.tasks import TASKS, find_task
from ccnet_hf.experiments.shapes_dataset import SHAPES, shapes_example, write_shapes
from ccnet_hf.training.batches import SeededBatches
from ccnet_hf.training.instances import MirrorInstances
from ccnet_hf.training.train import main as train_main


SIZE = {"shortest_edge": 96, "longest_edge": 128}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, train=6, validation=3)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    names = {0: "N/A", **SHAPES}
    config = tiny_instance_config(
        num_labels=4, id2label=names, label2id={name: label for label, name in names.items()}
    )
    CCNetForInstanceSegmentation(config).save_pretrained(folder)
    CCNetInstanceImageProcessor(size=SIZE).save_pretrained(folder)
    return folder


def dataset_of(folder, split="train", streaming=False, transform=None, seed=0):
    arguments = DatasetArguments(dataset_name=str(folder), streaming=streaming)
    config = tiny_instance_config(num_labels=4)
    processor = CCNetInstanceImageProcessor(size=SIZE)
    return instance_dataset(arguments, arguments.load_split(split), config, processor, transform, seed)


@pytest.mark.parametrize("streaming", [False, True])
def test_examples_and_their_batch(shapes, streaming):
    dataset = dataset_of(shapes, streaming=streaming)
    truths = list(dataset.truths())
    assert len(truths) == 6 and truths[1][2:] == (1, "picture1")
    rows = list(dataset.encoded())
    examples = [dataset[(0, index, row) if streaming else index] for index, row in rows]
    batch = dataset.collate(examples)
    assert batch["pixel_values"].shape == (6, 3, 96, 96) and batch["pixel_mask"].sum() == 6 * 96 * 96
    for label, (_, annotations, image_id, _) in zip(batch["labels"], truths, strict=True):
        assert label["class_labels"].tolist() == [entry["category_id"] for entry in annotations]
        assert label["image_id"] == image_id and label["masks"].any(dim=(1, 2)).all()
        box_areas = label["boxes"][:, 2] * label["boxes"][:, 3] * 96 * 96
        fractions = label["masks"].sum(dim=(1, 2)) / box_areas
        assert (fractions > 0.4).all() and (fractions < 1.15).all()


def test_mirroring_takes_boxes_and_masks_along(shapes):
    dataset = dataset_of(shapes)
    example = dataset[0]
    torch.manual_seed(0)
    flipped = [MirrorInstances()(example["image"], example["label"]) for _ in range(12)]
    changed = [label for pixels, label in flipped if not torch.equal(pixels, example["image"])]
    assert 0 < len(changed) < 12
    for label in changed:
        assert torch.equal(label["masks"].flip(-1), example["label"]["masks"])
        columns = label["masks"][0].any(dim=0).nonzero()[:, 0].float()
        center = label["boxes"][0, 0] * 96
        assert abs(center - (columns.min() + columns.max() + 1) / 2) < 2
        assert torch.equal(label["boxes"][:, 1:], example["label"]["boxes"][:, 1:])


def test_draws_depend_on_seed_epoch_and_index_alone(shapes):
    def draw(pixels, label):
        return torch.rand(2), label

    def drawn(seed, epoch, index):
        return dataset_of(shapes, transform=draw, seed=seed)[(epoch, index)]["image"].tolist()

    before = torch.get_rng_state()
    first = drawn(0, 1, 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert drawn(0, 1, 2) == first
    assert first not in [drawn(1, 1, 2), drawn(0, 2, 2), drawn(0, 1, 3)]


def test_a_training_its_scores_and_the_command_that_scores(shapes, model_folder, tmp_path, capsys):
    output = tmp_path / "trained"
    options = [
        *("--model_name_or_path", str(model_folder), "--dataset_name", str(shapes), "--output_dir", str(output)),
        *("--crop_size", "96", "128", "--scale", "128", "96", "--batch_size", "2", "--max_train_steps", "2"),
        *("--eval_steps", "2", "--optimizer", "adamw", "--learning_rate", "1e-4", "--report_to", "none"),
    ]
    assert train_main(options) == 0, capsys.readouterr().err
    assert {"model.safetensors", "predictions.png", "README.md"} <= {path.name for path in output.iterdir()}
    log = [json.loads(line) for line in next(output.glob("*.jsonl")).read_text().splitlines()]
    assert {"mask_loss", "objectness_loss", "eval_mask_ap"} <= set().union(*log)
    card = ModelCard.load(output / "README.md")
    assert "mask AP" in card.text and card.data.metrics == ["mean_average_precision"]
    for result, kind in zip(card.data.eval_results, ("box", "mask"), strict=True):
        assert (result.metric_type, result.metric_name) == ("mean_average_precision", f"{kind} AP")
        assert result.metric_value == pytest.approx(100 * log[-1][f"eval_{kind}_ap"], abs=5e-3)
    scored = tmp_path / "scores.json"
    command = ["--model_name_or_path", str(output), "--dataset_name", str(shapes), "--output_json", str(scored)]
    capsys.readouterr()
    assert eval_main(command) == 0, capsys.readouterr().err
    result = json.loads(scored.read_text())
    assert result["num_examples"] == 3 and result["mask_ap"] == pytest.approx(log[-1]["eval_mask_ap"], abs=1e-6)
    assert "| mask |" in capsys.readouterr().out
    assert eval_main([*command, "--flip"]) == 1
    assert "instances are found in whole images" in capsys.readouterr().err


def test_the_configuration_tells_the_task():
    assert find_task(tiny_instance_config()) is TASKS["instance"]


def test_batches_of_one_shape():
    is_wide = np.random.default_rng(0).random(203) < 0.6
    steps = {"batch_size": 4, "start": 0, "stop": 50, "seed": 3}
    batches = list(SeededBatches(203, is_wide, **steps))
    drawn = [index for batch in batches for epoch, index in batch if epoch == 0]
    assert len(set(drawn)) == len(drawn) == 200
    mixed = [batch for batch in batches if len({bool(is_wide[index]) for _, index in batch}) > 1]
    assert len(mixed) <= 2
    wide = [bool(is_wide[batch[0][1]]) for batch in batches]
    assert any(wide[:10]) and not all(wide[:10])  # not sorted over the epoch
    # Two processes share the very same batches.
    shares = [list(SeededBatches(203, is_wide, **steps, process_index=i, num_processes=2)) for i in range(2)]
    assert [one + other for one, other in zip(*shares, strict=True)] == batches


def test_damage_and_foreign_labels_are_named(tmp_path):
    row = shapes_example(0)
    row["objects"][0]["category_id"] = 9
    datasets.Dataset.from_list([row], features=instance_features()).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"picture0: category id 9 is outside 1\.\.3"):
        dataset_of(tmp_path)[0]
    broken = shapes_example(1) | {"height": 5}
    datasets.Dataset.from_list([broken], features=instance_features()).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="its annotations are of 5x128"):
        dataset_of(tmp_path)[0]
