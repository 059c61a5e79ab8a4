"""Official distributions become datasets: labels pixel for pixel, images byte for byte, damage named."""

import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from distributions import CITYSCAPES, EXAMPLES, MAPPINGS, die, encode, pack, voc_palette, write, write_distribution
from huggingface_hub import DatasetCard
from turned import encode_turned, turn

from ccnet_hf.data import benchmarks
from ccnet_hf.data.archives import RawFile
from ccnet_hf.data.benchmarks.layout import LabelFormat
from ccnet_hf.data.dataset_arguments import DatasetArguments
from ccnet_hf.data.loading import SegmentationDataset, load_split
from ccnet_hf.data.preparation import prepare as prepare_module
from ccnet_hf.data.preparation import writing
from ccnet_hf.data.preparation.card import dataset_repository
from ccnet_hf.data.preparation.examples import RawExample
from ccnet_hf.data.preparation.parquet import check_parquet, parquet_writer
from ccnet_hf.data.preparation.prepare import build, main, prepare_dataset
from ccnet_hf.data.preparation.shards import make_row, mapped, row_maker
from ccnet_hf.errors import InputError


NAMES = list(EXAMPLES)


@pytest.fixture(autouse=True)
def small_benchmarks(request, monkeypatch):
    """The synthetic distributions are complete: two examples a split."""
    if "shared_dir" in request.fixturenames:
        return
    for benchmark in benchmarks.prepared_benchmarks():
        name = benchmark.name
        counts = {split: len(examples) for split, examples in EXAMPLES[name].items()}
        raw = benchmark.raw
        if name == "cityscapes":
            cities = {"train": "ulm", "validation": "lindau", "test": "bonn"}
            raw = dataclasses.replace(raw, num_by_prefix={split: {city: 2} for split, city in cities.items()})
        elif name == "ade20k":
            names = {split: [example[0] for example in examples] for split, examples in EXAMPLES[name].items()}
            raw = dataclasses.replace(raw, names=lambda split, lists, names=names: set(names[split]))
        small = dataclasses.replace(benchmark, num_examples=counts, raw=raw)
        monkeypatch.setitem(benchmarks.BENCHMARKS, name, small)


