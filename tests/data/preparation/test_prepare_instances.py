"""COCO's distribution as a Hugging Face dataset."""

import json
import shutil
import zipfile

import datasets
import numpy as np
import pytest

from ccnet_hf.data.archives import RawFile
from ccnet_hf.data.dataset_arguments import DatasetArguments
from ccnet_hf.data.instances import coco_annotation
from ccnet_hf.data.preparation import writing
from ccnet_hf.data.preparation.card import dataset_repository
from ccnet_hf.data.preparation.instances import InstanceShard, RawInstances, instance_features
from ccnet_hf.data.preparation.prepare import prepare_dataset
from ccnet_hf.data.preparation.prepare_arguments import main
from ccnet_hf.errors import InputError
from ccnet_hf.models.annotations_ccnet import mask_of_segmentation


@pytest.fixture
def source(shared_dir, tmp_path):
    folder = tmp_path / "coco"
    for name in ("annotations", "train2017", "val2017"):
        shutil.copytree(shared_dir / "fixtures" / "coco" / name, folder / name)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def test_every_image_and_every_object(source, tmp_path):
    prepared = prepare_dataset("coco", source, tmp_path / "out", allow_incomplete=True)
    assert prepared.num_examples == {"train": 9, "validation": 6} and prepared.skipped == []
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    crowds = empty = 0
    for split, raw in (("train", "train2017"), ("validation", "val2017")):
        content = json.loads((source / "annotations" / f"instances_{raw}.json").read_text())
        for row in loaded[split]:
            assert row["image"].size == (row["width"], row["height"])
            expected = [entry for entry in content["annotations"] if entry["image_id"] == row["image_id"]]
            assert [entry["id"] for entry in row["objects"]] == [entry["id"] for entry in expected]
            size = (row["height"], row["width"])
            for entry, wanted in zip(row["objects"], expected, strict=True):
                found = coco_annotation(entry, size)
                assert found["category_id"] == wanted["category_id"] and found["bbox"] == wanted["bbox"]
                mask = mask_of_segmentation(found["segmentation"], size)
                assert np.array_equal(mask, mask_of_segmentation(wanted["segmentation"], size))
                crowds += found["iscrowd"]
            empty += not expected
    assert (crowds, empty) == (3, 1)
    repository = dataset_repository(tmp_path / "out", "me/coco")
    assert len(repository.files) == 3
    (info,) = datasets.get_dataset_infos(str(tmp_path / "out")).values()
    assert {split: entry.num_examples for split, entry in info.splits.items()} == prepared.num_examples
    assert info.features == instance_features()
    split = DatasetArguments(dataset_name=str(tmp_path / "out")).load_split("validation")
    assert {"image", "label", "image_id", "name"} <= set(split.column_names)


def test_archives_and_finished_shards(source, tmp_path, capsys):
    for name in ("annotations", "train2017", "val2017"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for path in sorted((source / name).iterdir()):
                archive.write(path, f"{name}/{path.name}")
    archives = [str(tmp_path / f"{name}.zip") for name in ("annotations", "train2017", "val2017")]
    command = ["coco", "--source", *archives, "--output_dir", str(tmp_path / "out")]
    assert main(command) == 1
    assert "split train has 9 of 118,287 images" in capsys.readouterr().err
    command.append("--allow_incomplete")
    assert main(command) == 0
    assert "train 9 of 118,287, validation 6 of 5,000" in capsys.readouterr().out
    assert main(command) == 0
    assert "2 finished shards were kept" in capsys.readouterr().out


def test_what_is_missing_or_damaged_is_named(source, tmp_path):
    (source / "val2017" / "000000471345.jpg").unlink()
    out = tmp_path / "out"
    with pytest.raises(InputError, match="split validation has no image file for 000000471345"):
        prepare_dataset("coco", source, out, allow_incomplete=True)
    (source / "val2017" / "000000471345.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"000000471345\.jpg.*it is not an image"):
        prepare_dataset("coco", source, out, allow_incomplete=True)
    assert not (out / "README.md").exists() and not (out / "data").exists()
    with pytest.raises(FileNotFoundError):
        datasets.load_dataset(str(out))
    prepared = prepare_dataset("coco", source, out, allow_incomplete=True, skip_corrupt=True)
    assert prepared.num_examples["validation"] == 5 and len(prepared.skipped) == 1
    (source / "annotations" / "instances_val2017.json").write_text('{"images": ')
    with pytest.raises(InputError, match=r"instances_val2017\.json"):
        prepare_dataset("coco", source, tmp_path / "other", allow_incomplete=True)
    shutil.rmtree(source / "annotations")
    with pytest.raises(InputError, match="looked for annotations_trainval2017"):
        prepare_dataset("coco", source, tmp_path / "other", allow_incomplete=True)


def test_a_split_of_which_nothing_was_readable_is_not_there(source, tmp_path):
    for path in (source / "val2017").iterdir():
        path.write_bytes(b"no image")
    out = tmp_path / "out"
    prepared = prepare_dataset("coco", source, out, allow_incomplete=True, skip_corrupt=True)
    assert prepared.num_examples == {"train": 9} and len(prepared.skipped) == 6
    assert [path.name for path in (out / "data").iterdir()] == ["train-00000-of-00001.parquet"]
    assert datasets.load_dataset(str(out)).num_rows == {"train": 9}
    assert len(dataset_repository(out, "me/coco").files) == 2
    for path in (source / "train2017").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="every example was left out, the first because of"):
        prepare_dataset("coco", source, out, allow_incomplete=True, skip_corrupt=True)


def test_the_bar_moves_by_image(source, tmp_path, monkeypatch):
    moves = []

    class Bar(writing.tqdm):
        def update(self, n=1):
            moves.append(n)
            return super().update(n)

    monkeypatch.setattr(writing, "tqdm", Bar)
    prepare_dataset("coco", source, tmp_path / "out", allow_incomplete=True)
    assert moves == [1] * 15


def test_a_name_that_is_no_text_is_refused_with_its_file(tmp_path):
    """JSON can write half of a character."""
    image = {"id": 1, "file_name": "caf\udce9.jpg", "height": 4, "width": 4}
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    (tmp_path / "coco" / "train2017" / "caf\udce9.jpg").touch()
    content = json.dumps({"images": [image], "annotations": []})
    (tmp_path / "coco" / "instances_train2017.json").write_text(content)
    with pytest.raises(InputError, match=r"instances_train2017\.json cannot be read: 'utf-8' codec"):
        prepare_dataset("coco", tmp_path / "coco", tmp_path / "out", allow_incomplete=True)


def test_an_image_with_another_content_makes_its_shard_anew(tmp_path):
    def fingerprint(stamp: int) -> str:
        file = RawFile("train2017/1.jpg", tmp_path / "1.jpg", 100, stamp=stamp)
        return InstanceShard(tmp_path / "shard", [RawInstances("1", 1, 4, 4, [], (file,))]).fingerprint

    assert fingerprint(1) == fingerprint(1) != fingerprint(2)
