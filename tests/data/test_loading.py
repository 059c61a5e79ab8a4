"""Datasets from folders: columns, checks where an example is read, and draws that depend on the example alone."""

import io

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from turned import encode_turned, turn

from ccnet_hf.data.label_counts import label_counts, sample_label_counts
from ccnet_hf.data.loading import CorruptExample, SegmentationDataset, load_split
from ccnet_hf.errors import InputError


def png(array: np.ndarray, mode: str | None = None) -> dict:
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).convert(mode).save(buffer, "PNG") if mode else PIL.Image.fromarray(array).save(
        buffer, "PNG"
    )
    return {"bytes": buffer.getvalue(), "path": None}


def make_split(labels: list[np.ndarray], **columns) -> datasets.Dataset:
    images = [np.full((*label.shape[:2], 3), 10 * index, np.uint8) for index, label in enumerate(labels)]
    features = {"image": datasets.Image(), "label": datasets.Image()}
    rows = {"image": [png(image) for image in images], "label": [png(label) for label in labels], **columns}
    features |= {name: datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def write_folder(folder, **splits: datasets.Dataset) -> str:
    folder.mkdir(exist_ok=True)
    for name, split in splits.items():
        split.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return str(folder)


LABEL = np.array([[0, 1, 2], [255, 1, 1]], np.uint8)


def test_reads_parquet_and_saved_folders_alike(tmp_path):
    split = make_split([LABEL, LABEL[:, :2]], name=["a", "b"])
    folders = [write_folder(tmp_path / "parquet", train=split, test=split.select([1]))]
    split.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=split).save_to_disk(tmp_path / "many")
    folders += [str(tmp_path / "one"), str(tmp_path / "many")]
    for folder in folders:
        dataset = SegmentationDataset(load_split(folder, "train"), num_labels=3)
        assert len(dataset) == 2
        image, label, name = dataset.read(1)
        assert name == "b"
        assert image.getpixel((0, 0)) == (10, 10, 10)
        np.testing.assert_array_equal(label, LABEL[:, :2])
    assert len(load_split(folders[0], "test")) == 1
    # A dataset without a name for its split is no validation split to whom it is convenient.
    with pytest.raises(ValueError, match="no split 'validation'; it has train"):
        load_split(folders[1], "validation")


def test_labels_fit_into_bytes():
    split = _encoded(make_split([LABEL]))
    for num_labels, ignore_index in ((256, 255), (300, 1000), (3, -100), (3, 2)):
        with pytest.raises(ValueError, match=f"{num_labels} classes and the ignored id {ignore_index} must be"):
            SegmentationDataset(split, num_labels, ignore_index)