def read_rows(output_dir: Path) -> dict[str, dict[str, dict]]:
    rows = {}
    for path in sorted((output_dir / "data").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            assert rows.setdefault(path.name.split("-")[0], {}).setdefault(row["name"], row) is row, "a name twice"
    return rows


def names(folder: Path) -> list[str]:
    """What a folder holds, but for its lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def decode(encoded: dict) -> np.ndarray:
    image = PIL.Image.open(io.BytesIO(encoded["bytes"]))
    assert image.mode == "L"
    return np.asarray(image)


def check(output_dir: Path, expected: dict[str, dict[str, tuple[bytes, np.ndarray]]]) -> None:
    rows = read_rows(output_dir)
    assert {split: list(found) for split, found in rows.items()} == {s: sorted(e) for s, e in expected.items() if e}
    for split, examples in expected.items():
        for name, (image, label) in examples.items():
            row = rows[split][name]
            assert row["image"]["bytes"] == image
            np.testing.assert_array_equal(decode(row["label"]), label)
            assert row["classes"] == sorted(set(np.unique(label).tolist()) - {255})


@pytest.mark.parametrize("form", ["folder", "archive", "archives", "nested", "doubled"])
@pytest.mark.parametrize("name", NAMES)
def test_every_form_of_a_distribution_gives_the_same_dataset(tmp_path, name, form):
    expected = write_distribution(tmp_path / "raw", name)
    source = tmp_path / "source"
    source.mkdir()
    folders = [path.name for path in (tmp_path / "raw").iterdir()]
    if form == "folder":
        source = tmp_path / "raw"
    elif form == "archive":
        source = pack(tmp_path / "raw", source / "all.tar")
    elif form == "archives":  # as downloaded: one for the images, one for the labels
        for folder in folders:
            pack(tmp_path / "raw", source / (f"{folder}.tgz" if "benchmark" in folder else f"{folder}.zip"), folder)
    elif form == "nested":
        for folder in folders:
            pack(tmp_path / "raw", source / "inner" / f"{folder}.zip", folder)
        source = pack(source, tmp_path / "all.tar.gz")
    else:
        for folder in folders:
            shutil.move(tmp_path / "raw" / folder, source / folder / folder)
    prepared = prepare_dataset(name, source, tmp_path / "out")
    check(tmp_path / "out", expected)
    assert prepared.num_examples == {split: len(examples) for split, examples in expected.items()}
    assert prepared.skipped == []
    assert names(tmp_path / "out") == ["README.md", "data"]


def test_loads_mapped_streamed_and_with_other_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    expected = write_distribution(tmp_path / "raw", "camvid")
    mapped = build("camvid", tmp_path / "raw", tmp_path / "out", max_shard_size=1)
    assert {split: len(rows) for split, rows in mapped.items()} == {"train": 2, "validation": 2, "test": 2}
    features = mapped["train"].features
    assert isinstance(features["image"], datasets.Image)
    assert isinstance(features["label"], datasets.Image)
    assert features["classes"].feature.names == list(benchmarks.get_benchmark("camvid").class_names)
    streamed = datasets.load_dataset(str(tmp_path / "out"), streaming=True)
    assert list(streamed) == list(mapped)
    for split in mapped:
        rows = list(streamed[split])
        assert rows == list(mapped[split])
        for row in rows:
            np.testing.assert_array_equal(np.asarray(row["label"]), expected[split][row["name"]][1])
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    mapped["test"].rename_columns({"image": "pixels", "label": "mask"}).to_parquet(renamed / "test.parquet")
    columns = {"image_column_name": "pixels", "label_column_name": "mask"}
    for streaming in (False, True):
        split = load_split(str(renamed), "test", **columns, streaming=streaming)
        assert [row["label"]["bytes"] for row in split] == [
            row["label"]["bytes"] for row in load_split(str(tmp_path / "out"), "test")
        ]


def test_card_states_terms_counts_mapping_and_classes(tmp_path):
    write_distribution(tmp_path / "raw", "lip")
    prepare_dataset("lip", tmp_path / "raw", tmp_path / "out")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "other"
    assert card.data.license_link.startswith("http")
    assert card.data.task_categories == ["image-segmentation"]
    assert [split["num_examples"] for split in card.data.dataset_info["splits"]] == [2, 2]
    assert "non-commercial research" in card.text
    assert "| 19 | Right-shoe | 255 170 0 |" in card.text
    assert benchmarks.get_benchmark("lip").raw.mapping in card.text


# Labels by every route


def test_cityscapes_takes_training_ids_where_only_they_exist(tmp_path):
    expected = write_distribution(tmp_path / "raw", "cityscapes")
    for path in list((tmp_path / "raw").rglob("*_labelIds.png")):
        name = path.name.removesuffix("_gtFine_labelIds.png")
        label = next(examples[name][1] for examples in expected.values() if name in examples)
        path.with_name(f"{name}_gtFine_labelTrainIds.png").write_bytes(encode(label))
        if "lindau" not in name:
            path.unlink()
        else:  # an image made by somebody else is not preferred to the official one
            path.with_name(f"{name}_gtFine_labelTrainIds.png").write_bytes(encode(np.zeros_like(label)))
    prepare_dataset("cityscapes", tmp_path / "raw", tmp_path / "out")
    check(tmp_path / "out", expected)


def test_voc_reads_sbd_files_and_falls_back_to_their_images(tmp_path):
    scipy_io = pytest.importorskip("scipy.io", reason="reading SBD's files needs scipy")
    expected = write_distribution(tmp_path / "raw", "voc12aug")
    voc, sbd = tmp_path / "raw/VOCdevkit/VOC2012", tmp_path / "raw/benchmark_RELEASE/dataset"
    name = "2008_000002"
    (voc / "ImageSets/Segmentation/train.txt").write_text("2007_000001\n")
    (voc / f"SegmentationClass/{name}.png").unlink()
    (sbd / "img").mkdir()
    shutil.move(voc / f"JPEGImages/{name}.jpg", sbd / f"img/{name}.jpg")
    (sbd / "val.txt").write_text(f"{name}\n2009_000003\n")
    (sbd / "cls").mkdir()
    label = np.arange(240, dtype=np.uint8).reshape(12, 20) % 21
    wrong = np.full_like(label, 3)
    kind = [("Boundaries", object), ("Segmentation", object), ("CategoriesPresent", object)]
    for stem, segmentation in ((name, label), ("2007_000001", wrong)):  # VOC's own label wins over SBD's
        record = np.array([(np.zeros((20, 1)), segmentation, np.unique(segmentation))], dtype=kind)
        scipy_io.savemat(sbd / f"cls/{stem}.mat", {"GTcls": record})
    expected["train"][name] = (expected["train"][name][0], label)
    prepare_dataset("voc12aug", tmp_path / "raw", tmp_path / "out")
    check(tmp_path / "out", expected)
    content = (sbd / f"cls/{name}.mat").read_bytes()
    (sbd / f"cls/{name}.mat").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name}.mat: is not a whole SBD file"):
        prepare_dataset("voc12aug", tmp_path / "raw", tmp_path / "other")


def test_missing_scipy_is_one_line(tmp_path, monkeypatch, capsys):
    write_distribution(tmp_path / "raw", "voc12aug")
    path = tmp_path / "raw" / EXAMPLES["voc12aug"]["train"][0][2]
    path.unlink()
    write(tmp_path / "raw", f"benchmark_RELEASE/dataset/cls/{path.stem}.mat", b"")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    command = ["voc12aug", "--source", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--skip_corrupt"]) == 2  # it is no fault of the file
    assert capsys.readouterr().err == "error: scipy is not installed: pip install 'ccnet-hf[train]'\n"


def test_voc_training_list_is_the_official_one(shared_dir):
    from ccnet_hf.data.benchmarks.voc12aug import training_names

    official = (shared_dir / "reference/lists/voc_train_aug.txt").read_text().split()
    val = (shared_dir / "reference/lists/voc_val.txt").read_text().split()
    # VOC's list and SBD's two lists overlap each other and the validation list; any such division gives the same.
    generator = np.random.default_rng(0)
    voc_train = set(generator.choice(official, 1464, replace=False).tolist())
    sbd = set(official) - set(list(voc_train)[:700]) | set(val[::2])
    assert training_names(voc_train, set(val), sbd) == set(official)
    assert len(official) == benchmarks.get_benchmark("voc12aug").num_examples["train"]


def test_voc_palette_expanded_to_rgb_is_mapped_back(tmp_path):
    expected = write_distribution(tmp_path / "raw", "voc12aug")
    for path in (tmp_path / "raw").rglob("SegmentationClass/*.png"):
        PIL.Image.open(path).convert("RGB").save(path)
    prepare_dataset("voc12aug", tmp_path / "raw", tmp_path / "out")
    check(tmp_path / "out", expected)


def test_a_benchmark_without_a_known_distribution_is_refused(tmp_path, capsys):
    with pytest.raises(InputError, match="the official distribution of ATR is not known here"):
        prepare_dataset("atr", tmp_path, tmp_path / "out")
    with pytest.raises(SystemExit):
        main(["atr", "--source", str(tmp_path), "--output_dir", str(tmp_path / "out")])
    assert "invalid choice: 'atr'" in capsys.readouterr().err


def test_voc_palette_in_another_order_is_read_by_its_colours(tmp_path):
    expected = write_distribution(tmp_path / "raw", "voc12aug")
    palette = np.array(voc_palette()).reshape(256, 3)
    for path in (tmp_path / "raw").rglob("SegmentationClass/*.png"):
        indices = 255 - np.asarray(PIL.Image.open(path))
        path.write_bytes(encode(indices, palette=palette[::-1].ravel().tolist()))
    prepare_dataset("voc12aug", tmp_path / "raw", tmp_path / "out")
    check(tmp_path / "out", expected)


@pytest.mark.parametrize("name", ["cityscapes", "ade20k", "lip", "camvid"])
def test_colours_are_refused_where_they_do_not_tell_the_classes(tmp_path, name, capsys):
    write_distribution(tmp_path / "raw", name)
    path = tmp_path / "raw" / EXAMPLES[name]["train"][0][2]
    PIL.Image.open(path).convert("RGB").save(path)
    assert main([name, "--source", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert f"{path}: a label map has one channel of ids, this one has mode RGB" in message


# Damage


def damage_missing_label(raw: Path, name: str) -> str:
    path = raw / EXAMPLES[name]["train"][1][2]
    path.unlink()
    return f"split train has no label for {EXAMPLES[name]['train'][1][0]}"


def damage_truncated_image(raw: Path, name: str) -> str:
    path = raw / EXAMPLES[name]["train"][1][1]
    path.write_bytes(path.read_bytes()[:-200])
    return f"{path}: cannot be read"


def damage_truncated_label(raw: Path, name: str) -> str:
    path = raw / EXAMPLES[name]["train"][1][2]
    path.write_bytes(path.read_bytes()[:-60])
    return f"{path}: cannot be read"


def damage_label_id(raw: Path, name: str) -> str:
    path = raw / EXAMPLES[name]["train"][1][2]
    label = np.array(PIL.Image.open(path))
    label[3, 4] = 77 if name != "ade20k" else 151
    if name == "voc12aug":
        path.write_bytes(encode(label, palette=voc_palette()))
        return f"{path}: colour {tuple(voc_palette()[77 * 3 : 78 * 3])} at row 3, column 4 is no class's colour"
    path.write_bytes(encode(label))
    return f"{path}: label id {label[3, 4]} is none of 0..{max(MAPPINGS[name])}"


def damage_size(raw: Path, name: str) -> str:
    path = raw / EXAMPLES[name]["train"][1][2]
    PIL.Image.open(path).crop((0, 0, 19, 12)).save(path)
    return f"{path}: the label map is 12x19, its image 12x20"


DAMAGES = [
    damage_missing_label,
    damage_truncated_image,
    damage_truncated_label,
    damage_label_id,
    damage_size,
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_damage_is_named_or_skipped_and_counted(tmp_path, name, damage, capsys):
    expected = write_distribution(tmp_path / "raw", name)
    message = damage(tmp_path / "raw", name)
    command = [name, "--source", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "out")]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out" / "README.md").exists()
    assert main([*command, "--skip_corrupt"]) == 0
    output = capsys.readouterr().out
    assert "1 example was left out" in output
    assert message.removeprefix("split train has no label for ") in output
    del expected["train"][EXAMPLES[name]["train"][1][0]]
    check(tmp_path / "out", expected)
    assert "Left out because a file was missing or damaged: 1." in (tmp_path / "out" / "README.md").read_text()
    assert main([*command, "--skip_corrupt"]) == 0  # what was left out is not forgotten when the shard is kept
    assert "1 example was left out" in capsys.readouterr().out
    assert main(command) == 1


def test_empty_split(tmp_path, capsys):
    expected = write_distribution(tmp_path / "raw", "camvid")
    for folder in ("val", "valannot"):
        shutil.rmtree(tmp_path / "raw" / "CamVid" / folder)
    command = ["camvid", "--source", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "out")]
    assert main(command) == 1
    assert "split validation has 0 of 2 examples (missing: 16E5_f1, 16E5_f2)" in capsys.readouterr().err
    assert main([*command, "--allow_incomplete"]) == 0
    assert "train 2 of 2, validation 0 of 2, test 2 of 2" in capsys.readouterr().out
    check(tmp_path / "out", {**expected, "validation": {}})
    assert list(datasets.load_dataset(str(tmp_path / "out"), streaming=True)) == ["train", "test"]


def test_missing_images_are_told_by_city(tmp_path):
    write_distribution(tmp_path / "raw", "cityscapes")
    for _, image, label in EXAMPLES["cityscapes"]["train"][:1]:
        (tmp_path / "raw" / image).unlink()
        (tmp_path / "raw" / label).unlink()
    with pytest.raises(ValueError, match=r"split train has 1 of 2 examples \(missing: ulm 1 of 2\)"):
        prepare_dataset("cityscapes", tmp_path / "raw", tmp_path / "out")


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_something_else_is_refused(tmp_path, name):
    write(tmp_path / "raw", "images/cat.jpg", b"")
    with pytest.raises(ValueError, match=r"looked for|is missing"):
        prepare_dataset(name, tmp_path / "raw", tmp_path / "out", allow_incomplete=True)


@pytest.mark.parametrize("packed", [False, True])
def test_a_name_that_is_no_text(tmp_path, packed):
    """As of a file that was packed under another encoding."""
    write_distribution(tmp_path / "raw", "lip")
    source = tmp_path / "raw"
    for path in EXAMPLES["lip"]["train"][0][1:]:
        target = source / path
        target.rename(target.with_name(os.fsdecode(b"caf\xe9" + target.suffix.encode())))
    if packed:
        source = pack(source, tmp_path / "lip.tar")
    with pytest.raises(InputError, match=r"^the name of .*caf.*cannot be read: 'utf-8' codec"):
        prepare_dataset("lip", source, tmp_path / "out", allow_incomplete=True)


def test_too_many_examples_are_not_the_benchmark(tmp_path):
    write_distribution(tmp_path / "raw", "cityscapes")
    write(tmp_path / "raw", "leftImg8bit/val/lindau/lindau_000000_000009_leftImg8bit.png", b"")
    with pytest.raises(ValueError, match="split validation has 3 examples, Cityscapes has 2"):
        prepare_dataset("cityscapes", tmp_path / "raw", tmp_path / "out", allow_incomplete=True)


def test_two_copies_of_an_archive(tmp_path):
    expected = write_distribution(tmp_path / "raw", "lip")
    archive = pack(tmp_path / "raw", tmp_path / "source" / "LIP.zip")
    shutil.copy(archive, archive.with_name("LIP (1).zip"))
    prepare_dataset("lip", tmp_path / "source", tmp_path / "out")
    check(tmp_path / "out", expected)
    write_distribution(tmp_path / "other", "lip")
    path = EXAMPLES["lip"]["validation"][0][2]
    write(tmp_path / "other", path, encode(np.zeros((12, 20), np.uint8)))
    pack(tmp_path / "other", archive.with_name("LIP (1).zip"))
    with pytest.raises(ValueError, match=r"LIP \(1\).zip:.*and .*LIP.zip:.*3_103.png should be copies of one file"):
        prepare_dataset("lip", tmp_path / "source", tmp_path / "again")


# Orientation and size of images


@pytest.mark.parametrize("orientation", [3, 6])
def test_label_maps_are_written_upright_beside_images_as_they_are(tmp_path, orientation, capsys):
    expected = write_distribution(tmp_path / "raw", "camvid")
    generator = np.random.default_rng(0)
    for index, (name, image_path, label_path) in enumerate(EXAMPLES["camvid"]["train"]):
        image = encode_turned(generator.integers(0, 256, (12, 20, 3), np.uint8), orientation)
        write(tmp_path / "raw", image_path, image)
        label = expected["train"][name][1]
        expected["train"][name] = image, label
        if index == 1:  # where the stored pixels have another size, theirs
            source = np.where(label == 255, 11, label).astype(np.uint8)
            write(tmp_path / "raw", label_path, encode(turn(source, orientation) if orientation == 6 else source))
    command = ["camvid", "--source", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "out")]
    assert main(command) == 0
    check(tmp_path / "out", expected)
    notes = [line for line in capsys.readouterr().out.splitlines() if "EXIF" in line]
    turned = EXAMPLES["camvid"]["train"][1][0]
    assert len(notes) == (orientation == 6)
    assert all(note.endswith(f"EXIF orientation says: {turned}") for note in notes)
    # The package reads what it has written as everybody does.
    for index, label in enumerate(label for _, label in expected["train"].values()):
        dataset = SegmentationDataset(load_split(str(tmp_path / "out"), "train"), num_labels=11)
        np.testing.assert_array_equal(dataset.read(index)[1], label)
        assert not dataset[index]["turned"]


def test_a_label_map_is_not_turned_twice(tmp_path):
    """Such as an upright one to which its image's EXIF block was copied."""
    expected = write_distribution(tmp_path / "raw", "camvid")
    name, image_path, label_path = EXAMPLES["camvid"]["train"][0]
    label = np.zeros((12, 20), np.uint8)
    write(tmp_path / "raw", image_path, encode_turned(np.zeros((12, 20, 3), np.uint8), 6))
    write(tmp_path / "raw", label_path, encode_turned(turn(label, 8), 6))
    with pytest.raises(ValueError, match=rf"{name}\.png: the label map is 20x12, its image 12x20"):
        prepare_dataset("camvid", tmp_path / "raw", tmp_path / "out")
    write(tmp_path / "raw", label_path, encode_turned(label, 8))
    prepare_dataset("camvid", tmp_path / "raw", tmp_path / "out")
    expected["train"][name] = (tmp_path / "raw" / image_path).read_bytes(), label
    check(tmp_path / "out", expected)


def test_images_above_the_limit_name_the_option_that_allows_them(tmp_path, monkeypatch, capsys):
    expected = write_distribution(tmp_path / "raw", "camvid")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    command = ["camvid", "--source", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "out")]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "6R0_f1.png: cannot be read (Image size (240 pixels) exceeds limit of 200" in error
    assert "--max_image_pixels allows larger images, 0 any" in error and error.count("\n") == 1
    assert main([*command, "--max_image_pixels", "-1"]) == 1
    assert "max_image_pixels must be a number of pixels" in capsys.readouterr().err
    assert main([*command, "--max_image_pixels", "240"]) == 0
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    check(tmp_path / "out", expected)


