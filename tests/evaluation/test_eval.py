"""eval.py from a checkpoint and a folder to tables and files, on one process and on several."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model
from turned import encode_turned, turn

from ccnet_hf import CCNetImageProcessor
from ccnet_hf.data.benchmarks.cityscapes import CITYSCAPES, LABEL_IDS
from ccnet_hf.evaluation import eval as evaluate_module
from ccnet_hf.evaluation.eval import main
from ccnet_hf.inference import Predictor
from ccnet_hf.inference.predictor_arguments import PredictorArguments


SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "eval.py"
SIZES = [(40, 56), (33, 70), (40, 56), (48, 31), (40, 56)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A tiny model with the classes of Cityscapes."""
    names = CITYSCAPES.id2label
    model = tiny_model(num_labels=19, id2label=names, label2id={name: label for label, name in names.items()})
    torch.nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(1))
    model.classifier.weight.data -= model.classifier.weight.mean(dim=1, keepdim=True)  # else one class wins everywhere
    folder = str(tmp_path_factory.mktemp("model"))
    model.save_pretrained(folder)
    CCNetImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(folder)
    return folder


def blocks(generator: np.random.Generator) -> np.ndarray:
    """An image of coloured blocks, large enough for the model to tell apart."""
    return generator.integers(0, 256, size=(4, 5, 3)).astype(np.uint8).repeat(16, axis=0).repeat(16, axis=1)


@pytest.fixture(scope="module")
def split() -> datasets.Dataset:
    generator = np.random.default_rng(0)
    labels = [generator.choice([*range(19), 255], size=size).astype(np.uint8) for size in SIZES]
    rows = {
        "image": [blocks(generator)[: size[0], : size[1]] for size in SIZES],
        "label": labels,
        "name": [f"berlin_{index:06}_000019" for index in range(len(SIZES))],
    }
    features = {"image": datasets.Image(), "label": datasets.Image(), "name": datasets.Value("string")}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.fixture(scope="module")