def test_paths_in_a_csv_file_are_read(tmp_path):
    for name, array in (("image", np.zeros((2, 3, 3), np.uint8)), ("label", LABEL)):
        PIL.Image.fromarray(array).save(tmp_path / f"{name}.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text(f"image,label\n{tmp_path}/image.png,{tmp_path}/label.png\n")
    _, label, _ = SegmentationDataset(load_split(str(tmp_path / "data"), "train"), num_labels=3).read(0)
    np.testing.assert_array_equal(label, LABEL)


def test_maps_columns_and_names_what_is_there(tmp_path):
    split = make_split([LABEL], scene=["street"]).rename_columns({"image": "pixels", "label": "annotation"})
    folder = write_folder(tmp_path / "data", train=split)
    dataset = load_split(folder, "train", image_column_name="pixels", label_column_name="annotation")
    assert set(dataset.column_names) == {"image", "label"}
    with pytest.raises(ValueError, match="no column 'image'; it has pixels, annotation, scene"):
        load_split(folder, "train")
    with pytest.raises(ValueError, match="no split 'validation'; it has train"):
        load_split(folder, "validation")
    with pytest.raises(ValueError, match=r"no split 'validation'; it has train \(--split names another\)"):
        load_split(folder, "train+validation", hint="--split names another")


def test_images_without_labels_are_all_ignored(tmp_path):
    folder = write_folder(tmp_path / "data", test=make_split([LABEL], name=["a"]).remove_columns("label"))
    split = load_split(folder, "test", label_column_name=None)
    image, label, name = SegmentationDataset(split, num_labels=3).read(0)
    assert (image.size, label.shape, name) == ((3, 2), (2, 3), "a")
    assert (label == 255).all()


def test_wrong_id_is_named_with_file_and_range():
    dataset = SegmentationDataset(_encoded(make_split([LABEL, LABEL], name=["fine", "wrong.png"])), num_labels=2)
    with pytest.raises(ValueError, match=r"fine: label id 2 is outside 0\.\.1 and is not 255"):
        dataset[0]
    split = _encoded(make_split([LABEL, np.full((2, 3), 200, np.uint8)], name=["fine", "wrong.png"]))
    dataset = SegmentationDataset(split, num_labels=3)
    dataset[0]
    with pytest.raises(ValueError, match=r"wrong\.png: label id 200 is outside 0\.\.2"):
        dataset[1]


def test_reduced_labels():
    split = _encoded(make_split([np.array([[0, 1, 3, 255]], np.uint8), np.array([[4]], np.uint8)]))
    dataset = SegmentationDataset(split, num_labels=3, reduce_labels=True)
    assert dataset.read(0)[1].tolist() == [[255, 0, 2, 255]]
    with pytest.raises(ValueError, match=r"example 1: label id 4 is outside 1\.\.3"):
        dataset.read(1)


def test_sixteen_bit_and_palette_label_maps_keep_their_ids():
    split = make_split([LABEL, LABEL])
    palette = PIL.Image.fromarray(LABEL)
    palette.putpalette([7, 7, 7] * 256)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    rows = [png(LABEL.astype(np.uint16)), {"bytes": buffer.getvalue(), "path": None}]
    split = split.remove_columns("label").add_column("label", rows)
    dataset = SegmentationDataset(split.cast_column("image", datasets.Image(decode=False)), num_labels=3)
    for index in range(2):
        np.testing.assert_array_equal(dataset.read(index)[1], LABEL)


def test_bad_files_are_named():
    split = make_split([LABEL, LABEL, np.zeros((2, 3, 3), np.uint8)], name=["small", "broken", "coloured"])
    rows = [png(np.zeros((9, 9, 3), np.uint8)), {"bytes": b"\x89PNG\r\n\x1a\n nothing", "path": None}]
    split = split.remove_columns("image").add_column("image", [*rows, rows[0]])
    dataset = SegmentationDataset(split.cast_column("label", datasets.Image(decode=False)), num_labels=3)
    with pytest.raises(ValueError, match="small: the image is 9x9, its label map 2x3"):
        dataset[0]
    with pytest.raises(ValueError, match="broken: cannot be read"):
        dataset[1]
    with pytest.raises(ValueError, match="coloured: a label map has one channel"):
        dataset[2]


def test_draws_depend_on_seed_epoch_and_index_only():
    split = _encoded(make_split([LABEL] * 3))

    def noise(image, label):
        return torch.rand(4), label

    dataset = SegmentationDataset(split, num_labels=3, transform=noise, seed=1)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = dataset[(2, 1)]["image"]
    assert torch.equal(torch.random.get_rng_state(), before)
    dataset[(0, 0)]
    torch.manual_seed(6)
    assert torch.equal(dataset[(2, 1)]["image"], first)
    others = [dataset[(2, 0)], dataset[(1, 1)], SegmentationDataset(split, 3, transform=noise, seed=2)[(2, 1)]]
    assert not any(torch.equal(other["image"], first) for other in others)


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_a_stream_gives_the_same_examples(tmp_path, kind):
    split = make_split([LABEL, LABEL[:, :2], LABEL], scene=["a", "b", "c"]).rename_column("scene", "name")
    split = split.rename_columns({"image": "pixels", "label": "annotation"})
    if kind == "parquet":
        folder = write_folder(tmp_path / "data", train=split, test=split.select([0]))
    else:
        folder = str(tmp_path / "data")
        datasets.DatasetDict(train=split, test=split.select([0])).save_to_disk(folder)
    columns = {"image_column_name": "pixels", "label_column_name": "annotation"}
    mapped = SegmentationDataset(load_split(folder, "train+test", **columns), num_labels=3)
    streamed = SegmentationDataset(load_split(folder, "train+test", **columns, streaming=True), num_labels=3)
    assert streamed.streamed and not mapped.streamed
    for start, step in ((0, 1), (1, 2)):
        wanted, got = list(mapped.examples(start, step)), list(streamed.examples(start, step))
        assert [name for *_, name in got] == [name for *_, name in wanted] == ["a", "b", "c", "a"][start::step]
        for (image, label, _), (expected, truth, _) in zip(got, wanted, strict=True):
            assert image.tobytes() == expected.tobytes()
            np.testing.assert_array_equal(label, truth)
    assert torch.equal(label_counts(streamed), label_counts(mapped))
    with pytest.raises(ValueError, match="no column 'image'; it has pixels, annotation"):
        load_split(folder, "train", streaming=True)
    with pytest.raises(ValueError, match="no split 'validation'"):
        load_split(folder, "validation", **columns, streaming=True)


def test_streams_stay_encoded_however_they_are_ordered(tmp_path):
    split = make_split([LABEL, LABEL]).rename_columns({"image": "pixels", "label": "annotation"})
    folder = write_folder(tmp_path / "data", train=split)
    streamed = load_split(folder, "train", "pixels", "annotation", streaming=True)
    for dataset in (streamed, streamed.shuffle(seed=0, buffer_size=2)):
        for example in dataset:
            assert isinstance(example["image"]["bytes"], bytes) and isinstance(example["label"]["bytes"], bytes)


def corrupt_split(broken: set[int], size: int = 5) -> datasets.Dataset:
    split = make_split([LABEL] * size, name=[f"p{index}" for index in range(size)])
    rows = [
        {"bytes": b"no image", "path": None} if i in broken else split_row
        for i, split_row in enumerate(_encoded(split)["image"])
    ]
    return _encoded(split.remove_columns("image").add_column("image", rows))


def test_corrupt_examples_are_left_out_only_when_asked():
    split = corrupt_split({1, 2})
    for data in (split, split.to_iterable_dataset()):
        dataset = SegmentationDataset(data, num_labels=3, skip_corrupt=True)
        corrupt = []
        assert [name for *_, name in dataset.examples(corrupt=corrupt)] == ["p0", "p3", "p4"]
        assert [message.split(":")[0] for message in corrupt] == ["p1", "p2"]
        with pytest.raises(CorruptExample, match="p1: cannot be read"):
            list(SegmentationDataset(data, num_labels=3).examples())


def test_replacements_are_the_same_every_time():
    dataset = SegmentationDataset(corrupt_split({1, 2, 4}), num_labels=3, skip_corrupt=True)
    assert [dataset[(0, index)]["name"] for index in range(5)] == ["p0", "p3", "p3", "p3", "p0"]
    assert [len(dataset[(0, index)]["corrupt"]) for index in range(5)] == [0, 2, 1, 0, 1]
    stream = SegmentationDataset(corrupt_split({0, 3}).to_iterable_dataset(), num_labels=3, skip_corrupt=True)
    names = [stream[(0, index, example)]["name"] for index, example in stream.encoded()]
    assert names == ["p1", "p1", "p2", "p1", "p4"]
    with pytest.raises(ValueError, match="no example is readable; the first: p1: cannot be read"):
        SegmentationDataset(corrupt_split({0, 1, 2}, size=3), num_labels=3, skip_corrupt=True)[(0, 1)]


def test_a_wrong_id_is_no_corrupt_file():
    split = _encoded(make_split([LABEL, LABEL]))
    with pytest.raises(ValueError, match="label id 2 is outside"):
        SegmentationDataset(split, num_labels=2, skip_corrupt=True)[0]


def test_missing_files_are_named(tmp_path):
    split = _encoded(make_split([LABEL, LABEL], name=["gone", "none"]))
    rows = [{"bytes": None, "path": str(tmp_path / "gone.png")}, None]
    split = split.remove_columns("label").add_column("label", rows, feature=datasets.Image(decode=False))
    dataset = SegmentationDataset(split, num_labels=3)
    with pytest.raises(CorruptExample, match=r"gone \(label\): cannot be read .*gone\.png"):
        dataset[0]
    with pytest.raises(CorruptExample, match=r"none \(label\): there is no file"):
        dataset[1]


def test_damaged_parquet_is_one_error(tmp_path):
    folder = write_folder(tmp_path / "data", train=make_split([LABEL]))
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match="data cannot be read"):
        load_split(folder, "train")