@pytest.mark.parametrize("value", [1.7, 0.999999, np.nan])
def test_label_maps_of_fractions_are_refused(tmp_path, value):
    write_distribution(tmp_path / "raw", "camvid")
    path = tmp_path / "raw" / EXAMPLES["camvid"]["train"][1][2]
    label = np.array(PIL.Image.open(path)).astype(np.float32)
    PIL.Image.fromarray(label).save(path, "TIFF")
    prepare_dataset("camvid", tmp_path / "raw", tmp_path / "whole")
    label[3, 4] = value
    PIL.Image.fromarray(label).save(path, "TIFF")
    with pytest.raises(ValueError, match=rf"6R0_f2\.png: label id {float(np.float32(value))} is none of 0\.\.11"):
        prepare_dataset("camvid", tmp_path / "raw", tmp_path / "out")


# Shards


def test_finished_shards_are_kept_and_the_result_is_the_same(tmp_path, monkeypatch):
    expected = write_distribution(tmp_path / "raw", "cityscapes")
    prepare_dataset("cityscapes", tmp_path / "raw", tmp_path / "whole", max_shard_size=1)
    write_shard = writing.write_shard

    def fail_on_the_third(shard, rows, *args):
        if shard.path.name.startswith("validation-00000"):
            rows = (row for row in [next(iter(rows)), None])  # the second row breaks the writing
        return write_shard(shard, rows, *args)

    with monkeypatch.context() as context:
        context.setattr(writing, "write_shard", fail_on_the_third)
        with pytest.raises(TypeError):
            prepare_dataset("cityscapes", tmp_path / "raw", tmp_path / "out", max_shard_size=1)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / ".data").iterdir()}
    assert sorted(path.name for path in files) == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    prepared = prepare_dataset("cityscapes", tmp_path / "raw", tmp_path / "out", max_shard_size=1)
    assert prepared.num_kept_shards == 2
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    assert all(written[path.name] == time for path, time in files.items())
    check(tmp_path / "out", expected)
    for path in (tmp_path / "whole").rglob("[!.]*.*"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes()

    # A file that has changed makes its shard anew, a shard of another division is not mixed in.
    changed = tmp_path / "raw" / EXAMPLES["cityscapes"]["train"][0][1]
    changed.write_bytes(encode(np.zeros((12, 20, 3), np.uint8)))
    prepared = prepare_dataset("cityscapes", tmp_path / "raw", tmp_path / "out", max_shard_size=1)
    assert prepared.num_kept_shards == 5
    assert read_rows(tmp_path / "out")["train"][EXAMPLES["cityscapes"]["train"][0][0]]["image"]["bytes"] == (
        changed.read_bytes()
    )
    with pytest.raises(ValueError, match=r"not part of this dataset: test-00000-of-00002\.parquet"):
        prepare_dataset("cityscapes", tmp_path / "raw", tmp_path / "out")

    # A dataset that is made anew in part is no dataset until all of it is.
    changed.write_bytes(encode(np.ones((12, 20, 3), np.uint8)))
    (tmp_path / "raw" / EXAMPLES["cityscapes"]["validation"][0][1]).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be read"):
        prepare_dataset("cityscapes", tmp_path / "raw", tmp_path / "out", max_shard_size=1)
    assert names(tmp_path / "out") == [".data"]


def test_a_damaged_shard_is_made_again(tmp_path):
    write_distribution(tmp_path / "raw", "camvid")
    prepare_dataset("camvid", tmp_path / "raw", tmp_path / "out")
    shard = tmp_path / "out" / "data" / "train-00000-of-00001.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-200] + bytes(192) + whole[-8:])
    assert prepare_dataset("camvid", tmp_path / "raw", tmp_path / "out").num_kept_shards == 2
    assert shard.read_bytes() == whole


@pytest.mark.parametrize("hole", [(0, 4), (4, 60), (0.0, 0.3), (0.3, 0.31), (0.2, 0.7), (0.5, 0.9), (-9, -5)])
def test_a_shard_with_a_hole_is_made_again(tmp_path, hole):
    """Its length and its footer are whole; where nothing was written are zeros."""
    write_distribution(tmp_path / "raw", "camvid")
    prepare_dataset("camvid", tmp_path / "raw", tmp_path / "out")
    shard = tmp_path / "out" / "data" / "train-00000-of-00001.parquet"
    whole = shard.read_bytes()
    data = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    start, end = (round(place * data) if isinstance(place, float) else place % len(whole) for place in hole)
    shard.write_bytes(whole[:start] + bytes(end - start) + whole[end:])
    with pytest.raises(InputError, match=rf"{shard.name} cannot be read: "):
        check_parquet(shard)
    assert prepare_dataset("camvid", tmp_path / "raw", tmp_path / "out").num_kept_shards == 2
    assert shard.read_bytes() == whole


@pytest.mark.parametrize("how", ["without a checksum", "a row less"])
def test_a_shard_that_only_says_it_is_finished_is_made_again(tmp_path, how):
    write_distribution(tmp_path / "raw", "camvid")
    prepare_dataset("camvid", tmp_path / "raw", tmp_path / "out")
    shard = tmp_path / "out" / "data" / "train-00000-of-00001.parquet"
    whole = shard.read_bytes()
    table, metadata = pq.read_table(shard), pq.read_metadata(shard).metadata
    source = {b"ccnet_hf.source": metadata[b"ccnet_hf.source"]}
    if how == "a row less":
        with parquet_writer(shard, table.schema) as writer:
            writer.write_table(table[:1])
            writer.add_key_value_metadata(source)
    else:  # as earlier versions of this package wrote it
        with pq.ParquetWriter(shard, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata(source)
    assert prepare_dataset("camvid", tmp_path / "raw", tmp_path / "out").num_kept_shards == 2
    assert shard.read_bytes() == whole


def test_a_full_disk_is_one_line_and_a_second_run_completes(tmp_path, capsys, full_disk):
    expected = write_distribution(tmp_path / "raw", "camvid")
    for _, image, label in EXAMPLES["camvid"]["test"]:
        pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
        write(tmp_path / "raw", image, encode(pixels))
        write(tmp_path / "raw", label, encode(np.zeros((100, 100), np.uint8)))
        name = Path(image).stem
        expected["test"][name] = ((tmp_path / "raw" / image).read_bytes(), np.zeros((100, 100), np.uint8))
    command = ["camvid", "--source", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "out")]
    with full_disk(20_000):
        assert main(command) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "test-00000-of-00001.parquet cannot be written: file too large" in line
    assert names(tmp_path / "out") == [".data"] and len(names(tmp_path / "out" / ".data")) == 2
    assert main(command) == 0
    assert "2 finished shards were kept" in capsys.readouterr().out
    check(tmp_path / "out", expected)


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path, capsys, full_disk, monkeypatch):
    write_distribution(tmp_path / "raw", "camvid")
    (tmp_path / "file").touch()
    monkeypatch.setattr(prepare_module, "list_files", None)  # nothing is read
    command = ["camvid", "--source", str(tmp_path / "raw"), "--output_dir"]
    assert main([*command, str(tmp_path / "file" / "out")]) == 1
    assert "out cannot be written: not a directory" in capsys.readouterr().err
    with full_disk(1000):
        assert main([*command, str(tmp_path / "out")]) == 1
    assert "out cannot be written: file too large" in capsys.readouterr().err


