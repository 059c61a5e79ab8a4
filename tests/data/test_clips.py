"""Clips of labelled frames: runs without cuts, one transform for all frames, and what is no video."""

import datasets
import numpy as np
import pytest
import torch

from ccnet_hf.data.clips import ClipDataset, find_runs
from ccnet_hf.errors import InputError
from ccnet_hf.recipes import TrainingRecipe
from ccnet_hf.training.augmentation import training_transforms


def test_runs_of_camvid():
    """30 frames apart, but for some of 29 and 31; cuts of 270 and 1950 frames; another sequence."""
    names = [f"0016E5_{number:06d}" for number in (390, 420, 449, 480, 511, 2461, 2491, 2521, 2791, 2821)]
    names += ["Seq05VD_f00000", "Seq05VD_f00030", "0001TP_006690"]
    assert find_runs(names) == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9], [10, 11], [12]]
    assert find_runs(names[::-1])[0] == [0], "in the order of the frames, whatever that of the names"
    order = [7, 5, 6]
    assert find_runs([names[i] for i in order]) == [[1, 2, 0]]


def test_the_runs_of_the_real_splits(shared_dir):
    import pyarrow.parquet

    lengths = {}
    for split in ("train", "val", "test"):
        table = pyarrow.parquet.read_table(shared_dir / "camvid" / f"{split}-00000-of-00001.parquet", columns=["name"])
        lengths[split] = [len(run) for run in find_runs(table["name"].to_pylist())]
    assert lengths == {"train": [62, 101, 68, 120, 16], "val": [101], "test": [62, 171]}


@pytest.mark.parametrize(
    ("names", "message"), [(["street"], "street: the names"), (["a_1", "a_1"], "a has two frames with the number 1")]
)
def test_what_is_no_video_is_named(names, message):
    with pytest.raises(InputError, match=message):
        find_runs(names)


def split(names: list[str], height: int = 24, width: int = 32) -> datasets.Dataset:
    """Frames of one grey each, whose label maps say the same."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Image(), "name": datasets.Value("string")}
    )
    rows = {
        "image": [np.full((height, width, 3), 20 * number, np.uint8) for number in range(len(names))],
        "label": [np.full((height, width), number, np.uint8) for number in range(len(names))],
        "name": names,
    }
    built = datasets.Dataset.from_dict(rows, features=features)
    for column in ("image", "label"):
        built = built.cast_column(column, datasets.Image(decode=False))
    return built


NAMES = ["a_0", "a_30", "a_60", "a_90", "a_500", "b_0"]


def test_a_clip_stays_in_its_run():
    dataset = ClipDataset(split(NAMES), num_labels=6, num_frames=3)
    assert len(dataset) == 6
    assert [dataset.clip(index) for index in range(6)] == [
        [0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [4, 4, 4], [5, 5, 5]
    ]  # fmt: skip
    example = dataset[1]
    assert example["image"].shape == (3, 3, 24, 32) and example["label"].shape == (3, 24, 32)
    assert [int(frame.unique()) for frame in example["label"]] == [255, 0, 1], "a repeated frame counts once"
    assert [int(frame.unique()) for frame in example["image"]] == [0, 0, 20] and example["name"] == "a_30"
    batch = ClipDataset.collate([dataset[2], dataset[3]])
    assert batch["pixel_values_videos"].shape == (2, 3, 3, 24, 32) and batch["labels"].shape == (2, 3, 24, 32)


def test_all_frames_of_a_clip_go_through_one_transform():
    """A still: whatever is drawn, its frames stay equal, and other epochs draw otherwise."""
    recipe = TrainingRecipe(crop_size=(16, 20), scale=(32, 24), batch_size=1, max_train_steps=1, eval_steps=0)
    generator = np.random.default_rng(0)
    image, label = generator.integers(0, 256, (24, 32, 3), np.uint8), generator.integers(0, 6, (24, 32), np.uint8)
    stills = split(NAMES[:4]).remove_columns(["image", "label"])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    pictures = datasets.Dataset.from_dict({"image": [image] * 4, "label": [label] * 4}, features=features)
    pictures = pictures.cast_column("image", datasets.Image(decode=False)).cast_column(
        "label", datasets.Image(decode=False)
    )
    stills = datasets.concatenate_datasets([stills, pictures], axis=1)
    transform = training_transforms(recipe, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    dataset = ClipDataset(stills, num_labels=6, transform=transform, num_frames=3)
    seen = []
    for epoch in range(8):
        example = dataset[epoch, 3]
        assert example["image"].shape == (3, 3, 16, 20) and example["image"].dtype == torch.float32
        for frame in range(2):
            assert torch.equal(example["image"][frame], example["image"][2])
            assert torch.equal(example["label"][frame], example["label"][2])
        assert torch.equal(example["image"], dataset[epoch, 3]["image"])
        seen.append(example["image"])
    assert not torch.equal(seen[0], seen[1])


def test_what_has_no_clips_is_refused():
    with pytest.raises(InputError, match="not with --streaming"):
        ClipDataset(split(NAMES).to_iterable_dataset(), num_labels=6, num_frames=3)
    with pytest.raises(InputError, match="has no column 'name'"):
        ClipDataset(split(NAMES).remove_columns("name"), num_labels=6, num_frames=3)