def _encoded(split: datasets.Dataset) -> datasets.Dataset:
    for column in ("image", "label"):
        split = split.cast_column(column, datasets.Image(decode=False))
    return split


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_streams_corrupt_example_is_replaced_alike_in_every_worker(num_workers, shards):
    split = make_split([LABEL] * 4, name=list("abcd"))
    split = _encoded(split)
    images = split["image"][:]
    images[2] = {"bytes": b"none", "path": None}
    split = split.remove_columns("image").add_column("image", images)
    split = split.cast_column("image", datasets.Image(decode=False))
    dataset = SegmentationDataset(split.to_iterable_dataset(num_shards=shards), num_labels=3, skip_corrupt=True)
    keys = [(0, index, example) for index, example in enumerate(split)]
    loader = torch.utils.data.DataLoader(dataset, None, sampler=keys, num_workers=num_workers)
    assert [example["name"] for example in loader] == ["a", "b", "a", "d"]


def test_a_column_of_numbers_is_no_column_of_label_maps(tmp_path):
    split = make_split([LABEL] * 2).rename_column("label", "mask").add_column("label", [0, 1])
    folder = write_folder(tmp_path / "data", train=split)
    with pytest.raises(ValueError, match="the column 'label' holds int64 numbers, not images"):
        load_split(folder, "train")
    assert len(load_split(folder, "train", label_column_name="mask")) == 2
    with pytest.raises(ValueError, match="is a file; name its folder"):
        load_split(f"{folder}/train-00000-of-00001.parquet", "train")