WAITING = """
import sys, time
from pathlib import Path
from ccnet_hf.data.preparation import shards
make_row, go = shards.make_row, Path(sys.argv[3])
def make_row_and_wait(*args, **options):
    if not go.exists():
        print("waiting", flush=True)
    while not go.exists():
        time.sleep(0.05)
    return make_row(*args, **options)
shards.make_row = make_row_and_wait
from ccnet_hf.data.preparation.prepare import prepare_dataset
prepare_dataset("lip", sys.argv[1], sys.argv[2], allow_incomplete=True)
"""


def test_two_preparations_of_one_folder(tmp_path):
    """The second one is refused, and does no harm to the first."""
    expected = write_distribution(tmp_path / "raw", "lip")
    folders = [str(tmp_path / name) for name in ("raw", "out", "go")]
    with subprocess.Popen([sys.executable, "-c", WAITING, *folders], stdout=subprocess.PIPE) as first:
        try:
            assert first.stdout.readline() == b"waiting\n"
            with pytest.raises(InputError, match=r"another process is writing .*out"):
                prepare_dataset("lip", tmp_path / "raw", tmp_path / "out")
        finally:
            (tmp_path / "go").touch()
        assert first.wait(120) == 0
    check(tmp_path / "out", expected)
    assert prepare_dataset("lip", tmp_path / "raw", tmp_path / "out").num_kept_shards == 2


