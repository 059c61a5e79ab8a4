"""A few hundred hostile inputs, drawn by seed, each answered rightly or refused by one clear sentence.

`hostile.py` makes and judges them; here stands what is done with each kind and what a right answer is. A kind is added
as a generator of (what was done to the input, a function that hands it to the package and checks the answer), as in
`training/test_state_fuzz.py` too.
"""

import contextlib
import io
import json
import random
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hostile import Case, check, hostile_bytes, hostile_tree, hostile_values, unclear
from PIL import Image
from tiny_dataset import NUM_LABELS, encoded, striped_image, striped_label, write_dataset
from tiny_models import tiny_model

from ccnet_hf import CCNetImageProcessor
from ccnet_hf.cli import main
from ccnet_hf.data.images import read_image
from ccnet_hf.data.loading import SegmentationDataset, load_split
from ccnet_hf.data.preparation.prepare import prepare_dataset
from ccnet_hf.errors import InputError
from ccnet_hf.inference import Predictor
from ccnet_hf.inference.loading import load_checkpoint
from ccnet_hf.training.initialization import load_backbone_checkpoint
from ccnet_hf.training.training_arguments import run_training
from ccnet_hf.untrusted_checkpoints import read_state_dict


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    tiny_model(num_labels=NUM_LABELS).save_pretrained(folder)
    palette = [[250, 20, 20], [20, 250, 20], [20, 20, 250]]
    CCNetImageProcessor(size={"shortest_edge": 24, "longest_edge": 40}, palette=palette).save_pretrained(folder)
    return folder


def predict(folder: Path) -> None:
    """Load a checkpoint and label an image with it."""
    predictor = Predictor(*load_checkpoint(str(folder), device="cpu"))
    label_map = predictor.label_map(Image.fromarray(striped_image(0, 16, 24)))
    num_labels = predictor.config.num_labels
    assert label_map.shape == (16, 24) and 0 <= label_map.min() <= label_map.max() < num_labels
    assert all(isinstance(predictor.config.id2label[label], str) for label in range(num_labels))


# Fields of other models and of transformers' own that a file might have as well.
CONFIG_NAMES = (
    *("dtype", "num_labels", "auto_map", "quantization_config", "attn_implementation", "return_dict"),
    *("output_attentions", "architectures", "configuration_files", "problem_type", "pruned_heads", "to_dict"),
)
PROCESSOR_NAMES = ("image_processor_type", "auto_map", "pad_size", "crop_size", "resample", "device", "preprocess")


def configurations(folder: Path) -> Iterator[Case]:
    """A checkpoint whose `config.json` or `preprocessor_config.json` has odd fields, or is damaged."""
    for name, fields, count in (("config.json", CONFIG_NAMES, 40), ("preprocessor_config.json", PROCESSOR_NAMES, 30)):
        right = (folder / name).read_bytes()
        for seed in range(count):
            done, tree = hostile_tree(json.loads(right), seed, fields)
            (folder / name).write_text(json.dumps(tree))
            yield f"{name} {seed}: {done}", partial(predict, folder)
        for seed in range(15):
            done, content = hostile_bytes(right, seed, other=b"\x89PNG\r\n")
            (folder / name).write_bytes(content)
            yield f"{name} {seed}: {done}", partial(predict, folder)
        (folder / name).write_bytes(right)


def weights(folder: Path) -> Iterator[Case]:
    """A checkpoint whose weights are damaged, in the header or in the numbers."""
    file = folder / "model.safetensors"
    right = file.read_bytes()
    header = int.from_bytes(right[:8], "little")
    for seed in range(40):
        if seed % 2:
            done, content = hostile_bytes(right, seed, other=right[::-1])
        else:
            done, tree = hostile_tree(json.loads(right[8 : 8 + header]), seed, ("__metadata__",))
            text = json.dumps(tree).encode()
            content = len(text).to_bytes(8, "little") + text + right[8 + header :]
        file.write_bytes(content)
        yield f"{file.name} {seed}: {done}", partial(predict, folder)
    file.write_bytes(right)


@pytest.mark.parametrize("kind", [configurations, weights], ids=lambda kind: kind.__name__)
def test_checkpoints(checkpoint, tmp_path, kind):
    shutil.copytree(checkpoint, tmp_path / "model")
    check(kind(tmp_path / "model"))