def test_a_saved_split_answers_to_its_name_only(tmp_path):
    folder = str(tmp_path / "saved")
    datasets.load_dataset(write_folder(tmp_path / "data", train=make_split([LABEL])))["train"].save_to_disk(folder)
    assert len(load_split(folder, "train")) == 1
    with pytest.raises(ValueError, match="has no split 'validation'; it has train"):
        load_split(folder, "validation")


# Orientation, values, sizes of images and label maps


IMAGE = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
IDS = np.arange(24, dtype=np.uint8).reshape(6, 4)


def encoded_split(images: list[bytes], labels: list[bytes]) -> datasets.Dataset:
    rows = {
        "image": [{"bytes": encoded, "path": None} for encoded in images],
        "label": [{"bytes": encoded, "path": None} for encoded in labels],
        "name": [f"p{index}" for index in range(len(images))],
    }
    kind = datasets.Image(decode=False)
    features = datasets.Features({"image": kind, "label": kind, "name": datasets.Value("string")})
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("stored", [False, True], ids=["upright label map", "stored label map"])
def test_images_and_label_maps_are_upright(stored, suffix):
    orientations = range(1, 9)
    images = [encode_turned(IMAGE, orientation, suffix) for orientation in orientations]
    label_maps = [turn(IDS, orientation) if stored and orientation >= 5 else IDS for orientation in orientations]
    split = encoded_split(images, [png(label)["bytes"] for label in label_maps])
    turned_names = [f"p{index}" for index in range(4, 8)] if stored else []
    for data in (split, split.to_iterable_dataset()):
        dataset, turned = SegmentationDataset(data, num_labels=24), []
        examples = list(dataset.examples(turned=turned))
        assert len(examples) == 8 and turned == turned_names
        for image, label, _ in examples:
            np.testing.assert_array_equal(np.asarray(image), IMAGE)
            np.testing.assert_array_equal(label, IDS)
    dataset = SegmentationDataset(split, num_labels=24)
    for index in range(8):
        example = dataset[index]
        np.testing.assert_array_equal(example["image"].permute(1, 2, 0), IMAGE)
        np.testing.assert_array_equal(example["label"], IDS)
        assert example["turned"] == (example["name"] in turned_names)