def test_killed_before_the_card_is_written(tmp_path, monkeypatch):
    """All data is in its place by then; without a card it is not published, and a second run writes that."""
    expected = write_distribution(tmp_path / "raw", "lip")
    monkeypatch.setattr(writing, "write_card", lambda *args: die(b""))
    arguments = ("lip", tmp_path / "raw", tmp_path / "out")
    process = multiprocessing.get_context("fork").Process(target=prepare_dataset, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    monkeypatch.undo()
    assert names(tmp_path / "out") == ["data"]
    with pytest.raises(InputError, match=r"holds no README\.md"):
        dataset_repository(tmp_path / "out", "me/lip")
    prepared = prepare_dataset(*arguments, allow_incomplete=True)
    assert prepared.num_kept_shards == 2
    check(tmp_path / "out", expected)
    assert len(dataset_repository(tmp_path / "out", "me/lip").files) == 3


# Publishing


def spoil(out: Path, how: str) -> str:
    """Damage a prepared dataset; returns what is to be said."""
    shards = sorted((out / "data").iterdir())
    middle = shards[1]
    if how == "empty":
        middle.write_bytes(b"")
    elif how == "cut":
        middle.write_bytes(middle.read_bytes()[:-100])
    elif how == "hole":
        content = middle.read_bytes()
        middle.write_bytes(content[:300] + bytes(200) + content[500:])
    elif how == "missing":
        middle.unlink()
        return rf"incomplete: data/{middle.name} is missing"
    elif how == "no rows":
        pq.write_table(pq.read_table(middle)[:0], middle)
        return r"split train has 1 rows and [\d,]+ bytes, README\.md tells of 2 and [\d,]+"
    elif how == "a row twice":
        table = pq.read_table(middle)
        pq.write_table(table, shards[0])
        return r"split train has 2 rows and [\d,]+ bytes, README\.md tells of 2 and [\d,]+"
    elif how == "foreign":
        shutil.copy(middle, middle.with_name("other.parquet"))
        return r"data/other\.parquet is no part of what README\.md tells of"
    elif how == "two divisions":
        shutil.copy(middle, middle.with_name("train-00000-of-00005.parquet"))
        return r"data/train-00000-of-00005\.parquet is no part of"
    elif how == "no splits":
        (out / "README.md").write_text("---\nlicense: mit\n---\n# Data\n")
        return r"README\.md cannot be read: it tells of no splits"
    elif how == "odd splits":
        text = (out / "README.md").read_text()
        (out / "README.md").write_text(text.replace("num_examples: 2", "num_examples: many"))
        return r"README\.md cannot be read: "
    return rf"{middle.name} cannot be read: "


SPOILT = ("empty", "cut", "hole", "missing", "no rows", "a row twice", "foreign", "two divisions", "no splits")


@pytest.mark.parametrize("how", [*SPOILT, "odd splits"])
def test_an_incomplete_dataset_is_not_published(tmp_path, how):
    write_distribution(tmp_path / "raw", "lip")
    prepare_dataset("lip", tmp_path / "raw", tmp_path / "out", max_shard_size=1)
    assert len(dataset_repository(tmp_path / "out", "me/lip").files) == 5
    complaint = spoil(tmp_path / "out", how)
    with pytest.raises(InputError, match=complaint):
        dataset_repository(tmp_path / "out", "me/lip")


def test_a_split_of_which_nothing_was_readable_is_not_there(tmp_path):
    write_distribution(tmp_path / "raw", "camvid")
    for _, image, _ in EXAMPLES["camvid"]["validation"]:
        write(tmp_path / "raw", image, b"damaged")
    prepared = prepare_dataset("camvid", tmp_path / "raw", tmp_path / "out", skip_corrupt=True)
    assert prepared.num_examples == {"train": 2, "test": 2} and len(prepared.skipped) == 2
    assert not list((tmp_path / "out" / "data").glob("validation*"))
    assert len(dataset_repository(tmp_path / "out", "me/camvid").files) == 3
    again = prepare_dataset("camvid", tmp_path / "raw", tmp_path / "out", skip_corrupt=True)
    assert again.num_examples == prepared.num_examples and len(again.skipped) == 2


def test_a_push_takes_the_dataset_and_nothing_else(tmp_path):
    write_distribution(tmp_path / "both", "camvid")
    prepare_dataset("camvid", tmp_path / "both", tmp_path / "both")
    files = dataset_repository(tmp_path / "both", "me/camvid").files
    assert sorted(files) == [
        "README.md",
        *(f"data/{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")),
    ]