def folder(split, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data")
    split.to_parquet(folder / "validation-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture
def run(checkpoint, folder, tmp_path, monkeypatch):
    """Score in this process, on the CPU; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    options = ["--model_name_or_path", checkpoint, "--dataset_name", folder, "--device", "cpu"]
    return lambda *more: main([*options, *more])


@pytest.fixture(scope="module")
def expected(checkpoint, split):
    """Label maps and the confusion matrix, counted in the plainest way."""
    from ccnet_hf import CCNetForSemanticSegmentation

    model = CCNetForSemanticSegmentation.from_pretrained(checkpoint).eval()
    predictor = Predictor(model, CCNetImageProcessor.from_pretrained(checkpoint))
    label_maps = [predictor.label_map(image.convert("RGB")).numpy() for image in split["image"]]
    matrix = np.zeros((19, 20), dtype=np.int64)
    for label_map, truth in zip(label_maps, map(np.asarray, split["label"]), strict=True):
        np.add.at(matrix, (truth[truth != 255], label_map[truth != 255]), 1)
    assert (matrix.sum(0) > 50).sum() >= 3, "the model must not say the same everywhere"
    return label_maps, matrix


def test_tables_and_files(run, expected, capsys):
    assert run("--output_json", "deep/scores.json", "--output_markdown", "scores.md") == 0
    report = json.loads(Path("deep/scores.json").read_text())
    _, matrix = expected
    assert report["confusion_matrix"] == matrix.tolist()
    hits, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)[:19]
    assert report["mean_iou"] == pytest.approx(np.mean(hits / (truth + predicted - hits)), abs=1e-12)
    assert report["mean_accuracy"] == pytest.approx(np.mean(hits / truth), abs=1e-12)
    assert report["overall_accuracy"] == pytest.approx(hits.sum() / matrix.sum(), abs=1e-12)
    assert (report["num_examples"], report["skipped"], report["mode"], report["flip"]) == (5, [], "whole", False)
    output, markdown = capsys.readouterr().out, Path("scores.md").read_text()
    line = f"| {'road':13} | {100 * report['per_category_iou'][0]:6.2f} | "
    means = f"mIoU {100 * report['mean_iou']:.2f}, mAcc {100 * report['mean_accuracy']:.2f}, aAcc"
    for text in (output, markdown):
        assert line in text and means in text and text.count("\n| ") == (20 if text == markdown else 19)


@pytest.mark.parametrize(
    "options",
    [["--batch_size", "3"], ["--streaming"], ["--runtime", "eager"]],
    ids=["batched", "streamed", "rewritten"],
)
def test_however_it_is_read_or_run_the_score_is_the_same(run, expected, options):
    assert run("--output_json", "scores.json", *options) == 0
    report = json.loads(Path("scores.json").read_text())
    assert report["runtime"] == ("eager" if "eager" in options else None)
    matrix = np.array(report["confusion_matrix"])
    # A batch may round another way, which moves pixels whose two best classes tie.
    assert np.abs(matrix - expected[1]).sum() <= 4


@pytest.mark.parametrize("streaming", [[], ["--streaming"]], ids=["mapped", "streamed"])
def test_a_prefix_chooses_examples(run, split, streaming):
    assert run("--output_json", "scores.json", "--name_prefix", "berlin_000003", *streaming) == 0
    report = json.loads(Path("scores.json").read_text())
    assert report["num_examples"] == 1
    assert np.sum(report["confusion_matrix"]) == (np.asarray(split["label"][3]) != 255).sum()


def test_absent_classes_are_null_in_json_and_a_dash_in_tables(run, checkpoint, split, tmp_path, capsys):
    """Labels without `train` and a model that never says so."""
    from ccnet_hf import CCNetForSemanticSegmentation

    model = CCNetForSemanticSegmentation.from_pretrained(checkpoint)
    torch.nn.init.constant_(model.classifier.bias[16], -1e4)
    model.save_pretrained(tmp_path / "model")
    CCNetImageProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path / "model")
    labels = [np.where(np.asarray(label) == 16, 255, np.asarray(label)) for label in split["label"]]
    rows = {"image": split["image"][:], "label": labels, "name": split["name"][:]}
    without = datasets.Dataset.from_dict(rows, features=split.features)
    (tmp_path / "data").mkdir()
    without.to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    assert run("--model_name_or_path", "model", "--dataset_name", "data", "--output_json", "scores.json") == 0
    report = json.loads(Path("scores.json").read_text(), parse_constant=pytest.fail)
    assert report["per_category_iou"][16] is None and report["per_category_accuracy"][16] is None
    assert f"| {'train':13} | {'-':>6} | {'-':>8} |" in capsys.readouterr().out


@pytest.mark.parametrize("labelled", [True, False], ids=["with labels", "without labels"])
def test_label_ids_for_the_cityscapes_server(run, expected, split, labelled, tmp_path, capsys):
    options = []
    if not labelled:
        (tmp_path / "data").mkdir()
        split.remove_columns("label").to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
        options = ["--dataset_name", "data", "--label_column_name", ""]
    assert run("--export_dir", "export", *options) == 0
    output = capsys.readouterr().out
    assert "label ids of 5 images" in output
    assert ("mIoU" in output) == labelled and ("no pixel is labelled: no scores" in output) != labelled
    files = sorted(Path("export").iterdir())
    assert [file.name for file in files] == [f"berlin_{index:06}_000019_labelIds.png" for index in range(5)]
    for file, label_map in zip(files, expected[0], strict=True):
        image = Image.open(file)
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), np.array(LABEL_IDS)[label_map])


@pytest.mark.parametrize("num_processes", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_processes_share_the_work_and_agree(checkpoint, folder, expected, tmp_path, num_processes):
    """Five images do not divide by two or three; each must be counted once, as by the one process of `expected`."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes), str(SCRIPT)]
    options = ["--model_name_or_path", checkpoint, "--dataset_name", folder, "--output_json", "scores.json"]
    options += ["--export_dir", "export"]
    options += ["--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, *options], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mIoU") == 1
    report = json.loads((tmp_path / "scores.json").read_text())
    assert report["confusion_matrix"] == expected[1].tolist()
    assert report["num_examples"] == 5 and len(list((tmp_path / "export").iterdir())) == 5


def test_the_process_group_ends_with_the_work(run):
    """Left open, its threads may abort the process while the interpreter shuts down."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert run() == 0
        assert not torch.distributed.is_initialized()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def corrupt(split: datasets.Dataset, folder: Path) -> None:
    images = split.cast_column("image", datasets.Image(decode=False))["image"][:]
    images[1]["bytes"] = images[1]["bytes"][:100]
    folder.mkdir()
    damaged = split.remove_columns("image").add_column("image", images, feature=datasets.Image())
    damaged.to_parquet(folder / "validation-00000-of-00001.parquet")


def test_corrupt_images_are_named_and_counted(run, split, tmp_path, capsys):
    corrupt(split, tmp_path / "data")
    assert run("--dataset_name", "data") == 1
    assert "error: berlin_000001_000019: cannot be read" in capsys.readouterr().err
    assert run("--dataset_name", "data", "--skip_corrupt", "--output_json", "scores.json") == 0
    output = capsys.readouterr().out
    assert "1 examples skipped:\n- berlin_000001_000019: cannot be read" in output and "4 images" in output
    report = json.loads(Path("scores.json").read_text())
    assert report["num_examples"] == 4 and len(report["skipped"]) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        (["--split", "test"], "has no split 'test'; it has validation (--split names another)"),
        (["--name_prefix", "bonn"], "no example to score"),
        (["--batch_size", "0"], "--batch_size must be at least 1, got 0"),
        (["--label_column_name", ""], "there is nothing to score"),
        (["--label_column_name", "mask"], "no column 'mask'"),
        (["--scales", "-1"], "scales must be positive"),
        (["--export_dir", "SCRIPT"], "SCRIPT cannot be written: not a directory"),
        (["--output_json", "SCRIPT/scores.json"], "SCRIPT/scores.json cannot be written: not a directory"),
        (["--output_json", "PIPE"], "PIPE is a pipe, a device or a socket"),
        (["--output_json", "a\0b"], "'a\\x00b' is no name of a file or folder: it holds a NUL character"),
        (["--output_markdown", "."], ". cannot be written: is a directory"),
    ],
)
def test_bad_input_is_one_line(run, capsys, options, message):
    Path("SCRIPT").touch()
    os.mkfifo("PIPE")
    assert run(*options) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize("option", ["--output_json", "--output_markdown"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(run, option, capsys, full_disk, monkeypatch):
    monkeypatch.setattr(PredictorArguments, "load_predictor", None)
    with full_disk(1000):
        assert run(option, "deep/file") == 1
    assert "deep/file cannot be written: file too large" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("deep").exists()


def test_a_full_disk_leaves_the_old_report(run, capsys, full_disk, monkeypatch):
    """It is full only when the work is done."""
    Path("scores.json").write_text("old")
    monkeypatch.setattr(evaluate_module, "check_file", lambda file: None)
    with full_disk(1000):
        assert run("--output_json", "scores.json") == 1
    assert "scores.json cannot be written: file too large" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in Path().iterdir()] == ["scores.json"] and Path("scores.json").read_text() == "old"
    assert run("--output_json", "scores.json") == 0
    assert json.loads(Path("scores.json").read_text())["num_examples"] == 5


def test_what_a_killed_export_left_is_not_handed_in(run):
    Path("export").mkdir()
    Path("export/.berlin_000001_000019_labelIds.png.0123abcd.unfinished.png").write_bytes(b"half")
    assert run("--export_dir", "export") == 0
    assert len(list(Path("export").iterdir())) == 5


def test_the_export_refuses_other_classes_and_names(run, checkpoint, split, tmp_path, capsys):
    config = json.loads((Path(checkpoint) / "config.json").read_text())
    config["id2label"]["0"] = "street"
    other = tmp_path / "model"
    other.mkdir()
    for file in Path(checkpoint).iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "config.json").write_text(json.dumps(config))
    assert run("--model_name_or_path", "model", "--export_dir", "export") == 1
    assert "--export_dir is for models with the 19 classes of Cityscapes" in capsys.readouterr().err
    (tmp_path / "data").mkdir()
    renamed = split.remove_columns("name").add_column("name", [f"image {index}" for index in range(5)])
    renamed.to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    assert run("--dataset_name", "data", "--export_dir", "export") == 1
    assert "image 0 does not begin with <city>_<sequence>_<frame>" in capsys.readouterr().err


def write_split(folder: Path, images: list[bytes], labels: list[np.ndarray]) -> None:
    features = {"image": datasets.Image(), "label": datasets.Image(), "name": datasets.Value("string")}
    rows = {
        "image": [{"bytes": image, "path": None} for image in images],
        "label": labels,
        "name": [f"p{index}" for index in range(len(images))],
    }
    folder.mkdir(exist_ok=True)
    split = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    split.to_parquet(folder / "validation-00000-of-00001.parquet")


@pytest.mark.parametrize("stored", [False, True], ids=["upright label maps", "stored label maps"])
def test_photographs_score_as_the_upright_images_do(run, expected, split, tmp_path, capsys, stored):
    """Also those whose label maps are of the size of the stored pixels only, which is said once."""
    images, labels = [np.asarray(image) for image in split["image"]], [np.asarray(label) for label in split["label"]]
    orientations = [3, 6, 8, 5, 1]
    if stored:
        labels = [turn(label, o) if o >= 5 else label for label, o in zip(labels, orientations, strict=True)]
    write_split(tmp_path / "data", list(map(encode_turned, images, orientations)), labels)
    assert run("--dataset_name", "data", "--output_json", "scores.json", "--output_markdown", "scores.md") == 0
    report = json.loads(Path("scores.json").read_text())
    assert report["confusion_matrix"] == expected[1].tolist()
    assert report["turned"] == (["p1", "p2", "p3"] if stored else [])
    for text in (capsys.readouterr().out, Path("scores.md").read_text()):
        assert text.count("EXIF orientation says: p1, p2, p3\n") == stored


def two_classes(folder: Path) -> None:
    tiny_model(num_labels=2).save_pretrained(folder)
    CCNetImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(folder)


def test_masks_of_0_and_255_are_noticed(run, tmp_path, capsys):
    two_classes(tmp_path / "model")
    mask = np.zeros((10, 10), np.uint8)
    mask[:2, :9], mask[2, 0] = 255, 255
    write_split(tmp_path / "data", [encode_turned(np.zeros((10, 10, 3), np.uint8), 1)] * 2, [mask, mask])
    arguments = ["--model_name_or_path", "model", "--dataset_name", "data"]
    assert run(*arguments, "--output_markdown", "scores.md", "--output_json", "scores.json") == 0
    line = "no pixel is labelled 1 (LABEL_1); 19.0 % are 255, which is ignored (of masks of 0 and 255, 255 has to "
    line += "become 1)"
    assert capsys.readouterr().out.count(f"{line}\n") == Path("scores.md").read_text().count(line) == 1
    assert json.loads(Path("scores.json").read_text())["num_ignored_pixels"] == 38
    write_split(tmp_path / "data", [encode_turned(np.zeros((10, 10, 3), np.uint8), 1)] * 2, [mask // 255, mask])
    assert run(*arguments) == 0
    assert "no pixel is labelled" not in capsys.readouterr().out


def test_images_above_the_limit_name_the_option_that_allows_them(run, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert run() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "berlin_000000_000019" in error and "--max_image_pixels allows larger images, 0 any" in error
    assert run("--max_image_pixels", "0") == 0
    assert run("--max_image_pixels", "-1") == 1
    assert "max_image_pixels must be a number of pixels" in capsys.readouterr().err


def test_a_dataset_that_cannot_be_read_is_one_line(run, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "state.json").write_text("[]")
    assert run("--dataset_name", "data") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: data cannot be read: ")