def test_a_label_map_with_an_orientation_of_its_own_is_upright_by_that():
    pairs = [(image, label) for image in (1, 3, 6) for label in range(1, 9)]
    images = [encode_turned(IMAGE, orientation) for orientation, _ in pairs]
    dataset = SegmentationDataset(encoded_split(images, [encode_turned(IDS, label) for _, label in pairs]), 24)
    turned = []
    for image, label, _ in dataset.examples(turned=turned):
        np.testing.assert_array_equal(np.asarray(image), IMAGE)
        np.testing.assert_array_equal(label, IDS)
    assert not turned
    # None is turned twice, by its own orientation and its image's: such as an upright one with a copied EXIF block.
    copied = encode_turned(turn(IDS, 8), 6)
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(copied))), IDS)
    dataset = SegmentationDataset(encoded_split([encode_turned(IMAGE, 6)], [copied]), 24)
    with pytest.raises(CorruptExample, match="p0: the image is 6x4, its label map 4x6, turned by its own EXIF"):
        dataset.read(0)


def test_of_a_square_image_the_label_map_is_upright():
    split = encoded_split([encode_turned(IMAGE[:4], 6)], [png(IDS[:4])["bytes"]])
    image, label, _ = SegmentationDataset(split, num_labels=24).read(0)
    np.testing.assert_array_equal(np.asarray(image), IMAGE[:4])
    np.testing.assert_array_equal(label, IDS[:4])


def floats(label: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(label.astype(np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize("value", [1.7, 0.999999, -0.5, np.nan, np.inf])
def test_label_maps_of_fractions_are_refused_with_value_and_name(value):
    fractions = LABEL.astype(np.float32)
    fractions[0, 2] = value
    image = png(np.zeros((2, 3, 3), np.uint8))["bytes"]
    # However corrupt examples are treated: as with ids that are none, the labels are other than thought.
    dataset = SegmentationDataset(encoded_split([image] * 2, [floats(LABEL), floats(fractions)]), 3, skip_corrupt=True)
    np.testing.assert_array_equal(dataset.read(0)[1], LABEL)
    for read in (dataset.read, dataset.__getitem__, lambda index: label_counts(dataset, index)):
        with pytest.raises(ValueError, match=rf"^p1: .* whole numbers; got {fractions[0, 2]} at .* \(0, 2\)"):
            read(1)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3), np.float32), np.full((2, 3), 70000, np.int32)], ids=["float", "beyond 16 bits"]
)
def test_images_of_unknown_range_are_refused_by_name(array):
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, "TIFF")
    dataset = SegmentationDataset(encoded_split([buffer.getvalue()], [png(LABEL)["bytes"]]), num_labels=3)
    with pytest.raises(CorruptExample, match=r"p0: (floating point pixels|.* must lie in 0\.\.65535)"):
        dataset.read(0)