KILLED = """
import os, signal, sys
from ccnet_hf.data.preparation import shards
make_row, count = shards.make_row, 0
def make_row_or_die(*args, **options):
    global count
    count += 1
    if count == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return make_row(*args, **options)
shards.make_row = make_row_or_die
from ccnet_hf.data.preparation.prepare import prepare_dataset
prepare_dataset("lip", sys.argv[1], sys.argv[2], allow_incomplete=True)
"""


@pytest.mark.slow
def test_a_kill_leaves_whole_shards_only(tmp_path):
    expected = write_distribution(tmp_path / "raw", "lip")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "raw"), str(tmp_path / "out")]
    assert subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode == -signal.SIGKILL
    assert names(tmp_path / "out") == [".data"]
    (shard,) = (tmp_path / "out" / ".data").glob("[!.]*.parquet")
    assert shard.name == "train-00000-of-00001.parquet"
    before = shard.stat().st_mtime_ns
    with pytest.raises(FileNotFoundError):
        datasets.load_dataset(str(tmp_path / "out"))
    prepared = prepare_dataset("lip", tmp_path / "raw", tmp_path / "out")
    assert prepared.num_kept_shards == 1
    assert (tmp_path / "out" / "data" / shard.name).stat().st_mtime_ns == before
    check(tmp_path / "out", expected)
    assert [path.name for path in (tmp_path / "out").rglob(".*")] == [".lock"]