def pth_files(folder: Path) -> Iterator[Case]:
    """Files of torch.save, in both its formats, read as a checkpoint to convert and as a backbone's."""
    backbone = tiny_model().model.backbone
    state_dict = backbone.state_dict()

    def convert(file: Path) -> None:
        found = read_state_dict(file)
        assert found and all(isinstance(tensor, torch.Tensor) for tensor in found.values())

    for is_zip in (True, False):
        file = folder / "weights.pth"
        torch.save({"meta": {"epoch": 1}, "state_dict": state_dict}, file, _use_new_zipfile_serialization=is_zip)
        right = file.read_bytes()
        for seed in range(20):
            done, content = hostile_bytes(right, seed, other=right[::-1])
            file.write_bytes(content)
            yield f"convert {seed}: {done}", partial(convert, file)
            yield f"backbone {seed}: {done}", partial(load_backbone_checkpoint, backbone, file)


def test_pth_files(tmp_path):
    check(pth_files(tmp_path))


def image_files() -> Iterator[tuple[str, bytes]]:
    """Right image files of several formats and modes."""
    image = Image.fromarray(striped_image(0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    forms = {
        "jpeg": (image, {"format": "JPEG", "exif": exif}),
        "png": (image, {"format": "PNG"}),
        "palette": (image.quantize(8), {"format": "PNG"}),
        "16 bits": (Image.fromarray(striped_label(0).astype(np.uint16) * 20_000), {"format": "PNG"}),
        "tiff": (image.convert("CMYK"), {"format": "TIFF", "compression": "tiff_lzw"}),
        "gif": (image, {"format": "GIF"}),
        "webp": (image.convert("RGBA"), {"format": "WEBP", "lossless": True}),
        "bmp": (image.convert("L"), {"format": "BMP"}),
    }
    for name, (picture, options) in forms.items():
        buffer = io.BytesIO()
        picture.save(buffer, **options)
        yield name, buffer.getvalue()


def segmentation_dataset() -> SegmentationDataset:
    return SegmentationDataset(None, num_labels=NUM_LABELS)


def decode(image: bytes, label: bytes) -> np.ndarray:
    """Read an example as training does; its ids."""
    columns = {"image": {"bytes": image, "path": None}, "label": {"bytes": label, "path": None}, "name": "example"}
    found, ids, _ = segmentation_dataset().decode(columns, 0)
    assert found.mode == "RGB" and ids.dtype == np.uint8 and ids.shape == (found.height, found.width)
    assert np.isin(ids, [*range(NUM_LABELS), 255]).all()
    return ids


def decode_labels(image: bytes, label: bytes, values: np.ndarray) -> None:
    """Ids come out as they are, and nothing else is taken for one."""
    are_ids = np.isin(values, [*range(NUM_LABELS), 255]).all()
    try:
        ids = decode(image, label)
    except InputError:
        assert not are_ids, "refused"
        raise
    assert are_ids, f"read as {np.unique(ids)}"
    np.testing.assert_array_equal(ids, values)


def images(folder: Path) -> Iterator[Case]:
    """Damaged images, read for inference and for training."""
    file = folder / "image"

    def read() -> None:
        image = read_image(file)
        assert image.mode == "RGB" and min(image.size) > 0
        np.asarray(image)

    label = encoded(striped_label(0))
    for name, right in image_files():
        for seed in range(8):
            done, content = hostile_bytes(right, seed, other=label)
            file.write_bytes(content)
            yield f"{name} {seed}: {done}, inference", read
            yield f"{name} {seed}: {done}, training", partial(decode, content, label)


def label_maps(folder: Path) -> Iterator[Case]:
    """Damaged label maps, and ones that hold what is no class."""
    image = encoded(striped_image(0))
    for seed in range(40):
        done, content = hostile_bytes(encoded(striped_label(0)), seed, other=image)
        yield f"{seed}: {done}", partial(decode, image, content)
    draw = np.random.default_rng(0)
    for dtype in (np.uint8, np.uint16, np.int32, np.float32, bool):
        for values in ([0, 1, 2], [0, 255], [3], [254], [0.5], [-1], [256], [70_000], [np.nan], [np.inf]):
            with np.errstate(invalid="ignore"):
                odd = draw.choice(np.array(values), (36, 48)).astype(dtype)
            content = encoded(odd, "TIFF")
            yield f"{np.dtype(dtype)} of {values}", partial(decode_labels, image, content, odd)


@pytest.mark.parametrize("kind", [images, label_maps], ids=lambda kind: kind.__name__)
def test_pictures(tmp_path, kind):
    check(kind(tmp_path))


def archives(folder: Path) -> Iterator[Case]:
    """Damaged archives of a benchmark, prepared."""
    members = {}
    for index in range(2):
        members[f"CamVid/train/{index}.png"] = encoded(striped_image(index, 360, 480))
        members[f"CamVid/trainannot/{index}.png"] = encoded(striped_label(index, 360, 480))
    with zipfile.ZipFile(folder / "right.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    for form in ("tar", "tar.gz"):
        with tarfile.open(folder / f"right.{form}", "w:gz" if form == "tar.gz" else "w") as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))

    def prepare(file: Path) -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        prepared = prepare_dataset("camvid", file, folder / "out", allow_incomplete=True)
        assert prepared.num_examples and set(prepared.num_examples) <= {"train", "validation", "test"}
        assert max(prepared.num_examples.values()) <= 2

    for form in ("zip", "tar", "tar.gz"):
        right = (folder / f"right.{form}").read_bytes()
        yield f"{form}", partial(prepare, folder / f"right.{form}")
        for seed in range(12):
            done, content = hostile_bytes(right, seed, other=right[len(right) // 3 :])
            file = folder / f"{seed}.{form}"
            file.write_bytes(content)
            yield f"{form} {seed}: {done}", partial(prepare, file)


def test_archives(tmp_path):
    check(archives(tmp_path))


def datasets_on_disk(folder: Path) -> Iterator[Case]:
    """Damaged parquet files, read as a training split."""
    write_dataset(folder / "right")
    files = sorted(path.name for path in (folder / "right").iterdir())

    def read(data: Path) -> None:
        dataset = SegmentationDataset(load_split(str(data), "train"), num_labels=NUM_LABELS)
        for image, label, _ in dataset.examples():
            assert image.mode == "RGB" and label.shape == (image.height, image.width)

    for seed in range(15):
        data = folder / str(seed)
        shutil.copytree(folder / "right", data)
        name = random.Random(seed).choice(files)
        done, content = hostile_bytes((data / name).read_bytes(), seed, other=b"PAR1" * 100)
        (data / name).write_bytes(content)
        yield f"{name} {seed}: {done}", partial(read, data)


def test_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    check(datasets_on_disk(tmp_path))


def yaml_files(folder: Path) -> Iterator[Case]:
    """Odd and damaged files for `train --config`."""
    variant = "ccnet-mobilenetv2-camvid"
    fields = {"variant": variant, "dataset_name": "d", "output_dir": "o", "crop_size": [4, 8], "streaming": True}
    fields |= {"learning_rate": 1e-3, "seed": 3, "optimizer": "sgd", "freeze": ["a"], "photometric_distortion": False}
    file = folder / "training.yaml"

    def parse() -> None:
        seen = []
        words = ["--config", str(file), "--variant", variant, "--dataset_name", "d", "--output_dir", "o"]
        with contextlib.redirect_stderr(io.StringIO()) as told:
            try:
                status = run_training(lambda model, *others: seen.append(model), words)
            except SystemExit as error:
                status = error.code
        if status:
            assert status == 2 and not unclear(told.getvalue().rstrip("\n"))
        else:
            assert seen[0].variant == variant

    for seed in range(40):
        done, tree = hostile_tree(fields, seed, ("report_to", "ema_decay", "compile", "hub_model_id", "config"))
        file.write_text(yaml.safe_dump(tree))
        yield f"{seed}: {done}", parse
        done, content = hostile_bytes(yaml.safe_dump(fields).encode(), seed, other=b"\0\xff&a [*a]")
        file.write_bytes(content)
        yield f"{seed}: {done}", parse


def test_yaml_files(tmp_path):
    check(yaml_files(tmp_path))


def command_lines(model: Path, data: Path, image: Path) -> Iterator[Case]:
    """Commands with one to three options of odd values."""
    words = ["-1", "0", "1", "2", "1.5", "nan", "inf", "1e400", "9" * 5000, str(10**9), "true", "", " ", "\t\n", "x"]
    words += ["--", "-", "a b", "./.", "/dev/null", "/dev/null/x", "~", "*", "größe", "\udcff", str(image), "{}"]
    base = ["--model_name_or_path", str(model), "--device", "cpu"]
    commands = {
        ("segment", str(image), "--output_dir", "out", *base): (
            *(
                "--scales",
                "--crop_size",
                "--stride",
                "--mode",
                "--dtype",
                "--device",
                "--model_name_or_path",
                "--flip",
            ),
            *("--skip_corrupt", "--output_dir"),
        ),
        ("eval", "--dataset_name", str(data), "--split", "validation", *base): (
            *("--batch_size", "--scales", "--split", "--dataset_name", "--image_column_name", "--label_column_name"),
            *("--do_reduce_labels", "--name_prefix", "--output_json", "--dataset_config_name", "--streaming"),
        ),
        ("train", "--variant", "ccnet-r50-ade20k", *base[:2], "--dataset_name", "none", "--output_dir", "run"): (
            *("--num_labels", "--crop_size", "--scale", "--batch_size", "--learning_rate", "--seed", "--ratio_range"),
            *("--config", "--freeze", "--report_to", "--recurrence", "--optimizer", "--no-compile", "--variant"),
        ),
        ("convert_checkpoint", "--output", "converted", "--variant", "none"): (
            *("--variant", "--checkpoint", "--checkpoints", "--num_labels", "--recurrence", "--all"),
        ),
        ("prepare_dataset", "camvid", "--source", str(data), "--output_dir", "prepared"): (
            *("--source", "--num_proc", "--output_dir", "--allow_incomplete"),
        ),
        ("push_to_hub", "--dataset", str(data), "--hub_dataset_id", "me/data", "--dry_run"): (
            *("--dataset", "--hub_dataset_id", "--variant", "--checkpoints", "--namespace", "--private"),
        ),
        ("zoo", "verify", str(model)): ("--variant", "--goldens"),
        ("zoo", "export", str(model), "--output", "none/none.pth", "--output", str(image)): ("--output",),
        ("kernels", "build", "--arch", "1.0"): ("--arch", "--output"),
        ("benchmark", "op", "--sizes", "3x4", "--device", "none"): (
            "--sizes",
            "--threads",
            "--batch_sizes",
            "--device",
        ),
        ("far_marks", "--output_dir", "far", "--recurrences", "-1"): ("--seeds", "--max_train_steps"),
    }
    for seed in range(90):
        draw = random.Random(seed)
        command, options = draw.choice(list(commands.items()))
        line = list(command)
        for _ in range(draw.choice((1, 1, 2, 3))):
            line.append(draw.choice(options))
            line += draw.choices(words, k=draw.choice((0, 1, 1, 1, 2)))
        yield f"{seed}: {' '.join(line)[:300]}", partial(run, line)


def run(line: list[str]) -> None:
    """Run a command line: a status, and at most one line that says what is wrong."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            status = main(line)
        except SystemExit as error:
            status = error.code
    errors = [text for text in told.getvalue().replace("\r", "\n").splitlines() if text.startswith("error")]
    assert (status, len(errors)) in ((0, 0), (1, 1), (2, 1)), f"status {status}, {told.getvalue()[-300:]}"
    assert not any(map(unclear, errors))


def test_command_lines(checkpoint, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    write_dataset(tmp_path / "data")
    (tmp_path / "image.png").write_bytes(encoded(striped_image(0)))
    check(command_lines(checkpoint, tmp_path / "data", tmp_path / "image.png"))


def test_the_same_seed_draws_the_same():
    tree = {"a": {"b": [1, 2, 3]}, "c": "d"}
    for seed in range(50):
        assert hostile_bytes(b"0123456789" * 50, seed, b"x") == hostile_bytes(b"0123456789" * 50, seed, b"x")
        assert repr(hostile_tree(tree, seed)) == repr(hostile_tree(tree, seed))
    assert tree == {"a": {"b": [1, 2, 3]}, "c": "d"} and len(hostile_values()) > 40
    assert len({done for seed in range(50) for done, _ in [hostile_tree(tree, seed)]}) > 40