def test_images_above_the_limit_name_the_option_that_allows_them(monkeypatch):
    split = encoded_split([png(IMAGE)["bytes"]], [png(IDS)["bytes"]])
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 11)
    message = (
        r"p0 \(label\): cannot be read \(Image size \(24 pixels\) .*; --max_image_pixels allows larger images, 0 any"
    )
    with pytest.raises(CorruptExample, match=message):
        SegmentationDataset(split, num_labels=24).read(0)
    for allowed in (24, 0):
        assert SegmentationDataset(split, num_labels=24, max_image_pixels=allowed).read(0)[0].size == (4, 6)
    with pytest.raises(ValueError, match="max_image_pixels"):
        SegmentationDataset(split, num_labels=24, max_image_pixels=-1)


# Counting


def test_label_counts_have_the_ignored_pixels_too():
    dataset = SegmentationDataset(_encoded(make_split([LABEL, LABEL[:1]])), num_labels=4)
    counts = label_counts(dataset)
    assert counts[:4].tolist() == [2, 4, 2, 0] and counts[255] == 1 and counts.sum() == 9
    shares = [label_counts(dataset, start, 2) for start in (0, 1)]
    assert torch.equal(sum(shares), counts) and all(share.any() for share in shares)


@pytest.mark.parametrize("streamed", [False, True], ids=["mapped", "streamed"])
def test_a_sample_ends_where_all_classes_have_occurred(streamed):
    split = _encoded(make_split([np.full((2, 3), index % 3, np.uint8) for index in range(12)]))
    dataset = SegmentationDataset(split.to_iterable_dataset() if streamed else split, num_labels=3)
    counts, number = sample_label_counts(dataset)
    assert number == 3 and counts[:3].tolist() == [6, 6, 6]
    # From all over the split, every third of these; the first of a stream.
    counts, number = sample_label_counts(dataset, most=4)
    assert (number, counts[:3].tolist()) == ((3, [6, 6, 6]) if streamed else (4, [24, 0, 0]))
    counts, number = sample_label_counts(dataset, most=2)
    assert number == 2 and counts[:3].tolist() == ([6, 6, 0] if streamed else [12, 0, 0])


def test_a_sample_treats_corrupt_examples_as_everybody_does():
    split = corrupt_split({1})
    labels = split["label"][:]
    labels[0] = {"bytes": b"no image", "path": None}
    split = split.remove_columns("label").add_column("label", labels, feature=datasets.Image(decode=False))
    counts, number = sample_label_counts(SegmentationDataset(split, num_labels=4, skip_corrupt=True))
    assert number == 4 and counts[:4].tolist() == [4, 12, 4, 0]
    with pytest.raises(CorruptExample, match=r"p0 \(label\): cannot be read"):
        sample_label_counts(SegmentationDataset(split, num_labels=4))


@pytest.mark.parametrize(
    ("wrong", "ignore_index", "allowed"), [(256, 255, "1..3 and is not 255"), (251, 250, "1..3 and is not 250")]
)
def test_an_id_that_reducing_would_make_the_ignored_one_is_refused(wrong, ignore_index, allowed):
    split = encoded_split(
        [png(np.zeros((2, 3, 3), np.uint8))["bytes"]], [png(np.full((2, 3), wrong, np.uint16))["bytes"]]
    )
    dataset = SegmentationDataset(split, 3, ignore_index, reduce_labels=True)
    with pytest.raises(InputError, match=f"label id {wrong} is outside {allowed}"):
        dataset.read(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_labels": "a"}, "`num_labels` must be an integer, got 'a'"),
        ({"num_labels": 1}, "`num_labels` must be at least 2, got 1"),
        ({"num_labels": -1}, "`num_labels` must be at least 0, got -1"),
        ({"num_labels": 3, "ignore_index": "a"}, "`ignore_index` must be an integer, got 'a'"),
        ({"num_labels": 3, "max_image_pixels": "a"}, "max_image_pixels must be a number of pixels, .* got 'a'"),
    ],
)
def test_arguments_of_another_kind_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        SegmentationDataset(_encoded(make_split([LABEL])), **arguments)