@pytest.mark.slow
def test_several_workers_give_the_same_files(tmp_path):
    write_distribution(tmp_path / "raw", "camvid")
    source = pack(tmp_path / "raw", tmp_path / "camvid.zip")
    prepare_dataset("camvid", source, tmp_path / "one")
    prepare_dataset("camvid", source, tmp_path / "two", num_proc=2)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("[!.]*.*")]
    assert len(files) == 4
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_workers_leave_an_interruption_to_the_caller():
    """From their first moment on, for they import for seconds."""
    blocked = partial(signal.pthread_sigmask, signal.SIG_BLOCK)
    with mapped(blocked, 2) as map_values:
        assert [signal.SIGINT in signals for signals in map_values([()])] == [True]
    assert signal.SIGINT not in blocked(())


def test_an_interruption_leaves_no_half_of_a_dataset(tmp_path, monkeypatch, capsys):
    write_distribution(tmp_path / "raw", "camvid")
    write_shard = writing.write_shard

    def interrupt_the_second(shard, rows, *args):
        def interrupted():
            yield next(iter(rows))
            raise KeyboardInterrupt

        is_first = shard.path.name.startswith("train")
        return write_shard(shard, rows if is_first else interrupted(), *args)

    command = ["camvid", "--source", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "out")]
    with monkeypatch.context() as context:
        context.setattr(writing, "write_shard", interrupt_the_second)
        assert main(command) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert names(tmp_path / "out") == [".data"]
    assert names(tmp_path / "out" / ".data") == ["train-00000-of-00001.parquet"]
    assert main(command) == 0
    assert "1 finished shard" in capsys.readouterr().out


def test_a_readme_of_somebody_else_stays(tmp_path):
    write_distribution(tmp_path / "raw", "camvid")
    write(tmp_path / "out", "README.md", b"# Mine")
    with pytest.raises(InputError, match=r"README\.md is not the card of a prepared dataset"):
        prepare_dataset("camvid", tmp_path / "raw", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["README.md"]
    assert (tmp_path / "out" / "README.md").read_bytes() == b"# Mine"


@pytest.mark.slow
def test_a_killed_worker_is_named(tmp_path):
    write(tmp_path, "1.jpg", encode(np.zeros((12, 20, 3), np.uint8), ".jpg"))
    write(tmp_path, "1.png", b"label")
    image, label = (RawFile(name, tmp_path / name, (tmp_path / name).stat().st_size) for name in ("1.jpg", "1.png"))
    example = RawExample("1", (image,), (label,), LabelFormat("", {}, decode=die))
    with pytest.raises(InputError, match="a worker died: killed"), row_maker(make_row, 2) as make_rows:
        list(make_rows([example]))


# The Hub, and arguments


def test_pushes_to_a_private_repository(tmp_path, monkeypatch, capsys):
    """That a public one is refused is tested with `publish`, against a Hub."""
    write_distribution(tmp_path / "raw", "camvid")
    calls = []
    monkeypatch.setattr(prepare_module, "check_token", lambda api, repo_id: calls.append(repo_id))
    monkeypatch.setattr(
        prepare_module, "publish", lambda api, repository, private: calls.append((repository, private)) or True
    )
    arguments = ["camvid", "--source", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--hub_dataset_id", "me/camvid"]) == 0
    checked, (repository, private) = calls
    assert checked == repository.repo_id == "me/camvid" and private and repository.repo_type == "dataset"
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("[!.]*.*")}
    assert repository.files.keys() == files and len(files) == 4
    assert capsys.readouterr().out.endswith("me/camvid: published\n")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["kitti", "--source", "x", "--output_dir", "y"], 2, "invalid choice: 'kitti'"),
        (["lip", "--source", "x", "--output_dir", "y", "--hub_dataset_id", "a/b/c"], 1, "'a/b/c'"),
        (["lip", "--source", "x", "--output_dir", "y", "--hub_dataset_id", "lip"], 1, "is namespace/name, got 'lip'"),
        (["lip", "--source", "nowhere", "--output_dir", "y"], 1, "nowhere does not exist"),
        (["lip", "--source", __file__, "--output_dir", "y"], 1, "is neither a folder nor an archive"),
        (["lip", "--source", ".", "--output_dir", __file__], 1, "is a file"),
        (["lip", "--source", ".", "--output_dir", "y", "--num_proc", "0"], 1, "num_proc must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, monkeypatch, capsys, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    try:
        found = main(arguments)
    except SystemExit as error:
        found = error.code
    assert found == status
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# Real files


FIXTURES = {"cityscapes": "cityscapes", "ade20k": "ade20k", "voc12aug": "voc", "lip": "lip", "camvid": "camvid"}
LABELS = {
    "cityscapes": "gtFine/*/*/{name}_gtFine_labelIds.png",
    "ade20k": "*/annotations/*/{name}.png",
    "voc12aug": "VOCdevkit/*/SegmentationClass/{name}.png",
    "lip": "*/*_segmentations/{name}.png",
    "camvid": "CamVid/*annot/{name}.png",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_real_files_pixel_for_pixel(shared_dir, tmp_path, name, packed):
    source = shared_dir / "fixtures" / FIXTURES[name]
    if packed:
        packed_source = pack(source, tmp_path / "all.zip")
    prepare_dataset(name, packed_source if packed else source, tmp_path / "out", allow_incomplete=True)
    rows = read_rows(tmp_path / "out")
    assert {split: len(found) for split, found in rows.items()} == {
        "cityscapes": {"validation": 1},
        "ade20k": {"train": 1, "validation": 2},
        "voc12aug": {"validation": 2},  # both images are in the validation list, and that is what counts
        "lip": {"train": 1, "validation": 1},
        "camvid": {"train": 2, "validation": 1, "test": 2},
    }[name]
    mapping = MAPPINGS[name]
    if name == "cityscapes":
        official = json.loads((shared_dir / "reference/classes/cityscapes.json").read_text())["label_id_to_train_id"]
        assert {int(k): v for k, v in official.items() if k != "-1"} == mapping
        assert {value: i for value, i in mapping.items() if i != 255} == CITYSCAPES
    for row in (row for found in rows.values() for row in found.values()):
        (path,) = source.glob(LABELS[name].format(name=row["name"]))
        label = np.asarray(PIL.Image.open(path))
        np.testing.assert_array_equal(decode(row["label"]), np.vectorize(mapping.__getitem__)(label))
        images = [file for file in source.rglob(row["image"]["path"]) if "annot" not in file.parent.name]
        assert {row["image"]["bytes"]} == {image.read_bytes() for image in images}


@pytest.mark.parametrize(("name", "count"), [("cityscapes", 2975 + 500 + 1525), ("ade20k", 22210), ("lip", 40462)])
def test_official_counts(shared_dir, name, count):
    benchmark = benchmarks.get_benchmark(name)
    assert sum(benchmark.num_examples.values()) == count
    for split, cities in benchmark.raw.num_by_prefix.items():
        assert sum(cities.values()) == benchmark.num_examples[split]


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_are_not_reduced_twice(tmp_path, streaming):
    """ADE20K's recipes reduce labels, which a prepared dataset no longer needs."""
    write_distribution(tmp_path / "raw", "ade20k")
    prepare_dataset("ade20k", tmp_path / "raw", tmp_path / "out")
    folder = str(tmp_path / "out")
    split = load_split(folder, "train", streaming=streaming)
    assert not DatasetArguments(dataset_name=folder).reduces_labels(split, by_default=True)
    assert DatasetArguments(dataset_name=folder, do_reduce_labels=True).reduces_labels(split, by_default=False)
    other = split.remove_columns("classes")
    assert DatasetArguments(dataset_name=folder).reduces_labels(other, by_default=True)
    assert not DatasetArguments(dataset_name=folder, do_reduce_labels=False).reduces_labels(other, by_default=True)


def test_labels_without_images(shared_dir, tmp_path):
    with pytest.raises(ValueError, match="no image of Cityscapes with its label is in"):
        prepare_dataset("cityscapes", shared_dir / "fixtures/cityscapes_labels_only", tmp_path / "out")


def test_zip_is_read_without_unpacking(tmp_path, monkeypatch):
    write_distribution(tmp_path / "raw", "lip")
    source = pack(tmp_path / "raw", tmp_path / "lip.zip")
    monkeypatch.setattr(zipfile.ZipFile, "extractall", None)
    monkeypatch.setattr(zipfile.ZipFile, "extract", None)
    prepare_dataset("lip", source, tmp_path / "out")
